"""LaneRoPE (arXiv 2605.27570): self-attention itself sees what every row of a group has written.

Axes: P groups, W width, R = P*W rows, S positions of this call, U positions so far, H query heads,
G key-value heads, C head dim, F frequencies (pairs of features that RoPE turns).

A row is a lane. The token at position i of lane m has its query and its key turned by its position,
as ever, and by its lane, in the same pairs of features, so that a score depends on differences:

    q(i, m) = R(Omega m) R(theta i) q,   k likewise;   prompts belong to all lanes and have m = 0

and attention has one softmax over the row's own past, its prompt among it, and what siblings wrote,
as long as they were alive. Group Think (arXiv 2505.11107) is Omega = theta L: lane m lies as if it
were written m slots of L tokens further on, one after the other. OPEN, what the texts do not say:

- whether a row sees what siblings write at its own position (`strict`): it does, since a lockstep
  step has all keys before it attends.
- whether lane 0 is the prompt's (`prompt`): yes, as Group Think has it. With "own" a prompt is as
  near to every lane as to the first.
- the formula of the NTK-aware Omega: theta_f L^(1 - f / (F - 1)), from a slot apart in the fastest
  pair of features to a token apart in the slowest, which alone would go beyond what was trained.
- whether a learned Omega is shared by layers or heads: by the heads of a layer.

Windows, sinks and rotary features in another order than halves are refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from interlace.coupling.attention import explicit, merged
from interlace.coupling.base import INVARIANTS, Coupling
from interlace.coupling.config import CouplingConfig, Layers, check_whole, check_word, heads_of
from interlace.coupling.reach import turned
from interlace.errors import AttachError, GroupError
from interlace.rows import Groups, Owners, Reads, Rows

PAPER = "https://arxiv.org/abs/2605.27570"
SCALED = ("linear", "llama3", "yarn", "proportional")  # whose frequencies no length changes


@dataclass(frozen=True)
class LaneRoPEConfig(CouplingConfig):
    """Self-attention over all rows of a group, told apart by a rotation (arXiv 2605.27570).

    Unlike other kinds it changes the model as soon as it is attached: at widths above 1 rows read
    each other, without any training. Width 1 is the base model, bit for bit. Group Think is
    `LaneRoPEConfig(omega="slot", learned=False)`, and needs no training.

    Args:
        omega: Angle between neighbouring lanes: "zero", lanes cannot be told apart; "slot", a lane
            is `slot` positions further on; "ntk", likewise in the fastest features, and a single
            position in the slowest.
        slot: Number of positions between neighbouring lanes.
        learned: Whether the angle is a parameter of each layer, which starts at `omega`.
        strict: Whether a row sees only earlier positions of its siblings, not their own one.
        prompt: Lane of a prompt: "first", so that later lanes are farther from it, or "own", the
            row's.
        layers: Layers whose attention sees the group: "all", every k-th layer as the integer k, or
            a list of layer indices.

    Raises:
        ConfigError: for a slot below 1, or another word.
    """

    kind: ClassVar[str] = "lanerope"

    omega: Literal["zero", "slot", "ntk"] = "ntk"
    slot: int = 4096
    learned: bool = True
    strict: bool = False
    prompt: Literal["first", "own"] = "first"
    layers: Layers = "all"

    def __post_init__(self) -> None:
        check_word(self, "omega", ("zero", "slot", "ntk"))
        check_word(self, "prompt", ("first", "own"))
        check_word(self, "learned", (True, False))
        check_word(self, "strict", (True, False))
        check_whole(self, "slot")

    @property
    def reads(self) -> Reads:
        """Everything that siblings wrote."""
        return "history"

    def facts(self) -> dict[str, str]:
        """The angle between lanes, and what of it is learned."""
        what = self.omega if self.omega == "zero" else f"{self.omega}, {self.slot:,} positions"
        return {"Omega": what, "learned": "yes" if self.learned else "no"}


class LaneRoPE(Coupling):
    """One layer's attention over all rows of a group."""

    kind = LaneRoPEConfig.kind
    Config = LaneRoPEConfig
    title = "LaneRoPE"
    about = (
        "LaneRoPE: in each of these layers, attention sees what all rows of a group have written, "
        f"told apart by a rotation for each row ([paper]({PAPER}))."
    )
    seats = ("attention",)
    reads: Reads = "history"
    turned_features = 0  # by the model itself

    def __init__(
        self,
        config: LaneRoPEConfig,
        theta: Float[Tensor, " F"],
        kv_size: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.strict, self.shares_lane = config.strict, config.prompt == "own"
        self._kv_size = kv_size
        self.start = omega(config, theta)
        start = torch.tensor(self.start, dtype=dtype, device=device)
        self.omega = nn.Parameter(start) if config.learned else None
        self._angles: dict[torch.device, Tensor] = {}

    @classmethod
    def build(
        cls,
        config: Any,
        base: Any,
        layer: int | None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> LaneRoPE:
        """That of one layer, with the frequencies of its rotary positions."""
        theta = frequencies(base, layer or 0)
        _, kv_heads, head_dim = heads_of(base)
        made = cls(config, theta, kv_heads * head_dim, device, dtype or torch.float32)
        made.place = layer or 0
        return made

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Not that a fresh one changes nothing, nor that identical rows are none; and lanes that
        are told apart do not permute."""
        told_apart = config.omega != "zero" or config.learned
        return INVARIANTS - {"I1", "I5"} - ({"I2"} if told_apart else set())

    @classmethod
    def check(cls, base: Any, decoder: nn.Module, layers: list[int]) -> None:
        """Refuse layers whose attention is another than plain rotary attention to all positions."""
        if not getattr(base, "rope_parameters", None):
            raise AttachError(
                "lanerope turns lanes as rotary positions turn, and a model with a "
                f"{type(base).__name__} has none. Attach another kind, such as "
                "GatedConfig(reads='history')."
            )
        halves = getattr(sys.modules[type(decoder).__module__], "rotate_half", None)
        order = None if halves is None else halves(torch.arange(4.0)).tolist()
        if order not in (None, [-2.0, -3.0, 0.0, 1.0]):
            raise AttachError(
                "lanerope turns the first half of a head with the second; "
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
                "lanerope needs attention to all positions, and these layers have windows or "
                f"another kind of it: {other}. Leave them out by LaneRoPEConfig(layers=[...])."
            )

    @property
    def kept_bytes(self) -> int:
        """Bytes of one position's keys and values."""
        size = 4 if self.omega is None else self.omega.element_size()
        return 2 * self._kv_size * size

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
            if self.omega is not None and torch.is_grad_enabled():
                query = query + 0 * self.omega.sum()  # zeros, which data-parallel reducers need
            return query, key, value, mask
        if rows.hidden is not None:
            raise GroupError(
                "Rows are hidden from siblings that read them at the same position only; lanerope "
                "reads all that they wrote. Leave hidden out."
            )
        column = torch.arange(key.shape[2], device=query.device)
        alive = nn.functional.pad(alive, (0, key.shape[2] - alive.shape[2]))
        wrote = alive & (column >= start[:, None, None])
        now = column[first : first + query.shape[2], None]
        before = column < now if self.strict else column <= now  # S U
        seen = wrote[:, None, None] & before[None, None, :, None]  # P 1 S W U
        joint = _with_own(seen, explicit(mask, query, key), width)
        lanes = rows.numbers(query.device)[:, None, None]
        q, k, v = (t.unflatten(0, (count, width)).transpose(1, 2) for t in (query, key, value))
        late = column >= start[:, None] if not self.shares_lane else torch.ones_like(wrote[:, 0])
        late = late[:, None, None, :, None]  # P 1 1 U 1
        k = self._in_lane(k, lanes * late)
        q = self._in_lane(q, lanes * late[..., first : first + query.shape[2], :])
        return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), joint

    def prompt_query(self, query: Float[Tensor, "R H 1 C"], rows: Rows) -> Tensor:
        """Queries of a decode step as they meet the keys of prompts, which are in lane 0."""
        if self.shares_lane:
            return query
        return self._in_lane(query, rows.numbers(query.device)[:, None, None, None])

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
                "lanerope reads what siblings wrote, and this step keeps none of it. Pass "
                "Owners(..., kept=...), or whole sequences with Groups."
            )
        lanes = rows.numbers(query.device)[:, None, None]
        q, k = (self._in_lane(t[:, :, 0], lanes) for t in (query, key))
        part = rows.kept.read(self.place, q, k, value[:, :, 0], scale, softcap)
        if self.strict:
            return part
        same = _beside(q, k, value[:, :, 0], rows.visible(), scale, softcap)
        if part is None:
            return same
        share = torch.sigmoid(part[1] - same[1]).unsqueeze(-1).to(q.dtype)
        return torch.lerp(same[0], part[0], share), torch.logaddexp(same[1], part[1].to(same[1]))

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
        lanes = rows.numbers(query.device)[:, None, None]
        q, k = (self._in_lane(t[:, :, 0], lanes) for t in (query, key))
        part = rows.kept.shares(self.place, q, scale, softcap)
        if self.strict:
            return None if part is None else F.pad(part[0], (len(q), 0))
        units = torch.eye(len(q), dtype=q.dtype, device=q.device)
        same = _beside(
            q, k, units[:, None].expand(-1, k.shape[1], -1), rows.visible(), scale, softcap
        )
        if part is None:
            return same[0]
        own = F.pad(same[0], (0, part[0].shape[-1]))
        return merged(own, same[1], F.pad(part[0], (len(q), 0)), part[1])

    def _in_lane(self, x: Float[Tensor, "*axes C"], lanes: Tensor) -> Float[Tensor, "*axes C"]:
        """Features turned to their lane, as many of them as rotary positions turn."""
        exact = torch.promote_types(x.dtype, torch.float32)
        step = self._fixed(x.device) if self.omega is None else self.omega
        angles = lanes * step.to(torch.promote_types(step.dtype, exact))
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        size = 2 * angles.shape[-1]
        if size == x.shape[-1]:
            return turned(x, cos, sin)
        return torch.cat([turned(x[..., :size], cos, sin), x[..., size:]], dim=-1)

    def _fixed(self, device: torch.device) -> Float[Tensor, " F"]:
        """An angle that is not learned: no buffer, since those are cast with the model."""
        if device not in self._angles:
            with torch.inference_mode(False):
                self._angles[device] = torch.tensor(self.start, dtype=torch.float64, device=device)
        return self._angles[device]

    def extra_repr(self) -> str:
        return f"frequencies={len(self.start)}, strict={self.strict}"


