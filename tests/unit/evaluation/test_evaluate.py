"""Evaluation from the engine to the run folder: every width its own run, and what is kept of it.

Mutations that were seen to fail here: a sample id without its group, or with its width; coupled
arms that are sampled once; seconds that are taken from batches; scorers that see the answer.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

import interlace
from interlace.batch import Tally
from interlace.engine.types import SamplingParams
from interlace.errors import ConfigError, DataFileError, GenerationError, MetricError
from interlace.evaluation.evaluate import evaluate
from interlace.evaluation.records import GroupRecord, read_records
from interlace.evaluation.run import load_run
from support.evaluation import SHORT, quick
from support.text import number_engine, number_model, number_tokenizer, sums


def test_a_coupled_model_runs_every_width(tmp_path):
    result = quick(number_engine("bridge"), sums(4), [1, 2, 4], output=tmp_path, seed=2)
    found = read_records(tmp_path / "records.jsonl")
    assert sorted({(r.width, len([x for x in found if x.width == r.width])) for r in found}) == [
        (1, 4),
        (2, 4),
        (4, 4),
    ]
    assert result.coupled
    assert result.arm == "Bridge"
    assert all(record.coupled and record.seed == 2 for record in found)
    by_width = {w: result.get("pass@1", w) for w in (1, 2, 4)}
    for width, entry in by_width.items():
        rows = [hit for record in found if record.width == width for hit in record.correct]
        assert entry.estimate.value == pytest.approx(np.mean(rows))
        assert entry.rows == width
    assert len({id(entry) for entry in by_width.values()}) == 3


@pytest.mark.parametrize(("blocks", "arm"), [(None, "base"), ("pmatch", "P-Match")])
def test_independent_rows_are_sampled_once_at_the_largest_width(blocks, arm, tmp_path):
    result = quick(number_engine(blocks), sums(4), [1, 3, 8], output=tmp_path)
    found = read_records(tmp_path / "records.jsonl")
    assert {(record.width, record.coupled) for record in found} == {(8, False)}
    assert len(found) == 4
    assert (result.arm, result.coupled) == (arm, False)
    assert result.widths == [1, 2, 3, 4, 8]
    assert result.get("pass@1", 3).rows == 8


def test_records_hold_what_the_engine_and_the_task_said(tmp_path):
    engine, task = number_engine("bridge"), sums(5)
    quick(engine, task, [2], groups_per_problem=2, output=tmp_path, seed=7)
    for record in read_records(tmp_path / "records.jsonl"):
        example = task.find(record.example_id)
        (group,) = engine.generate(
            [task.prompt(example)],
            SHORT.replace(width=2, seed=7),
            sample_ids=[f"{example.id}/{record.group}"],
        )
        verdicts = [task.verify(example, text) for text in group.texts]
        assert record.texts == tuple(group.texts)
        assert record.answers == tuple(verdict.answer for verdict in verdicts)
        assert record.correct == tuple(verdict.correct for verdict in verdicts)
        assert record.tokens == tuple(len(row.token_ids) for row in group.completions)
        assert record.finish_reasons == tuple(row.finish_reason for row in group.completions)
        sums_of_row = [row.cumulative_logprob for row in group.completions]
        assert record.logprob_sums == pytest.approx(sums_of_row, abs=1e-4)
        assert record.seconds is not None
        assert record.seconds > 0


def test_groups_of_a_problem_differ(tmp_path):
    quick(number_engine(), sums(4), [4], groups_per_problem=3, output=tmp_path)
    texts: dict[str, set[Any]] = {}
    for record in read_records(tmp_path / "records.jsonl"):
        texts.setdefault(record.example_id, set()).add(record.texts)
    assert all(len(groups) == 3 for groups in texts.values())


def test_the_seed_decides(tmp_path):
    def texts(seed: int) -> list[GroupRecord]:
        place = tmp_path / str(seed)
        quick(number_engine(), sums(3), [2], seed=seed, output=place, overwrite=True)
        return [record.texts for record in read_records(place / "records.jsonl")]

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)


def test_samples_give_every_width_the_same_rows(tmp_path):
    result = quick(number_engine("bridge"), sums(3), [1, 2, 4], samples=4, output=tmp_path)
    assert [result.get("pass@1", width).rows for width in (1, 2, 4)] == [4, 4, 4]
    assert len(read_records(tmp_path / "records.jsonl")) == 3 * (4 + 2 + 1)


def test_scorers_see_the_question_and_not_the_answer(tmp_path):
    seen: list[dict[str, Any]] = []

    def reward(prompts, completions, **columns):
        seen.append(columns)
        return [float(len(text)) for text in completions]

    result = quick(
        number_engine(),
        sums(3),
        [2],
        scorers={"length": reward, "plain": lambda text: float(text.count("1"))},
        output=tmp_path,
    )
    assert {name for columns in seen for name in columns} == {"question"}
    record = read_records(tmp_path / "records.jsonl")[0]
    assert record.scorers["length"] == tuple(float(len(text)) for text in record.texts or ())
    assert result.find("best_of_n:length", 2)
    assert result.find("weighted:plain", 2)


def test_a_scorer_that_fails_or_leaves_rows_out_is_named():
    def broken(text: str) -> float:
        raise KeyError("score")

    message = r"scorer 'mine' failed: .*test_evaluate.py, line \d+: KeyError"
    with pytest.raises(ConfigError, match=message):
        quick(number_engine(), sums(2), [1], scorers={"mine": broken})
    with pytest.raises(DataFileError, match="'mine' left out 1 of the 1 responses"):
        quick(number_engine(), sums(2), [1], scorers={"mine": lambda text: None})


def test_seconds_are_those_of_a_group_alone(tmp_path):
    result = quick(number_engine(), sums(5), [1, 4], timed=2, output=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert [(line["width"], line["example_id"]) for line in lines] == [
        (width, example.id) for example in sums(5)[:2] for width in (1, 4)
    ]
    for width in (1, 4):
        timed = [line["seconds"] for line in lines if line["width"] == width]
        assert result.get("seconds", width).estimate.value == pytest.approx(np.mean(timed))
    assert result.find("seconds", 2) is None
    assert "seconds" not in quick(number_engine(), sums(5), [1, 4], timed=0).metrics


def test_on_a_cpu_seconds_are_the_processors(monkeypatch):
    """Arms are timed at different moments: what else the machine does then is not theirs."""
    engine = number_engine()
    generate = engine.generate

    def beside_other_work(*args: Any, **options: Any) -> Any:
        time.sleep(1)
        return generate(*args, **options)

    monkeypatch.setattr(engine, "generate", beside_other_work)
    result = quick(engine, sums(3), [1], timed=1)
    assert 0 < result.get("seconds", 1).estimate.value < 1


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = quick(number_engine(), sums(3), [2], limit=2)
    assert len(result.example_ids) == 2
    assert not list(tmp_path.iterdir())


def test_measuring_again_gives_the_same_result(tmp_path):
    for name, engine in (("a", number_engine()), ("b", number_engine("bridge"))):
        result = quick(engine, sums(4), [1, 2], output=tmp_path / name, timed=1)
        again = load_run(tmp_path / name)
        assert again.to_json() == result.to_json()
    narrow = load_run(tmp_path / "a", ks=[2], level=0.5)
    assert narrow.widths == [2]
    assert narrow.get("maj", 2).estimate.level == 0.5
    quick(number_engine("bridge"), sums(3), [4], output=tmp_path / "c")
    with pytest.raises(MetricError):
        load_run(tmp_path / "c", ks=[2])


def test_progress_counts_up_to_the_end(tmp_path):
    seen: list[tuple[int, int, int]] = []

    def progress(tally: Tally) -> None:
        seen.append((tally.groups, tally.rows, tally.tokens))

    quick(number_engine("bridge"), sums(4), [1, 2], progress=progress, output=tmp_path)
    assert seen == sorted(seen)
    found = read_records(tmp_path / "records.jsonl")
    assert seen[-1] == (8, 12, sum(sum(record.tokens) for record in found))


def test_the_run_folder_is_complete(tmp_path):
    quick(
        number_engine("bridge"), sums(4), [1, 2], timed=1, output=tmp_path, figures=("svg", "png")
    )
    report = (tmp_path / "report.md").read_text()
    for name in ("accuracy", "votes", "g-pass", "diversity", "latency"):
        assert (tmp_path / "figures" / f"{name}.svg").stat().st_size
        assert f"](figures/{name}.png)" in report
    assert "with bridge blocks" in report
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["settings"]["groups"] == {"1": 1, "2": 1}
    assert config["environments"][0]["torch"]


# Requests that make no sense --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": []}, "widths are different whole numbers"),
        ({"widths": [0, 2]}, "widths are different whole numbers"),
        ({"widths": [2, 2]}, "widths are different whole numbers"),
        ({"groups_per_problem": 0}, "groups_per_problem is at least 1"),
        ({"samples": 6, "widths": [1, 4]}, "multiple of every width"),
        ({"samples": 4, "groups_per_problem": 2}, "Give one of them"),
        ({"batch_rows": 0}, "batch_rows is at least 1"),
        ({"limit": 0}, "limit is at least 1"),
        ({"timed": -1}, "timed at least 0"),
        ({"params": SamplingParams(width=2, max_new_tokens=[3, 4])}, "one number for all rows"),
        ({"params": SamplingParams(consensus=str)}, "consensus cuts rows off"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options, message):
    asked = {"task": sums(2), "widths": [1, 2], "timed": 0} | options
    with pytest.raises(ConfigError, match=message):
        evaluate(number_engine("bridge"), **asked)


def test_a_prompt_that_the_tokenizer_cannot_take_stops_before_sampling(tmp_path):
    engine = interlace.Engine(number_model(), number_tokenizer(chat=False))
    with pytest.raises(GenerationError, match="no chat template"):
        quick(engine, sums(2), [1], output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_is_public():
    assert interlace.evaluate is evaluate
