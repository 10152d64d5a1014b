"""Two gloo processes train as one does, under DDP and under FSDP2.

`python -m support.processes_training FOLDER` alone leaves in FOLDER what one process computes.
`python -m torch.distributed.run --standalone --nproc-per-node 2 -m support.processes_training
FOLDER KIND` compares; KIND is ddp or fsdp.

Samples are those of one process: seeds follow from a prompt and its place, not from the process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
import transformers
from accelerate.state import AcceleratorState, DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

import interlace
from interlace.errors import GuardError
from interlace.training import scoring
from interlace.training.grpo import GRPOTrainer
from interlace.training.trainer import GroupTrainer
from support.processes import leave_group
from support.training import (
    Evens,
    assert_close,
    at_step,
    gradients,
    grpo,
    metrics,
    tiny_model,
    warmup,
    weights,
    write_responses,
)

SGD: dict[str, Any] = {"optim": "sgd", "lr_scheduler_type": "constant", "learning_rate": 0.05}
SHARDED: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    },
}
# At 12 rows two prompts of one width share a part, and two of different widths do not: the
# processes have different numbers of parts.
GRPO: dict[str, Any] = {
    "prompts_per_rollout": 8,
    "micro_rows": 12,
    "max_steps": 4,
    "mini_batches": 2,
    "kl_weight": 0.1,
} | SGD
# 5 problems: one process measures on one more than the other.
EVALUATION: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "eval_widths": [1, 3]}
WARM: dict[str, Any] = {"train": "all", "groups_per_step": 5, "max_steps": 2, "micro_rows": 4} | SGD


def let_accelerate_shard_on_cpus() -> None:
    """Accelerate shards on accelerators only, and elsewhere falls back on DDP without a word."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        self.fsdp_plugin = fsdp_plugin or getattr(self, "fsdp_plugin", None)
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init


def only_one_scores(prompts: Any, completions: Any, examples: Any, **columns: Any) -> Any:
    """A reward with variance for one problem in three: whole processes have nothing to learn."""
    return [
        len(t) / 10 if e.id[-1] in "0159d" else 0.0
        for t, e in zip(completions, examples, strict=False)
    ]


def runs(folder: Path, data: Path) -> dict[str, Callable[..., GroupTrainer]]:
    """The runs to compare, by name; each takes further options."""
    dropped = {"rewards": {"support.processes_training:only_one_scores": 1.0}}
    dropped |= {"drop_without_variance": True}
    return {
        "grpo": lambda **more: grpo(
            folder / "grpo", eval_dataset=Evens(5), **GRPO | EVALUATION | more
        ),
        "sequence": lambda **more: grpo(folder / "seq", loss="sequence", **GRPO | more),
        "dropped": lambda **more: grpo(folder / "drop", **GRPO | dropped | more),
        "warmup": lambda **more: warmup(
            folder / "warm", tiny_model(), data=str(data), fewest_correct=1, **WARM | more
        ),
    }


def alone(folder: Path) -> None:
    """What one process computes."""
    for name, make in runs(folder / "one", folder / "data.jsonl").items():
        trainer = make(save_strategy="no")
        found = gradients(trainer)
        safetensors.torch.save_file(found, folder / f"{name}.gradients")
        safetensors.torch.save_file(weights(trainer.model), folder / f"{name}.weights")


def compare(folder: Path, ours: Path, options: dict[str, Any]) -> None:
    """Gradients and weights against those of one process."""
    for name, make in runs(ours, folder / "data.jsonl").items():
        trainer = make(save_strategy="no", **options)
        fed: list[int] = []
        note_parts(trainer, fed)
        unshards = count_unshards(trainer)
        with counted_prompts() as shared:
            found = gradients(trainer)
        sharded = [m for m in trainer.model.modules() if isinstance(m, FSDPModule)]
        assert len(sharded) == (7 if options else 0), len(sharded)  # layers, ends, and the whole
        expected = safetensors.torch.load_file(folder / f"{name}.gradients")
        assert_close(found, expected, 1e-5)
        stored = safetensors.torch.load_file(folder / f"{name}.weights")
        assert_close(weights(trainer.model), stored, 1e-5)
        said: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(said, fed)
        if dist.get_rank() == 0:
            place = {"warmup": "warm", "sequence": "seq", "dropped": "drop"}.get(name, name)
            one, two = (metrics(part / place) for part in (folder / "one", ours))
            report(name, said, unshards, len(shared), one, two)


def note_parts(trainer: GroupTrainer, fed: list[int]) -> None:
    """Have the number of parts of every step noted."""
    original = trainer.parts_of

    def noting(step: int) -> Any:
        found = original(step)
        fed.append(len(found[0]))
        return found

    trainer.parts_of = noting  # type: ignore[method-assign]


def count_unshards(trainer: GroupTrainer) -> list[int]:
    """Have the number of units that a rollout gathers noted."""
    counts: list[int] = []
    if not isinstance(trainer, GRPOTrainer):
        return counts
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    original = FSDPParamGroup.unshard
    gathered = 0

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal gathered
        gathered += self._sharded_state.name == "SHARDED"
        return original(self, *args, **kwargs)

    FSDPParamGroup.unshard = counting
    sampling = trainer.sampling_model

    @contextmanager
    def watched() -> Any:
        nonlocal gathered
        gathered = 0
        with sampling() as model:
            yield model
        counts.append(gathered)

    trainer.sampling_model = watched  # type: ignore[method-assign]
    return counts


