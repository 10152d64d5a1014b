"""How much reading the warm-ups' groups show, from the responses that runs have left in work/.

    python experiments/07-blocks-last/showing.py > experiments/07-blocks-last/showing.json
    python experiments/07-blocks-last/showing.py experiments/08-smollm2 --queue subtracting

A row shows reading where its first hit is what a sibling has found in an earlier try. Of each arm's
groups: how many there are, in how many all rows have the same first try, and which share of the
rows shows reading.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "01-countdown"))

from finds import Try, count, tries_in  # noqa: E402
from orders import MAIN, QUEUES, load_config  # noqa: E402
from units import base_source  # noqa: E402

import interlace  # noqa: E402
from interlace.jsonl import read  # noqa: E402
from interlace.tasks import Task, get_task  # noqa: E402

Groups = Iterable[list[list[Try]]]


def showing(groups: Groups) -> dict[str, Any]:
    """The counts of an arm's groups."""
    kept = list(groups)
    rows = sum(map(len, kept))
    shown = count(kept)["found, any: the same"]
    same = sum(len({tuple(row[:1]) for row in group}) == 1 for group in kept)
    return {
        "groups": len(kept),
        "same_first_try": same,
        "rows": rows,
        "rows_that_show": shown,
        "share": round(shown / rows, 3) if rows else None,
    }


def groups_in(folder: Path, tokenizer: Any, task: Task, fewest: int = 2) -> Groups:
    """The groups that an arm trained on, as tries."""
    for path in sorted(folder.glob("*.jsonl")):
        for _, entry in read(path):
            rows = entry["completions"]
            if len(rows) >= fewest:
                texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]
                yield tries_in(task, task.find(entry["example"]), texts)


def main() -> int:
    """Print the counts of every arm whose responses are here."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path, nargs="?", default=HERE, help="an experiment's folder")
    parser.add_argument("--queue", choices=QUEUES, default=MAIN)
    given = parser.parse_args()
    config = load_config(queue=given.queue, home=given.home)
    options = dict(config["task"])
    task = get_task(options.pop("name"), split="train", **options)
    _, tokenizer = interlace.load(base_source(config, 0))
    out = given.home if given.queue == MAIN else given.home / given.queue
    folders = sorted(out.glob("work/seed-*/*/train/responses"))
    found = {"/".join(f.parts[-4:-2]): showing(groups_in(f, tokenizer, task)) for f in folders}
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
