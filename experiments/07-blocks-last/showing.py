"""How much reading the warm-ups' groups show, from the responses that runs have left in work/.

    python experiments/07-blocks-last/showing.py > experiments/07-blocks-last/showing.json
    python experiments/07-blocks-last/showing.py experiments/05-long-run    # of another experiment

A row shows reading where its first hit is what a sibling has found in an earlier try. Of each arm's
groups: how many there are, in how many all rows have the same first try, and which share of the
rows shows reading.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "01-countdown"))

from finds import Try, count  # noqa: E402

import interlace  # noqa: E402
from interlace.jsonl import read  # noqa: E402
from interlace.tasks import get_task  # noqa: E402
from interlace.tasks.tiny_countdown import tries_of  # noqa: E402


def showing(groups: Iterable[list[list[Try]]]) -> dict[str, Any]:
    """The counts of an arm's groups."""
    kept = list(groups)
    rows = sum(map(len, kept))
    shown = count(kept)["found, any: the same"]
    same = sum(len({row[0] for row in group}) == 1 for group in kept)
    return {
        "groups": len(kept),
        "same_first_try": same,
        "rows": rows,
        "rows_that_show": shown,
        "share": round(shown / rows, 3) if rows else None,
    }


def groups_in(
    folder: Path, tokenizer: Any, fewest: int = 2, max_number: int = 9
) -> Iterable[list[list[Try]]]:
    """The groups that an arm trained on, as tries."""
    task = get_task("tiny-countdown", split="train", max_number=max_number)
    for path in sorted(folder.glob("*.jsonl")):
        for _, entry in read(path):
            example, known = task.find(entry["example"]), {}
            texts = [
                tokenizer.decode(ids, skip_special_tokens=True) for ids in entry["completions"]
            ]
            tries = [tries_of(text) for text in texts]
            for one in {one for row in tries for one in row}:
                known[one] = task.verify(example, one).correct
            if len(tries) >= fewest:
                yield [[(one, known[one]) for one in row] for row in tries]


def main() -> int:
    """Print the counts of every arm whose responses are here."""
    _, tokenizer = interlace.load("tiny")
    home = Path(sys.argv[1]) if sys.argv[1:] else HERE
    config = yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8"))
    largest = config.get("task", {}).get("max_number", 9)
    folders = sorted(home.glob("work/seed-*/*/train/responses"))
    found = {
        "/".join(f.parts[-4:-2]): showing(groups_in(f, tokenizer, max_number=largest))
        for f in folders
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
