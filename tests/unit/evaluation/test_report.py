"""One result file, from which tables and figures follow."""

from __future__ import annotations

import json
import subprocess
import sys
from string import ascii_lowercase

import matplotlib as mpl
import numpy as np
import pytest

from interlace.evaluation.compare import compare, parallel_efficiency
from interlace.evaluation.figures import FIGURES, STYLE, accuracy, diversity, write_figures
from interlace.evaluation.measure import measure
from interlace.evaluation.report import SCHEMA, Report, make_report, to_markdown
from support.evaluation import BRIDGE, RLVR, made, three_arms

WIDTHS = (1, 2, 4, 8)
PAIR = ("pass@1", "coverage", "distinct_answers")


@pytest.fixture(scope="module")
def report() -> Report:
    arms = three_arms(problems=40, rows=16, widths=WIDTHS)
    return make_report(arms, provenance={"model": "synthetic", "seed": 0})


def test_a_report_derives_all_that_its_results_allow(report):
    compared = {(c.metric, c.width) for c in report.comparisons}
    assert compared == {("pass@1", w) for w in WIDTHS} | {
        (metric, w) for metric in ("maj", "coverage", "g_pass") for w in WIDTHS[1:]
    }
    needs = {(e.coupled_arm, e.independent_arm, e.width) for e in report.efficiencies}
    assert needs == {("Bridge", arm, w) for arm in ("base", "RLVR-only") for w in WIDTHS}
    fits = {(f.arm, f.metric, f.form) for f in report.fits}
    assert ("Bridge", "pass@1", "power") in fits
    assert ("base", "coverage", "log") in fits
    assert ("base", "pass@1", "power") not in fits
    assert len(fits) == 2 * (3 + 2 + 2)


def test_a_report_keeps_every_arm_on_every_task():
    arms = [
        made(name, {"pass@1": {1: np.full(9, mean)}}, task=task)
        for name, mean in (("base", 0.2), ("RLVR-only", 0.3), ("Bridge", 0.4))
        for task in ("sums", "words")
    ]
    asked = [(result.arm, result.task, result.get("pass@1", 1).estimate.value) for result in arms]
    found = make_report(arms)
    assert [(r.arm, r.task, r.get("pass@1", 1).estimate.value) for r in found.results] == asked
    written = [
        (
            r["arm"],
            r["task"],
            next(m for m in r["measurements"] if m["metric"] == "pass@1")["value"],
        )
        for r in found.to_json()["results"]
    ]
    assert written == asked
    text = to_markdown(found)
    for task in ("sums", "words"):
        part = text.split(f"## {task}")[1].split("\n## ")[0]
        for name, mean in (("base", 20), ("RLVR-only", 30), ("Bridge", 40)):
            assert f"{mean}.0 [" in part.split(f"### {name}")[1].split("###")[0]


def test_the_file_holds_everything_but_values_of_problems(report, tmp_path):
    path = tmp_path / "result.json"
    report.save(path)
    values = json.loads(path.read_text())
    assert list(values)[:2] == ["schema", "provenance"]
    assert values["schema"] == SCHEMA
    for result in values["results"]:
        for row in result["measurements"]:
            assert row["width"] >= 1
            assert 1 <= row["k"] <= row["width"]
            assert row["method"]
            assert row["low"] <= row["value"] <= row["high"]
    assert values == json.loads(json.dumps(report.to_json()))
    report.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_lone_arm_needs_no_other(tmp_path):
    (result,) = measure(RLVR.records(6, [4]), "RLVR-only")
    lone = make_report([result])
    assert (lone.comparisons, lone.efficiencies, lone.fits) == ((), (), ())
    assert "|  | W = 1 | W = 2 | W = 4 |" in to_markdown(lone)
    assert {path.stem for path in write_figures(lone, tmp_path, formats=["svg"])} == {*FIGURES} - {
        "latency"
    }  # nothing was timed


def test_seeds_are_averaged_in_tables_and_kept_in_comparisons():
    arms = [
        *measure(RLVR.records(30, [1, 4]), "base"),
        *(
            result
            for seed in (1, 2, 3)
            for result in measure(
                type(BRIDGE)("Bridge", 0.4, 0.2, 0.3, seed=seed).records(30, [1, 4]),
                "Bridge",
                seed=seed,
            )
        ),
    ]
    found = make_report(arms)
    assert [result.arm for result in found.results] == ["base", "Bridge"]
    assert found.comparisons[0].seeds == (1, 2, 3)
    text = to_markdown(found)
    assert "3 training seeds" in text
    assert "gain, over seeds" in text
    assert "t interval of the seeds' means" in text


def test_markdown_holds_the_numbers(report):
    text = to_markdown(report, ["figures/accuracy.png"])
    bridge = next(result for result in report.results if result.arm == "Bridge")
    for metric in ("pass@1", "maj", "coverage", "mg_pass"):
        entry = bridge.get(metric, 8).estimate
        cell = f"{100 * entry.value:.1f} [{100 * entry.low:.1f}, {100 * entry.high:.1f}]"
        assert cell in text, metric
    assert "- model: synthetic" in text
    assert "![accuracy](figures/accuracy.png)" in text
    assert "weighted, by likelihood" in text
    assert "failure = a P^-b" in text
    # Every table's rows have as many cells as its head.
    for table in text.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count(" | ") for line in lines}) <= 1, lines[:3]


