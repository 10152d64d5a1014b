"""What a stage takes, before it runs: optimizer steps, tokens, and memory by part.

Axes: R rows of a forward pass, S positions of a row, T of them the completion, V vocabulary.

Memory is for each process, and an estimate: kernels' workspaces and fragmentation are not in it.
What stays all the time adds to the larger of the two phases, sampling and training.
docs/measurements.md holds it against real passes.

What a model keeps for the backward pass is measured on the meta device, without weights or data:
its own forward runs at two lengths while autograd's saved tensors are counted. Eager attention runs
there, so bytes a row are a*S + b*S^2, and two lengths give both: b is what eager attention keeps,
and what other implementations do not.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interlace.attached import get_attachment, is_attached, new_parameters
from interlace.attaching import detach
from interlace.coupling.config import CouplingConfig
from interlace.engine.core import default_rows
from interlace.engine.request import encode
from interlace.errors import LoadError, reading
from interlace.jsonl import read
from interlace.models.describe import cache_bytes, describe
from interlace.models.loading import base_of, load_tokenizer
from interlace.models.source import GgufFile, HubModel, SavedBlocks, Source, resolve
from interlace.rows import Groups
from interlace.tasks.base import Task
from interlace.training.recipe import Recipe, Stage
from interlace.training.run import attach_blocks, starting_folder
from interlace.training.scoring import CHUNK_BYTES, KEPT_BYTES
from interlace.training.weights import choose_parameters

_SHORT, _LONG = 64, 128  # positions of the measured passes
_PROMPTS = 256  # looked at for the longest one
# Numbers of the optimizer's states for each that trains; others count as AdamW.
STATES = {"sgd": 0.0, "adafactor": 0.01, "lion": 1.0, "rmsprop": 1.0, "adagrad": 1.0}


def skeleton(recipe: Recipe, stage: Stage) -> tuple[PreTrainedModel, Source]:
    """The model that a stage trains on the meta device, `requires_grad` as it will be."""
    start = starting_folder(recipe, stage)
    options = recipe.load if start is None else {}
    source = resolve(
        recipe.model if start is None else start,
        revision=options.get("revision"),
        gguf_file=options.get("gguf_file"),
        weights=False,
    )
    saved = isinstance(source, SavedBlocks)
    config = recipe.attach if isinstance(recipe.attach, CouplingConfig) and not saved else None
    _, model = describe(
        source,
        config,
        base=options.get("base"),
        dtype=recipe.load.get("dtype"),
        trust_remote_code=bool(recipe.load.get("trust_remote_code")),
    )
    if recipe.attach == "none" and not saved:
        detach(model)
    else:
        attach_blocks(model, recipe, start)
    choose_parameters(model, recipe.options(stage))
    return model, source


def longest_prompt(source: Source, task: Task) -> int:
    """Tokens of the longest of the task's first prompts."""
    tokenizer = _tokenizer(source)
    found = 0
    for index, example in enumerate(task[:_PROMPTS]):
        prompt: Any = task.prompt(example)
        if not isinstance(prompt, str) and not tokenizer.chat_template:
            prompt = "\n".join(message["content"] for message in prompt)
        found = max(found, len(encode(prompt, index, tokenizer)))
    return found


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    found = source
    if isinstance(source, SavedBlocks):
        if (own := source.own_tokenizer()) is not None:
            return load_tokenizer(own, {})
        found = base_of(source)
    if isinstance(found, GgufFile):
        with reading(LoadError, f"{found.path} has no tokenizer that can be loaded"):
            return AutoTokenizer.from_pretrained(found.path.parent, gguf_file=found.path.name)
    assert isinstance(found, HubModel)
    return load_tokenizer(found, {})


@dataclass(frozen=True)
class Subject:
    """A model as an estimate sees it; bytes in the data types of its weights."""

    old_parameters: int  # of the base, tied weights once
    new_parameters: int  # of the blocks
    trained_old: int  # adapters included
    trained_new: int
    weight_bytes: int
    trained_bytes: int
    linear_bytes: int  # of the linear layers, which the CPU engine packs
    layers: int
    hidden_size: int
    vocabulary: int
    itemsize: int  # bytes of a number, as weights have it
    per_position: float  # bytes kept for the backward pass, a row and position: a
    per_square: float  # bytes kept for each pair of positions: b
    eager: bool  # attention runs eagerly, so that b counts
    cache_per_position: float  # bytes of one row's keys and values at one position
    # What the backward pass takes at its end if tied embeddings train: a gradient of their use as
    # embeddings and one of their use as head.
    tied_bytes: int = 0


