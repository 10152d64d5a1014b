"""What goes into the engine and what comes out of it; every option is checked when it is given.

Axes: W width, T tokens of a completion, L layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from interlace.answers.extract import extract_answer
from interlace.answers.vote import Vote, majority_vote, weighted_vote
from interlace.errors import GenerationError, nearest, shown

# A str is used verbatim, token ids are fed as they are (a one-dimensional array will do, too),
# messages go through the chat template.
Prompt = str | Sequence[int] | Sequence[dict[str, Any]]

FinishReason = Literal["stop", "length", "consensus", "interrupted"]


MAX_WIDTH = 10_000  # rows of one group: work and lists of rows grow with it, and no use is known
LARGEST = 2**63 - 1
_LOWEST_TEMPERATURE = 1e-6  # below, logits divided by it overflow

# What other libraries call it.
_SYNONYMS = {
    "n": "width",
    "num_return_sequences": "width",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "do_sample": "temperature",
    "eos_token_id": "stop_token_ids",
    "stop_strings": "stop",
    "logits_processor": "logits_processors",
    "logprobs": "top_logprobs",
}


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one group.

    Args:
        width: W, the rows of the group; they see each other if the model has Bridge blocks.
        max_new_tokens: Number of tokens that a row may get at most; a list gives each row its own.
        temperature: Divisor of the logits; 0 is greedy.
        top_k: Number of the most likely tokens that are kept; None or 0 keeps all.
        top_p: Share of probability that the smallest set of kept tokens reaches.
        min_p: Share of the most likely token's probability below which tokens are dropped.
        repetition_penalty: Penalty of repetition; above 1, logits of tokens in the prompt or
            completion shrink (CTRL's rule, as in Hugging Face).
        stop: Strings that finish a row; the text ends before them, the token ids include them.
        stop_token_ids: Token ids that finish a row, besides the model's own end tokens.
        ignore_eos: Whether rows go on past the model's own end tokens (for benchmarks).
        seed: Seed; the same one gives the same responses, whatever else is in the call.
        top_logprobs: Number of alternatives reported at each token, with their log-probabilities.
        logits_processors: Hugging Face logits processors, called with the row's ids and its logits
            after temperature-1 log-probabilities were taken and before temperature.
        consensus: Function from a finished text to its answer (or None); the group ends when its
            unfinished rows cannot change the outcome of `interlace.majority_vote` any more.
        record_attention: Record of who attended to whom at each step, averaged over heads and
            layers ("mean") or for each layer ("layers"); None keeps none.

    Raises:
        GenerationError: for a value out of its range, or an unknown name.
    """

    width: int = 1
    max_new_tokens: int | Sequence[int] = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int = 0
    top_logprobs: int = 0
    logits_processors: Sequence[Callable[..., Any]] = ()
    consensus: Callable[[str], str | None] | None = None
    record_attention: Literal["mean", "layers"] | None = None
    # Pairs (row, sibling) of which the row never sees the sibling: of `HidingParams`.
    hidden: ClassVar[Sequence[tuple[int, int]]] = ()

    def __post_init__(self) -> None:
        self._set(
            width=whole_number("width", self.width, least=1, most=MAX_WIDTH),
            top_k=None if self.top_k is None else whole_number("top_k", self.top_k),
            top_p=_number("top_p", self.top_p, "in (0, 1]", lambda p: 0 < p <= 1),
            min_p=_number("min_p", self.min_p, "in [0, 1]", lambda p: 0 <= p <= 1),
            temperature=_number(
                "temperature",
                self.temperature,
                f"of at least {_LOWEST_TEMPERATURE}",
                lambda t: t == 0 or _LOWEST_TEMPERATURE <= t < float("inf"),
                or_else="0 (greedy) or ",
            ),
            repetition_penalty=_number(
                "repetition_penalty",
                self.repetition_penalty,
                "in (0, inf)",
                lambda p: 0 < p < float("inf"),
            ),
            seed=whole_number("seed", self.seed, least=None),
            top_logprobs=whole_number("top_logprobs", self.top_logprobs),
        )
        self._check_maxima()
        self._check_stops()
        self._check_functions()

    def _check_maxima(self) -> None:
        maxima = _items(self.max_new_tokens)
        if maxima is None:
            self._set(max_new_tokens=whole_number("max_new_tokens", self.max_new_tokens, least=1))
            return
        if len(maxima) != self.width:
            raise GenerationError(
                f"max_new_tokens as a list has one number a row: {self.width} of them; got "
                f"{len(maxima)}."
            )
        self._set(max_new_tokens=tuple(whole_number("max_new_tokens", m, least=1) for m in maxima))

    def _check_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _items(self.stop)
        if stop is None or not all(isinstance(s, str) and s for s in stop):
            raise GenerationError(f"stop holds strings that are not empty; got {shown(self.stop)}.")
        ids = _items(self.stop_token_ids)
        try:
            ids = (-1,) if ids is None else tuple(operator.index(i) for i in ids)
        except TypeError:
            ids = (-1,)
        if min(ids, default=0) < 0:
            raise GenerationError(
                "stop_token_ids holds token ids, whole numbers of at least 0; got "
                f"{shown(self.stop_token_ids)}. Strings go to stop."
            )
        if not isinstance(self.ignore_eos, bool):
            raise GenerationError(f"ignore_eos is True or False; got {shown(self.ignore_eos)}.")
        self._set(stop=stop, stop_token_ids=ids)

    def _check_functions(self) -> None:
        processors = _items(self.logits_processors)
        if processors is None or not all(map(callable, processors)):
            raise GenerationError(
                "logits_processors is a list of Hugging Face logits processors, called with ids "
                f"and logits; got {shown(self.logits_processors)}."
            )
        if self.consensus is not None and not callable(self.consensus):
            raise GenerationError(
                "consensus is a function from a finished text to its answer or None, such as "
                f"interlace.answers.extract_answer; got {shown(self.consensus)}."
            )
        if self.record_attention not in (None, "mean", "layers"):
            raise GenerationError(
                f"record_attention is None, 'mean' or 'layers'; got {shown(self.record_attention)}."
            )
        self._set(logits_processors=processors)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def longest(self) -> int:
        """The most tokens that any row may get."""
        asked = self.max_new_tokens
        return asked if isinstance(asked, int) else max(asked)

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)


