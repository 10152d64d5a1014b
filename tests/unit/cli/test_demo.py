"""The demo: a miniature of it from training to the report, killed and gone on with, and its views.

Each test was seen to fail: jobs that are done again, a worker that outlives its parent, marks of
finds mixed up, a greeting for --quick without packaged arms.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import interlace.bridge.manifest
import interlace.models.source
from interlace.cli.demo import plan as plans
from interlace.cli.demo.children import Workers
from interlace.cli.demo.command import carry_out
from interlace.cli.demo.follow import Follower, Progress, sparkline
from interlace.cli.demo.group_view import GroupView
from interlace.cli.demo.options import HELD_OUT, Settings, build_parser, settle
from interlace.cli.demo.plan import Plan, begin
from interlace.cli.demo.progress_view import ProgressView
from interlace.cli.demo.spread import Found, choose, following
from interlace.cli.demo.training import recipe_of
from interlace.cli.main import main
from interlace.errors import ConfigError, RunError, WorkerError
from interlace.tasks import Task, get_task

MINIATURE = Settings(rollouts=2, problems=4, warmup_problems=8, warmup_steps=2, prompts=4, timed=1)
RUN = """
import sys
from pathlib import Path
from rich.console import Console
from interlace.cli.demo.command import carry_out
from interlace.cli.demo.options import Settings
from interlace.cli.demo.plan import Plan
sys.exit(carry_out(Plan(Path(sys.argv[1]), Settings(**eval(sys.argv[2]))), Console()))
"""
HIT, OTHER, MISS = "( 3 + 5 ) * 7 = 56", "7 * ( 5 + 3 ) = 56", "( 3 + 5 ) + 7 = 15"


def start(folder: Path, settings: Settings = MINIATURE) -> subprocess.Popen[str]:
    """The demo in a process of its own, its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), repr(vars(settings))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: object, seconds: float = 300) -> None:
    """Until the callable says yes."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, float]]:
    """A demo that was killed with SIGKILL after the first training, and gone on with: its folder,
    what the second start printed, and when the first start's files were written."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    first = start(folder)
    try:
        wait_for(lambda: (folder / plans.USAGE).exists())
    finally:
        first.kill()
        first.communicate()
    before = {line["job"]: line["process"] for line in usage(folder)}
    second = start(folder)
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    return folder, output, before


def usage(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / plans.USAGE).read_text().splitlines()]


def test_demo_that_was_killed_goes_on_and_does_nothing_twice(
    killed: tuple[Path, str, dict],
) -> None:
    folder, output, before = killed
    jobs = [line["job"] for line in usage(folder)]
    assert before
    assert (
        len(jobs) == len(set(jobs)) == 8
    )  # 3 trainings, 4 evaluations (Bridge's in two parts), 1 group
    assert {j: p for line in usage(folder) if (j := line["job"]) in before
            for p in [line["process"]]} == before  # fmt: skip
    assert output.startswith("Going on with the demo")


def test_output_in_a_pipe_is_plain_and_says_it_all(killed: tuple[Path, str, dict]) -> None:
    folder, output, _ = killed
    assert "\x1b" not in output
    assert "Bridge, eval, W = 16: done" in output
    assert re.search(r"pass@1 at width 8: Bridge [\d.]+ %, RLVR-only [\d.]+ %, difference", output)
    assert "One group of 8: rows see each other" in output
    assert "one training seed" in output
    assert output.rstrip().endswith(f"Report: {folder / 'report.md'}")


def test_report_holds_table_figure_group_recipe_versions_and_cost(
    killed: tuple[Path, str, dict],
) -> None:
    folder, _, _ = killed
    text = (folder / "report.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (base|RLVR-only|Bridge) \| (\d+) \|", text, re.M)
    assert rows == [(arm, str(w)) for arm in ("base", "RLVR-only", "Bridge")
                    for w in (1, 2, 4, 8, 16)]  # fmt: skip
    assert "![pass@1 and maj@W against width](figure.png)" in text
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "The same weights, rows alone" in text
    assert "prompts_per_rollout: 4" in text
    assert "max_steps: 8" in text
    assert "- torch: 2" in text
    assert re.search(r"s in 2 starts; at most [\d.]+ GiB of memory", text)
    assert "experiments/01-countdown" in text


