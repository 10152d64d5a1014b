"""Blocks last: coupling blocks on a model that RLVR has trained, and other orders of training.

    python experiments/07-blocks-last/run.py                     # everything, in the config's order
    python experiments/07-blocks-last/run.py --only arm=spliced-120,seed=0
    python experiments/07-blocks-last/run.py --queue ending      # rows that end at their find
    python experiments/07-blocks-last/run.py --list              # the units and which are done
    python experiments/07-blocks-last/run.py --report            # tables from results/ as they are
    python experiments/07-blocks-last/run.py --smoke             # all code paths, in minutes

Units and queue are those of 01-countdown: killed at any point, the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orders import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent, __doc__))
