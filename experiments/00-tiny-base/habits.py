"""What a model's rows look like, try by try: does it compute, does it stop at a hit?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from traces import TRIES, expressions

from interlace.tasks import Task


def habits(task: Task, records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Shares over all rows of an evaluation.

    Args:
        task: The task that was evaluated.
        records: The lines of its `records.jsonl`.

    Returns:
        Of all tries: `formed`, three numbers used once each; `computed`, their value right. Of the
        tries before the fourth: `stopped_at_hit`, ended where the target was reached;
        `stopped_at_miss`, ended where it was not. `tries`, the mean number in a row.
    """
    count: Counter[str] = Counter()
    for record in records:
        data = task.find(record["example_id"]).data
        known = dict(expressions(data["numbers"]))
        for text in record["texts"]:
            count["rows"] += 1
            tries = text.split(" ; ")
            for index, one in enumerate(tries):
                expression, _, value = one.partition(" = ")
                true_value = known.get(expression)
                kind = "hit" if true_value == str(data["target"]) else "miss"
                count["tries"] += 1
                count["formed"] += true_value is not None
                count["computed"] += true_value is not None and value == true_value
                if index < TRIES - 1:
                    count[kind] += 1
                    count[f"stopped_at_{kind}"] += index == len(tries) - 1
    of = {"formed": "tries", "computed": "formed", "tries": "rows"}
    of |= {f"stopped_at_{kind}": kind for kind in ("hit", "miss")}
    return {name: count[name] / max(count[whole], 1) for name, whole in of.items()}