def test_shown_again_without_work(killed: tuple[Path, str, dict]) -> None:
    folder, _, _ = killed
    before = (folder / plans.USAGE).read_bytes()
    console = Console(file=io.StringIO(), width=100)
    assert carry_out(Plan(folder, MINIATURE), console) == 0
    assert (folder / plans.USAGE).read_bytes() == before


def test_arms_differ_in_the_blocks_alone(killed: tuple[Path, str, dict]) -> None:
    folder, _, _ = killed
    plan = Plan(folder, MINIATURE)
    bridge, rlvr = (recipe_of(plan, arm).resolved("grpo") for arm in ("bridge", "rlvr"))
    assert {key for key in bridge if bridge[key] != rlvr[key]} == {"attach", "output_dir"}
    assert bridge["grpo"]["width"] == [1, 2, 4, 8]


def test_another_demo_in_the_folder_is_refused(killed: tuple[Path, str, dict]) -> None:
    folder, _, _ = killed
    other = Settings(**{**vars(MINIATURE), "seed": 3})
    with pytest.raises(RunError, match=r"settings.seed was 0 and is 3.*--restart"):
        begin(Plan(folder, other))


def test_restart_moves_the_folder_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(Plan(folder, MINIATURE))
    other = Settings(seed=3)
    assert begin(Plan(folder, other), restart=True) is False
    assert (tmp_path / "run.before-1" / plans.PLAN).exists()
    assert begin(Plan(folder, other)) is True


def test_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds no demo"):
        begin(Plan(tmp_path, MINIATURE))


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    parent = start(folder, Settings())  # far longer than this test
    try:
        wait_for(lambda: (folder / ".lane-1.lock").exists())
        children = worker_ids(parent.pid)
        assert len(children) == 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    wait_for(lambda: not any(is_running(child) for child in children), 20)


def test_interrupt_ends_workers_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    parent = start(folder, Settings())
    wait_for(lambda: (folder / ".lane-1.lock").exists())
    children = worker_ids(parent.pid)
    parent.send_signal(signal.SIGINT)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "the same command goes on from there" in output
    assert not any(is_running(child) for child in children)


def worker_ids(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    pairs = (map(int, line.split()) for line in listed.splitlines())
    return [pid for pid, above in pairs if above == parent]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True,
                           check=False).stdout  # fmt: skip
    return bool(state.strip()) and not state.startswith("Z")


def test_failed_worker_shows_its_error_in_full_and_the_way_out(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "run", MINIATURE)
    begin(plan)
    (plan.folder / plans.PLAN).write_text("{}")  # the workers cannot read their plan
    with (
        pytest.raises(WorkerError, match=r"(?s)ended with status 1.*Traceback.*KeyError: 'settings'"
                      r".*The same command goes on"),
        Workers(plan.folder) as workers,
    ):  # fmt: skip
        workers.wait(lambda: None)


