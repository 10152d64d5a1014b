"""The long run: nine times 01's budget on thirteen times as many problems.

    python experiments/05-long-run/run.py                    # everything, in the config's order
    python experiments/05-long-run/run.py --only arm=rlvr-1080,seed=0
    python experiments/05-long-run/run.py --list             # the units and which are done
    python experiments/05-long-run/run.py --report           # tables from results/ as they are
    python experiments/05-long-run/run.py --smoke            # all code paths, in minutes

Its bases come from 00-tiny-base/make.py --max-number 25, seeds 0 and 1. Units, queue and tables are
those of 07-blocks-last: killed at any point, the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "07-blocks-last"))

from orders import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(HERE, __doc__))
