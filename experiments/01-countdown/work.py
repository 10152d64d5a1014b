"""One unit's work: warm up, train, evaluate. Resumable, because the library's runs are."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from units import DONE, HERE, RECORDS, Config, Places, Unit, base_source

import interlace
from interlace.attached import is_attached, unwrapped
from interlace.coupling.registry import config_from_dict
from interlace.evaluation.records import read_records
from interlace.tasks import Task, get_task
from interlace.tasks.drawn import Draw
from interlace.training import checkpoints
from interlace.training.arguments import GRPOConfig, WarmupConfig
from interlace.training.grpo import GRPOTrainer
from interlace.training.responses import sample_responses
from interlace.training.warmup import RESPONSES, WarmupTrainer

MODEL = checkpoints.RESULT
# What the learning curves and the table of costs are made from.
KEPT = ("loss", "entropy", "clip_fraction", "seconds", "pass@1", "coverage", "vote", "distinct")


class Snapshots(TrainerCallback):
    """Keeps the model of certain optimizer steps, in folders that `interlace.load` reads."""

    def __init__(self, steps: Sequence[int], tokenizer: Any) -> None:
        self.steps, self.tokenizer = steps, tokenizer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            folder = Path(args.output_dir) / f"step-{state.global_step}"
            checkpoints.save_result(unwrapped(kwargs["model"]), folder, args.train, self.tokenizer)


def carry_out(unit: Unit, config: Config, places: Places) -> None:
    """Do a unit's work, from where an earlier process left off, and write its outcome."""
    torch.set_num_threads(1)
    begun = places.work(unit.name) / "settings.json"
    resumed = begun.exists()
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(unit.settings))
    commit = source_commit()  # now: files may change while the unit runs
    started, spent = time.monotonic(), time.process_time()
    work = {"warmup": warm_up, "train": train, "attach": attach, "evaluate": evaluate}[unit.kind]
    work(unit, config, places)
    outcome = {
        "settings": unit.settings,
        "commit": commit,
        "size": unit.size,
        "resumed": resumed,  # then the seconds are those of the last process only
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
    }
    results = places.results(unit.name)
    results.mkdir(parents=True, exist_ok=True)
    partial = results / f"{DONE}.partial"
    partial.write_text(json.dumps(outcome, indent=1) + "\n")
    os.replace(partial, results / DONE)


def source_commit() -> str:
    """The commit of the source that a unit runs with, with a mark where code differs from it;
    "unknown" outside a repository."""
    git = ["git", "-C", str(HERE)]
    code = [str(HERE.parents[1] / "src"), *map(str, HERE.glob("*.py"))]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code])
    except OSError:  # no git here
        return "unknown"
    if head.returncode != 0:
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.returncode else "")


def warm_up(unit: Unit, config: Config, places: Places) -> None:
    """Warm up fresh blocks on what the unit starts from; without blocks the model itself."""
    model, tokenizer = start_of(unit, config, places)
    give_blocks(model, unit)
    options, work = dict(unit.settings["trainer"]), places.work(unit.name)
    task, sampled = task_of(unit, "train"), work / RESPONSES / "0-of-1.jsonl"
    if unit.settings.get("responses_of") is not None:  # what another unit sampled
        options["data"] = str(places.work(unit.needs[-1]) / RESPONSES / "0-of-1.jsonl")
    elif "traces" in unit.settings:
        options["data"] = str(write_traces(unit, task, work / "traces.jsonl"))
    args = WarmupConfig(output_dir=str(work), seed=unit.seed, **options)
    if args.bf16 and args.data is None:  # sampled in the type of the passes, in half the time
        half = start_of(unit, config, places, dtype="bfloat16")
        sample_responses(interlace.Engine(*half, max_rows=args.max_rows), task, args, sampled)
    WarmupTrainer(model, args=args, train_dataset=task, processing_class=tokenizer).run()
    tidy(unit, places)


def write_traces(unit: Unit, task: Task, path: Path) -> Path:
    """Responses of the task's own policy for the first problems, other ones for every seed."""
    count, problems = unit.settings["traces"], unit.settings["trainer"]["problems"]
    with path.open("w", encoding="utf-8") as file:
        for example in task[:problems]:
            draws = [Draw("trace", unit.seed, example.id, number) for number in range(count)]
            texts = [task.trace(example, draw) for draw in draws]
            file.write(json.dumps({"prompt": task.prompt(example), "responses": texts}) + "\n")
    return path


