"""The orders of training as units of work, for the queue of 01-countdown: an arm's training, which
may begin where another arm's ended, and its evaluations.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "01-countdown"))

from units import HERE as MACHINE  # noqa: E402
from units import Config, Unit, base_digest, merged  # noqa: E402

MAIN, ENDING = QUEUES = ("main", "ending")


def load_config(smoke: bool = False, queue: str = MAIN) -> Config:
    """The settings of `config.yaml`, with the queue's and the preset's on top."""
    config: Config = yaml.safe_load((HERE / "config.yaml").read_text(encoding="utf-8"))
    preset, ending = config.pop("smoke"), config.pop(ENDING)
    if queue == ENDING:
        replaced = {key: ending.pop(key) for key in ("bases", "arms", "labels", "order")}
        config = merged(config, ending) | replaced
        preset = {key: preset[key] for key in ("warmup", "grpo", "evaluation")}
    return merged(config, preset) if smoke else config


def fetch_bases(config: Config) -> None:
    """Write bases that only an older commit has to where they are read from."""
    for base in config["bases"]:
        folder = MACHINE / base["source"]
        if "commit" not in base or folder.exists():
            continue
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        tree = f"{base['commit']}:{base['path']}"
        packed = subprocess.run(
            ["git", "archive", tree], cwd=HERE.parents[1], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x"], cwd=partial, input=packed.stdout, check=True)
        partial.rename(folder)


def plan(config: Config) -> list[Unit]:
    """All units in the order in which they are begun, each once."""
    weights = [base_digest(base) for base in config["bases"]]
    found: dict[str, Unit] = {}
    for entry in config["order"]:
        for seed in entry["seeds"]:
            for arm in entry["arms"]:
                _add(config, weights, seed, arm, found)
    return list(found.values())


def _add(
    config: Config, weights: list[str | None], seed: int, arm: str, found: dict[str, Unit]
) -> Unit:
    """The arm's training unit; it, its evaluations and all that it needs are in `found` then."""
    name = f"seed-{seed}/{arm}/train"
    if name in found:
        return found[name]
    options = config["arms"][arm]
    index = seed % len(config["bases"])
    settings: dict[str, Any] = {
        "base": config["bases"][index]["name"],
        "base_weights": weights[index],
        "task": config["task"],
        "attach": options.get("attach"),
        "blocks": config["blocks"] | options.get("blocks", {}) if options.get("attach") else None,
        "snapshots": options.get("snapshots", []),
        "trainer": _trainer(config, options),
    }
    needs: list[str] = []
    for key in ("from", "responses_of"):
        source, _, moment = options.get(key, "").partition("@")
        if source:
            before = _add(config, weights, seed, source, found)
            needs.append(before.name)
            settings[key] = dict(before.settings)
            if key == "from":
                settings["moment"] = moment or "final"
            else:
                settings["responses_of"] = source
    unit = Unit(options["train"].replace("grpo", "train"), name, arm, seed, settings, tuple(needs))
    found[name] = unit
    for moment in ["final", *(f"step-{step}" for step in settings["snapshots"])]:
        evaluation = _evaluation(config, unit, moment)
        found[evaluation.name] = evaluation
    return unit


def _trainer(config: Config, options: Config) -> Config:
    stage = options["train"]
    own = dict(options.get(stage, {}))
    rewards = own.pop("rewards", None)
    trainer: Config = merged(merged(config["trainer"], config[stage]), own)
    if rewards is not None:  # replaced, not merged
        trainer["rewards"] = rewards
    return trainer


def _evaluation(config: Config, trained: Unit, moment: str) -> Unit:
    own = config["arms"][trained.arm].get("widths")
    settings = {
        **{key: trained.settings[key] for key in ("base", "base_weights", "task", "attach")},
        "trained": dict(trained.settings),
        "max_new_tokens": config["trainer"]["max_new_tokens"],
        "evaluation": config["evaluation"] | ({"widths": own} if own else {}),
    }
    name = f"seed-{trained.seed}/{trained.arm}/{moment}"
    return Unit("evaluate", name, trained.arm, trained.seed, settings, (trained.name,))
