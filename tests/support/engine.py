"""The engine's oracles: a group fed again whole, the plainest possible lockstep sampling, and how
large the tensors get that a piece of code makes.

The sampling is written against Hugging Face's cache alone and nothing of Interlace but `Groups`, so
that it can judge the rest. Axes: P groups, W width, R = P*W rows, S positions, T positions of a
completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, PreTrainedModel

from interlace.attached import get_attachment, is_attached
from interlace.engine.backends.hf import HFBackend
from interlace.engine.kv import StoredPrompt
from interlace.engine.types import GroupOutput
from interlace.rows import Groups
from interlace.training.batch import collate


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
def attention_by_teacher_forcing(model: nn.Module, group: GroupOutput) -> list[Tensor]:
    """`[T - 1]` of `[L, W, W]`, from the blocks of one training pass."""
    tokens, mask, alive = fed_again([group])
    prompt, seen = len(group.prompt_token_ids), []
    groups = Groups(alive.shape[1], alive, torch.tensor([prompt]))
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda block, args: seen.append(block.attention_weights(*args)[0].mean(dim=1))
        )
        for name in get_attachment(model).block_names
    ]
    model(input_ids=tokens, attention_mask=mask, groups=groups)
    for handle in handles:
        handle.remove()
    layers = torch.stack(seen)  # L S W W
    return list(layers[:, prompt:].transpose(0, 1))


@torch.no_grad()
def teacher_forced(model: nn.Module, groups: Sequence[GroupOutput]) -> list[list[list[float]]]:
    """The log-probability of every sampled token, per group and row, from one training pass."""
    ids, attention, alive = fed_again(groups)
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    start = torch.full((len(groups),), max(len(g.prompt_token_ids) for g in groups))
    mixing = collate(groups, pad_token_id=0).groups.mixing
    rows = Groups(alive.shape[1], alive, start, mixing=mixing)
    extra = {"groups": rows} if is_attached(model) else {}
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
def prefilled(backend: HFBackend, prompts: Sequence[Sequence[int]]) -> list[StoredPrompt]:
    """What a backend's prefill gives at its end."""
    parts = backend.prefill(prompts)
    while True:
        try:
            next(parts)
        except StopIteration as end:
            stored: list[StoredPrompt] = end.value
            return stored


PAD = 0


@dataclass
class Sampled:
    """Rows as they were fed, and what was recorded on the way."""

    input_ids: Tensor  # [R, S] prompts (left-padded) and completions
    attention_mask: Tensor  # [R, S]
    alive: Tensor  # [P, W, S]
    logits: Tensor  # [R, T, V] from which each token was drawn
    completion_mask: Tensor  # [R, T]
    width: int
    mixing: Tensor | None = None  # [P, S, W, W], of couplings that mix

    @property
    def prompt_length(self) -> int:
        return self.input_ids.shape[1] - self.completion_mask.shape[1]

    @property
    def logprobs(self) -> Tensor:
        """`[R, T]`, zero where nothing was sampled."""
        return chosen_logprobs(self.logits, self.input_ids[:, self.prompt_length :]).where(
            self.completion_mask, 0
        )