def train(unit: Unit, config: Config, places: Places) -> None:
    """GRPO on what the unit starts from; where nothing was warmed up, with fresh blocks."""
    model, tokenizer = start_of(unit, config, places)
    if not is_attached(model):
        give_blocks(model, unit)
    folder = places.work(unit.name)
    args = GRPOConfig(output_dir=str(folder), seed=unit.seed, **unit.settings["trainer"])
    snapshots = Snapshots(unit.settings["snapshots"], tokenizer)
    GRPOTrainer(
        model,
        args=args,
        train_dataset=task_of(unit, "train"),
        processing_class=tokenizer,
        callbacks=[snapshots],
    ).run()
    tidy(unit, places)


def attach(unit: Unit, config: Config, places: Places) -> None:
    """Attach a kind that has nothing to train."""
    model, tokenizer = start_of(unit, config, places)
    give_blocks(model, unit)
    interlace.save(model, places.work(unit.name) / MODEL, full=True, tokenizer=tokenizer)


def give_blocks(model: Any, unit: Unit) -> None:
    """Attach what the unit says, if anything."""
    kind = unit.settings["attach"]
    if kind is not None:
        blocks = config_from_dict({"kind": kind, **unit.settings["blocks"]})
        interlace.attach(model, blocks, seed=unit.seed)


def start_of(unit: Unit, config: Config, places: Places, dtype: str | None = None) -> Any:
    """The model of the unit before, at its end or at a snapshot; without one the seed's base."""
    source, where = base_source(config, unit.seed), {"dtype": dtype, "device": config.get("device")}
    if not unit.needs:
        return interlace.load(source, **where)
    work, moment = places.work(unit.needs[0]), unit.settings.get("moment")
    if moment is None:  # blocks that were warmed up on the seed's base
        return interlace.load(work / MODEL, base=source, **where)
    return interlace.load(work / (MODEL if moment == "final" else moment), **where)


def evaluate(unit: Unit, config: Config, places: Places) -> None:
    """Sample the held-out problems at every width."""
    *_, moment = unit.name.split("/")
    source: Any = base_source(config, unit.seed)
    if unit.needs:
        source = places.work(unit.needs[0]) / (MODEL if moment == "final" else moment)
    settings = dict(unit.settings["evaluation"])
    keep_texts = settings.pop("keep_texts")
    batch_rows, dtype = settings["batch_rows"], settings.pop("dtype", None)
    loaded = interlace.load(source, dtype=dtype, device=config.get("device"))
    interlace.evaluate(
        interlace.Engine(*loaded, max_rows=batch_rows),
        task_of(unit, "test"),
        params=interlace.SamplingParams(
            max_new_tokens=unit.settings["max_new_tokens"], temperature=1.0
        ),
        arm=unit.arm,
        training_seed=unit.seed,
        timed=0,
        output=places.work(unit.name),
        figures=(),
        **{**settings, "seed": settings["seed"] + unit.seed},
    )
    # Independent rows are sampled once, at the largest width.
    keep_texts = keep_texts if unit.coupled else settings["widths"]
    keep(unit, places, keep_texts if moment == "final" else ())


def task_of(unit: Unit, split: str) -> Task:
    """The experiment's task, its problems to train on or those held out."""
    options = dict(unit.settings["task"])
    return get_task(options.pop("name"), split=split, **options)


def tidy(unit: Unit, places: Places) -> None:
    """Keep the numbers of a training run; delete what only a resumed run would need."""
    work, results = places.work(unit.name), places.results(unit.name)
    results.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (work / unit.lines).read_text().split("\n")[:-1]]
    thin = [json.dumps(thinned(line)) + "\n" for line in lines]
    with gzip.GzipFile(results / f"{unit.lines}.gz", "wb", mtime=0) as file:
        file.write("".join(thin).encode())
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def thinned(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics without what no table or figure uses."""
    kept = {"step": line["step"]}
    for name, value in line.items():
        if name.rpartition("/")[2].startswith(KEPT) or name.startswith("seconds/"):
            kept[name] = float(f"{value:.4g}")
    return kept


def keep(unit: Unit, places: Places, keep_texts: Sequence[int]) -> None:
    """Put what the metrics need of an evaluation's folder into the results, compressed."""
    work, results = places.work(unit.name), places.results(unit.name)
    results.mkdir(parents=True, exist_ok=True)
    run = json.loads((work / "config.json").read_text())
    run["settings"]["model"]["id"] = f"{unit.settings['base']}: {unit.name}"  # not a local path
    (results / "config.json").write_text(json.dumps(run, indent=1) + "\n")
    with lzma.open(results / RECORDS, "wt", encoding="utf-8", preset=9) as file:
        for record in read_records(work / "records.jsonl"):
            texts = record.texts if record.width in keep_texts else None
            bare = replace(
                record, texts=texts, logprob_sums=None, finish_reasons=None, seconds=None
            )
            file.write(bare.to_line())
