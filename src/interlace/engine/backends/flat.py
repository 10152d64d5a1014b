"""A decoder of Llama's family as one function over plain tensors: a decode step of live rows, or a
chunk of prompts, in as few operator calls as torch has.

Axes: N tokens of a call, P times S (R rows of one position in a step, B prompts of S positions in a
prefill), D hidden size, H query heads, G key-value heads, C head dim, I inputs, O outputs, U keys,
V vocabulary, E positions whose logits are wanted.

Queries, keys and values come from one product, gate and up from another; rotary positions are
computed once a call; a residual is added by the product that it waits for. Whoever calls says how
attention is computed and what stands after a layer, so that backends differ in those alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.activations import ACT2FN

from interlace.attached import Swapped
from interlace.coupling.base import Coupling
from interlace.engine.backends.hf import (
    Borrowed,
    HFBackend,
    Twin,
    is_of_libraries,
    windows_of,
    written_in,
)
from interlace.rows import Groups, Rows

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
_PARTS = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
_PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, type(ACT2FN["silu"]))


class Product(ABC):
    """Linears side by side, of the same input, which a norm may come before."""

    @abstractmethod
    def __call__(
        self, x: Float[Tensor, "N I"], residual: Float[Tensor, "N O"] | None = None
    ) -> Float[Tensor, "N O"]:
        """residual + Norm(x) W^T + bias."""


Attend = Callable[["FlatLayer", Tensor, Tensor, Tensor], Tensor]
Couple = Callable[[Coupling, Tensor], Tensor]
MakeProduct = Callable[[str, Sequence[nn.Linear], nn.Module | None], Product]


class OwnProduct(Product):
    """The product of the model's own linears, on any device: it takes no memory, and weights that
    a trainer changes are seen at once."""

    def __init__(self, linears: Sequence[nn.Linear], norm: nn.Module | None) -> None:
        self._linears: Sequence[Any] = linears
        self._norm: Any = norm

    def __call__(
        self, x: Float[Tensor, "N I"], residual: Float[Tensor, "N O"] | None = None
    ) -> Float[Tensor, "N O"]:
        if self._norm is not None:
            x = F.rms_norm(x, x.shape[-1:], self._norm.weight, number_eps(self._norm))
        first = self._linears[0]
        if residual is not None and first.bias is None:
            return torch.addmm(residual, x, first.weight.t())
        parts = [F.linear(x, linear.weight, linear.bias) for linear in self._linears]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return out if residual is None else residual + out


def joined_bias(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """The biases of linears side by side, zeros where one has none; None where all have none."""
    if all(bias is None for bias in biases):
        return None
    each = zip(weights, biases, strict=True)
    return torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in each]).detach()


@dataclass(frozen=True)
class FlatLayer:
    """One decoder layer.

    Attributes:
        index: Number of the layer.
        window: Number of positions that it sees; 0 is all.
        heads: H and G.
        scale: Factor of the scores.
        head_norms: Weights and epsilons of the norms of queries and keys, one for each head.
        block: Coupling after the layer.
    """

    index: int
    window: int
    heads: tuple[int, int]
    scale: float
    qkv: Product
    head_norms: tuple[Float[Tensor, "HG C"], Float[Tensor, "HG 1"]] | None
    output: Product
    gate_up: Product
    down: Product
    block: Coupling | None


@dataclass(frozen=True)
class FlatModel:
    """A decoder and its head."""

    embedding: nn.Embedding
    rotary: nn.Module
    layers: list[FlatLayer]
    head: Product

    def __call__(
        self,
        ids: Int[Tensor, "P S"],
        positions: Int[Tensor, "P S"],
        attend: Attend,
        couple: Couple | None,
    ) -> Float[Tensor, "N D"]:
        """Hidden states after the last layer, before the last norm, which is the head's.

        `attend` stores a layer's keys and values, and gives the mixed values of its queries, heads
        concatenated; `couple` computes a layer's coupling, and None goes by them.
        """
        x = self.embedding(ids).flatten(0, 1)  # the module itself, so that its hooks are called
        cos, sin = self.turns(x, positions)
        for layer in self.layers:
            heads = sum(layer.heads)
            qkv = layer.qkv(x).unflatten(-1, (heads + layer.heads[1], -1))
            qk, v = qkv[:, :heads], qkv[:, heads:]
            if layer.head_norms is not None:
                weight, eps = layer.head_norms
                qk = normalised(qk, eps) * weight
            qk = torch.addcmul(qk * cos, torch.roll(qk, qk.shape[-1] // 2, -1), sin)
            q, k = qk.split(layer.heads, dim=1)
            x = layer.output(attend(layer, q, k, v), x)
            gate, up = layer.gate_up(x).chunk(2, dim=-1)
            x = layer.down(F.silu(gate).mul_(up), x)
            if layer.block is not None and couple is not None:
                x = couple(layer.block, x)
        return x

    def turns(
        self, x: Float[Tensor, "_ D"], positions: Int[Tensor, "P S"]
    ) -> tuple[Float[Tensor, "N 1 C"], Float[Tensor, "N 1 C"]]:
        """Cosines, and sines with the sign that a half of a head gets in the other's place; of `x`
        only the type counts."""
        cos, sin = (t[0, :, None] for t in self.rotary(x, positions.flatten()[None]))
        first, second = sin.chunk(2, dim=-1)
        return cos, torch.cat((-first, second), dim=-1)


def normalised(x: Float[Tensor, "*N D"], eps: Float[Tensor, "*#N 1"]) -> Float[Tensor, "*N D"]:
    """x / sqrt(mean(x^2) + eps), computed in float32."""
    length = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
    scale = torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()
    return torch.mul(x, scale, out=torch.empty_like(x))


def eps_of(norm: Any, device: torch.device | None = None) -> Float[Tensor, " 1"]:
    """The epsilon of a root-mean-square norm of Hugging Face's or of torch's."""
    return torch.tensor([number_eps(norm)], dtype=torch.float32, device=device)


def number_eps(norm: Any) -> float:
    """The same as a number."""
    found = getattr(norm, "variance_epsilon", None)
    return float(norm.eps or 0 if found is None else found)


def flatten(base: PreTrainedModel, make: MakeProduct) -> FlatModel:
    """A model for which `why_not_flat` finds nothing as one function, of products that `make` makes
    under a name of linears and the norm before them."""
    decoder: Any = base.get_decoder()
    head: Any = base.get_output_embeddings()
    used = decoder.layers[: decoder.config.num_hidden_layers]
    layers = [_layer(index, layer, make) for index, layer in enumerate(used)]
    return FlatModel(
        decoder.embed_tokens, decoder.rotary_emb, layers, make("head", [head], decoder.norm)
    )


def _layer(index: int, layer: Any, make: MakeProduct) -> FlatLayer:
    attention, mlp = layer.self_attn, layer.mlp
    dim = attention.head_dim
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    heads = attention.q_proj.out_features // dim, attention.k_proj.out_features // dim
    head_norms = None
    if hasattr(attention, "q_norm"):
        norms = attention.q_norm, attention.k_norm
        weights = [n.weight.detach().expand(h, -1) for n, h in zip(norms, heads, strict=True)]
        eps = [
            eps_of(n, weights[0].device).expand(h, -1) for n, h in zip(norms, heads, strict=True)
        ]
        head_norms = torch.cat(weights), torch.cat(eps)
    return FlatLayer(
        index,
        _window(attention),
        heads,
        attention.scaling,
        make(f"{index}.qkv", projections, layer.input_layernorm),
        head_norms,
        make(f"{index}.output", [attention.o_proj], None),
        make(f"{index}.gate_up", [mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm),
        make(f"{index}.down", [mlp.down_proj], None),
        next((m for m in layer.children() if isinstance(m, Coupling)), None),
    )


def _window(attention: Any) -> int:
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or 0
    is_mistral = type(attention).__name__.startswith("Mistral")
    return (is_mistral and attention.config.sliding_window) or 0


def why_not_flat(base: PreTrainedModel) -> str | None:
    """Why a model is not computed as one function: it is of another family, a part of it is
    another's, or someone listens to its modules. None if it is."""
    family = own_class(base).__name__.removesuffix("ForCausalLM")
    if family not in FAMILIES:
        return f"{family} is none of {', '.join(FAMILIES)}"
    source = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
    if nn.modules.module._has_any_global_hook():
        return "a hook listens to all modules"
    couplings = [module for module in base.modules() if isinstance(module, Coupling)]
    if any(coupling.seats != ("layer",) for coupling in couplings):
        return f"{couplings[0].kind} works elsewhere than after layers"
    of_couplings = {id(module) for coupling in couplings for module in coupling.modules()}
    for path, module in base.named_modules():
        cls = own_class(module)
        is_plain = cls in _PLAIN and is_of_libraries(cls.forward)
        is_known = is_plain or _is_of(cls, source, family)
        listened = module._forward_hooks or module._forward_pre_hooks
        if isinstance(module, nn.Embedding):  # checkpointing has a hook there, which is called
            listened = {}
        is_known = is_known and not listened and _is_plain(module)
        if id(module) not in of_couplings and not is_known:
            return f"{path or 'the model'}, a {cls.__name__}, has something of its own"
    return None


