"""Mixed inputs, as M3PO describes them (arXiv 2512.01485): a row is fed its own token's embedding
and a share of its siblings', weighted by how alike their distributions were.

Axes: P groups, W width, R = P*W rows, S positions, D hidden size, V vocabulary; N rows of a
problem, W of them with `Groups` and R with `Owners`. With e_i the embedding of the token that row i
has drawn from the distribution p_i:

    h_i = (1 - lambda) e_i + lambda sum_j A_ij e_j,   A_ij = softmax_j(cos(p_i, p_j) / T)

There are no parameters. Siblings' distributions are there while rows are sampled, and a
teacher-forced pass would have to make them position by position; so the weights A are kept with the
rollout (`GroupOutput.mixing`), W x W numbers a step, and what was fed is rebuilt of them. M3PO has
no code. OPEN, what its text does not say, with our choice:

- whether a row is among those that it mixes (`own`): yes.
- at which temperature distributions are compared: the model's own, 1, before tokens are forbidden.
- where rows are mixed: in completions as a whole; M3PO plainly decodes what follows its thinking.
- whether gradients flow through what is mixed in: no, as if the mixed vectors had been stored.
- what a row without living siblings is fed: its own embedding alone, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from interlace.coupling.base import INVARIANTS, Coupling
from interlace.coupling.config import CouplingConfig, check_number, check_word
from interlace.errors import GroupError
from interlace.rows import Groups, Owners, Rows

M3PO = "https://arxiv.org/abs/2512.01485"


@dataclass(frozen=True)
class MixConfig(CouplingConfig):
    """Siblings' embeddings mixed into what a row is fed next, as M3PO describes it (arXiv
    2512.01485).

    Unlike other kinds it changes the model as soon as it is attached: at widths above 1 rows are
    mixed, without any training. Width 1 is the base model, bit for bit.

    Args:
        share: Share of what a row is fed that is mixed, lambda.
        temperature: Divisor of similarities, T: the smaller, the more the likest sibling weighs.
        own: Whether a row is among the rows that it mixes.

    Raises:
        ConfigError: for a share that is not between 0 and 1, or a temperature not above 0.
    """

    kind: ClassVar[str] = "mix"

    share: float = 0.1
    temperature: float = 0.1
    own: bool = True

    def __post_init__(self) -> None:
        check_number(self, "share", 0, 1)
        check_number(self, "temperature", 0, float("inf"))
        check_word(self, "own", (True, False))

    def facts(self) -> dict[str, str]:
        """The share and the temperature."""
        return {"mixed share": f"{self.share:g}", "temperature": f"{self.temperature:g}"}


class Mix(Coupling):
    """The one module of a model that mixes what its rows are fed; it has no parameters."""

    kind = MixConfig.kind
    Config = MixConfig
    title = "Mix"
    about = (
        "Mixed inputs: what a row is fed next is its own token's embedding and a share of its "
        f"siblings', as M3PO describes it ([paper]({M3PO}))."
    )
    seats = ("input",)
    mixes = True

    def __init__(self, config: MixConfig, hidden_size: int) -> None:
        super().__init__()
        self.share, self.temperature, self.own = config.share, config.temperature, config.own

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Not that a fresh one changes nothing; nor that gradients reach siblings."""
        return INVARIANTS - {"I1", "I8"}

    def input(self, embeddings: Float[Tensor, "R S D"], rows: Groups) -> Float[Tensor, "R S D"]:  # type: ignore[override]
        """What was fed while sampling, from the weights that were kept.

        Raises:
            GroupError: if nobody has said them.
        """
        rows.check(*embeddings.shape[:2])
        if rows.width == 1 or _is_prompt(rows, embeddings.shape[1]):
            return embeddings
        if rows.mixing is None:
            raise GroupError(
                "mix feeds rows what they drew, mixed by how alike their distributions were, which "
                "tokens alone do not tell. Score groups that an Engine has sampled, as "
                "interlace.collate(groups, pad_token_id) gives them; or pass mixing to Groups."
            )
        return self.mixed(embeddings, rows.mixing)

    def input_step(self, embeddings: Float[Tensor, "R 1 D"], rows: Rows) -> Float[Tensor, "R 1 D"]:
        """What each live row is fed in a decode step."""
        return self.mixed(embeddings, self._of_step(rows)[None, None])

    def attention_weights(
        self, x: Float[Tensor, "R S D"], rows: Rows
    ) -> Float[Tensor, "P S H N N"]:
        """The weights A; a row without siblings has zeros."""
        if isinstance(rows, Groups):
            assert rows.mixing is not None
            return rows.mixing.unsqueeze(2)
        return self._of_step(rows)[None, None, None]

    def mixed(
        self, embeddings: Float[Tensor, "R S D"], weights: Float[Tensor, "P S N N"]
    ) -> Float[Tensor, "R S D"]:
        """(1 - lambda sum_j A_ij) e_i + lambda sum_j A_ij e_j."""
        own = embeddings.unflatten(0, (weights.shape[0], -1)).transpose(1, 2)  # P S N D
        weights = weights.to(own.dtype)
        rest = 1 - self.share * weights.sum(dim=-1, keepdim=True)
        mixture = self.share * (weights @ own.detach())
        return (rest * own + mixture).transpose(1, 2).flatten(0, 1)

    def weights(
        self, said: Float[Tensor, "*axes N V"], visible: Bool[Tensor, "*axes N N"] | None
    ) -> Float[Tensor, "*axes N N"]:
        """A: of each row over the rows that it sees, from the logits that they drew from; zeros of
        a row that sees no sibling. In fp32, as they are kept."""
        alike = F.normalize(said.float().softmax(dim=-1), dim=-1)
        scores = alike @ alike.transpose(-1, -2) / self.temperature
        itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
        siblings = ~itself if visible is None else visible & ~itself
        seen = siblings | itself if self.own else siblings
        found = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        return torch.where(siblings.any(dim=-1, keepdim=True), found, 0.0)

    def _of_step(self, rows: Rows) -> Float[Tensor, "R R"]:
        """Those of a decode step, found once."""
        assert isinstance(rows, Owners)
        if rows.said is None:
            raise GroupError(
                "mix compares the distributions that a step's tokens were drawn from, and these "
                "Owners do not have them. Set `said` to the logits [R, V] before each step."
            )
        if rows.mixing is None:
            visible = rows.visible()
            rows.mixing = self.weights(rows.said, None if visible is None else visible[0, 0])
        return rows.mixing

    def extra_repr(self) -> str:
        return f"share={self.share}, temperature={self.temperature}, own={self.own}"


def _is_prompt(rows: Groups, positions: int) -> bool:
    """Whether no column of a call belongs to a completion: rows that hold the same mix nothing."""
    start = rows.completion_start
    return start is not None and bool((start >= positions).all())
