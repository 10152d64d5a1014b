"""What computes a model for the engine: its Hugging Face forward; other backends derive from it.

Axes: B prompts, R live rows, S positions, V vocabulary, L layers with blocks, U prompt positions,
C head dim, E positions whose logits are wanted.

The modules that a backend runs: a twin of the user's model, or the model itself for a moment.

A step needs the model in evaluation mode, with our attention, perhaps with packed products. The
user's model must never show it: another thread may train it, generate with it, or run an engine of
its own. So a twin is made: the same classes and the very same parameters, hooks and attributes in
module objects of our own, which takes a millisecond and no memory. What a trainer puts in place of
a parameter is seen at once, since the dictionaries of parameters and hooks are the same ones.

Where module objects cannot be told from the model (accelerate's dispatch, FSDP, a forward that was
replaced), the model itself is used, under a lock of its own, and put back after each pass.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interlace.attached import SHARDED, Attachment, base_model_of
from interlace.coupling.attention import PREFIX
from interlace.coupling.base import Coupling, Seat, check_carried
from interlace.engine.kept import KeptKeys
from interlace.engine.kv import (
    ATTENTION,
    Ahead,
    SharedCache,
    Slot,
    StoredPrompt,
    active_cache,
    as_heads,
    hidden_pairs,
    not_shareable,
    shared_attention,
)
from interlace.engine.sampling import Sampled, Workspace, sample
from interlace.engine.types import SamplingParams
from interlace.errors import GenerationError
from interlace.rows import Owners, Prompts, Reads, Rows

AttentionInterface.register(ATTENTION, shared_attention)

_MOST_PADDING = 2  # a prompt goes with others of at most so many times the shortest one's length


class HFBackend:
    """Hugging Face's modules with our attention; keys and values in a `SharedCache`.

    The core decides which groups run and what their rows get; a backend computes logits and owns
    keys and values. The core knows a stored prompt and a live row by what the backend gave it for
    them, and asks nothing else of those.

    Args:
        model: Hugging Face causal language model, attached or not, or PEFT's wrapper of one.
        prefill_chunk: Number of prompt positions computed in one pass.

    Attributes:
        name: Name by which a user chooses it.
        seats: Seats of couplings that it carries; a coupling at another seat is refused.
        reads: Reaches of blocks that it carries beside the paper's; another is refused.
        draws: Whether it can draw tokens itself, by `draw`.
        base: Hugging Face model itself.
        context: Number of positions that the model gets at most, if there is such a number, and its
            reason.

    Raises:
        GenerationError: for a model or a coupling that it cannot run.
    """

    name: ClassVar[str] = "hf"
    draws: ClassVar[bool] = False
    seats: ClassVar[tuple[Seat, ...]] = (
        *("input", "attention", "attended", "layer", "streams", "head"),
    )
    reads: ClassVar[tuple[Reads, ...]] = ("finished", "history")

    def __init__(self, model: nn.Module, prefill_chunk: int) -> None:
        self.model = model
        self.base: PreTrainedModel = base_model_of(model)
        self._base_path = next(path for path, m in model.named_modules() if m is self.base)
        self.context: tuple[int | None, str] = check_model(model, self.base)
        self._attachment: Attachment | None = None  # what was found carried
        self._coupling: type[Coupling] | None = None
        self._check_coupling()
        self._chunk = prefill_chunk
        self._host: Twin | Borrowed | None = None
        self._is_fresh = False
        self._cache = SharedCache()
        self._workspace = Workspace()
        self._kept: KeptKeys | None = None  # of blocks that read earlier positions
        self._owners: Owners | None = None  # of the live rows, until one comes or goes
        self._group_numbers = count()
        self._windows: list[int] = []  # of each layer, in the cache of the last prefill
        self._recording: Twin | Borrowed | None = None  # whose blocks note their attention
        self._seen: list[Tensor] | None = None  # what they note in a step that is recorded
        self._said: dict[Slot, Tensor] = {}  # logits of each row's last token, where rows are mixed
        self._saying: dict[Slot, Tensor] = {}  # of the step in hand
        parameters = inspect.signature(self.base.forward).parameters
        self._picks_logits = "logits_to_keep" in parameters

    @property
    def device(self) -> torch.device:
        """Where token ids go in and logits come out."""
        device: torch.device = self.base.device
        return device

    def refresh(self) -> None:
        """Follow weights, blocks and modules that have changed; a call begins with it."""
        check_attention(self.base)
        self._check_coupling()
        if not self._cache.rows:
            self._kept = self._new_kept()
        self._host = None  # made by the first pass that needs it
        self._is_fresh = True

    def _check_coupling(self) -> None:
        attachment: Attachment | None = getattr(self.base, "interlace_attachment", None)
        if attachment is self._attachment:
            return
        self._coupling = None if attachment is None else attachment.coupling
        if attachment is not None:
            carried, reads = (*self.seats, *self.reads), attachment.config.reads
            whole = HFBackend.name  # what it lacks, none has
            other = "model.generate" if self.name == whole else f"backend={whole!r}"
            way_out = f"Use {other} instead."
            check_carried(attachment.coupling, carried, self.name, way_out, reads)
        self._attachment = attachment

    @property
    def skips_alone(self) -> bool:
        """Whether rows that are groups of width 1 are the base model's, and their prompts, too."""
        self._check_coupling()
        return self._attachment is not None and self._attachment.config.skips_alone

    @property
    def mixes(self) -> bool:
        """Whether rows are fed mixtures of their siblings' embeddings. Then `decode` returns the
        weights in any case, since training needs them."""
        return self._coupling is not None and self._coupling.mixes

    @property
    def _streams(self) -> int:
        """Streams in which a row is computed."""
        found = self._attachment
        if found is None or "streams" not in found.coupling.seats or found.handle.disabled:
            return 1
        streams: int = found.config.streams  # type: ignore[attr-defined]
        return streams

    def _new_kept(self) -> KeptKeys | None:
        if self._attachment is None or self._attachment.config.reads == "position":
            return None
        blocks: list[Any] = [self.base.get_submodule(n) for n in self._attachment.block_names]
        size, features = sum(b.kept_bytes for b in blocks), blocks[0].turned_features
        return KeptKeys(self._attachment.config.reads, size, features)

    def _fresh_host(self) -> Twin | Borrowed:
        if not self._is_fresh:  # by whoever calls the core without the engine
            self.refresh()
        return self._host_of_pass()

    def _host_of_pass(self) -> Twin | Borrowed:
        if self._host is None:
            self._host = host_of(self.model)
        return self._host

    # Prompts --------------------------------------------------------------------------------------

    def passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which prompts of these lengths go into one pass, by their places: short ones of like
        length, as many as make one chunk."""
        if self._has_windows():
            return [[place] for place in range(len(lengths))]
        passes: list[list[int]] = []
        for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
            length = lengths[place]
            if passes:
                fits = (len(passes[-1]) + 1) * length <= self._chunk
                if fits and length <= _MOST_PADDING * lengths[passes[-1][0]]:
                    passes[-1].append(place)
                    continue
            passes.append([place])
        return passes

    def _has_windows(self) -> bool:
        """Whether a layer's cache keeps the last positions only: then of padded ones."""
        cache = DynamicCache(config=self.base.config)
        return any(windows_of(cache))

    def prefill(
        self, prompts: Sequence[Sequence[int]], alone: Sequence[bool] = ()
    ) -> Generator[None, None, list[StoredPrompt]]:
        """Compute and store prompts, of one pass, at width 1, by the attention that the model was
        loaded with. Equation (12).

        Width 1 is exact for every width: all rows of a group hold the same prompt (METHOD.md).
        Nothing is stored if any of them fails. Between chunks of long ones it yields, and rows may
        be decoded meanwhile.

        Args:
            prompts: Token ids of each.
            alone: For each whether groups of width 1 answer it, where those skip blocks; by
                default none does.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest, ends = max(lengths), sorted({length - 1 for length in lengths})
        # Padded at their ends: no token sees those after it, so no mask is needed.
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        ids = torch.tensor(padded, device=self.device)
        positions = torch.arange(longest, device=self.device).expand(len(prompts), -1)
        cache, host = self._prefill_cache(), self._fresh_host()
        flags = list(alone) or [False] * len(prompts)
        rows: dict[str, Rows] = {"groups": Prompts(flags)} if self.skips_alone else {}
        logits: dict[int, Float[Tensor, "B V"]] = {}
        for start in range(0, longest, self._chunk):
            stop = min(start + self._chunk, longest)
            wanted = [end - start for end in ends if start <= end < stop]
            part = ids[:, start:stop], positions[:, start:stop]
            kept = self._compute_chunk(host, *part, cache, wanted, rows)
            for n, end in enumerate(wanted):
                logits[start + end] = kept[:, n].to(self.device)
            if stop < longest:
                yield
        self._windows = windows_of(DynamicCache(config=self.base.config))
        stored = keys_and_values(self.base, cache, self._streams)
        return [
            self._cache.add_prompt(
                [(k[b : b + 1, :, :length], v[b : b + 1, :, :length]) for k, v in stored],
                length,
                logits[length - 1][b],
            )
            for b, length in enumerate(lengths)
        ]

    def _prefill_cache(self) -> DynamicCache:
        return DynamicCache(config=self.base.config)

    def _compute_chunk(
        self,
        host: Twin | Borrowed,
        ids: Int[Tensor, "B S"],
        positions: Int[Tensor, "B S"],
        cache: DynamicCache,
        wanted: list[int],
        rows: dict[str, Rows],
    ) -> Float[Tensor, "B E V"]:
        """Logits at the wanted places of a chunk of prompts; its keys and values go to the
        cache."""
        is_last = wanted in ([], [ids.shape[1] - 1])
        keep: Any = 1 if is_last else torch.tensor(wanted, device=self.device)
        with host.ready(None):
            out = host.model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **rows,
                **({"logits_to_keep": keep} if self._picks_logits else {}),
            )
        logits: Tensor = out.logits if self._picks_logits else out.logits[:, wanted]
        return logits

    # Rows -----------------------------------------------------------------------------------------

    def open(
        self,
        prompt: StoredPrompt,
        maxima: Sequence[int],
        hidden: Sequence[tuple[int, int]] = (),
    ) -> list[Slot]:
        """The rows of a new group, which see each other: one for each maximum of tokens; not where
        `hidden` has the pair (row, sibling)."""
        self._owners = None
        slots = self._cache.add_rows(prompt, next(self._group_numbers), maxima)
        for row, sibling in hidden:
            slots[row].unseen |= {slots[sibling]}
        self._cache.hide(slots)
        if self._kept is not None:
            self._kept.open(slots)
        return slots

    @torch.inference_mode()
    def decode(
        self, tokens: Sequence[int], slots: Sequence[Slot], recording: bool = False
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "L R N"] | None]:
        """Feed each live row its next token; the logits after it, and on request who attended to
        whom. It counts only once `advance` says so, so that a step can be done again.

        Args:
            tokens: Tokens, one for each slot.
            slots: All rows that are open; in the order of their places nothing is gathered.
            recording: Whether to return the couplings' attention, averaged over heads: to the rows
                of the step in the order of the slots, then, where earlier positions are read, to
                the rows of the reader's group there, by number.
        """
        cache, device = self._cache, self.device
        if self._owners is None:
            owners, alone = [r.owner for r in cache.rows], [r.alone for r in cache.rows]
            self._owners = Owners(
                owners,
                device,
                alone=alone,
                kept=self._kept,
                hidden=hidden_pairs(cache.rows),
                numbers=[r.number for r in cache.rows],
            )
        if self.mixes:
            said = [self._said.get(row, row.prompt.logits) for row in cache.rows]
            self._owners.said, self._owners.mixing = torch.stack(said), None
            recording = True
        cache.begin_step()
        if self._kept is not None:
            self._kept.begin_step(cache.rows)
        seats = () if self._coupling is None else self._coupling.seats
        cache.has_further_part = "attention" in seats
        cache.is_changed_after = "attended" in seats
        cache.streams = self._streams
        places = [slot.place for slot in slots]
        ids = torch.tensor(tokens, device=device)
        positions = torch.tensor(cache.positions, device=device)
        in_order = places == list(range(len(places)))
        if not in_order:
            ids = torch.empty_like(ids).index_copy_(0, torch.tensor(places, device=device), ids)
        host = self._fresh_host()
        self._record(recording, host)
        couples = self._coupling is not None and self._coupling.couples
        cache.notes_further = recording and couples and "attention" in seats
        cache.further = []
        try:
            logits = self._compute_step(host, ids, positions).to(device)
            self._saying = dict(zip(cache.rows, logits, strict=True)) if self.mixes else {}
        finally:
            seen, self._seen = self._seen, None
        weights = torch.stack(seen) if seen else None
        if cache.notes_further:
            weights = self._of_whole_attention(seen or [], cache.further)
        if in_order:
            return logits, weights
        if weights is not None:
            columns = [*places, *range(len(places), weights.shape[2])]
            weights = weights[:, places][:, :, columns]
        return logits[places], weights

    def _compute_step(
        self, host: Twin | Borrowed, ids: Int[Tensor, " R"], positions: Int[Tensor, " R"]
    ) -> Float[Tensor, "R V"]:
        """Logits after the live rows' next tokens; their keys and values go to the cache."""
        token = active_cache.set(self._cache)
        try:
            with host.ready(ATTENTION):
                out = host.model(
                    input_ids=ids[:, None],
                    position_ids=positions[:, None],
                    past_key_values=self._cache,
                    use_cache=True,
                    **({} if self._coupling is None else {"groups": self._owners}),
                )
        finally:
            active_cache.reset(token)
        if not self._cache.is_checked:
            self._cache.check_asked(self.base, self._windows)
        logits: Tensor = out.logits[:, -1]
        return logits

    def advance(self) -> None:
        """Count the tokens that `decode` has just fed."""
        self._said = self._saying
        if self._kept is not None:
            self._kept.end_step()
        self._cache.end_step()

    @property
    def is_ahead(self) -> bool:
        """Whether it has begun a step by itself, of which `draw` gives the tokens next."""
        return False

    def draw(
        self, slots: Sequence[Slot], tell: Callable[[Slot], Ahead], go_on: bool
    ) -> tuple[list[Slot], list[list[float]]]:
        """`decode`, `advance` and the choice of tokens in one. A backend that `draws` may be one
        step ahead; it then ends rows by itself.

        Args:
            slots: All rows that are open.
            tell: Function that tells what the backend needs to know of a row.
            go_on: Whether to begin another step.

        Returns:
            Rows that have a token, and of each the token and its log-probabilities, at temperature
            1 and under the distribution that was drawn from.
        """
        raise NotImplementedError

    def sample(
        self,
        logits: Float[Tensor, "R V"],
        uniform: Float[np.ndarray, " R"],
        params: SamplingParams,
        forbidden: Int[Tensor, " N"],
        histories: Sequence[Sequence[int]] | None = None,
    ) -> Sampled:
        """One token for each row, as `sampling.sample` draws it."""
        return sample(logits, uniform, params, forbidden, histories, self._workspace)

    @torch.inference_mode()
    def release(self, gone: Slot | StoredPrompt) -> None:
        """Let go of a row, or of a prompt that no row answers any more."""
        if isinstance(gone, StoredPrompt):
            self._cache.remove_prompt(gone)
        else:
            if self._kept is not None:
                self._kept.finish(gone)
            self._cache.remove_row(gone)
            self._owners = None

    def clear(self) -> None:
        """Let go of everything."""
        self._cache, self._kept = SharedCache(), self._new_kept()
        self._workspace = Workspace()
        self._owners, self._said = None, {}

    @torch.inference_mode()
    def room(self, maxima: Sequence[int], prompts: Sequence[int], memory: int) -> bool:
        """Whether further rows of these maxima and prompts of these lengths fit into `memory`
        bytes beside those that are there; gives back what those that are gone have left, where
        that is needed."""
        needed, at_most = self._cache.bytes_with(maxima, prompts)
        if self._kept is not None:
            of_blocks = self._kept.bytes_with(maxima)
            needed, at_most = needed + of_blocks, at_most + max(of_blocks, self._kept.nbytes)
        if at_most > memory and (needed <= memory or not self._cache.rows):
            self._cache.trim()
            if self._kept is not None:
                self._kept.trim()
        return needed <= memory

    @property
    def nbytes(self) -> int:
        """What keys and values take, in bytes."""
        return self._cache.nbytes + (0 if self._kept is None else self._kept.nbytes)

    # Who attends to whom --------------------------------------------------------------------------

    def _record(self, recording: bool, host: Twin | Borrowed) -> None:
        """Have blocks note their attention in the step that begins, or not."""
        if recording and self._recording is not host:
            host.patch(self._recorders(host.model))
            self._recording = host
        self._seen = [] if recording else None

    def _recorders(self, model: nn.Module) -> list[Patch]:
        """Blocks that note their attention, averaged over heads, in a step that is recorded."""
        steps = {"input": "input_step", "layer": "step", "attended": "attended"}
        steps |= {"attention": "attention_step"}
        noted = {"attention_step": self._noted_further}
        return [
            (
                block,
                name,
                functools.partial(noted.get(name, self._noted), block, getattr(block, name)),
            )
            for block in model.modules()
            if isinstance(block, Coupling)
            for name in (steps[seat] for seat in block.seats if seat in steps)
        ]

    def _noted_further(
        self, block: Coupling, step: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any
    ) -> Any:
        part = step(query, key, value, *rest)
        shares = None if self._seen is None else block.step_shares(query, key, *rest)
        if self._seen is not None and shares is not None and part is not None:
            self._seen.append(shares.float().to(self.device))
        return part

    def _of_whole_attention(
        self, seen: list[Tensor], further: list[Tensor]
    ) -> Float[Tensor, "L R N"]:
        """What layers noted of the part that a coupling adds to attention, as shares of the whole:
        the rest, prompt and own past, is the row's own."""
        assert self._attachment is not None
        parts = [(s * f.float().unsqueeze(-1)).mean(1) for s, f in zip(seen, further, strict=True)]
        rows, layers = len(self._cache.rows), len(self._attachment.layer_names)
        weights = torch.stack(parts) if parts else torch.zeros(layers, rows, rows)
        itself = torch.eye(*weights.shape[1:], dtype=weights.dtype, device=weights.device)
        return weights + itself * (1 - weights.sum(dim=-1, keepdim=True))

    def _noted(
        self, block: Coupling, step: Callable[[Tensor, Rows], Tensor], x: Any, rows: Rows
    ) -> Tensor:
        if self._seen is not None:
            weights = block.attention_weights(x, rows)
            if weights is not None:
                self._seen.append(weights[0, 0].mean(dim=0).float().to(self.device))
        return step(x, rows)


