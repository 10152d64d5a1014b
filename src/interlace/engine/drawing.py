"""The next token of every live row, whatever parameters each is sampled by.

Axes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interlace.engine.memory import is_out_of_memory
from interlace.engine.sampling import Workspace, needs_history, sample, uniforms
from interlace.engine.state import Drawn, Row, RunningGroup
from interlace.errors import GenerationError


@dataclass
class Drawing:
    """What a step has given: each row's token, and the groups for which it could not."""

    tokens: dict[Row, Drawn] = field(default_factory=dict)
    failed: dict[RunningGroup, Exception] = field(default_factory=dict)


def draw(rows: Sequence[Row], logits: Float[Tensor, "R V"], workspace: Workspace) -> Drawing:
    """Draw for each row; rows that are sampled alike, in one call.

    A group whose logits are not numbers, or whose logits processors raise, fails alone. Only want
    of memory is raised: then nothing has been drawn, and the step can be done again.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(row.group.request.sampling_key, []).append(place)
    drawing = Drawing()
    for places in alike.values():
        part = logits if len(places) == len(rows) else logits[places]
        _draw_alike([rows[place] for place in places], part, workspace, drawing)
    for group in drawing.failed:
        for row in group.rows:
            drawing.tokens.pop(row, None)
    return drawing


def _draw_alike(
    rows: Sequence[Row], logits: Float[Tensor, "R V"], workspace: Workspace, drawing: Drawing
) -> None:
    try:
        drawing.tokens.update(zip(rows, _sampled(rows, logits, workspace), strict=True))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        groups = dict.fromkeys(row.group for row in rows)
        if len(groups) == 1:
            drawing.failed[rows[0].group] = error
            return
        for group in groups:  # each alone, so that only those fail that have to
            places = [place for place, row in enumerate(rows) if row.group is group]
            _draw_alike([rows[place] for place in places], logits[places], workspace, drawing)


def _sampled(
    rows: Sequence[Row], logits: Float[Tensor, "R V"], workspace: Workspace
) -> list[Drawn]:
    request = rows[0].group.request
    histories = None
    if needs_history(request.params):
        histories = [row.group.request.token_ids + row.tokens for row in rows]
    keys = np.array([row.key for row in rows], dtype=np.uint64)
    steps = np.array([len(row.tokens) for row in rows])
    uniform = uniforms(keys, steps)
    sampled = sample(logits, uniform, request.params, request.forbidden, histories, workspace)
    logprobs, sampled_logprobs = sampled.logprobs.tolist(), sampled.sampled_logprobs.tolist()
    tops: list[list[tuple[int, float]]] | list[None] = [None] * len(rows)
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        pairs = zip(sampled.top_tokens.tolist(), sampled.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    for row, logprob, sampled_logprob in zip(rows, logprobs, sampled_logprobs, strict=True):
        if logprob != logprob or sampled_logprob != sampled_logprob:
            raise _cannot_draw(row, logits_are_numbers=logprob == logprob)
    return list(map(Drawn, sampled.tokens.tolist(), logprobs, sampled_logprobs, tops))


def _cannot_draw(row: Row, logits_are_numbers: bool) -> GenerationError:
    where = f"prompt {row.group.request.index}, row {row.index}, step {len(row.tokens)}"
    if logits_are_numbers:
        return GenerationError(
            f"No token is left to sample at {where}: logits processors and forbidden tokens have "
            "taken all of them. Look at params.logits_processors; PAD and BOS are never sampled "
            "unless they are stop ids."
        )
    return GenerationError(
        f"The model's logits are not numbers (NaN or infinite) at {where}. Look for weights or "
        "activations that overflow; a wider dtype (bfloat16, float32) may help."
    )