def test_quick_without_packaged_arms_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only_base = tmp_path / "packaged"
    only_base.mkdir()
    (only_base / "tiny").symlink_to(plans.PACKAGED / "tiny")
    monkeypatch.setattr(plans, "PACKAGED", only_base)
    assert main(["demo", "--quick", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "no packaged tiny-rlvr, tiny-pmatch, tiny-bridge" in error
    assert "without --quick: it trains its arms itself" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--quick", "--rollouts", "10"], "trains nothing"),
        (["--steps", "0"], "at least 1; got 0"),
        (["--problems", "1"], "2 to 395"),
        (["--problems", str(HELD_OUT + 1)], "2 to 395"),
        (["--seed", "-1"], "from 0 on"),
    ],
)
def test_options_that_cannot_be_are_refused(options: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settle(build_parser("interlace demo").parse_args(options))


def test_what_is_written_twice_is_the_same() -> None:
    assert interlace.bridge.manifest.MANIFEST == plans.MANIFEST
    assert interlace.models.source.PACKAGED["tiny"] == plans.PACKAGED / "tiny"
    assert len(get_task("tiny-countdown")) == HELD_OUT


# What a group shows.


def found(*rows: list[str]) -> Found:
    task = task_all()
    (example,) = [e for e in task if e.data == {"numbers": [3, 5, 7], "target": 56}]
    return Found(task, example, [" ; ".join(row) for row in rows])


@functools.cache
def task_all() -> Task:
    return get_task("tiny-countdown", split="all")


def marks(group: Found) -> list[list[str]]:
    return [[group.mark(r, k) for k in range(len(row))] for r, row in enumerate(group.rows)]


def test_find_that_siblings_take_over_is_told_from_their_own() -> None:
    swapped = "( 7 - 5 ) * 3 = 6"
    group = found([MISS, HIT], [MISS, swapped, OTHER], [MISS, MISS, "( 5 + 3 ) * 7 = 56"])
    # 7 * ( 5 + 3 ) is ( 3 + 5 ) * 7 with its sides swapped.
    assert marks(group) == [
        ["miss", "first"],
        ["miss", "miss", "taken"],
        ["miss", "miss", "taken"],
    ]
    assert group.first == 1


def test_hit_that_a_row_writes_again_is_neither_found_nor_taken() -> None:
    group = found([HIT, HIT, HIT], [MISS, OTHER, HIT])
    assert marks(group) == [["first", "again", "again"], ["miss", "taken", "again"]]
    assert group.count("taken") == 1


def test_hits_at_the_same_try_take_nothing_over() -> None:
    assert marks(found([HIT], [OTHER])) == [["first"], ["first"]]


def test_most_taken_over_from_a_single_row_is_chosen() -> None:
    quiet = found([MISS, MISS], [MISS, MISS])
    lucky = found([MISS, HIT], [MISS, HIT], [MISS, MISS, HIT], [MISS, MISS, HIT])
    single = found([MISS, HIT], [MISS, MISS, HIT], [MISS, MISS, MISS], [MISS, MISS, MISS])
    assert choose({"a": quiet, "b": lucky, "c": single}) == "c"


def test_following_counts_tries_of_rows_without_a_find() -> None:
    group = found([MISS, HIT], [MISS, MISS, HIT], [MISS, MISS, MISS, MISS])
    # Second tries: three before any sibling has hit, of which one hits. After: rows 2 and 3.
    assert following([group]) == {"after": [1, 3], "before": [1, 3]}


def test_tries_end_at_the_models_verdict_or_at_the_end() -> None:
    (example,) = [e for e in task_all() if e.data == {"numbers": [3, 5, 7], "target": 56}]
    (row,) = Found(task_all(), example, [f"{MISS} ; {HIT} yes {HIT} yes {HIT}"]).rows
    assert [one.hit for one in row] == [False, True, True, True]
    assert {len(one.tokens) for one in row} == {9}


@pytest.fixture
def view() -> GroupView:
    (example,) = [e for e in get_task("tiny-countdown") if e.data["target"] == 21
                  and e.data["numbers"] == [3, 4, 9]]  # fmt: skip
    hit, miss = "( 3 * 4 ) + 9 = 21", "( 3 + 4 ) + 9 = 16"
    return GroupView(
        {
            "example": example.id,
            "prompt": "3 4 9 -> 21 :",
            "together": [f"{miss} ; {hit} yes {hit}", f"{miss} ; {miss} ; {hit}"],
            "alone": [miss, f"{miss} ; {miss}"],
            "groups": 7,
            "following_together": {"after": [3, 4], "before": [1, 10]},
            "following_alone": {"after": [0, 0], "before": [1, 20]},
        }
    )


def test_group_as_plain_text(view: GroupView) -> None:
    assert view.plain() == (
        "Reach 21 with 3, 4, 9\n"
        "\n"
        "One group of 2: rows see each other\n"
        "  row 1   (3+4)+9=16  *(3*4)+9=21  =(3*4)+9=21\n"
        "  row 2   (3+4)+9=16   (3+4)+9=16  >(3*4)+9=21\n"
        "\n"
        "The same weights, rows alone\n"
        "  row 1   (3+4)+9=16\n"
        "  row 2   (3+4)+9=16   (3+4)+9=16\n"
        "\n"
        "* first find of the group   > taken over from a sibling   + hit in another way   "
        "= written again"
    )
    assert "picked out of 7" in view.sentences()[0]
    assert "75 % (3 of 4 tries)" in view.sentences()[1]


def test_group_step_by_step_shows_what_is_written_and_colours_finds(view: GroupView) -> None:
    def shown(step: int | None, width: int) -> str:
        console = Console(file=io.StringIO(), width=width, force_terminal=True,
                          color_system="truecolor")  # fmt: skip
        console.print(view.frame(console, step))
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert "(3*" not in shown(10, 140)
    assert "(3*4" in shown(14, 140)
    assert "*(3*4)+9=21" not in shown(18, 140)  # its value is not there yet
    assert "\x1b[1;30;46m*(3*4)+9=21" in shown(20, 140)
    assert "\x1b[1;36m>(3*4)+9=21" in shown(None, 140)
    beside = [line for line in shown(None, 140).splitlines() if "rows alone" in line]
    assert "rows see each other" in beside[0]
    below = [line for line in shown(None, 80).splitlines() if "rows alone" in line]
    assert "rows see each other" not in below[0]


# Progress.


def test_follower_reads_whole_lines_and_notices_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    follower.read(keep=True)
    assert follower.count == 0
    path.write_text('{"step": 1}\n{"step"')
    follower.read(keep=True)
    assert follower.lines == [{"step": 1}]
    with path.open("a") as stream:
        stream.write(": 2}\n")
    follower.read(keep=True)
    assert [line["step"] for line in follower.lines] == [1, 2]
    other = tmp_path / "rewound"
    other.write_text('{"step": 1}\n')
    other.replace(path)
    follower.read(keep=True)
    assert follower.lines == [{"step": 1}]


def half_trained(folder: Path) -> Plan:
    """A demo whose RLVR-only arm has done half of its rollouts."""
    run = folder / "rlvr" / "grpo"
    run.mkdir(parents=True)
    lines = [
        {"step": s, "pass@1": s / 100, "width_8/pass@1": 0.5, "width_8/coverage": 0.75}
        for s in range(1, 51)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return Plan(folder, Settings(rollouts=100))


def test_progress_shows_metrics_and_time_left(tmp_path: Path) -> None:
    plan = half_trained(tmp_path)
    progress = Progress(plan)
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    console.print(ProgressView(console, progress).table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = [one for one in text.splitlines() if "RLVR-only GRPO" in re.sub(" +", " ", one)]
    assert "rollout 50 of 100" in line
    assert "46.5" in line  # the mean of the last eight
    assert "50.0" in line
    assert "75.0" in line
    assert "▁" in line
    assert "█" in line
    assert re.search(r"about \d+ min \d+ s left", text)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_progress_fits_the_terminal(tmp_path: Path, width: int) -> None:
    progress = Progress(half_trained(tmp_path))
    console = Console(file=io.StringIO(), width=width)
    console.print(ProgressView(console, progress).table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert "so far" in text.splitlines()[2]
    assert ("━" in text) == (width > 100)


def test_time_left_follows_the_pace_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(tmp_path, Settings(rollouts=100))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(plan)
    at_first = progress.seconds_left
    folder = tmp_path / "bridge" / "warmup"
    (folder / "responses").mkdir(parents=True)
    (folder / "responses" / "0-of-1.jsonl").write_text("{}\n" * 600)
    gained = 600 * 0.06
    now[0] = 2 * gained  # half as fast as was guessed
    progress.read()
    assert progress.seconds_left == pytest.approx(2 * (at_first - gained), rel=0.01)


def test_sparkline_of_many_values_has_few_bars() -> None:
    assert len(sparkline([0.1] * 1000)) == 20
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "▁▁"
