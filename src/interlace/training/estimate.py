"""What a stage takes, before it runs: optimizer steps, tokens, and memory by part.

Axes: R rows of a forward pass, S positions of a row, T of them the completion, V vocabulary.

Memory is for each process, and an estimate: kernels' workspaces and fragmentation are not in it.
What stays all the time adds to the larger of the two phases, sampling and training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.errors import ConfigError
from interlace.training.probe import Subject
from interlace.training.responses import count_responses
from interlace.training.scoring import CHUNK_BYTES, KEPT_BYTES

CPU_ROWS, CUDA_ROWS = 64, 256  # the engine's own bounds
# Numbers of the optimizer's states for each that trains; others count as AdamW.
STATES = {"sgd": 0.0, "adafactor": 0.01, "lion": 1.0, "rmsprop": 1.0, "adagrad": 1.0}


@dataclass(frozen=True)
class Plan:
    """How much a stage does, over all processes.

    Attributes:
        optimizer_steps: of the whole stage; of a warm-up counted in epochs the most there can be,
            since problems without enough correct responses are left out.
        rollouts: times that a batch of prompts is sampled; one for the warm-up.
        prompts: prompts sampled, repeats counted.
        rows: completions sampled.
        most_tokens: the most tokens sampled.
        groups: groups that train, repeats counted; for the warm-up those of all steps.
        problems: distinct problems there are to draw from.
    """

    optimizer_steps: int
    rollouts: int
    prompts: int
    rows: int
    most_tokens: int
    groups: int
    problems: int


@dataclass(frozen=True)
class Setting:
    """What memory depends on, beside the model.

    Args:
        micro_rows: R, the most rows of one forward pass that trains.
        live_rows: rows that the engine advances together.
        group_rows: the widest group.
        prompt: the longest prompt's positions.
        completion: T.
        mixed: whether passes run in 16 bits over wider weights.
        checkpointing: whether activations are computed again.
        optimizer: its name.
        reference: whether a frozen copy is kept.
        processes: how many share the work.
        sharded: whether FSDP shards weights, gradients and states over them.
        cpu: whether it runs on the CPU.
        guard: whether the guard of invariant I7 runs.
    """

    micro_rows: int
    live_rows: int
    group_rows: int
    prompt: int
    completion: int
    mixed: bool
    checkpointing: bool
    optimizer: str
    reference: bool
    processes: int = 1
    sharded: bool = False
    cpu: bool = False
    guard: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of each process, by part.

    Attributes:
        fixed: what stays all the time.
        sampling: what comes on top while sampling.
        training: what comes on top in the largest forward and backward pass.
        least: what sampling needs at least: one group at a time.
    """

    fixed: dict[str, int]
    sampling: dict[str, int]
    training: dict[str, int]
    least: int

    @property
    def peak(self) -> int:
        """The most at any time, with as few groups sampled together as it takes."""
        phases = (self.least, sum(self.training.values()))
        return sum(self.fixed.values()) + max(phases)


def plan(options: Any, stage: str, problems: int) -> Plan:
    """How much a stage does.

    Args:
        options: its options, as `Recipe.options` gives them.
        stage: "warmup" or "grpo".
        problems: how many the task has.
    """
    if stage == "warmup":
        used = min(options.problems or problems, problems)
        if options.data is not None:
            used = count_responses(Path(options.data))
        epoch = max(used / options.groups_per_step, 1.0)
        steps = _steps(options, epoch, 1)
        rows = 0 if options.data is not None else used * options.samples
        groups = steps * options.groups_per_step
        prompts = 0 if options.data is not None else used
        return Plan(steps, 1, prompts, rows, rows * options.max_new_tokens, groups, used)
    every = options.steps_per_rollout
    steps = _steps(options, problems / options.prompts_per_rollout * every, every)
    rollouts = -(-steps // every)
    prompts = rollouts * options.prompts_per_rollout
    rows = prompts * options.num_generations
    narrow = min(options.widths)
    return Plan(
        steps, rollouts, prompts, rows, rows * options.max_new_tokens, rows // narrow, problems
    )


def _steps(options: Any, epoch: float, every: int) -> int:
    if options.max_steps > 0:
        return -(-options.max_steps // every) * every
    return int(max(round(options.num_train_epochs * epoch), 1))


def setting(
    options: Any, stage: str, prompt: int, *, processes: int, sharded: bool, cpu: bool
) -> Setting:
    """What memory depends on, from a stage's options.

    Args:
        options: as `Recipe.options` gives them.
        stage: "warmup" or "grpo".
        prompt: the longest prompt's positions.
        processes: how many train.
        sharded: whether FSDP shards over them.
        cpu: whether they run on the CPU.

    Raises:
        ConfigError: if the processes cannot share the work evenly.
    """
    if stage == "warmup":
        widest = options.samples
        whole = -(-options.groups_per_step // processes) * widest
        rows = min(whole, max(options.micro_rows or whole, widest))
        sampled = -(-(options.problems or options.groups_per_step) // processes) * widest
    else:
        share = options.prompts_per_rollout // options.mini_batches
        if share % processes:
            raise ConfigError(
                f"Every process takes the same number of a mini-batch's {share} prompts; "
                f"{processes} processes do not divide it. Set grpo.prompts_per_rollout to a "
                f"multiple of {options.mini_batches * processes}."
            )
        widest = max(options.widths)
        whole = share // processes * options.num_generations
        rows = max(min(whole, (options.micro_rows or whole) // w * w) for w in options.widths)
        sampled = options.prompts_per_rollout // processes * options.num_generations
    bound = options.max_rows or (CPU_ROWS if cpu else CUDA_ROWS)
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
    training = {
        f"activations, {at.micro_rows} rows": at.micro_rows * _activations(subject, at),
        "logits": _logits(subject, at),
    }
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


def _activations(subject: Subject, at: Setting) -> int:
    """Bytes a row keeps for the backward pass; with checkpointing each layer's input, and what one
    layer keeps."""
    size = 2 if at.mixed else subject.itemsize
    positions = at.prompt + at.completion
    kept = subject.per_position * positions
    if subject.eager:
        kept += subject.per_square * positions**2
    if at.checkpointing:
        inputs = subject.layers * subject.hidden_size * positions * size
        kept = inputs + kept / subject.layers
    return int(kept)


def _logits(subject: Subject, at: Setting) -> int:
    """Bytes of a pass's logits: those that are kept for the backward pass, if they are few, and
    some chunks in work."""
    everything = at.micro_rows * at.completion * subject.vocabulary * 4
    kept = everything if everything <= KEPT_BYTES else 0
    return kept + 4 * min(CHUNK_BYTES, everything)


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