@contextmanager
def counted_prompts() -> Iterator[list[int]]:
    """Collects the number of groups in each pass that computes a prompt once."""
    original, found = scoring._prompt_cache, []

    def counting(inner: Any, batch: Any, *args: Any) -> Any:
        found.append(batch.count)
        return original(inner, batch, *args)

    scoring._prompt_cache = counting
    try:
        yield found
    finally:
        scoring._prompt_cache = original


def report(name: str, fed: Any, unshards: list[int], shared: int, one: Any, two: Any) -> None:
    """What the tests look at, as one line."""
    off = {}
    for a, b in zip(one, two, strict=True):
        for key in a.keys() | b.keys():
            gap = abs(a.get(key, float("nan")) - b.get(key, float("nan")))
            if not gap <= 1e-4 * max(1.0, abs(a.get(key, 0.0))):
                off[key] = [a.get(key), b.get(key)]
    measured = sum(any(key.startswith("eval_") for key in line) for line in two)
    said = {"parts": fed, "unshards": unshards, "prompts once": shared, "measured": measured}
    print(json.dumps({"run": name, **said, "metrics off": off}))


def resume(folder: Path, options: dict[str, Any]) -> None:
    """A run that stops is the one that does not, and its result can be loaded."""

    def stop() -> None:
        raise InterruptedError

    more = {"save_steps": 2, "optim": "adamw_torch", **options}
    make = runs(folder / "whole", folder / "data.jsonl")["grpo"]
    whole = make(**more)
    result = whole.run()
    again = runs(folder / "stopped", folder / "data.jsonl")["grpo"]
    stopped = again(**more)
    stopped.add_callback(at_step(3, stop))
    with suppress(InterruptedError):
        stopped.run()
    dist.barrier()
    second = again(**more)
    second.run()
    ours, theirs = weights(second.model), weights(whole.model)
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if dist.get_rank() == 0:
        loaded: PreTrainedModel = interlace.load(result)[0]
        plain = weights(loaded)
        saved = all(torch.equal(plain[name], tensor) for name, tensor in theirs.items())
        a, b = (metrics(folder / part / "grpo") for part in ("whole", "stopped"))
        print(json.dumps({"same": same, "saved": saved, "metrics": a == b}))


def saves(folder: Path, options: dict[str, Any]) -> None:
    """Results without blocks and with adapters are written and can be loaded."""
    once: dict[str, Any] = {"max_steps": 1, "save_strategy": "no", **SGD, **options}
    plain = grpo(folder / "plain", tiny_model(None), **once)
    adapted = grpo(folder / "adapted", train="lora", **once)
    results = [trainer.run() for trainer in (plain, adapted)]
    trained = weights(plain.model)
    if dist.get_rank() == 0:
        models = [interlace.load(result)[0] for result in results]
        found = weights(models[0])
        same = all(torch.equal(found[name], tensor) for name, tensor in trained.items())
        names = [name for name, _ in models[1].named_parameters()]
        print(json.dumps({"plain": same, "adapted": not any("lora" in name for name in names)}))


def guards(folder: Path, options: dict[str, Any]) -> None:
    """In low precision, too, a run with finished rows in sight stops, in every process; an honest
    one goes on when its rounding is asked."""
    from interlace.training import grpo as trainers
    from interlace.training import guard

    honest = guard.collate

    def visible(*arguments: Any) -> Any:
        batch = honest(*arguments)
        return dataclasses.replace(batch, alive=torch.ones_like(batch.alive))

    common = {"max_steps": 1, "save_strategy": "no", "width": 3, "bf16": True, **SGD, **options}
    guard.FAR = 0.0  # from the second rollout on
    grpo(folder / "honest", **{**common, "max_steps": 4}).run()
    trainers.collate = guard.collate = visible  # type: ignore[attr-defined]
    stopped = False
    try:
        grpo(folder / "faulty", **common).run()
    except GuardError:
        stopped = True
    finally:
        trainers.collate = guard.collate = honest  # type: ignore[attr-defined]
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, stopped)
    if dist.get_rank() == 0:
        lines = [json.loads(line) for line in (folder / "honest/metrics.jsonl").open()]
        asked = any("sampled_gap/rounding" in line for line in lines)
        print(json.dumps({"stopped": said, "rounding asked": asked}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    place = Path(sys.argv[1])
    if "RANK" not in os.environ:
        write_responses(place / "data.jsonl")
        alone(place)
    else:
        kind = SHARDED if sys.argv[2] == "fsdp" else {}
        if kind:
            let_accelerate_shard_on_cpus()
        compare(place, place / sys.argv[2], kind)
        resume(place / sys.argv[2], kind)
        saves(place / sys.argv[2], kind)
        guards(place / sys.argv[2], kind)
        leave_group()
