"""`interlace compare`: the paper's table, over the same problems or not at all.

Mutations that were seen to fail here: arms in another order; a renamed arm that keeps its name;
settings that differ and are not told; results of other problems that are paired all the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from interlace.cli.compare import in_order
from interlace.cli.main import main
from interlace.engine.types import SamplingParams
from interlace.evaluation.evaluate import evaluate
from interlace.evaluation.measure import measure
from interlace.evaluation.records import GroupRecord
from support.evaluation import BASE, BRIDGE, PMATCH, RLVR, Arm
from support.text import number_engine, sums

Compare = Callable[..., tuple[int, str, str]]
WIDTHS = [1, 2, 4, 8]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Runs the command in an empty folder; gives its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["compare", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return command


def written(name: str, records: list[GroupRecord]) -> str:
    with Path(name).open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(record.to_line())
    return name


def arm_file(arm: Arm, name: str | None = None, problems: int = 40) -> str:
    """The records of a synthetic arm in a file."""
    widths = WIDTHS if arm.copy else [16]
    return written(f"{name or arm.name}.jsonl", arm.records(problems, widths))


def test_the_papers_table(run):
    files = [arm_file(arm) for arm in (BRIDGE, PMATCH, BASE, RLVR)]
    status, out, err = run(*files, "--output", "out", "--figures", "svg")
    assert status == 0, err
    table = out.split("### pass@1")[1].split("###")[0]
    arms = [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| ")]
    assert arms[2:6] == ["base", "RLVR-only", "P-Match", "Bridge"]
    assert "gain over base" in table
    assert "(RLVR-only)" in table
    report = json.loads(Path("out/result.json").read_text())
    found = {(c["metric"], c["width"]): c for c in report["comparisons"]}
    assert {width for _, width in found} == set(WIDTHS)
    bridge = next(row for row in found["pass@1", 8]["rows"] if row["arm"] == "Bridge")
    assert bridge["gain"]["low"] < bridge["gain"]["value"] < bridge["gain"]["high"]
    assert {e["width"] for e in report["efficiencies"]} == set(WIDTHS)
    assert "Parallel efficiency" in out
    assert sorted(path.name for path in Path("out/figures").iterdir()) == [
        f"{name}.svg" for name in ("accuracy", "diversity", "g-pass", "votes")
    ]


@pytest.mark.parametrize("name", ["report.md", "figures/photo.png", "result.json"])
def test_a_folder_of_something_else_is_left_alone(name, run):
    """It replaced a report of the user's own, and deleted a folder of the user's figures."""
    own = Path("paper", name)
    own.parent.mkdir(parents=True)
    own.write_text('{"schema": "mine"}')
    files = [arm_file(arm, problems=4) for arm in (BASE, BRIDGE)]
    status, _, err = run(*files, "--output", "paper", "--figures", "none")
    assert status != 0
    assert f"paper has {name.partition('/')[0]} of something else" in err
    assert own.read_text() == '{"schema": "mine"}'
    for _ in range(2):  # its own report is replaced
        assert run(*files, "--output", "out", "--figures", "none")[0] == 0


def test_a_path_may_hold_an_equals_sign(run):
    base, other = arm_file(BASE, "base", 4), arm_file(BRIDGE, "lr=1e-5", 4)
    assert run(base, other, "--figures", "none")[0] == 0
    assert run(base, f"Bridge={other}", "--figures", "none")[0] == 0


def test_gains_are_paired_over_problems(run):
    files = [arm_file(arm) for arm in (BASE, BRIDGE)]
    run(*files, "--output", "out", "--figures", "none")
    report = json.loads(Path("out/result.json").read_text())
    (base,), (bridge,) = (
        measure(arm.records(40, widths), arm.name)
        for arm, widths in ((BASE, [16]), (BRIDGE, WIDTHS))
    )
    expected = bridge.get("maj", 4).values.mean() - base.get("maj", 4).values.mean()
    (row,) = [
        row
        for comparison in report["comparisons"]
        if (comparison["metric"], comparison["width"]) == ("maj", 4)
        for row in comparison["rows"]
        if row["arm"] == "Bridge"
    ]
    assert row["gain"]["value"] == pytest.approx(expected)


def test_other_problems_are_refused_by_their_ids(run):
    whole, fewer = arm_file(BASE), arm_file(BRIDGE, problems=38)
    status, out, err = run(whole, fewer)
    assert (status, out) == (2, "")
    assert "p038, p039 (base)" in err


def test_run_folders_are_compared_and_told_apart(run):
    params = SamplingParams(max_new_tokens=5)
    for name, engine, how in (
        ("a", number_engine(), params),
        ("b", number_engine("bridge"), params.replace(temperature=0.5)),
    ):
        evaluate(engine, sums(6), [1, 2], params=how, timed=1, figures=(), output=name)
    status, out, err = run("a", "b", "--figures", "none")
    assert status == 0, err
    assert Path("runs/compare-base-Bridge/result.json").exists()
    assert "with bridge blocks" in out
    assert (
        "note: Bridge on chain-arithmetic differs: sampling.temperature was 1.0 and is 0.5" in out
    )
    assert run("a/result.json", "b/records.jsonl", "--figures", "none")[1] == out
    status, out, _ = run("one=a", "two=b", "--base", "two", "--figures", "none", "--json")
    assert status == 0
    assert json.loads(out)["comparisons"][0]["base"] == "two"
    assert run("a", "b", "--output", "a")[0] == 2
    status, _, err = run("a", "b", "--base", "Brigde")
    assert status == 2
    assert "one of the arms base, Bridge; got 'Brigde'" in err


def test_training_seeds_of_an_arm_are_averaged(run):
    params = SamplingParams(max_new_tokens=5)

    def evaluated(name: str, seed: int, **options: object) -> None:
        evaluate(
            number_engine("bridge", seed=seed),
            sums(6),
            [1, 2],
            params=params,
            training_seed=seed,
            figures=(),
            output=name,
            **options,
        )

    evaluate(number_engine(), sums(6), [1, 2], params=params, timed=0, figures=(), output="base")
    evaluated("s1", 1, timed=1)
    evaluated("s2", 2, timed=2)
    status, out, err = run("base", "s1", "s2", "--figures", "none")
    assert status == 0, err
    assert "2 training seeds" in out
    assert "gain, over seeds" in out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere"], "There is no run at nowhere"),
        (["x=nowhere.jsonl"], "There is no run at nowhere.jsonl"),
        (["base.jsonl"], "needs two arms or more; all these runs are of 'base'"),
        (["base.jsonl", "base=Bridge.jsonl"], "needs two arms or more"),
        (["base.jsonl", "alone.json"], "Give the run folder"),
        (["base.jsonl", "other.jsonl"], "'base' has no result on 'other'"),
        (["base.jsonl", "three.jsonl"], "no width in common: 'base': [1, 2, 4, 8, 16]"),
    ],
)
def test_what_cannot_be_compared_is_explained(names, message, run):
    arm_file(BASE)
    arm_file(BRIDGE)
    written("other.jsonl", [replace(r, task="other") for r in RLVR.records(40, [16])])
    written("three.jsonl", BRIDGE.records(40, [3]))
    Path("alone.json").write_text("{}")
    status, out, err = run(*names)
    assert (status, out) == (2, "")
    assert message in err


def test_known_arms_come_first_in_the_papers_order():
    results = [measure(arm.records(5, [2]), arm.name)[0] for arm in (BRIDGE, RLVR, BASE)]
    mine = replace(results[0], arm="mine")
    assert [r.arm for r in in_order([mine, *results])] == ["base", "RLVR-only", "Bridge", "mine"]


def in_terminal(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO, width: int) -> None:
    """Let the command print to a terminal."""
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda: console)


def test_seconds_of_runs_at_different_moments_are_not_compared(run):
    params = SamplingParams(max_new_tokens=3)
    for name, timed in (("one", 1), ("two", 2)):
        evaluate(number_engine(), sums(4), [1, 2], params=params, timed=timed, figures=(),
                 output=name, arm=name, training_seed=0)  # fmt: skip
        assert "seconds" in Path(name, "report.md").read_text()
    status, out, err = run("one", "two", "--output", "both", "--figures", "svg")
    assert status == 0, err
    assert "seconds" not in out
    assert "seconds" not in Path("both/report.md").read_text()
    assert not list(Path("both/figures").glob("latency*"))


@pytest.mark.parametrize("width", [80, 140])
def test_in_a_terminal_tables_fit_the_screen(width, run, monkeypatch):
    screen = io.StringIO()
    in_terminal(monkeypatch, screen, width)
    bridge = written("Bridge.jsonl", BRIDGE.records(40, [*WIDTHS, 16]))
    status, _, err = run(arm_file(BASE), arm_file(RLVR), bridge, "--figures", "none")
    assert status == 0, err
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in screen.getvalue()  # no digit is lost
    text = " ".join(screen.getvalue().split())
    assert "pass@1 on arithmetic: 40 problems" in text
    assert "gain over base" in text
    assert "all W rows right on arithmetic: 40 problems" in text
    assert width == 80 or "(RLVR-only) [" in text  # the name may be broken over lines
    assert "what independent voting needs" in text


def test_several_tasks_have_a_mean_and_a_table_of_their_own(run, monkeypatch):
    screen = io.StringIO()
    in_terminal(monkeypatch, screen, 80)
    for arm in (BASE, BRIDGE):
        records = arm.records(20, WIDTHS if arm.copy else [8])
        written(f"{arm.name}-1.jsonl", records)
        written(f"{arm.name}-2.jsonl", [replace(record, task="more") for record in records])
    named = [f"{arm.name}={arm.name}-{task}.jsonl" for arm in (BASE, BRIDGE) for task in (1, 2)]
    status, _, err = run(*named, "--figures", "none", "--output", "out")
    assert status == 0, err
    text = " ".join(screen.getvalue().split())
    assert "pass@1 on 2 tasks: 40 problems" in text
    assert "width arm arithmetic more mean of 2 gain over base" in text


def test_a_gain_relative_to_one_that_lost_is_undefined_in_print(run, monkeypatch):
    """An arm that lost more than the others would be shown as the one that gained most."""
    screen = io.StringIO()
    in_terminal(monkeypatch, screen, 140)
    for arm in (Arm("base", 0.9), Arm("P-Match", -0.3), Arm("Bridge", -0.9, copy=0.35)):
        arm_file(arm)
    names = ("base.jsonl", "P-Match.jsonl", "Bridge.jsonl")
    assert run(*names, "--figures", "none", "--output", "out")[0] == 0
    printed = " ".join(screen.getvalue().split())
    assert "undefined (P-Match)" in printed
    assert "undefined (P-Match)" in Path("out/report.md").read_text()
