"""Self-attention that itself sees what every row of a group has written: one softmax over a row's
own past, its prompt among it, and what siblings wrote, as long as they were alive. What differs
between its kinds, LaneRoPE and Hogwild!, is where a sibling's text stands for its reader.

Axes: P groups, W width, R = P*W rows, S positions of this call, U positions so far, H query heads,
G key-value heads, Q = H/G, C head dim, F frequencies (pairs of features that RoPE turns), N rows of
a group as its readers meet them.

Windows, sinks and rotary features in another order than halves are refused.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from interlace.coupling.attention import explicit, merged
from interlace.coupling.base import Coupling
from interlace.coupling.config import heads_of
from interlace.coupling.reach import mixed_with_lse, turned
from interlace.errors import AttachError, GroupError
from interlace.rows import Groups, Owners, Reads, Rows

SCALED = ("linear", "llama3", "yarn", "proportional")  # whose frequencies no length changes


class JointAttention(Coupling):
    """One layer's attention over all rows of a group.

    Attributes:
        start: Angle of one step of what it turns by, for each frequency; by default that of the
            base model's positions.
    """

    seats = ("attention",)
    reads: Reads = "history"
    turned_features = 0  # by the model itself
    strict: bool = False  # does a row see only earlier positions of its siblings

    def __init__(self, config: Any, theta: Float[Tensor, " F"], kv_size: int = 0) -> None:
        super().__init__()
        self.start: list[float] = theta.tolist()
        self._kv_size = kv_size
        self._angles: dict[torch.device, Tensor] = {}

    @classmethod
    def sizes(cls, base: Any, layer: int) -> tuple[Any, ...]:
        """The frequencies of a layer's rotary positions, and the size of its keys."""
        _, kv_heads, head_dim = heads_of(base)
        return frequencies(base, layer), kv_heads * head_dim

    @classmethod
    def check(cls, base: Any, decoder: nn.Module, layers: list[int]) -> None:
        """Refuse layers whose attention is another than plain rotary attention to all positions."""
        if not getattr(base, "rope_parameters", None):
            raise AttachError(
                f"{cls.kind} turns rows as rotary positions turn, and a model with a "
                f"{type(base).__name__} has none. Attach another kind, such as "
                "GatedConfig(reads='history')."
            )
        halves = getattr(sys.modules[type(decoder).__module__], "rotate_half", None)
        order = None if halves is None else halves(torch.arange(4.0)).tolist()
        if order not in (None, [-2.0, -3.0, 0.0, 1.0]):
            raise AttachError(
                f"{cls.kind} turns the first half of a head with the second; "
                f"{type(decoder).__name__} pairs neighbouring features. Attach another kind, such "
                "as GatedConfig(reads='history')."
            )
        kinds = getattr(base, "layer_types", None)
        window = getattr(base, "sliding_window", None)
        other = [
            n for n in layers if (kinds[n] != "full_attention" if kinds else window is not None)
        ]
        if other:
            raise AttachError(
                f"{cls.kind} needs attention to all positions, and these layers have windows or "
                f"another kind of it: {other}. Leave them out by "
                f"{cls.Config.__name__}(layers=[...])."
            )

    @property
    def kept_bytes(self) -> int:
        return 2 * self._kv_size * 4

    # Whole sequences ------------------------------------------------------------------------------

    def attention(
        self,
        query: Float[Tensor, "R H S C"],
        key: Float[Tensor, "R G U C"],
        value: Float[Tensor, "R G U C"],
        mask: Tensor | None,
        rows: Groups,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """A group's rows as one sequence: their queries beside each other, and their keys, under a
        mask that says who sees what."""
        count, width = rows.check(query.shape[0], query.shape[2]), rows.width
        alive, start = rows.written(count, key.shape[2], query.device)
        first = alive.shape[2] - query.shape[2]  # position of this call's first column
        if width == 1 or bool((start >= alive.shape[2]).all()):
            return self.alone(query), key, value, mask
        if rows.hidden is not None:
            raise GroupError(
                "Rows are hidden from siblings that read them at the same position only; "
                f"{self.kind} reads all that they wrote. Leave hidden out."
            )
        column = torch.arange(key.shape[2], device=query.device)
        alive = F.pad(alive, (0, key.shape[2] - alive.shape[2]))
        late = column >= start[:, None]
        wrote = alive & late[:, None]
        now = column[first : first + query.shape[2], None]
        before = column < now if self.strict else column <= now  # S U
        seen = wrote[:, None, None] & before[None, None, :, None]  # P 1 S W U
        joint = _with_own(seen, explicit(mask, query, key), width)
        q, k, v = (t.unflatten(0, (count, width)).transpose(1, 2) for t in (query, key, value))
        q, k = self.meet(q, k, wrote, late, first)
        return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), joint

    def alone(self, query: Float[Tensor, "R H S C"]) -> Float[Tensor, "R H S C"]:
        """Queries where nobody has siblings: what the base model has."""
        return query

    @abstractmethod
    def meet(
        self,
        query: Float[Tensor, "P H W S C"],
        key: Float[Tensor, "P G W U C"],
        wrote: Bool[Tensor, "P W U"],
        late: Bool[Tensor, "P U"],
        first: int,
    ) -> tuple[Float[Tensor, "P H W S E"], Float[Tensor, "P G W U E"]]:
        """Queries and keys of a group's rows as they meet each other.

        Args:
            query: Queries, turned as the base model turns them.
            key: Keys, likewise.
            wrote: Where a row has a completion token that it wrote while alive.
            late: Where columns belong to completions.
            first: Position of this call's first column.
        """

    # Steps ----------------------------------------------------------------------------------------

    @abstractmethod
    def meet_step(
        self, query: Float[Tensor, "R H C"], key: Float[Tensor, "R G C"], rows: Owners
    ) -> tuple[Float[Tensor, "R H C"] | Float[Tensor, "R N H C"], Float[Tensor, "R G C"]]:
        """Queries and keys of a decode step as rows of a group meet: one query for all siblings, or
        one for each row of the group by its number."""

    def attention_step(
        self,
        query: Float[Tensor, "R H 1 C"],
        key: Float[Tensor, "R G 1 C"],
        value: Float[Tensor, "R G 1 C"],
        rows: Rows,
        scale: float,
        softcap: float | None,
    ) -> tuple[Float[Tensor, "R H C"], Float[Tensor, "R H"]] | None:
        """What siblings wrote, beside prompt and own past: earlier, and at this very position."""
        assert isinstance(rows, Owners)
        if rows.kept is None:
            raise GroupError(
                f"{self.kind} reads what siblings wrote, and this step keeps none of it. Pass "
                "Owners(..., kept=...), or whole sequences with Groups."
            )
        q, k = self.meet_step(query[:, :, 0], key[:, :, 0], rows)
        part = rows.kept.read(self.place, q, k, value[:, :, 0], scale, softcap)
        if self.strict:
            return part
        same = _beside(q, k, value[:, :, 0], rows, scale, softcap)
        if part is None:
            return same
        return merged(*same, *part), torch.logaddexp(same[1], part[1].to(same[1]))

    def step_shares(
        self,
        query: Float[Tensor, "R H 1 C"],
        key: Float[Tensor, "R G 1 C"],
        rows: Rows,
        scale: float,
        softcap: float | None,
    ) -> Float[Tensor, "R H N"] | None:
        """What `attention_step` gives where a row's values are its unit vector."""
        assert isinstance(rows, Owners)
        assert rows.kept is not None
        q, k = self.meet_step(query[:, :, 0], key[:, :, 0], rows)
        part = rows.kept.shares(self.place, q, scale, softcap)
        if self.strict:
            return None if part is None else F.pad(part[0], (len(q), 0))
        units = torch.eye(len(q), dtype=q.dtype, device=q.device)
        same = _beside(q, k, units[:, None].expand(-1, k.shape[1], -1), rows, scale, softcap)
        if part is None:
            return same[0]
        own = F.pad(same[0], (0, part[0].shape[-1]))
        return merged(own, same[1], F.pad(part[0], (len(q), 0)), part[1])

    # Angles ---------------------------------------------------------------------------------------

    def fixed(self, device: torch.device) -> Float[Tensor, " F"]:
        """`start`, which is not learned: no buffer, since those are cast with the model."""
        if device not in self._angles:
            with torch.inference_mode(False):
                self._angles[device] = torch.tensor(self.start, dtype=torch.float64, device=device)
        return self._angles[device]