def _refuse_unknown_options(cls: type[SamplingParams]) -> None:
    """Have a wrong name answered by the right one."""
    init = cls.__init__
    names = [f.name for f in dataclasses.fields(cls)]

    @functools.wraps(init)
    def __init__(self: SamplingParams, *args: Any, **options: Any) -> None:  # noqa: N807
        for name in options:
            if name not in names:
                hint = nearest(_SYNONYMS.get(name, name), names) or f" It has {', '.join(names)}."
                raise GenerationError(f"SamplingParams has no option {name!r}.{hint}")
        init(self, *args, **options)

    cls.__init__ = __init__  # type: ignore[method-assign]


_refuse_unknown_options(SamplingParams)


@dataclass(frozen=True)
class HidingParams(SamplingParams):
    """Parameters of a group in which siblings are hidden from rows, as training with
    `sibling_dropout` samples it.

    Args:
        hidden: Pairs (row, sibling) of which the row never sees the sibling.
    """

    hidden: Sequence[tuple[int, int]] = ()  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = tuple((int(row), int(sibling)) for row, sibling in self.hidden)
        if any(len(set(pair) & set(range(self.width))) < 2 for pair in pairs):
            raise GenerationError(
                f"hidden holds pairs of two rows of the group's {self.width}; got {shown(pairs)}."
            )
        object.__setattr__(self, "hidden", pairs)