Patch = tuple[nn.Module, str, Any]  # an attribute of a module, and what takes its place

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


class Twin:
    """Modules of our own with the model's weights, in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = _twin_of(model)
        self._named = _implementations(self.model)

    def patch(self, patches: Sequence[Patch]) -> None:
        """Put attributes of the twin's modules in place, for good."""
        for module, attribute, value in patches:
            module.__dict__[attribute] = value

    @contextmanager
    def ready(self, attention: str | None) -> Iterator[None]:
        """For a pass with this attention implementation; None is the model's own."""
        for config, own in self._named:
            config._attn_implementation_internal = own if attention is None else attention
        yield


class Borrowed:
    """The model itself, changed during a pass only, and by one thread at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._patches: Sequence[Patch] = ()
        self._undo: list[tuple[dict[str, Any], str, Any]] = []
        with _locks_lock:
            self._lock = _locks.setdefault(model, threading.RLock())

    def patch(self, patches: Sequence[Patch]) -> None:
        """Put attributes of the model's modules in place whenever it is used."""
        self._patches = patches

    @contextmanager
    def ready(self, attention: str | None) -> Iterator[None]:
        """For a pass with this attention implementation; None is the model's own."""
        with self._lock:
            try:
                for module in self.model.modules():
                    if module.training:
                        self._set(module, "training", False)
                for config, own in _implementations(self.model):
                    self._set(config, "_attn_implementation_internal", attention or own)
                for patch in self._patches:
                    self._set(*patch)
                yield
            finally:
                try:
                    self._restore()
                except BaseException:  # an interrupt in the middle of it: to the end all the same
                    self._restore()
                    raise

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append((owner.__dict__, name, owner.__dict__.get(name, _ABSENT)))
        owner.__dict__[name] = value

    def _restore(self) -> None:
        while self._undo:
            attributes, name, before = self._undo[-1]
            if before is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = before
            self._undo.pop()


