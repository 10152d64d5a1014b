"""The engine's oracle: a group fed again whole, with teacher forcing.

Axes: P groups, W width, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from interlace.attaching import is_attached
from interlace.engine.backends.base import Backend
from interlace.engine.kv import StoredPrompt
from interlace.engine.types import GroupOutput
from interlace.rows import Groups


def fed_again(groups: Sequence[GroupOutput], pad: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of one width as a left-padded training batch: ids, attention mask, and alive `[P, W,
    S]`."""
    width = groups[0].params.width
    longest_prompt = max(len(g.prompt_token_ids) for g in groups)
    longest = max(len(c.token_ids) for g in groups for c in g.completions)
    shape = (len(groups) * width, longest_prompt + longest)
    ids = torch.full(shape, pad)
    attention = torch.zeros(shape, dtype=torch.long)
    alive = torch.zeros(shape, dtype=torch.bool)
    for p, group in enumerate(groups):
        left = longest_prompt - len(group.prompt_token_ids)
        for w, (completion, fed) in enumerate(
            zip(group.completions, group.alive_positions(), strict=True)
        ):
            row = group.prompt_token_ids + completion.token_ids
            ids[p * width + w, left : left + len(row)] = torch.tensor(row)
            attention[p * width + w, left : left + len(row)] = 1
            alive[p * width + w, left : left + fed] = True
    return ids, attention, alive.unflatten(0, (len(groups), width))


@torch.no_grad()
def teacher_forced(model: nn.Module, groups: Sequence[GroupOutput]) -> list[list[list[float]]]:
    """The log-probability of every sampled token, per group and row, from one training pass."""
    ids, attention, alive = fed_again(groups)
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    start = torch.full((len(groups),), max(len(g.prompt_token_ids) for g in groups))
    extra = {"groups": Groups(alive.shape[1], alive, start)} if is_attached(model) else {}
    out = model(input_ids=ids, attention_mask=attention, position_ids=positions, **extra)
    logprobs = out.logits.float().log_softmax(dim=-1)
    longest_prompt = max(len(g.prompt_token_ids) for g in groups)
    width = alive.shape[1]
    return [
        [
            [
                logprobs[p * width + w, longest_prompt + t - 1, token].item()
                for t, token in enumerate(completion.token_ids)
            ]
            for w, completion in enumerate(group.completions)
        ]
        for p, group in enumerate(groups)
    ]


def largest_gap(model: nn.Module, groups: Sequence[GroupOutput]) -> float:
    """Largest difference of a log-probability while sampling from that of the training pass."""
    again = teacher_forced(model, groups)
    return max(
        abs(a - b)
        for group, rows in zip(groups, again, strict=True)
        for completion, row in zip(group.completions, rows, strict=True)
        for a, b in zip(completion.logprobs, row, strict=True)
    )


@torch.inference_mode()
def prefilled(backend: Backend, prompts: Sequence[Sequence[int]]) -> list[StoredPrompt]:
    """What a backend's prefill gives at its end."""
    parts = backend.prefill(prompts)
    while True:
        try:
            next(parts)
        except StopIteration as end:
            stored: list[StoredPrompt] = end.value
            return stored
