"""Couplings: the ways in which rows can read each other, side by side, in two orders of training.

    python experiments/04-couplings/run.py                   # everything, in the config's order
    python experiments/04-couplings/run.py --only arm=gated-last,seed=0
    python experiments/04-couplings/run.py --list            # the units and which are done
    python experiments/04-couplings/run.py --report          # tables from results/ as they are
    python experiments/04-couplings/run.py --smoke           # all code paths, in minutes

Units, queue and tables are those of 07-blocks-last: killed at any point, the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "07-blocks-last"))

from orders import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(HERE, __doc__))
