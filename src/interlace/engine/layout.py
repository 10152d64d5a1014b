"""What every layer of one decode step shares: which rows answer which prompt, and who sees what.

Axes: R live rows, N stored prompts, M most rows of one prompt, Q query heads of a key-value head,
U prompt positions, T completion positions, G key-value heads.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class StepLayout:
    """What every layer of one decode step shares: which rows answer which prompt, and the masks."""

    def __init__(
        self,
        row_prompts: list[int],
        row_lengths: list[int],
        prompt_lengths: list[int],
        device: torch.device,
    ) -> None:
        self.device = device
        # Of each layer: the rows' completions, the place of their new tokens, and the prompts.
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.new: dict[int, tuple[Tensor, Tensor]] = {}
        self.shared: dict[int, tuple[Tensor, Tensor]] = {}
        self.longest = max(row_lengths) + 1
        self.own_length = row_lengths[0] if len(set(row_lengths)) == 1 else None
        self.own_lengths: Int[Tensor, " R"] = torch.tensor(row_lengths, device=device)
        self.rows: Int[Tensor, " R"] = torch.arange(len(row_lengths), device=device)
        self.prompts = len(prompt_lengths)
        self.longest_prompt = max(prompt_lengths)
        self.prompt_lengths = torch.tensor(prompt_lengths, device=device)
        self.row_prompts: Int[Tensor, " R"] = torch.tensor(row_prompts, device=device)
        self._even_prompts = len(set(prompt_lengths)) == 1
        self.prompt_rows: Int[Tensor, "N M"] | None = None
        self._row_places: Int[Tensor, " R"] | None = None
        if self.prompts > 1:
            self._lay_out(row_prompts)
        self._masks: dict[tuple[str, int], Tensor | None] = {}

    def _lay_out(self, row_prompts: list[int]) -> None:
        """Rows side by side under their prompt, in a rectangle whose gaps repeat row 0."""
        members: list[list[int]] = [[] for _ in range(self.prompts)]
        for row, prompt in enumerate(row_prompts):
            members[prompt].append(row)
        most = max(len(m) for m in members)
        self.prompt_rows = torch.tensor(
            [m + [0] * (most - len(m)) for m in members], device=self.device
        )
        places = [0] * len(row_prompts)
        for prompt, rows in enumerate(members):
            for place, row in enumerate(rows):
                places[row] = prompt * most + place
        self._row_places = torch.tensor(places, device=self.device)

    def to_rows(self, spread: Tensor, rows: int) -> Tensor:
        """`[N, G, MQ, ...]` back to `[R, G, Q, ...]`."""
        if self._row_places is None:
            return spread[0].unflatten(1, (rows, -1)).transpose(0, 1)
        assert self.prompt_rows is not None
        per_row = spread.unflatten(2, (self.prompt_rows.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return per_row[self._row_places]

    def own_mask(self, window: int, dtype: torch.dtype) -> Float[Tensor, "R 1 1 T"] | None:
        """Which of its completion's positions a row sees; None when all."""
        key = ("own", window)
        if key not in self._masks:
            self._masks[key] = self._own_mask(window, dtype)
        return self._masks[key]

    def _own_mask(self, window: int, dtype: torch.dtype) -> Tensor | None:
        if self.own_length is not None and not 0 < window < self.longest:
            return None
        column = torch.arange(self.longest, device=self.device)
        now = self.own_lengths[:, None]
        seen = column <= now
        if window:
            seen &= column > now - window
        return _additive(seen, dtype)[:, None, None]

    def shared_mask(
        self, window: int, dtype: torch.dtype, per_kv: int
    ) -> Float[Tensor, "N 1 MQ U"] | None:
        """Which of their prompt's positions the rows see; None when all."""
        key = ("shared", window)
        if key not in self._masks:
            self._masks[key] = self._shared_mask(window, dtype, per_kv)
        return self._masks[key]

    def _shared_mask(self, window: int, dtype: torch.dtype, per_kv: int) -> Tensor | None:
        windowed = 0 < window < self.longest_prompt + self.longest
        if self._even_prompts and not windowed:
            return None
        column = torch.arange(self.longest_prompt, device=self.device)
        seen: Bool[Tensor, "N M U"] = (column < self.prompt_lengths[:, None])[:, None]
        if not windowed:
            return _additive(seen, dtype)[:, None]
        now = self.prompt_lengths[self.row_prompts] + self.own_lengths
        rows = self.rows[None] if self.prompt_rows is None else self.prompt_rows
        seen = seen & (column > (now[rows] - window)[..., None])
        return _additive(seen, dtype)[:, None].repeat_interleave(per_kv, dim=2)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen; elsewhere finite, so that a part of which nothing is seen keeps a finite
    weight, which the merge then makes exactly zero."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min / 4)