def own_class(module: nn.Module) -> type[nn.Module]:
    """A module's class before blocks were attached."""
    cls: Any = type(module)
    found: type[nn.Module] = cls._interlace_base if isinstance(module, Swapped) else cls
    return found


def _is_of(cls: type[nn.Module], source: str, family: str) -> bool:
    """Whether it is a class of transformers' own file for the family, with its own forward."""
    written = list(written_in(cls.forward))
    names = {family + part for part in _PARTS}
    is_theirs = written[-1] == source and is_of_libraries(cls.forward)
    return cls.__module__ == source and cls.__name__ in names and is_theirs


def _is_plain(module: nn.Module) -> bool:
    weights = module._parameters.values()
    plain = all(w is None or type(w) in (nn.Parameter, Tensor) for w in weights)
    return plain and "forward" not in module.__dict__


@dataclass
class PromptAttention:
    """Causal attention of a chunk of prompts to themselves and to the chunks before.

    Attributes:
        cache: Cache that keeps all positions of all layers.
        prompts: B.
        start: First position of the chunk.
    """

    cache: DynamicCache
    prompts: int
    start: int
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self,
        layer: FlatLayer,
        q: Float[Tensor, "N H C"],
        k: Float[Tensor, "N G C"],
        v: Float[Tensor, "N G C"],
    ) -> Float[Tensor, "N HC"]:
        """An `Attend`."""
        query, key, value = (t.unflatten(0, (self.prompts, -1)).transpose(1, 2) for t in (q, k, v))
        key, value = self.cache.update(key, value, layer.index)
        mask = None
        if self.start or 0 < layer.window < key.shape[2]:
            mask = self._mask(layer.window, query.shape[2], key.shape[2], q.device)
        out = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=layer.scale, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(2).flatten(0, 1)

    def _mask(self, window: int, count: int, keys: int, device: torch.device) -> Tensor:
        if window not in self._masks:
            now = torch.arange(self.start, self.start + count, device=device)[:, None]
            column = torch.arange(keys, device=device)
            seen = column <= now
            self._masks[window] = seen & (column > now - window) if window else seen
        return self._masks[window]


