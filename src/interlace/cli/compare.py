"""`interlace compare A B C`: arms over the same problems, gains with intervals, figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.cli.shared import FigureType, file_name
from interlace.configuration import Parser
from interlace.errors import ConfigError, MetricError, RunError

if TYPE_CHECKING:
    from argparse import Namespace

    from interlace.evaluation.results import ArmResult

# The paper's order; other arms follow as given.
PAPER = ("base", "RLVR-only", "P-Match", "Bridge")
EXAMPLES = """\
examples:
  The paper's table: four arms, paired over the same problems, gains over the base:
    interlace compare runs/base runs/rlvr runs/pmatch runs/bridge
  Other names for arms, another base, and where to put the figures:
    interlace compare base=runs/a Bridge=runs/b --base base --output runs/a-against-b
  Several training seeds of an arm, and several tasks (the table then has their mean):
    interlace compare runs/base-* runs/bridge-seed0-* runs/bridge-seed1-*
"""


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        runs: Run folders of `interlace eval`, or records files; ARM= before one renames its arm.
        base: Name of the arm that gains are over; by default "base", else the first.
        output: Path of the folder for report and figures; by default runs/compare-ARMS.
        level: Coverage of the intervals.
        figures: Types of the figures' files, or none.
        json: Print the comparison as JSON instead of tables.
    """

    runs: tuple[str, ...] = ()
    base: str | None = None
    output: str | None = None
    level: float = 0.95
    figures: tuple[FigureType, ...] = ("pdf", "svg", "png")
    json: bool = False


def build_parser(prog: str) -> Parser:
    """The options of `interlace compare`."""
    parser = Parser(
        prog,
        usage="[ARM=]RUN [ARM=]RUN ... [options]",
        description="Compare arms with paired differences over the same problems: gains over the\n"
        "base, gains relative to the next best arm, the votes that independent rows need\nto reach "
        "a coupled arm's, and figures.",
        examples=EXAMPLES,
        config="base: RLVR-only",
    )
    parser.add_options(Settings, words=["runs"])
    return parser


def run(arguments: Namespace) -> None:
    """Load, compare, write, print."""
    import json

    from rich.console import Console

    from interlace.evaluation.report import make_report, print_report
    from interlace.evaluation.run import refuse_foreign_report, write_report

    if not arguments.runs:
        raise ConfigError("Say which runs: interlace compare runs/base runs/bridge.")
    results = in_order([load(argument, arguments.level) for argument in arguments.runs])
    arms = list(dict.fromkeys(result.arm for result in results))
    check(results, arms)
    folder = Path(arguments.output or "runs/" + file_name("compare-" + "-".join(arms)))
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} is the folder of a run; choose another --output.")
    refuse_foreign_report(folder)
    base = arguments.base or ("base" if "base" in arms else arms[0])
    report = make_report(results, base=base, provenance=head(results))
    write_report(folder, report, arguments.figures)
    if arguments.json:
        sys.stdout.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
    else:
        print_report(report, Console())
    print(f"{folder} has result.json, report.md and the figures.", file=sys.stderr)


def load(argument: str, level: float) -> ArmResult:
    """The result of one `[ARM=]RUN`, computed from its raw generations.

    Raises:
        RunError: if there is no run, it is unfinished, or only its result file is there.
        DataFileError: for damaged records.
    """
    from interlace.evaluation.measure import measure
    from interlace.evaluation.records import read_records
    from interlace.evaluation.run import CONFIG, RECORDS, load_run

    arm, sign, place = argument.partition("=")
    if Path(argument).exists():  # runs/lr=1e-5
        sign = ""
    path = Path(place if sign else argument)
    folder = path if path.is_dir() else path.parent
    if (folder / CONFIG).exists() and path.name in (folder.name, RECORDS, "result.json"):
        result = load_run(folder, level=level)
    elif path.suffix == ".jsonl" and path.is_file():
        found = measure(read_records(path), arm if sign else path.stem, level=level)
        if len(found) != 1:
            tasks = ", ".join(entry.task for entry in found) or "none"
            raise RunError(f"A records file holds one arm on one task; {path} has {tasks}.")
        result = found[0]
    elif path.suffix == ".json" and path.is_file():
        raise RunError(
            f"{path} holds no values of single problems, on which paired differences stand, and "
            "its records are not beside it. Give the run folder."
        )
    else:
        raise RunError(
            f"There is no run at {path}. Give folders that `interlace eval --output` wrote, or "
            "records files (.jsonl)."
        )
    return replace(result, arm=arm) if sign else result


def in_order(results: Sequence[ArmResult]) -> list[ArmResult]:
    """The paper's arms in its order, then the others as given."""
    known = {arm: place for place, arm in enumerate(PAPER)}
    return sorted(results, key=lambda result: known.get(result.arm, len(known)))


def check(results: Sequence[ArmResult], arms: Sequence[str]) -> None:
    """Raise unless there are two arms or more, with a width in common.

    Raises:
        MetricError: naming what is missing.
    """
    if len(arms) < 2:
        raise MetricError(
            f"A comparison needs two arms or more; all these runs are of {arms[0]!r}. Name them "
            "apart: interlace compare first=runs/a second=runs/b."
        )
    if not set.intersection(*(set(result.widths) for result in results)):
        listed = "; ".join(f"{result.arm!r}: {result.widths}" for result in results)
        raise MetricError(f"The arms have no width in common: {listed}.")


def head(results: Sequence[ArmResult]) -> dict[str, str]:
    """What stands at the head of the report: the arms' models, and settings that differ."""
    from interlace.errors import differences
    from interlace.evaluation.provenance import summary

    lines: dict[str, str] = {}
    first: dict[str, dict[str, Any]] = {}
    for result in results:
        settings = result.provenance.get("settings")
        if settings is None:
            continue
        lines[result.arm] = summary(settings, [])["model"]
        asked = {
            "sampling": settings["sampling"],
            "sampling seed": settings["seed"],
            "prompts": settings["task"]["content"],
            "environment": result.provenance["environments"],
        }
        changed = differences(first.setdefault(result.task, asked), asked)
        if changed:
            lines[f"note: {result.arm} on {result.task} differs"] = "; ".join(changed)
    return lines
