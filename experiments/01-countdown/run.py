"""Bridge against RLVR-only and P-Match on countdown: five seeds, two bases, all of it resumable.

    python experiments/01-countdown/run.py                      # everything, then the report
    python experiments/01-countdown/run.py --queue tuning       # learning rates, before it
    python experiments/01-countdown/run.py --queue extra        # after it: rewards, credit
    python experiments/01-countdown/run.py --smoke              # all code paths, in minutes
    python experiments/01-countdown/run.py --only arm=rlvr,arm=base,seed=0 --stage evaluate
    python experiments/01-countdown/run.py --stage report       # tables and figures from results/

Killed at any point, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from units import (
    HERE,
    MAIN,
    QUEUES,
    TUNING,
    Config,
    Places,
    Unit,
    load_config,
    plan,
    queue_config,
    with_needs,
)
from workers import RUN, Queue, end_with_parent, only_process, read_job

from interlace import huge_pages

STAGES = {"train": ("warmup", "train"), "evaluate": ("evaluate",), "report": ()}


def main() -> int:
    given = arguments()
    if given.unit is not None:
        return carry_out_unit(given.unit)
    config = load_config(given.smoke, given.set)
    out = given.out or (HERE / "work" / "smoke" if given.smoke else HERE)
    config = queue_config(config, given.queue)
    places = Places((out if given.queue == MAIN else out / given.queue).resolve())
    stages = given.stage or [s for s in STAGES if (given.queue, s) != (TUNING, "evaluate")]
    units = plan(config)
    kinds = {kind for stage in stages for kind in STAGES[stage]}
    wanted = [unit for unit in only(given.only, units) if unit.kind in kinds]
    if wanted and not carry_out_queue(given, config, places, with_needs(wanted, units)):
        return 1
    if "report" in stages:
        from report import write_report

        write_report(config, places, given.queue)
    return 0


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workers", type=int, default=2, help="processes, of one thread each")
    add("--stage", action="append", choices=list(STAGES), help="all of them unless given")
    add("--only", action="append", default=[], help="arm=NAME and seed=N, separated by commas")
    add("--queue", choices=QUEUES, default=MAIN, help="which arms; default: %(default)s")
    add("--smoke", action="store_true", help="4 optimizer steps, two seeds, a few problems")
    add("--set", action="append", default=[], metavar="grpo.max_steps=240", help="change a setting")
    add("--out", type=Path, help="where results and report go, if not beside this script")
    add("--redo", action="store_true", help="delete units that had other settings, and redo them")
    add("--list", action="store_true", help="show the units and which are done")
    add("--unit", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def carry_out_queue(
    given: argparse.Namespace,
    config: Config,
    places: Places,
    chosen: Sequence[Unit],
    script: Path = RUN,
    minutes: float | None = None,
) -> bool:
    """Do the chosen units in their order, or what `minutes` allow; `script` does one of them when
    it gets `--unit`."""
    if given.list:
        for unit in chosen:
            state = "stale" if places.is_stale(unit) else "done" if places.outcome(unit) else ""
            print(f"{unit.name:40}{state}")
        sys.exit()
    refuse_missing(chosen)
    refuse_stale(places, chosen, given.redo)
    places.out.mkdir(parents=True, exist_ok=True)
    (places.out / "work").mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (places.out / "work" / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"Another process works in {places.out}; wait for it, or use another --out.")
        tell = lambda line: print(line, flush=True)  # noqa: E731
        return Queue(chosen, config, places, given.workers, tell, script).run(minutes)


def only(wishes: Sequence[str], units: Sequence[Unit]) -> list[Unit]:
    """The units that the wishes leave: any of the arms named and any of the seeds named."""
    named: dict[str, set[str]] = {"arm": set(), "seed": set()}
    for wish in ",".join(wishes).split(",") if wishes else []:
        key, _, value = wish.partition("=")
        known = {str(getattr(unit, key, None)) for unit in units}
        if key not in named or value not in known:
            sys.exit(f"--only takes arm=NAME and seed=N with {key} among {sorted(known)}: {wish!r}")
        named[key].add(value)
    return [
        unit
        for unit in units
        if all(str(getattr(unit, k)) in wished for k, wished in named.items() if wished)
    ]


def refuse_missing(units: Sequence[Unit]) -> None:
    """Nothing begins before all bases that it takes are there."""
    missing = {unit.settings["base"] for unit in units if unit.settings["base_weights"] is None}
    if missing:
        sys.exit(
            f"These base models are not there: {', '.join(sorted(missing))}. Make them with "
            "experiments/00-tiny-base/make.py, or leave their seeds out with --only seed=N."
        )


def refuse_stale(places: Places, units: Sequence[Unit], redo: bool) -> None:
    """Results of other settings are not mixed in: they are deleted on demand, or named."""
    stale = [unit for unit in units if places.is_stale(unit)]
    if stale and not redo:
        names = ", ".join(unit.name for unit in stale[:6]) + (" ..." if len(stale) > 6 else "")
        sys.exit(
            f"{len(stale)} units were carried out with other settings than config.yaml's: {names}. "
            "--redo deletes and redoes them; --out chooses another place."
        )
    for unit in stale:
        with only_process(places, unit):
            places.forget(unit)


def carry_out_unit(job: Path) -> int:
    """The work of one of the queue's processes, on huge pages where the system grants them."""
    huge_pages.restart()
    end_with_parent()
    from work import carry_out

    unit, config, places = read_job(job)
    with only_process(places, unit):
        # The process before, of a queue that was killed, may have come to the end after all.
        if places.outcome(unit) is None:
            carry_out(unit, config, places)
    return 0


if __name__ == "__main__":
    sys.exit(main())
