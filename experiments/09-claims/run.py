"""Claims of a public summary: the runs that they need beside those of other experiments.

    python experiments/09-claims/run.py                      # everything, in the config's order
    python experiments/09-claims/run.py --list               # the units and which are done
    python experiments/09-claims/run.py --report             # tables from results/ as they are
    python experiments/09-claims/run.py --smoke              # all code paths, in minutes
    python experiments/09-claims/claims.py                   # laws and costs, from records

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
