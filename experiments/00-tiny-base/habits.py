"""What a model's rows look like, try by try: does it compute, does it keep a hit?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from traces import expressions

from interlace.tasks import Task
from interlace.tasks.tiny_countdown import tries_of


def habits(task: Task, records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Shares over all rows of an evaluation.

    Args:
        task: The task that was evaluated.
        records: The lines of its `records.jsonl`.

    Returns:
        Of all tries: `formed`, three numbers used once each; `computed`, their value right. Of the
        tries after a hit: `kept`, the hit written again, token for token. Of those after misses
        alone: `repeated`, one of these misses written again. `tries`, the mean number in a row.
    """
    count: Counter[str] = Counter()
    for record in records:
        data = task.find(record["example_id"]).data
        known = dict(expressions(data["numbers"]))
        for text in record["texts"]:
            count["rows"] += 1
            hit, misses = None, set()
            for one in tries_of(text):
                expression, _, value = one.partition(" = ")
                true_value = known.get(expression)
                count["tries"] += 1
                count["formed"] += true_value is not None
                count["computed"] += true_value is not None and value == true_value
                if hit is not None:
                    count["after_hit"] += 1
                    count["kept"] += one == hit
                elif misses:
                    count["after_miss"] += 1
                    count["repeated"] += one in misses
                if hit is None and true_value == str(data["target"]):
                    hit = one
                misses.add(one)
    of = {"formed": "tries", "computed": "formed", "tries": "rows"}
    of |= {"kept": "after_hit", "repeated": "after_miss"}
    return {name: count[name] / max(count[whole], 1) for name, whole in of.items()}
