"""Plain `model.generate(**inputs, num_return_sequences=W)` with interdependent rows.

Hugging Face repeats each prompt W times, group-major as Interlace wants it, but does not tell the
model which rows have finished. `_sample` sees both the prompt's length and every stopping decision,
so the alive mask is recorded there, from the decisions themselves and never from looking for EOS
again.

Axes: P groups, W width, R = P*W rows, S positions.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from interlace.errors import GenerationError
from interlace.rows import Earlier, Groups, Reads, find_earlier

# What each model sampled last, for as long as it lives: one byte a token.
_LAST: WeakKeyDictionary[nn.Module, Groups] = WeakKeyDictionary()


class GenerationRecord(StoppingCriteriaList):
    """Stopping criteria that remember which rows they have stopped, and when.

    Attributes:
        kept: Keys and values of the completions' positions so far, of each layer's block, where
            blocks read earlier positions.
        mixer: Coupling that mixes what rows are fed, if there is one.
        said: Logits that the rows' last tokens were drawn from, where they are mixed.
    """

    def __init__(
        self,
        criteria: StoppingCriteriaList,
        width: int,
        prompt: Int[Tensor, "R S"],
        reads: Reads = "position",
    ) -> None:
        super().__init__(criteria)
        self.width = width
        self.reads = reads
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.mixer: Any = None
        self.said: Tensor | None = None
        self._mixing: list[Tensor] = []  # [P, 1, W, W] of each position of the completions
        self.prompt_length = prompt.shape[1]
        self.alive = torch.ones_like(prompt, dtype=torch.bool)
        self.finished = torch.zeros(prompt.shape[0], dtype=torch.bool, device=prompt.device)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Bool[Tensor, " R"]:
        """The decisions after one sampled token, which is fed next: not alive if it finished its
        row. Equation (7)."""
        stopped = super().__call__(input_ids, scores, **kwargs)
        self.finished = self.finished | stopped.to(self.finished.device)
        self.alive = torch.cat([self.alive, ~self.finished[:, None]], dim=1)
        return stopped

    def groups(self, positions: int) -> Groups:
        """The groups of a call that feeds the last `positions` columns."""
        # A prefill, perhaps in chunks: every row is alive.
        if self.alive.shape[1] == self.prompt_length:
            is_free = self.reads == "position" and self.mixer is None
            return Groups(self.width, None, None if is_free else self._starts(positions))
        # A copy has the same strides at every step, so a compiled step is compiled once.
        alive = self.alive[:, -positions:].clone(memory_format=torch.contiguous_format)
        alive = alive.unflatten(0, (-1, self.width))
        if self.mixer is not None:
            assert self.said is not None
            seen = Groups(self.width, alive[..., -1:]).visible()  # at the newest position
            said = self.said.unflatten(0, (-1, 1, self.width))
            self._mixing.append(self.mixer.weights(said, seen))
            return Groups(self.width, alive, mixing=self._mixing_of(positions))
        if self.reads == "position":
            return Groups(self.width, alive)
        if positions == self.alive.shape[1]:  # without a cache
            return Groups(self.width, alive, self._starts(self.prompt_length))
        return ContinuedGroups(self, alive)

    def all_groups(self) -> Groups:
        """The groups of one call that feeds all columns again."""
        alive = self.alive.unflatten(0, (-1, self.width))
        mixing = None if self.mixer is None else self._mixing_of(self.alive.shape[1])
        return Groups(self.width, alive, self._starts(self.prompt_length), mixing=mixing)

    def hear(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As a logits processor, before all others: the logits that tokens are drawn from."""
        self.said = scores
        return scores

    def _mixing_of(self, columns: int) -> Float[Tensor, "P S W W"]:
        """The weights of the last columns; zeros in prompts, and of what has not been fed."""
        first = self.alive.shape[1] - columns - self.prompt_length  # among the completions' columns
        shape = len(self.alive) // self.width, columns, self.width, self.width
        found = torch.zeros(shape, device=self.alive.device)
        for n, weights in enumerate(self._mixing[max(first, 0) :], start=max(-first, 0)):
            found[:, n] = weights[:, 0]
        return found

    def _starts(self, column: int) -> Int[Tensor, " P"]:
        return torch.full((len(self.alive) // self.width,), column, device=self.alive.device)


class ContinuedGroups(Groups):
    """The groups of a cached step: blocks that read earlier positions find them in the record.

    Axes: L positions of the completions so far, G key-value heads, C head dim of a block.
    """

    continues = True

    def __init__(self, record: GenerationRecord, alive: Bool[Tensor, "P W S"]) -> None:
        super().__init__(record.width, alive)
        self._record = record

    def joined(
        self,
        place: int,
        keys: Float[Tensor, "P W S G C"],
        values: Float[Tensor, "P W S G C"],
    ) -> tuple[Float[Tensor, "P W L G C"], Float[Tensor, "P W L G C"]]:
        """Keys and values so far, those of this step included, which are kept from now on."""
        record = self._record
        length = record.alive.shape[1] - record.prompt_length - keys.shape[2]
        if length:
            before = (t[:, :, :length] for t in record.kept[place])
            keys, values = (
                torch.cat([old, new], dim=2)
                for old, new in zip(before, (keys, values), strict=True)
            )
        record.kept[place] = keys, values
        return keys, values

    def written(
        self, count: int, columns: int, device: torch.device
    ) -> tuple[Bool[Tensor, "P W L"], Int[Tensor, " P"]]:
        """The alive mask of prompt and completions so far, and where completions begin."""
        record = self._record
        alive = record.alive.unflatten(0, (-1, self.width)).to(device)
        return alive, torch.full((count,), record.prompt_length, device=device)

    def _find_earlier(
        self, reads: Reads, count: int, positions: int, device: torch.device
    ) -> Earlier | None:
        alive = self._record.alive[:, self._record.prompt_length :]
        alive = alive.unflatten(0, (-1, self.width)).to(device)
        return find_earlier(
            reads, alive, torch.zeros(count, dtype=torch.long, device=device), positions
        )


def last_groups(model: nn.Module) -> Groups:
    """The groups of what `model.generate` sampled last, to feed its sequences again in one call.

    The alive mask is that of `generate`'s own stopping decisions, over prompt and completion.
    Scored without it, rows would read siblings that had finished already.

    Args:
        model: Attached model, or PEFT's wrapper of one, that has just generated.

    Returns:
        Groups whose `alive` is `[P, W, S]` over the S columns of the returned sequences. Of
        prompts given as embeddings generate returns no columns, and then neither has the mask.

    Raises:
        GenerationError: if nothing was sampled since the blocks were attached, or the last call
            was another kind of search.

    >>> import torch, interlace
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
    >>> heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=None))
    >>> _ = interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
    >>> prompt = torch.tensor([[7, 5, 3]])
    >>> rows = model.generate(prompt, do_sample=True, num_return_sequences=2, max_new_tokens=4)
    >>> scored = model(rows, groups=interlace.last_groups(model))
    """
    wrapper: Any = model
    inner = wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else wrapper
    found = _LAST.get(inner)
    if found is None:
        raise GenerationError(
            f"last_groups describes what an attached model sampled last; this "
            f"{type(inner).__name__} has sampled nothing. Attach blocks and call "
            "model.generate(..., do_sample=True, num_return_sequences=W) first. For groups of an "
            "Engine, use interlace.collate(groups, pad_token_id).groups."
        )
    return found


def forget_groups(model: nn.Module) -> None:
    """Let go of what `last_groups` would say of a model."""
    _LAST.pop(model, None)


class GroupedGeneration:
    """The part of an attached model's class that Hugging Face's `generate` goes through."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's generate, where the `num_return_sequences` rows of a prompt form one
        group.

        Raises:
            GenerationError: for what would break a group's lockstep or hide which rows have
                finished.
        """
        if kwargs.get("groups") is not None:
            raise GenerationError(
                "generate forms the groups itself: pass each prompt once with "
                "num_return_sequences=W, without groups."
            )
        if kwargs.get("custom_generate") is not None:
            raise GenerationError(_refusal(_CUSTOM))
        module: Any = self
        forget_groups(module)
        base: Any = super()
        return base.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The inputs of one call of `generate`, with the groups of that call."""
        record = kwargs.pop("groups", None)

        base: Any = super()
        inputs: dict[str, Any] = base.prepare_inputs_for_generation(*args, **kwargs)
        if isinstance(record, GenerationRecord):
            tokens = inputs.get("input_ids")
            tokens = inputs["inputs_embeds"] if tokens is None else tokens
            inputs["groups"] = record.groups(tokens.shape[1])
        return inputs

    def _sample(
        self,
        input_ids: Int[Tensor, "R S"],
        logits_processor: Any,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        attached: Any = self
        attachment, further = attached.interlace_attachment, []
        width = generation_config.num_return_sequences or 1
        record = GenerationRecord(stopping_criteria, width, input_ids, attachment.config.reads)
        if attachment.coupling.mixes and not attachment.handle.disabled:
            record.mixer, further = attached._own_coupling, [record.hear]
        base: Any = super()
        sampled = base._sample(
            input_ids,
            logits_processor=LogitsProcessorList([*further, *logits_processor]),
            stopping_criteria=record,
            generation_config=generation_config,
            groups=record,
            **kwargs,
        )
        _LAST[attached] = record.all_groups()
        return sampled

    def _beam_search(self, *args: Any, generation_config: GenerationConfig, **kwargs: Any) -> Any:
        if (generation_config.num_return_sequences or 1) > 1:
            raise GenerationError(_refusal("beam search, which moves rows between beams"))
        attached: Any = self
        if "streams" in attached.interlace_attachment.coupling.seats:
            raise GenerationError(
                "Beam search moves rows in the cache, which has several streams of each here. "
                "Sample with generate(do_sample=True)."
            )

        base: Any = super()
        return base._beam_search(*args, generation_config=generation_config, **kwargs)

    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: also what contrastive search, DoLa and constrained beams come from."""
        raise GenerationError(_refusal(_CUSTOM))

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching advances rows one by one."""
        raise GenerationError(_refusal("continuous batching, which advances rows one by one"))

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching advances rows one by one."""
        raise GenerationError(_refusal("continuous batching, which advances rows one by one"))


_CUSTOM = "custom_generate, whose steps cannot be seen from here"


def _refusal(what: str) -> str:
    return (
        f"A group advances in lockstep, one token a step for each of its rows; {what}, cannot do "
        "that. Sample with generate(do_sample=True, num_return_sequences=W), or detach the blocks "
        "first."
    )