class FlatBackend(HFBackend):
    """The portable backend with one function in the place of the model's modules, as far as `_flat`
    is there; a subclass makes it in `refresh`."""

    _flat: FlatModel | None = None

    def _has_windows(self) -> bool:
        return self._flat is None and super()._has_windows()

    def _prefill_cache(self) -> DynamicCache:
        return DynamicCache() if self._flat is not None else super()._prefill_cache()

    def _compute_chunk(
        self,
        host: Twin | Borrowed,
        ids: Int[Tensor, "B S"],
        positions: Int[Tensor, "B S"],
        cache: DynamicCache,
        wanted: list[int],
        rows: dict[str, Rows],
    ) -> Float[Tensor, "B E V"]:
        if self._flat is None or any(windows_of(cache)):
            return super()._compute_chunk(host, ids, positions, cache, wanted, rows)
        count = len(ids)
        attend = PromptAttention(cache, count, int(positions[0, 0]))
        couple = self._couple(rows.get("groups", Groups(1)), count)
        x = self._flat(ids, positions, attend, couple)
        last = x.unflatten(0, (count, -1))[:, wanted]
        return self._flat.head(last.flatten(0, 1)).unflatten(0, (count, len(wanted)))

    def _compute_step(
        self, host: Twin | Borrowed, ids: Int[Tensor, " R"], positions: Int[Tensor, " R"]
    ) -> Float[Tensor, "R V"]:
        if self._flat is None:
            return super()._compute_step(host, ids, positions)
        assert self._owners is not None
        couple = self._couple(self._owners, len(ids))
        return self._flat.head(self._flat(ids[:, None], positions[:, None], self._attend, couple))

    def _attend(self, layer: FlatLayer, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "R HC"]:
        cache = self._cache
        cache.update(k.unsqueeze(2), v.unsqueeze(2), layer.index)
        query = q.unsqueeze(2)
        return cache.attend(layer.index, query, layer.scale, layer.window, None, None).flatten(1)

    def _couple(self, rows: Rows, count: int) -> Couple | None:
        """Blocks for rows, which lie one after the other; None where they are switched off."""
        if self._attachment is None or self._attachment.handle.disabled:
            return None
        return lambda block, x: block(x.unflatten(0, (count, -1)), rows).flatten(0, 1)