def omega(config: LaneRoPEConfig, theta: Float[Tensor, " F"]) -> list[float]:
    """The angle between neighbouring lanes, for each frequency."""
    if config.omega == "zero":
        return [0.0] * len(theta)
    last = max(len(theta) - 1, 1)
    ntk = config.omega == "ntk"
    return [
        turn * config.slot ** (1 - pair / last if ntk else 1)
        for pair, turn in enumerate(theta.tolist())
    ]


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
    query: Float[Tensor, "R H C"],
    key: Float[Tensor, "R G C"],
    value: Float[Tensor, "R G V"],
    visible: Bool[Tensor, "1 1 R R"] | None,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "R H V"], Float[Tensor, "R H"]]:
    """What the rows of a decode step read of their siblings' new tokens, with its log-sum-exp,
    which is so low where there is none that the part has no weight."""
    kv_heads = key.shape[1]
    grouped = query.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)  # G Q R C
    scores = grouped @ key.permute(1, 2, 0).unsqueeze(1) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    hidden = torch.eye(len(query), dtype=torch.bool, device=query.device)
    hidden = hidden if visible is None else hidden | ~visible
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min / 4)
    out = scores.softmax(dim=-1).to(value.dtype) @ value.transpose(0, 1).unsqueeze(1)
    return out.flatten(0, 1).transpose(0, 1), scores.logsumexp(dim=-1).flatten(0, 1).t()
