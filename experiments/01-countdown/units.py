"""The experiment as units of work: warm-ups, training runs, evaluations; what each depends on.

A unit is named by the folder of its results: `seed-0/warmup-bridge`, `seed-0/rlvr/train`,
`seed-0/rlvr/final`, `seed-0/rlvr/step-240`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from interlace.coupling.registry import coupling_class

HERE = Path(__file__).parent
DONE = "done.json"
RECORDS = "records.jsonl.xz"
MAIN, EXTRA, TUNING = QUEUES = ("main", "extra", "tuning")
Config = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """One piece of work, done by one process.

    Attributes:
        kind: "warmup", "train" or "evaluate".
        name: Of its folder.
        arm: Whose it is; for a warm-up the kind of blocks.
        seed: The training seed.
        settings: All that its outcome depends on, as JSON values.
        needs: Names of the units before it.
    """

    kind: str
    name: str
    arm: str
    seed: int
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Optimizer steps, or groups to sample."""
        if self.kind != "evaluate":
            return int(self.settings["trainer"]["max_steps"])
        evaluation = self.settings["evaluation"]
        widths = evaluation["widths"] if self.coupled else [max(evaluation["widths"])]
        problems = evaluation.get("limit") or _held_out(json.dumps(self.settings["task"]))
        return int(problems) * sum(evaluation["samples"] // w for w in widths)

    @property
    def coupled(self) -> bool:
        """Whether the rows of its groups see each other."""
        kind = self.settings["attach"]
        return kind is not None and coupling_class(kind).couples

    @property
    def lines(self) -> str:
        """The file that grows by a line for every piece of `size`."""
        return "records.jsonl" if self.kind == "evaluate" else "metrics.jsonl"


@dataclass(frozen=True)
class Places:
    """Where a run of the experiment keeps its files.

    Attributes:
        out: The folder.
    """

    out: Path

    def work(self, name: str) -> Path:
        """Of a unit: checkpoints, weights, logs; not kept in the repository."""
        return self.out / "work" / name

    def results(self, name: str) -> Path:
        """Of a unit: what the report is made from."""
        return self.out / "results" / name

    def outcome(self, unit: Unit) -> dict[str, Any] | None:
        """What a finished unit left; None for one that is not finished."""
        path = self.results(unit.name) / DONE
        return json.loads(path.read_text()) if path.exists() else None

    def is_stale(self, unit: Unit) -> bool:
        """Whether the unit was finished, or begun, with other settings.

        The commit in `done.json` has no say in it: most commits change no result.
        """
        outcome = self.outcome(unit)
        begun = self.work(unit.name) / "settings.json"
        if outcome is not None:
            return bool(outcome["settings"] != unit.settings)
        return begun.exists() and json.loads(begun.read_text()) != unit.settings

    def forget(self, unit: Unit) -> None:
        """Delete all that the unit left."""
        for folder in (self.results(unit.name), self.work(unit.name)):
            shutil.rmtree(folder, ignore_errors=True)


def load_config(smoke: bool = False, overrides: Sequence[str] = ()) -> Config:
    """The settings of `config.yaml`, with the preset and `section.key=value` on top."""
    config: Config = yaml.safe_load((HERE / "config.yaml").read_text(encoding="utf-8"))
    preset = config.pop("smoke")
    return changed(merged(config, preset) if smoke else config, overrides)


def plan(config: Config) -> list[Unit]:
    """All units of a queue, in the order in which they are begun: seed by seed."""
    weights = [base_digest(base) for base in config["bases"]]
    units: list[Unit] = []
    for seed in config["seeds"]:
        index = seed % len(config["bases"])
        base = config["bases"][index]["name"]
        common = {"base": base, "base_weights": weights[index], "task": config["task"]}
        used = [arm.get("attach") for arm in config["arms"].values()]
        warmups = {
            kind: _warmup(config, common, seed, kind) for kind in config["blocks"] if kind in used
        }
        units += warmups.values()
        trained = [
            _train(config, common, seed, arm, warmups.get(options.get("attach")))
            for arm, options in config["arms"].items()
            if options.get("trained")
        ]
        units += trained
        evaluated = {unit.arm: unit for unit in trained}
        for arm in config["arms"]:
            units += _evaluations(config, common, seed, arm, evaluated.get(arm))
    return units


def with_needs(chosen: Sequence[Unit], units: Sequence[Unit]) -> list[Unit]:
    """The chosen units and all that they need, in the order of `units`."""
    by_name = {unit.name: unit for unit in units}
    names: set[str] = set()
    ahead = [unit.name for unit in chosen]
    while ahead:
        name = ahead.pop()
        names.add(name)
        ahead += by_name[name].needs
    return [unit for unit in units if unit.name in names]


def base_source(config: Config, seed: int) -> str:
    """What `interlace.load` takes for the base of a seed."""
    return _source(config["bases"][seed % len(config["bases"])])


def queue_config(config: Config, queue: str) -> Config:
    """A queue's settings: its own seeds, arms and labels, the rest as in the main one."""
    if queue == MAIN:
        return config
    own = copy.deepcopy(config[queue])
    replaced = {key: own.pop(key) for key in ("seeds", "snapshots", "arms", "labels")}
    return merged(config, own) | replaced


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """The settings with `section.key=value` on top."""
    for override in overrides:
        path, _, value = override.partition("=")
        change: Any = yaml.safe_load(value)
        for key in reversed(path.split(".")):
            change = {key: change}
        config = merged(config, change)
    return config


def merged(first: Any, second: Any) -> Any:
    """`second` on top of `first`, key by key."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return copy.deepcopy(second)
    changed = {key: merged(first.get(key), value) for key, value in second.items()}
    return {**copy.deepcopy(first), **changed}


def _warmup(config: Config, common: Config, seed: int, kind: str) -> Unit:
    settings = common | {
        "attach": kind,
        "blocks": config["blocks"][kind],
        "trainer": merged(config["trainer"], config["warmup"]),
    }
    return Unit("warmup", f"seed-{seed}/warmup-{kind}", kind, seed, settings)


def _train(config: Config, common: Config, seed: int, arm: str, warmup: Unit | None) -> Unit:
    options = config["arms"][arm]
    trainer = merged(merged(config["trainer"], config["grpo"]), options.get("grpo", {}))
    if "rewards" in options.get("grpo", {}):
        trainer["rewards"] = options["grpo"]["rewards"]
    settings = common | {
        "attach": options.get("attach"),
        "warmup": None if warmup is None else dict(warmup.settings),
        "trainer": trainer,
        "snapshots": _snapshots(config, arm),
    }
    needs = () if warmup is None else (warmup.name,)
    return Unit("train", f"seed-{seed}/{arm}/train", arm, seed, settings, needs)


def _evaluations(
    config: Config, common: Config, seed: int, arm: str, trained: Unit | None
) -> list[Unit]:
    settings = common | {
        "attach": config["arms"][arm].get("attach"),
        "trained": None if trained is None else dict(trained.settings),
        "max_new_tokens": config["trainer"]["max_new_tokens"],
        "evaluation": config["evaluation"],
    }
    moments = ["final"]
    if trained is not None:
        moments += [f"step-{step}" for step in _snapshots(config, arm)]
    needs = () if trained is None else (trained.name,)
    return [
        Unit("evaluate", f"seed-{seed}/{arm}/{moment}", arm, seed, settings, needs)
        for moment in moments
    ]


def _snapshots(config: Config, arm: str) -> list[int]:
    """The optimizer steps after which an arm's model is kept: its own, or those of the queue."""
    return list(config["arms"][arm].get("snapshots", config["snapshots"]))


@functools.cache
def _held_out(task: str) -> int:
    """How many problems a task, as JSON, holds out."""
    from interlace.tasks import get_task

    options = json.loads(task)
    return len(get_task(options.pop("name"), split="test", **options))


def _source(base: Mapping[str, str]) -> str:
    folder = HERE / base["source"]
    return str(folder.resolve()) if "/" in base["source"] else base["source"]


def base_digest(base: Mapping[str, str]) -> str | None:
    """Of a base's weights, so that results of a base that was made anew are not mixed in; None for
    a base that is not there."""
    from interlace.errors import MissingDependencyError
    from interlace.models.source import PACKAGED, SMOLLM2, GgufFile, resolve

    weights = PACKAGED.get(base["source"], Path(_source(base))) / "model.safetensors"
    if base["source"] == SMOLLM2:
        with contextlib.suppress(MissingDependencyError):
            source = resolve(SMOLLM2)
            weights = source.path if isinstance(source, GgufFile) else weights
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights.exists() else None