_ABSENT = object()


# Types of most attributes: what holds no module. Dictionaries are those of parameters and hooks.
_SHARED = frozenset((bool, int, float, str, type(None), dict, OrderedDict, set, torch.Tensor))


def host_of(model: nn.Module) -> Twin | Borrowed:
    """A twin of the model if it can have one, else the model itself."""
    return Twin(model) if can_have_twin(model) else Borrowed(model)


def can_have_twin(model: nn.Module) -> bool:
    """Whether module objects of our own would compute what the model computes."""
    return not any(map(_holds_itself, model.modules()))


def _holds_itself(module: nn.Module) -> bool:
    """Whether something outside the module's attributes acts on this very object."""
    if hasattr(module, "_hf_hook") or isinstance(module, torch.jit.ScriptModule):
        return True
    if any(cls.__name__ in SHARDED for cls in type(module).__mro__):
        return True
    # A method bound to the module can be bound to its twin, as accelerate's for mixed precision;
    # what else a replaced forward does, nobody can tell.
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__self__", None) is not module


def _twin_of(model: nn.Module) -> nn.Module:
    modules = list(model.modules())
    twins: dict[int, nn.Module] = {id(m): object.__new__(type(m)) for m in modules}
    configs: dict[int, Any] = {}  # deepcopy's memory: a configuration in two places stays one
    for module in modules:
        own = dict(module.__dict__)
        for name, value in module.__dict__.items():
            if type(value) not in _SHARED:
                own[name] = _with_twins(value, twins, configs)
        own["_modules"] = {
            name: None if child is None else twins[id(child)]
            for name, child in module._modules.items()
        }
        own["_buffers"] = dict(module._buffers)  # some rotary embeddings replace theirs
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            if hooks := module.__dict__[name]:
                on_own = ((key, functools.partial(_on_own, module, hooks, key)) for key in hooks)
                own[name] = OrderedDict(on_own)
        own["training"] = False
        own["_compiled_call_impl"] = None  # which would call the model's own modules
        twins[id(module)].__dict__.update(own)
    return twins[id(model)]