@dataclass(frozen=True)
class Setting:
    """What memory depends on, beside the model."""

    micro_rows: int  # of one forward pass that trains, at most: R
    live_rows: int  # that the engine advances together
    group_rows: int  # of the widest group
    prompt: int  # positions of the longest one
    completion: int  # T
    mixed: bool  # passes run in 16 bits over wider weights
    checkpointing: bool  # activations are computed again
    optimizer: str
    reference: bool  # a frozen copy is kept
    processes: int = 1
    sharded: bool = False  # weights, gradients and states, over the processes
    cpu: bool = False
    guard: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of each process, by part: all the time, on top while sampling, and on top in the
    largest forward and backward pass; and what sampling needs at least, one group at a time."""

    fixed: dict[str, int]
    sampling: dict[str, int]
    training: dict[str, int]
    least: int

    @property
    def peak(self) -> int:
        """The most at any time, with as few groups sampled together as it takes."""
        phases = (self.least, sum(self.training.values()))
        return sum(self.fixed.values()) + max(phases)


def plan(options: Any, stage: str, problems: int) -> dict[str, int]:
    """How much a stage does, over all processes, in the words of a dry run.

    In a warm-up that is counted in epochs there are at most so many optimizer steps, since problems
    without enough correct responses are left out.
    """
    if stage == "warmup":
        used = min(options.problems or problems, problems)
        if options.data is not None:
            used = sum(1 for _ in read(Path(options.data)))
        steps = _steps(options, max(used / options.groups_per_step, 1.0), 1)
        prompts = 0 if options.data is not None else used
        rows = prompts * options.samples
        most = ", at most" if options.max_steps <= 0 else ""
        return {
            "problems": used,
            "prompts sampled": prompts,
            "rows sampled": rows,
            "tokens sampled, at most": rows * options.max_new_tokens,
            "groups kept, at most": used,
            f"optimizer steps{most}": steps,
            "groups trained on, repeats counted": steps * options.groups_per_step,
        }
    every = options.steps_per_rollout
    steps = _steps(options, problems / options.prompts_per_rollout * every, every)
    rollouts = -(-steps // every)
    prompts = rollouts * options.prompts_per_rollout
    rows = prompts * options.num_generations
    return {
        "problems": problems,
        "rollouts": rollouts,
        "prompts sampled": prompts,
        "rows sampled": rows,
        "tokens sampled, at most": rows * options.max_new_tokens,
        "optimizer steps": steps,
    }


def _steps(options: Any, epoch: float, every: int) -> int:
    if options.max_steps > 0:
        return -(-options.max_steps // every) * every
    return int(max(round(options.num_train_epochs * epoch), 1))


def setting(
    options: Any,
    stage: str,
    model: nn.Module,
    prompt: int,
    *,
    processes: int,
    sharded: bool,
    cpu: bool,
) -> Setting:
    """What memory depends on, from a stage's options as `Recipe.options` gives them."""
    if stage == "warmup":
        widest = options.samples
        whole = -(-options.groups_per_step // processes) * widest
        rows = min(whole, max(options.micro_rows or whole, widest))
        sampled = -(-(options.problems or options.groups_per_step) // processes) * widest
    else:
        widest = max(options.widths)
        whole = options.prompts_of_process(processes) * options.num_generations
        rows = max(min(whole, (options.micro_rows or whole) // w * w) for w in options.widths)
        sampled = options.prompts_per_rollout // processes * options.num_generations
    bound = options.max_rows or default_rows(model, cuda=not cpu)
    return Setting(
        micro_rows=rows,
        live_rows=max(min(bound, sampled), widest),
        group_rows=widest,
        prompt=prompt,
        completion=options.max_new_tokens,
        mixed=bool(options.bf16 or options.fp16),
        checkpointing=bool(options.gradient_checkpointing),
        optimizer=str(getattr(options.optim, "value", options.optim)),
        reference=bool(getattr(options, "kl_weight", 0)),
        processes=processes,
        sharded=sharded,
        cpu=cpu,
        guard=bool(getattr(options, "guard", False)),
    )


def probe(
    model: PreTrainedModel, width: int, *, eager: bool = False, mixed: bool = False
) -> Subject:
    """Measure a model on the meta device, `requires_grad` set as it will train.

    Passes in 16 bits over wider weights (`mixed`) keep about what those of a model in 16 bits keep.
    """
    dtype = torch.bfloat16 if mixed else model.dtype
    new = {id(p) for _, p in new_parameters(model)} if is_attached(model) else set()
    weights = list(model.parameters())
    trained = [p for p in weights if p.requires_grad]
    sizes = model.config.get_text_config(decoder=True)
    short, long = (_saved(model, width, length, dtype) / width for length in (_SHORT, _LONG))
    square = (long - short * _LONG / _SHORT) / (_LONG**2 - _SHORT * _LONG)
    linear = short / _SHORT - square * _SHORT
    return Subject(
        old_parameters=sum(p.numel() for p in weights if id(p) not in new),
        new_parameters=sum(p.numel() for p in weights if id(p) in new),
        trained_old=sum(p.numel() for p in trained if id(p) not in new),
        trained_new=sum(p.numel() for p in trained if id(p) in new),
        weight_bytes=sum(p.nbytes for p in weights),
        trained_bytes=sum(p.nbytes for p in trained),
        linear_bytes=sum(m.weight.nbytes for m in model.modules() if isinstance(m, nn.Linear)),
        layers=sizes.num_hidden_layers,
        hidden_size=sizes.hidden_size,
        vocabulary=sizes.vocab_size,
        itemsize=model.dtype.itemsize,
        per_position=linear,
        per_square=square,
        eager=eager,
        cache_per_position=cache_bytes(model, _LONG) / _LONG,
        tied_bytes=_tied_bytes(model),
    )


def _tied_bytes(model: PreTrainedModel) -> int:
    weight: Any = getattr(model.get_output_embeddings(), "weight", None)
    tied = weight is not None and weight is getattr(model.get_input_embeddings(), "weight", None)
    return 2 * weight.nbytes if tied and weight.requires_grad else 0


def _saved(model: PreTrainedModel, rows: int, length: int, dtype: torch.dtype) -> float:
    """Bytes kept for the backward pass by a group's forward in `dtype`, weights left out."""
    try:
        return float(_kept(copy.deepcopy(model).to(dtype).train(), rows, length))
    except RuntimeError:
        if dtype == torch.bfloat16:
            raise
    # A mixture's grouped products know no other data type on the meta device.
    half = copy.deepcopy(model).to(torch.bfloat16).train()
    return _kept(half, rows, length) * dtype.itemsize / 2


def _kept(model: PreTrainedModel, rows: int, length: int) -> int:
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    groups = {}
    if is_attached(model):
        mixes = get_attachment(model).coupling.mixes
        weights = torch.zeros(1, length, rows, rows, device="meta") if mixes else None
        groups = {"groups": Groups(rows, mixing=weights)}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.device("meta"):
        model(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            attention_mask=torch.ones(rows, length, dtype=torch.long),
            use_cache=False,
            logits_to_keep=1,
            **groups,
        )
    return sum(storage.nbytes() for storage in kept.values())


def memory(subject: Subject, at: Setting) -> Memory:
    """Bytes of each process, by part."""
    shards = at.processes if at.sharded else 1
    fixed = {
        "weights": subject.weight_bytes // shards,
        "gradients": subject.trained_bytes // shards,
        "optimizer states": int(_states(subject, at.optimizer)) // shards,
    }
    if at.reference:
        # It shares what does not train, unless that is sharded.
        fixed["frozen reference"] = subject.weight_bytes if at.sharded else subject.trained_bytes
    if at.processes > 1 and not at.sharded:
        fixed["gradient buckets (DDP)"] = subject.trained_bytes
    if at.cpu:
        fixed["packed linears (CPU engine)"] = subject.linear_bytes
    sampling = {f"keys and values, {at.live_rows} rows": _cache(subject, at, at.live_rows)}
    least = {"group": _cache(subject, at, at.group_rows)}
    step = 3 * 4 * subject.vocabulary
    sampling["logits of a step"] = at.live_rows * step
    least["logits"] = at.group_rows * step
    training = _largest_moment(subject, at)
    if at.mixed:
        copies = 2 * (subject.old_parameters + subject.new_parameters)
        training["weights in 16 bits"] = copies // (subject.layers if at.sharded else 1)
    if at.guard:
        # While the first part's activations are kept; of a sharded model in the first process. Its
        # logits take about what the gradients of those above do, which are not there yet.
        low = at.mixed or subject.itemsize < 4
        name = "copy in 32 bits (guard)" if low else "copy in 64 bits (guard, if it needs one)"
        parameters = subject.old_parameters + subject.new_parameters
        training[name] = (4 if low else 8) * parameters
    if at.sharded:
        gathered = subject.weight_bytes - subject.weight_bytes // shards
        sampling["gathered weights (FSDP)"] = least["gathered"] = gathered
        training["gathered layers (FSDP)"] = 2 * subject.weight_bytes // subject.layers
    return Memory(fixed, sampling, training, sum(least.values()))


def _states(subject: Subject, optimizer: str) -> float:
    kind = next((name for name in STATES if optimizer.startswith(name)), None)
    if "8bit" in optimizer:
        return 2.0 * (subject.trained_old + subject.trained_new)
    return subject.trained_bytes * (2.0 if kind is None else STATES[kind])


def _cache(subject: Subject, at: Setting, rows: int) -> int:
    """Prompts are stored once a group."""
    prompts = -(-rows // at.group_rows)
    positions = prompts * at.prompt + rows * at.completion
    return int(positions * subject.cache_per_position)


def _largest_moment(subject: Subject, at: Setting) -> dict[str, int]:
    """What a forward and backward pass holds at its largest moment, beside weights and gradients:
    at the logits, in the backward of one layer, or at the end, in that of tied embeddings."""
    size = 2 if at.mixed else subject.itemsize
    positions = at.prompt + at.completion
    kept = at.micro_rows * subject.per_position * positions
    if subject.eager:
        kept += at.micro_rows * subject.per_square * positions**2
    name, logits = f"activations, {at.micro_rows} rows", {"logits": _logits(subject, at)}
    if at.checkpointing:  # each layer's input, and in the backward what one layer keeps
        inputs = at.micro_rows * subject.layers * subject.hidden_size * positions * size
        moments = [{name: inputs} | logits, {name: int(inputs + kept / subject.layers)}]
    else:
        moments = [{name: int(kept)} | logits]
    moments.append({"gradients of tied embeddings, by part": subject.tied_bytes})
    return max(moments, key=lambda parts: sum(parts.values()))


def _logits(subject: Subject, at: Setting) -> int:
    """Bytes of a pass's logits and their gradients: all at once if they are few, else by chunks."""
    everything = at.micro_rows * at.completion * subject.vocabulary * 4
    return 2 * everything if everything <= KEPT_BYTES else 3 * CHUNK_BYTES


def ways_out(subject: Subject, at: Setting, available: int, stage: str) -> Iterator[str]:
    """Changes of a recipe with which a stage that does not fit would, the mildest first."""
    fewer = at.micro_rows
    tries: list[tuple[str, Setting]] = []
    while fewer // 2 >= at.group_rows:
        fewer //= 2
        tries.append((f"{stage}.micro_rows={fewer}", dataclasses.replace(at, micro_rows=fewer)))
    if not at.checkpointing:
        name = f"{stage}.gradient_checkpointing=true"
        tries.append((name, dataclasses.replace(at, checkpointing=True)))
        both = dataclasses.replace(at, checkpointing=True, micro_rows=at.group_rows)
        tries.append((f"{stage}.micro_rows={at.group_rows} {name}", both))
    light = next((words for words, new in tries if memory(subject, new).peak <= available), None)
    if light is not None:
        yield light
        return
    smallest = dataclasses.replace(at, checkpointing=True, micro_rows=at.group_rows)
    small = f"{stage}.micro_rows={at.group_rows} {stage}.gradient_checkpointing=true"
    for count in (2, 4, 8, 16, 32, 64):
        spread = dataclasses.replace(smallest, processes=count, sharded=True)
        if count > at.processes * at.sharded and memory(subject, spread).peak <= available:
            yield f"{small} under FSDP2 on {count} processes"
            break
    if subject.trained_old:
        yield f"{stage}.train=new, or {stage}.train=lora: gradients and states of fewer weights"
    yield f"a shorter {stage}.max_new_tokens, or narrower groups"