def left_pad(prompts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[R, S]`, each prompt `width` times in a row."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids.repeat_interleave(width, 0), mask.repeat_interleave(width, 0)


def positions_of(attention_mask: Tensor, last: int) -> Tensor:
    """Position ids of the last columns: the first real token of a row is at 0."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -last:]


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(token), from logits `[R, T, V]` and tokens `[R, T]`."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def expand(cache: DynamicCache, width: int, model: PreTrainedModel) -> None:
    """From one row a prompt to `width` rows a prompt, group-major; the streams of a row stay side
    by side."""
    cache.batch_repeat_interleave(width)
    attachment = getattr(model, "interlace_attachment", None)
    streams = getattr(attachment and attachment.config, "streams", 1)
    if streams > 1:
        rows = torch.arange(cache.layers[0].keys.shape[0]).view(-1, streams, width)
        cache.reorder_cache(rows.transpose(1, 2).flatten())


@torch.no_grad()
def sample_lockstep(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    width: int,
    lengths: Tensor,
    *,
    share_prefill: bool = False,
    seed: int = 5,
) -> Sampled:
    """Sample one token a step for all rows; row r finishes with its `lengths[r]`-th token.

    The lengths are given rather than left to chance: whatever finishes a row counts the same.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, mask = left_pad(prompts, width)
    alive = torch.ones_like(ids, dtype=torch.bool)
    cache = DynamicCache(config=model.config)
    attachment = getattr(model, "interlace_attachment", None)
    mixer: Any = None
    if attachment is not None and attachment.coupling.mixes:
        mixer = model.get_submodule(attachment.block_names[0])
    mixing = [torch.zeros(len(ids) // width, ids.shape[1], width, width)]
    reads = "position" if attachment is None else attachment.config.reads
    if reads != "position":
        logits = _feed_again(model, ids, mask, alive, ids.shape[1], width)
    elif share_prefill:
        out = _feed(model, ids[::width], mask[::width], cache, Groups(1))
        expand(cache, width, model)
        logits = out[:, -1].repeat_interleave(width, 0)
    else:
        nowhere = starts(len(ids) // width, ids.shape[1])
        logits = _feed(model, ids, mask, cache, Groups(width, None, nowhere))[:, -1]
    steps = int(lengths.max())
    seen, counted = [], []
    for step in range(steps):
        token = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]
        counts, finished = step < lengths, step + 1 >= lengths
        token = token.where(counts, PAD)
        seen.append(logits)
        counted.append(counts)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        alive = torch.cat([alive, ~finished[:, None]], 1)
        if step + 1 < steps and reads != "position":
            logits = _feed_again(model, ids, mask, alive, ids.shape[1] - step - 1, width)
        elif step + 1 < steps:
            groups = Groups(width, alive[:, -1:].unflatten(0, (-1, width)))
            if mixer is not None:
                said = logits.unflatten(0, (-1, 1, width))
                mixing.append(mixer.weights(said, groups.visible()))
                groups = Groups(width, groups.alive, mixing=mixing[-1])
            logits = _feed(model, ids[:, -1:], mask, cache, groups)[:, -1]
    return Sampled(
        ids,
        mask,
        alive.unflatten(0, (-1, width)),
        torch.stack(seen, 1),
        torch.stack(counted, 1),
        width,
        None if mixer is None else torch.cat([*mixing, torch.zeros_like(mixing[0][:, :1])], 1),
    )


def _feed(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: DynamicCache, groups: Groups
) -> Tensor:
    return model(
        ids,
        attention_mask=mask,
        position_ids=positions_of(mask, ids.shape[1]),
        past_key_values=cache,
        use_cache=True,
        groups=groups,
    ).logits


def _feed_again(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, alive: Tensor, prompt: int, width: int
) -> Tensor:
    """The last logits of a pass over all that there is, for blocks that read earlier positions."""
    groups = Groups(width, alive.unflatten(0, (-1, width)), starts(len(ids) // width, prompt))
    return model(
        ids,
        attention_mask=mask,
        position_ids=positions_of(mask, ids.shape[1]),
        use_cache=False,
        groups=groups,
    ).logits[:, -1]


def starts(count: int, column: int) -> Tensor:
    """`completion_start` of groups whose completions all begin in one column."""
    return torch.full((count,), column)


def teacher_force(
    model: PreTrainedModel, sampled: Sampled, alive: Tensor | None = None, seed: int = 6
) -> Tensor:
    """The logits `[R, T, V]` of a training pass, in micro-batches of one group.

    What a finished row is fed differs between sampling and training, so the pads are replaced by
    random tokens here, and half of them leave the attention mask.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, mask = sampled.input_ids.clone(), sampled.attention_mask.clone()
    after = torch.zeros_like(mask, dtype=torch.bool)
    after[:, sampled.prompt_length :] = ~sampled.completion_mask
    noise = torch.randint(1, model.config.vocab_size, ids.shape, generator=generator)
    ids = ids.where(~after, noise)
    mask = mask * (~after | (noise % 2 == 0))
    alive = sampled.alive if alive is None else alive
    start = starts(len(alive), sampled.prompt_length)
    groups = Groups(sampled.width, alive, start, mixing=sampled.mixing)
    parts = []
    for rows, part in groups.micro_batches(ids.shape[0], size=sampled.width):
        logits = model(
            ids[rows],
            attention_mask=mask[rows],
            position_ids=positions_of(mask[rows], ids.shape[1]),
            use_cache=False,
            groups=part,
        ).logits
        parts.append(logits[:, sampled.prompt_length - 1 : -1])
    return torch.cat(parts)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator makes, and what they make together.

    Args:
        last_axis: Size of the last axis of those that are looked at; None for all.
    """

    def __init__(self, last_axis: int | None = None) -> None:
        super().__init__()
        self.elements, self.total, self._last_axis = 0, 0, last_axis

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and self._counts(tensor):
                self.elements = max(self.elements, tensor.numel())
                self.total += tensor.numel()
        return out

    def _counts(self, tensor: torch.Tensor) -> bool:
        return self._last_axis is None or (tensor.ndim > 0 and tensor.shape[-1] == self._last_axis)
