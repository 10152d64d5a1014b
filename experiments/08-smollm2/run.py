"""Blocks last on a pretrained language model: SmolLM2-135M-Instruct on pair sums.

    make smollm2
    python experiments/08-smollm2/run.py                     # everything, in the config's order
    python experiments/08-smollm2/run.py --only arm=spliced,seed=0
    python experiments/08-smollm2/run.py --list              # the units and which are done
    python experiments/08-smollm2/run.py --report            # tables from results/ as they are
    python experiments/08-smollm2/run.py --smoke             # all code paths, in minutes

From a base that has a way to find better than chance, so that RLVR rewards more than luck:

    python experiments/08-smollm2/run.py --queue subtracting

On a GPU five seeds and 500 rollouts (gpu), or GSM8K from an SFT on its solutions (gsm8k). Each call
ends after its minutes, several processes share the card, and the next call goes on. GSM8K comes
from the hub, or from a copy with --set task.data=train.jsonl:

    python experiments/08-smollm2/run.py --queue gpu --workers 5 --minutes 9
    python experiments/08-smollm2/run.py --queue gsm8k --workers 5 --minutes 9
    python experiments/08-smollm2/run.py --queue gpu --report

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