def _on_own(module: nn.Module, hooks: dict[int, Any], key: int, twin: nn.Module, *args: Any) -> Any:
    """A user's hook, called with the user's module, as long as it is there."""
    return hooks[key](module, *args) if key in hooks else None


def _with_twins(value: Any, twins: dict[int, nn.Module], configs: dict[int, Any]) -> Any:
    """An attribute as the twin has it: modules and bound methods are the twins', configurations
    are copies, and all else is shared."""
    if isinstance(value, nn.Module):
        return twins.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in twins:
        return MethodType(value.__func__, twins[id(value.__self__)])
    if isinstance(value, functools.partial):
        return functools.partial(
            _with_twins(value.func, twins, configs),
            *(_with_twins(v, twins, configs) for v in value.args),
            **{k: _with_twins(v, twins, configs) for k, v in value.keywords.items()},
        )
    if type(value) in (list, tuple) and any(isinstance(v, nn.Module) for v in value):
        return type(value)(_with_twins(v, twins, configs) for v in value)
    if hasattr(value, "_attn_implementation_internal"):
        return copy.deepcopy(value, configs)
    return value


def _implementations(model: nn.Module) -> list[tuple[Any, Any]]:
    """Every configuration that the modules read, with the attention that it names."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [
        (config, config._attn_implementation_internal)
        for config in found.values()
        if hasattr(config, "_attn_implementation_internal")
    ]


def keys_and_values(
    base: PreTrainedModel, cache: Any, streams: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """What a prefill has left in Hugging Face's cache, for each layer; the streams of a prompt as
    heads of it."""
    stored = []
    for n, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
            raise not_shareable(base, f"keeps in layer {n} something else than keys and values")
        if keys.shape != values.shape:
            raise not_shareable(base, f"has in layer {n} values of another size than its keys")
        stored.append((as_heads(keys, streams), as_heads(values, streams)))
    return stored


def windows_of(cache: Any) -> list[int]:
    """The sliding window that Hugging Face's cache keeps for each layer; 0 where it keeps all."""
    return [int(getattr(layer, "sliding_window", 0) or 0) for layer in cache.layers]