def test_markdown_says_what_was_not_reached(report):
    text = to_markdown(report)
    missed = [entry for entry in report.efficiencies if not entry.reached]
    assert missed
    assert "not reached within 16" in text


def test_markdown_says_what_lies_beyond_the_widths():
    rng = np.random.default_rng(0)

    def solved(share: float) -> np.ndarray:
        return (rng.random(400) < share).astype(float)

    bridge = made("Bridge", {"maj": {4: solved(0.5)}, "tokens": {4: np.full(400, 50.0)}})
    curve = {1: solved(0.2), 16: solved(0.53)}
    base = made("base", {"maj": curve, "row_tokens": {1: np.full(400, 9.0)}}, coupled=False)
    found = parallel_efficiency(bridge, base, 4)
    assert found.needed_width.high is None
    assert ", beyond]" in to_markdown(Report((bridge, base), efficiencies=(found,)))


def test_markdown_says_what_has_no_interval():
    same = {"pass@1": {1: np.full(20, 0.5)}}
    arms = [made(name, same, coupled=False) for name in ("base", "RLVR-only", "Bridge")]
    text = to_markdown(Report(tuple(arms), (compare(arms, "base", width=1),)))
    assert "undefined (RLVR-only)" in text
    assert "+0.0* [-" in text
    assert "Bonett and Price" in text


def test_names_cannot_break_a_table():
    arms = [made(name, {"pass@1": {1: np.full(9, 0.5)}}) for name in ("a|b", "c\nd")]
    text = to_markdown(Report(tuple(arms), (compare(arms, "a|b", width=1),)))
    assert "| 1 | a\\|b |" in text
    assert "| 1 | c d |" in text


def test_several_tasks_have_columns_of_their_own():
    arms = [
        made(name, {"pass@1": {1: np.full(9, mean)}}, task=task)
        for name, mean in (("base", 0.2), ("Bridge", 0.4))
        for task in ("sums", "words")
    ]
    text = to_markdown(Report(tuple(arms), (compare(arms, "base", width=1),)))
    assert "| width | arm | sums | words | mean of 2 |" in text
    assert "| 1 | Bridge | 40.0 | 40.0 | 40.0 |" in text


def test_figures_are_vectors_and_pixels(report, tmp_path):
    written = write_figures(report, tmp_path)
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in {*FIGURES} - {"latency"} for kind in ("pdf", "svg", "png")
    }
    svg = (tmp_path / "accuracy.svg").read_text()
    for words in ("Bridge", "RLVR-only", "pass@1 (%)", "width W"):
        assert words in svg  # text stays text
    assert (tmp_path / "votes.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "votes.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_report_gives_the_same_bytes(report, tmp_path, monkeypatch):
    monkeypatch.setattr("interlace.evaluation.figures.FIGURES", {"accuracy": FIGURES["accuracy"]})
    runs = [write_figures(report, tmp_path / name) for name in ("first", "again")]
    assert len(runs[0]) == 3
    for one, two in zip(*runs, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_figures_leave_no_global_state(report, tmp_path, monkeypatch):
    import matplotlib as mpl

    monkeypatch.setattr("interlace.evaluation.figures.FIGURES", {"votes": FIGURES["votes"]})
    with mpl.rc_context({"font.size": 11.5, "axes.grid": False}):
        write_figures(report, tmp_path, formats=["svg"])
        assert (mpl.rcParams["font.size"], mpl.rcParams["axes.grid"]) == (11.5, False)


@pytest.mark.parametrize("figure_of", [accuracy, diversity])
@pytest.mark.parametrize(("words", "arms"), [(1, 5), (3, 5), (6, 5), (6, 24)])
def test_a_legend_of_long_names_stays_in_the_figure(figure_of, words, arms):
    curves = {metric: {w: np.full(9, 0.4) for w in (1, 8)} for metric in PAIR}
    results = [made(f"{name} " + "rollouts " * words, curves) for name in ascii_lowercase[:arms]]
    with mpl.rc_context(STYLE):
        figure = figure_of(results)
        figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    assert all(a.bbox.height > figure.dpi for a in figure.axes)  # an inch of picture


def test_several_tasks_have_figures_of_their_own(tmp_path):
    results = [
        made("base", {"pass@1": {1: np.full(9, 0.5)}}, task=task) for task in ("rg: sums", "b")
    ]
    names = {path.name for path in write_figures(Report(tuple(results)), tmp_path, ["svg"])}
    assert {"rg--sums-accuracy.svg", "b-accuracy.svg"} <= names


def test_importing_the_evaluation_is_light():
    code = (
        "import sys, interlace.evaluation.report, interlace.evaluation.figures, "
        "interlace.evaluation.measure, interlace.evaluation.report, interlace; "
        "interlace.pass_at_k(4, 2, 2); "
        "heavy = {'torch', 'matplotlib', 'scipy', 'transformers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