@dataclass
class Completion:
    """One row's output.

    Attributes:
        text: Text of the tokens, without special tokens and without the stop string or end token
            that ended it.
        token_ids: Sampled tokens, the one that finished the row included.
        logprobs: Log-softmax of the model's logits at temperature 1, before anything else, at each
            token; in nats.
        sampled_logprobs: Log-probabilities under the distribution that was sampled from, after
            temperature and forbidden tokens (and filters where there are any); 0 when greedy.
        finish_reason: Reason of the end: "stop" (an end token or stop string), "length" (the row's
            maximum), "consensus" (its group's majority was settled), or "interrupted".
        top_logprobs: Most likely alternatives for each token, as (token id, log-probability).
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    sampled_logprobs: list[float]
    finish_reason: FinishReason
    top_logprobs: list[list[tuple[int, float]]] | None = None

    @property
    def cumulative_logprob(self) -> float:
        """The sum of `logprobs`: log-probability of the completion given all that its row saw."""
        return float(sum(self.logprobs))


@dataclass
class GroupOutput:
    """The W completions of one prompt.

    Attributes:
        prompt: Prompt as it was given.
        prompt_token_ids: Token ids that were fed for it.
        completions: Completions, one for each row.
        params: Parameters that were asked for.
        tokens_saved: Number of tokens that stopping early can have saved at most, with `consensus`:
            the tokens that unfinished rows had left to their maximum.
        attention: Attention of rows to rows in each step, with `record_attention`: `[W, W]`, or
            `[L, W, W]` for each layer, summed over the positions of the row that is read; readers
            that were finished have zeros. Entry t was computed from the rows' t-th tokens and gave
            the next ones; the first tokens come from the prompt alone. Empty for a model without a
            coupling that attends to rows.
        mixing: Weights `[W, W]` with which rows' embeddings were mixed in each step, of a coupling
            that does so (`mix`): entry t of the rows' t-th tokens; without siblings a row has
            zeros. Training needs them. None for other models.
        seconds: Seconds from the group's admission to its last token.
    """

    prompt: Prompt
    prompt_token_ids: list[int]
    completions: list[Completion]
    params: SamplingParams
    tokens_saved: int = 0
    attention: list[Float[np.ndarray, "*L W W"]] | None = None
    mixing: list[Float[np.ndarray, "W W"]] | None = None
    seconds: float = 0.0

    @property
    def texts(self) -> list[str]:
        """The texts of the completions."""
        return [completion.text for completion in self.completions]

    @property
    def num_tokens(self) -> int:
        """Sampled tokens of all rows."""
        return sum(len(completion.token_ids) for completion in self.completions)

    def vote(
        self,
        *,
        extract: Callable[[str], str | None] = extract_answer,
        weights: Sequence[float | int | None] | None = None,
        **options: Any,
    ) -> Vote:
        """The answer that most rows gave.

        Args:
            extract: Function from a row's text to its answer, None for a row without one. A task's
                own is `lambda text: task.verify(example, text).answer`.
            weights: Weights of the rows `[W]`, as `weighted_vote` takes them, for instance
                `logprob_weights([c.logprobs for c in group.completions])`; without them each row
                has one vote.
            **options: Options of `majority_vote`: `normalise`, `equal`.

        Raises:
            AggregationError: for weights that are negative, not finite, or not one a row.
        """
        answers = [extract(text) for text in self.texts]
        if weights is None:
            return majority_vote(answers, **options)
        return weighted_vote(answers, weights, **options)

    def alive_positions(self) -> list[int]:
        """For each row, how many of its fed positions are alive when the group is fed again whole.
        Equation (15).

        A position is alive if its token was fed while the row was unfinished: the prompt, and every
        token but the one that finished the row (METHOD.md).
        """
        prompt = len(self.prompt_token_ids)
        return [prompt + max(len(c.token_ids) - 1, 0) for c in self.completions]


@dataclass(frozen=True)
class Step:
    """One synchronous token for every live row of a group.

    Attributes:
        tokens: Token that each row got, `[W]`; None for rows that were finished already.
        alive: Whether each row got a token in this step, `[W]`.
        texts: Text that each row's token adds, `[W]` ("" while a character is incomplete).
        finish_reasons: Reason of each row that ended with this step, `[W]`; else None.
        logprobs: Log-probability of each token, `[W]`, as in `Completion`.
        top_logprobs: Likeliest tokens, `[W]`, as in `Completion`.
    """

    tokens: list[int | None]
    alive: list[bool]
    texts: list[str]
    finish_reasons: list[FinishReason | None]
    logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]] | None] = field(default_factory=list)


@dataclass
class EngineStats:
    """What a call cost. Where calls share passes, each counts its own rows, and the time of every
    pass that it had a part in.

    Attributes:
        prefill_tokens: Number of prompt positions computed (a prompt once, whatever its width).
        decode_steps: Number of forward passes of one token a row.
        computed_row_steps: Number of rows of all those passes.
        alive_row_steps: Number of those rows that fed an unfinished row's token.
        sampled_tokens: Number of tokens sampled, those after the prefill included.
        peak_cache_bytes: Number of bytes that keys and values took at most.
        preempted_groups: Number of groups that lost their place for want of memory and began again.
        prefill_seconds: Seconds in prefills.
        decode_seconds: Seconds in steps, sampling included.
        notes: Remarks for the user, for instance that memory ran short.
    """

    prefill_tokens: int = 0
    decode_steps: int = 0
    computed_row_steps: int = 0
    alive_row_steps: int = 0
    sampled_tokens: int = 0
    peak_cache_bytes: int = 0
    preempted_groups: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def utilisation(self) -> float:
        """Alive over computed row-steps; 1 means that no finished row cost anything."""
        return self.alive_row_steps / self.computed_row_steps if self.computed_row_steps else 1.0


def whole_number(name: str, value: Any, least: int | None = 0, most: int = LARGEST) -> int:
    """A whole number, Python's or NumPy's, as Python's."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not (-LARGEST if least is None else least) <= number <= most:
        rule = "" if least is None else f", at least {least}"
        if number is not None and number > most:
            rule = f" of at most {most}"
        raise GenerationError(f"{name} is a whole number{rule}; got {shown(value)}.")
    return number


def _number(
    name: str, value: Any, rule: str, fits: Callable[[float], bool], or_else: str = ""
) -> float:
    """A number, Python's or NumPy's, as Python's."""
    number = math.nan
    if hasattr(value, "__float__") and not isinstance(value, bool):
        with contextlib.suppress(Exception):  # too large for a float; an array of many
            number = float(value)
    if not fits(number):
        raise GenerationError(f"{name} is {or_else}a number {rule}; got {shown(value)}.")
    return number


def _items(value: Any) -> tuple[Any, ...] | None:
    """The items of a list, tuple or array; None for what holds none."""
    try:
        return None if isinstance(value, str) else tuple(value)
    except TypeError:
        return None