_LIBRARIES = ("torch", "transformers", "interlace")
_LAYER_TYPES = ("full_attention", "sliding_attention")


def check_model(model: nn.Module, base: PreTrainedModel) -> tuple[int | None, str]:
    """The `context` of a backend, for a model whose configuration shows that the engine can run it.

    The engine can run models whose attention is what the shared cache computes. Another would
    sample wrong tokens in silence, so it is refused: by what its configuration says, by what its
    prefill leaves in the cache, and by what its layers ask for in the first step of a call.
    """
    if not type(base)._supports_attention_backend:
        raise not_shareable(base, "does not go through Hugging Face's attention interface")
    check_attention(base)
    config = base.config.get_text_config(decoder=True)
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in _LAYER_TYPES:
            raise not_shareable(base, f"has in layer {layer} a layer of the kind {kind}")
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise GenerationError(
            f"The active adapter, {type(adapter).__name__}, puts virtual tokens before whatever is "
            "fed, in each step again. Use an adapter that changes weights, such as LoRA, or "
            "model.generate."
        )
    return _context_of(base)


def check_attention(base: PreTrainedModel) -> None:
    """Refuse an attention of the user's own, which no decode step would call: what is none of
    Hugging Face's, of the hub's kernels or of ours."""
    name = str(base.config._attn_implementation).removeprefix(PREFIX)  # beside a coupling's part
    function = ALL_ATTENTION_FUNCTIONS.get(name)
    if name == ATTENTION:  # lent to another thread's call at this moment
        return
    if function is not None and "/" not in name and not is_of_libraries(function):
        raise GenerationError(
            f"The engine computes attention itself, and attn_implementation={name!r} is a function "
            "of your own, which it would pass over. If that computes what Hugging Face's do, call "
            "model.set_attn_implementation('sdpa') before; else use model.generate."
        )


def is_of_libraries(function: Any) -> bool:
    """Whether nobody but torch, transformers and this library has written a function and what is
    wrapped around it."""
    return all(name.split(".")[0] in _LIBRARIES for name in written_in(function))


def written_in(function: Any) -> Iterator[str]:
    """The modules that have written a function, from what is wrapped around it inwards. A wrapper
    made with `functools.wraps` says of itself that it comes from where the wrapped one does."""
    while function is not None:
        if isinstance(function, functools.partial):
            function = function.func
        yield getattr(function, "__globals__", {}).get("__name__") or ""
        function = getattr(function, "__wrapped__", None)


def _context_of(base: PreTrainedModel) -> tuple[int | None, str]:
    """The most positions that the engine gives a model, if it has an end, and why it ends there.

    LongRoPE changes its factors at its original length, for a whole batch at once: beyond it a row
    would depend on its neighbours, and on keys that were computed with the other factors.
    """
    config = base.config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            original = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", length
            )
            return original, " (LongRoPE computes longer sequences with other factors)"
    return length or None, ""
