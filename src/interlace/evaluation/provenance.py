"""What a run's numbers depend on, as JSON values: the model, the problems, the sampling, the
machine.

What is settled before the first token (`settings`) must be the same when a run goes on; where it
runs (`environment`) may change, and is noted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from interlace.engine.engine import Engine
    from interlace.engine.types import SamplingParams
    from interlace.evaluation.responses import RecordedResponses
    from interlace.remote import RemoteEngine
    from interlace.tasks import Example, Task

HASHED_VALUES = 64  # of every weight: enough to tell checkpoints apart, and quick for any size
PACKAGES = ("interlace", "torch", "transformers", "numpy")
_NOT_SAMPLING = ("width", "seed", "top_logprobs", "record_attention", "consensus")


def describe_engine(engine: Engine | RemoteEngine | RecordedResponses) -> dict[str, Any]:
    """`describe_model` of an engine's model; for a server, what the server says of it."""
    model = getattr(engine, "model", None)
    return engine.description if model is None else describe_model(model)  # type: ignore[union-attr]


def runs_on_cpu(engine: Engine | RemoteEngine | RecordedResponses) -> bool:
    """Whether this process's processor does the work."""
    model = getattr(engine, "model", None)
    return model is not None and next(model.parameters()).device.type == "cpu"


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What tells this model from another: its origin, its shape, its blocks, its weights."""
    from interlace.attached import base_model_of, get_attachment, is_attached
    from interlace.attaching import count_parameters
    from interlace.saving.fingerprint import origin_of

    base = base_model_of(model)
    origin = origin_of(base)
    blocks = get_attachment(base).config if is_attached(base) else None
    return {
        "id": origin.id,
        "revision": origin.revision,
        "architecture": type(base).__name__.removeprefix("FSDP"),
        "parameters": count_parameters(base),
        "dtype": str(base.dtype).removeprefix("torch."),
        "dequantised_from": getattr(base.config, "dequantised_from", None),
        "blocks": None if blocks is None else {"kind": blocks.kind, **blocks.to_dict()},
        "weights": _weights_hash(model.named_parameters()),
    }


def _weights_hash(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of a few values of every weight, which differs for another checkpoint."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(parameters, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type == "meta" or not weight.numel():
            continue
        flat = weight.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, HASHED_VALUES, dtype=torch.float64)
        chosen = flat[places.long().to(flat.device)].cpu().contiguous()
        digest.update(chosen.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_task(task: Task, examples: Sequence[Example]) -> dict[str, Any]:
    """Which problems are asked, and in which words."""
    digest = hashlib.sha256()
    for example in examples:
        content = [example.id, task.prompt(example), example.answer, dict(example.data)]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    return {
        "name": task.name,
        "split": task.split,
        "problems": len(examples),
        "prompts": "messages" if task.chat else "text",
        "content": digest.hexdigest()[:16],
    }


def describe_sampling(params: SamplingParams) -> dict[str, Any]:
    """How rows are sampled, without the width and the seed; refused where the widths of a run, or
    its rows, would not be comparable."""
    if not isinstance(params.max_new_tokens, int):
        raise ConfigError(
            "An evaluation runs several widths, so max_new_tokens is one number for all rows; got "
            f"{list(params.max_new_tokens)}."
        )
    if params.consensus is not None:
        raise ConfigError(
            "consensus cuts rows off once the majority is settled, and metrics of single rows "
            "(pass@1, length) would count them as failures. Leave it out of an evaluation."
        )
    values = {
        field.name: getattr(params, field.name)
        for field in dataclasses.fields(params)
        if field.name not in _NOT_SAMPLING
    }
    values["logits_processors"] = [qualified_name(p) for p in params.logits_processors]
    return as_json(values)


def environment(engine: Engine | RemoteEngine | RecordedResponses) -> dict[str, Any]:
    """Where a run runs: versions, device, threads."""
    import torch

    from interlace.attached import base_model_of

    versions = {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }
    model = getattr(engine, "model", None)
    if model is None:
        return {**versions, "device": getattr(engine, "place", "a server"), "threads": None}
    device = base_model_of(model).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        **versions,
        "device": f"{device.type}, {name}",
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def qualified_name(function: Callable[..., Any]) -> str:
    """`module.name` of a function, or of a callable's class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values as a JSON file would give them back: tuples become lists, keys texts."""
    copied: dict[str, Any] = json.loads(json.dumps(values))
    return copied


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _size(model: Mapping[str, Any]) -> str:
    if model["parameters"] is None:  # a server does not say
        return ""
    return f", {model['parameters'] / 1e6:,.4g} M parameters, {model['dtype']}"


def _sampling(settings: Mapping[str, Any]) -> str:
    sampling = settings["sampling"]
    if "responses" in sampling:
        return f"elsewhere; rows of {sampling['responses']} declared as {sampling['rows']}"
    filters = [
        f"{name} {sampling[name]}"
        for name, plain in (("top_k", (None, 0)), ("top_p", (1.0,)), ("min_p", (0.0,)))
        if sampling[name] not in plain
    ]
    how = ", ".join(
        [f"temperature {sampling['temperature']:g}", *filters, f"seed {settings['seed']}"]
    )
    return f"{how}, at most {sampling['max_new_tokens']} tokens a row"


def summary(
    settings: Mapping[str, Any], environments: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """The lines that stand at the head of a report."""
    model, task = settings["model"], settings["task"]
    origin = f", dequantised from {model['dequantised_from']}" if model["dequantised_from"] else ""
    blocks = f", with {model['blocks']['kind']} blocks" if model["blocks"] else ""
    options = settings["notes"].get("task_options", {})
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    lines = {
        "model": f"{model['id'] or 'in memory'} ({model['architecture']}{_size(model)}{origin}"
        f"{blocks})",
        "task": f"{task['name']}, split {task['split']}{given}: "
        f"{_count(task['problems'], 'problem')}",
        "sampling": _sampling(settings),
    }
    timed = min(settings["timed"], task["problems"])
    if timed:
        lines["seconds"] = (
            f"of one group alone, the first {_count(timed, 'problem')}; on a CPU processor time"
        )
    for number, place in enumerate(environments):
        software = ", ".join(f"{name} {place[name]}" for name in PACKAGES if name in place)
        label = "environment" if number == 0 else f"environment after resumption {number}"
        threads = "" if place["threads"] is None else f", {_count(place['threads'], 'thread')}"
        lines[label] = f"{place['device']}{threads}; {software}"
    return lines