def moved(
    x: Float[Tensor, "*axes C"], far: Tensor, step: Float[Tensor, " F"]
) -> Float[Tensor, "*axes C"]:
    """Features turned `far` steps further, as many of them as rotary positions turn."""
    exact = torch.promote_types(x.dtype, torch.float32)
    angles = far * step.to(torch.promote_types(step.dtype, exact))
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    size = 2 * angles.shape[-1]
    if size == x.shape[-1]:
        return turned(x, cos, sin)
    return torch.cat([turned(x[..., :size], cos, sin), x[..., size:]], dim=-1)


def frequencies(base: Any, layer: int) -> Float[Tensor, " F"]:
    """How fast the rotary positions of a layer turn each pair of features."""
    rope: Any = base.rope_parameters
    kinds = getattr(base, "layer_types", None)
    rope = rope.get(kinds[layer], rope) if kinds else rope
    if rope.get("rope_type") in SCALED:
        scaled: Tensor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](base, torch.device("cpu"))[0]
        return scaled
    turning = int(heads_of(base)[2] * rope.get("partial_rotary_factor", 1.0))
    return rope["rope_theta"] ** (-torch.arange(0, turning, 2).double() / turning)


def _with_own(seen: Bool[Tensor, "P 1 S W U"], own: Tensor, width: int) -> Tensor:
    """One mask over all rows of a group: what each sees of its siblings, and the base model's own
    mask, `[R, 1, S, U]` or broadcast to it, for what it sees of itself."""
    count, _, positions, _, columns = seen.shape
    seen = seen.expand(-1, width, -1, -1, -1)
    own = own.expand(count * width, 1, positions, columns).reshape(
        count, width, positions, 1, columns
    )
    itself = torch.eye(width, dtype=torch.bool, device=seen.device)[:, None, :, None]
    if own.dtype != torch.bool:
        least = torch.finfo(own.dtype).min
        seen = torch.zeros_like(own).expand_as(seen).masked_fill(~seen, least)
    joint = torch.where(itself, own, seen)
    return joint.flatten(3, 4).flatten(1, 2).unsqueeze(1)


def _beside(
    query: Float[Tensor, "R H C"] | Float[Tensor, "R N H C"],
    key: Float[Tensor, "R G C"],
    value: Float[Tensor, "R G V"],
    rows: Owners,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "R H V"], Float[Tensor, "R H"]]:
    """What the rows of a decode step read of their siblings' new tokens, with its log-sum-exp."""
    grouped = query.unflatten(-2, (key.shape[1], -1))
    if query.dim() == 3:
        scores = grouped.permute(1, 2, 0, 3) @ key.permute(1, 2, 0).unsqueeze(1)  # G Q R R
    else:
        by_writer = grouped[:, rows.numbers(key.device)]  # R R G Q C
        scores = torch.einsum("rsgqc,sgc->gqrs", by_writer, key)
    siblings = ~torch.eye(len(query), dtype=torch.bool, device=query.device)
    visible = rows.visible()
    seen = siblings if visible is None else siblings & visible
    return mixed_with_lse(scores * scale, value, seen, softcap=softcap)
