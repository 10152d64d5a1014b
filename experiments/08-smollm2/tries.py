"""What rows alone can do: does a try hit more often than a blind one, what does it claim?

    python experiments/08-smollm2/tries.py    # writes each queue's tries.json and table

Of rows that nobody coupled (coupled arms: at W = 1), only tries before the row's first hit: the
later ones repeat it. A blind try takes one of 15 pairs, so it hits in 6.7 %; one that takes a
number from the target hits in a third. A try claims a hit by its "!".
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "07-blocks-last"), str(HERE.parent / "01-countdown")]

from finds import records  # noqa: E402
from orders import MAIN, load_config, plan  # noqa: E402
from tables import fill, markdown  # noqa: E402
from units import Config, Places  # noqa: E402

from interlace.tasks import Example, get_task  # noqa: E402
from interlace.tasks.pair_sum import HIT, TRY  # noqa: E402

ARMS = (
    *("sft", "rlvr-40", "rlvr-40-fast", "rlvr", "sft-texts", "spliced", "plain"),
    *("mixed", "mixed-40-slow", "mixed-slow", "pmatch-warm", "pmatch-40-slow"),
)
COLUMNS = {
    "right": "rows right",
    "hits": "tries that hit",
    "subtract": "subtract",
    "of_the_numbers": "two of the numbers",
    "sums": "sum or difference right",
    "claims": "claim a hit",
    "false_claims": "of these false",
}
WHOLE = {"right": "rows", "false_claims": "claims"}  # else of the tries


def main() -> None:
    """Count all arms' tries anew."""
    for queue in (MAIN, "subtracting"):
        config = load_config(queue=queue, home=HERE)
        own = HERE if queue == MAIN else HERE / queue
        lines = shares(config, Places(own))
        path = own / "tries.json"
        path.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        section = "tries" if queue == MAIN else f"{queue}-tries"
        page = fill(HERE / "README.md", {section: table(lines, config["labels"])})
        print(f"wrote {path} and {page}")


def shares(config: Config, places: Places) -> list[dict[str, Any]]:
    """Of every arm and seed of a queue what its tries are."""
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
        own = {name: found[name] / max(found[WHOLE.get(name, "tries")], 1) for name in COLUMNS}
        lines.append({"arm": unit.arm, "seed": unit.seed, **own})
    return lines


def counts(example: Example, texts: Iterable[str]) -> Counter[str]:
    """Tries before a row's first hit, and what of them is right."""
    found: Counter[str] = Counter()
    for text in texts:
        for one in TRY.findall(text):
            first, second, result = (int(one[at]) for at in (0, 2, 3))
            taken = one[1] == "-"
            pair = {second, result} if taken else {first, second}
            own = len(pair & set(example.data["numbers"])) == 2
            hit = own and sum(pair) == example.data["target"]
            claims = one[4] == HIT
            found["tries"] += 1
            found["hits"] += hit
            found["subtract"] += taken
            found["of_the_numbers"] += own
            found["sums"] += result == (first - second if taken else first + second)
            found["claims"] += claims
            found["false_claims"] += claims and not hit
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
