"""The orders of training as units of work, for the queue of 01-countdown: an arm's training, which
may begin where another arm's ended, and its evaluations. 05-long-run and 06-width-one use them,
too: their `config.yaml` says what differs from this folder's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "01-countdown"))

from run import carry_out_queue, carry_out_unit, only  # noqa: E402
from units import HERE as MACHINE  # noqa: E402
from units import (  # noqa: E402
    Config,
    Places,
    Unit,
    base_digest,
    changed,
    merged,
    with_needs,
)

from interlace.coupling.registry import coupling_class  # noqa: E402

MAIN, *OTHERS = QUEUES = ("main", "ending", "subtracting", "gpu", "gsm8k")
SIZES = ("warmup", "grpo", "evaluation")
REPLACED = (
    "bases",
    "task",
    "arms",
    "labels",
    "reference",
    "compare",
    "curves",
    "order",
)  # by a queue's own
SHARED = ("bases", "task", "blocks", "trainer", *SIZES, "smoke")


def main(home: Path, doc: str) -> int:
    """Do what the command line asks of the experiment in the folder `home`."""
    given = arguments(doc)
    if given.unit is not None:
        return carry_out_unit(given.unit)
    config = changed(load_config(given.smoke, given.queue, home), given.set)
    out = home / "work" / "smoke" if given.smoke else home
    places = Places((out if given.queue == MAIN else out / given.queue).resolve())
    if given.report:
        from orders_report import write_report

        write_report(config, places, home, given.queue)
        return 0
    fetch_bases(config)
    units = plan(config)
    chosen = with_needs(only(given.only, units), units)
    script = (home / "run.py").resolve()
    return 0 if carry_out_queue(given, config, places, chosen, script, given.minutes) else 1


def arguments(doc: str) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workers", type=int, default=1, help="processes, of one thread each")
    add("--only", action="append", default=[], help="arm=NAME and seed=N, separated by commas")
    add("--queue", choices=QUEUES, default=MAIN, help="which arms; default: %(default)s")
    add("--minutes", type=float, help="stop after so many; the same command goes on")
    add("--set", action="append", default=[], metavar="task.data=PATH", help="change a setting")
    add("--smoke", action="store_true", help="4 optimizer steps, one seed, a few problems")
    add("--redo", action="store_true", help="delete units that had other settings, and redo them")
    add("--list", action="store_true", help="show the units and which are done")
    add("--report", action="store_true", help="no training: tables from the results there are")
    add("--unit", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def load_config(smoke: bool = False, queue: str = MAIN, home: Path = HERE) -> Config:
    """The settings of an experiment's `config.yaml`, with the queue's and the preset's on top."""
    config = _read(home)
    if home != HERE:
        first = _read(HERE)
        first["smoke"] = {key: first["smoke"][key] for key in SIZES}
        config = merged({key: first[key] for key in SHARED}, config)
    preset, others = config.pop("smoke"), {name: config.pop(name, None) for name in OTHERS}
    if queue != MAIN:
        own = others[queue]
        if own is None:
            have = [name for name, other in others.items() if other] or ["no other"]
            sys.exit(f"{home.name} has no queue {queue!r}; besides main it has {', '.join(have)}.")
        replaced = {key: own.pop(key) for key in REPLACED if key in own}
        preset = merged({key: preset[key] for key in SIZES}, own.pop("smoke", {}))
        config = merged(config, own) | replaced
    return merged(config, preset) if smoke else config


def _read(home: Path) -> Config:
    found: Config = yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8"))
    return found


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
        "blocks": _blocks(config, options),
        "snapshots": options.get("snapshots", []),
        "trainer": _trainer(config, options),
    }
    if "traces" in options:
        settings["traces"] = options["traces"]
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


def _blocks(config: Config, options: Config) -> Config | None:
    """An arm's own options of its kind, on top of those of all arms that the kind has."""
    if options.get("attach") is None:
        return None
    known = {field.name for field in fields(coupling_class(options["attach"]).Config)}
    shared = {name: value for name, value in config["blocks"].items() if name in known}
    return shared | options.get("blocks", {})


def _trainer(config: Config, options: Config) -> Config:
    stage = options["train"]
    if stage == "attach":  # nothing is trained
        return {"max_steps": 1}
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
