"""What rows alone can do: does a try hit more often than a blind one, what does it claim?

    python experiments/08-smollm2/tries.py    # writes tries.json and a table of README.md

Of rows that nobody coupled (coupled arms: at W = 1), only tries before the row's first hit: the
later ones repeat it. A blind try takes one of 15 pairs, so it hits in 6.7 %. A try claims a hit
where the sum that it writes is the target.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "07-blocks-last"), str(HERE.parent / "01-countdown")]

from finds import records  # noqa: E402
from orders import load_config, plan  # noqa: E402
from tables import fill, markdown  # noqa: E402
from units import Places  # noqa: E402

from interlace.tasks import Example, get_task  # noqa: E402

ARMS = ("sft", "rlvr-40", "rlvr-40-fast", "rlvr", "sft-texts", "spliced", "plain")
TRY = re.compile(r"([0-9]{2})\+([0-9]{2})=([0-9]{2})[;!]")
COLUMNS = {
    "right": "rows right",
    "hits": "tries that hit",
    "of_the_numbers": "two of the numbers",
    "sums": "sum right",
    "claims": "claim a hit",
    "false_claims": "of these false",
}


def main() -> None:
    """Count all arms' tries anew."""
    config, places = load_config(home=HERE), Places(HERE)
    options = dict(config["task"])
    task = get_task(options.pop("name"), split="test", **options)
    lines = []
    for unit in plan(config):
        if unit.arm not in ARMS or not unit.name.endswith("/final") or not places.outcome(unit):
            continue
        found: Counter[str] = Counter()
        for record in records(places, unit):
            if record.width == 1 or not record.coupled:
                found.update(counts(task.find(record.example_id), record.texts or ()))
                found["rows"] += len(record.correct)
                found["right"] += sum(record.correct)
        whole = {"right": "rows", "false_claims": "claims"}  # shares of tries but for these
        shares = {name: found[name] / found[whole.get(name, "tries")] for name in COLUMNS}
        lines.append({"arm": unit.arm, "seed": unit.seed, **shares})
    path = HERE / "tries.json"
    path.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    page = fill(HERE / "README.md", {"tries": table(lines, config["labels"])})
    print(f"wrote {path} and {page}")


def counts(example: Example, texts: Iterable[str]) -> Counter[str]:
    """Tries before a row's first hit, and what of them is right."""
    found: Counter[str] = Counter()
    for text in texts:
        for first, second, total in TRY.findall(text):
            pair = {int(first), int(second)}
            own = len(pair & set(example.data["numbers"])) == 2
            hit = own and sum(pair) == example.data["target"]
            found["tries"] += 1
            found["hits"] += hit
            found["of_the_numbers"] += own
            found["sums"] += int(first) + int(second) == int(total)
            found["claims"] += int(total) == example.data["target"]
            found["false_claims"] += int(total) == example.data["target"] and not hit
            if hit:
                break
    return found


def table(lines: list[dict[str, Any]], labels: dict[str, str]) -> str:
    """Arms and seeds by what is right, in per cent."""
    rows = [
        [labels[line["arm"]], str(line["seed"]), *(f"{100 * line[name]:.1f}" for name in COLUMNS)]
        for line in sorted(lines, key=lambda line: (ARMS.index(line["arm"]), line["seed"]))
    ]
    return markdown(["arm", "seed", *COLUMNS.values()], rows)


if __name__ == "__main__":
    main()
