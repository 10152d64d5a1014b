"""lm-evaluation-harness: a document's repeats are one group; log-likelihoods are those of width 1.

Mutations that were seen to fail here: every request sampled as a group of its own; requests sorted
by length on the way; the same sample id for all groups of a document; siblings in log-likelihoods.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace.engine.types import SamplingParams
from interlace.errors import ConfigError, GenerationError
from support.processes import TESTS
from support.text import number_folder, number_model, number_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval: pip install lm-eval")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

QUESTIONS = [("3 + 4", "7"), ("9 - 2 + 1 + 1 + 1", "10"), ("5", "5")]
SAMPLED = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 5, "until": ["17"]}


def task_folder(folder: Path, **changes: Any) -> Path:
    """A folder with the task `sums` on a local file."""
    data = folder / "sums.jsonl"
    rows = [json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS]
    data.write_text("\n".join(rows) + "\n")
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "repeats": 4,
        "generation_kwargs": SAMPLED,
        "filter_list": [
            {"name": "first", "filter": [{"function": "take_first"}]},
            {
                "name": "vote",
                "filter": [{"function": "majority_vote"}, {"function": "take_first"}],
            },
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    (folder / "sums.yaml").write_text(json.dumps({**task, **changes}))
    return folder


def evaluated(model: Any, folder: Path) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        model=model, tasks=["sums"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )


@pytest.fixture
def model() -> Any:
    from interlace.integrations.lm_eval import InterlaceLM

    return InterlaceLM(number_model("bridge"), number_tokenizer(), seed=5)


def test_repeats_of_a_document_are_one_group(model, tmp_path):
    results = evaluated(model, task_folder(tmp_path))
    params = SamplingParams(width=4, max_new_tokens=5, stop=["17"], seed=5)
    samples = [s for s in results["samples"]["sums"] if s["filter"] == "vote"]
    assert len(samples) == 3
    for sample in samples:
        number = sample["doc_id"]
        (group,) = model.engine.generate(
            [number_tokenizer().encode(QUESTIONS[number][0])],
            params,
            sample_ids=[f"sums/{number}/0/0"],
        )
        assert sample["resps"] == [group.texts]
    right = [sample["filtered_resps"][0] == sample["target"] for sample in samples]
    found = results["results"]["sums"]["exact_match,vote"]
    assert found == pytest.approx(sum(right) / 3)


def test_a_width_divides_the_repeats(model, tmp_path):
    model.width = 2
    results = evaluated(model, task_folder(tmp_path))
    for sample in results["samples"]["sums"]:
        first, second = sample["resps"][0][:2], sample["resps"][0][2:]
        assert first != second
    model.width = 3
    with pytest.raises(GenerationError, match=r"wants 4 responses .* width 3"):
        evaluated(model, task_folder(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation_kwargs": {"until": [], "max_gen_toks": 5}}, "4 greedy rows are 4 copies"),
        ({"generation_kwargs": {**SAMPLED, "num_beams": 4}}, "num_beams"),
        ({"generation_kwargs": {**SAMPLED, "max_gen_toks": 256}}, "no room for a prompt"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(changes, message, model, tmp_path):
    with pytest.raises(GenerationError, match=message):
        evaluated(model, task_folder(tmp_path, **changes))


def test_greedy_single_responses_work(model, tmp_path):
    changes = {
        "repeats": 1,
        "generation_kwargs": {"until": [], "max_gen_toks": 4, "do_sample": False},
        "filter_list": [{"name": "first", "filter": [{"function": "take_first"}]}],
    }
    results = evaluated(model, task_folder(tmp_path, **changes))
    ids = number_tokenizer().encode(QUESTIONS[1][0])
    (group,) = model.engine.generate([ids], SamplingParams(max_new_tokens=4, temperature=0))
    sample = results["samples"]["sums"][1]
    assert sample["resps"] == [group.texts]


def test_thinking_is_cut_off(tmp_path):
    from interlace.integrations.lm_eval import InterlaceLM

    plain = InterlaceLM(number_model("bridge"), number_tokenizer(), seed=5)
    cut = InterlaceLM(number_model("bridge"), number_tokenizer(), seed=5)
    cut.think_end_token = "3"  # the harness takes a number in the argument for a token's id
    changes = {"generation_kwargs": {**SAMPLED, "until": [], "max_gen_toks": 30}}
    rows = [
        [
            text
            for s in evaluated(m, task_folder(tmp_path, **changes))["samples"]["sums"]
            for text in s["resps"][0]
        ]
        for m in (plain, cut)
    ]
    assert any("3" in text for text in rows[0])
    assert rows[1] == [text.split("3")[-1].lstrip() for text in rows[0]]


@torch.no_grad()
def test_log_likelihoods_are_those_of_width_1(model, tmp_path):
    from lm_eval.api.instance import Instance

    pairs = [(question, f" {answer}") for question, answer in QUESTIONS]
    requests = [
        Instance("loglikelihood", {}, pair, 0, ("sums", number, 1))
        for number, pair in enumerate(pairs)
    ]
    model.batch_size_per_gpu = 3
    found = model.loglikelihood(requests, disable_tqdm=True)
    tokenizer = number_tokenizer()
    for (question, answer), (value, _) in zip(pairs, found, strict=True):
        ids = tokenizer.encode(question) + tokenizer.encode(answer)
        logits = model.model(torch.tensor([ids])).logits.log_softmax(-1)
        assert value == pytest.approx(logits[0, -2, ids[-1]].item(), abs=1e-4)


def test_arguments_that_make_no_sense_are_refused():
    from interlace.integrations.lm_eval import InterlaceLM

    with pytest.raises(ConfigError, match="width is at least 1"):
        InterlaceLM(number_model(), number_tokenizer(), width=0)
    with pytest.raises(ConfigError, match="given as text"):
        InterlaceLM(number_model(), number_tokenizer(), think_end_token=7)


def test_the_harness_command_finds_the_model(tmp_path):
    folder = number_folder(tmp_path, "bridge")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "interlace.integrations.lm_eval", "run"),
            *("--model", "interlace", "--model_args", f"pretrained={folder},width=2"),
            *("--tasks", "sums", "--include_path", str(task_folder(tmp_path))),
            *("--output_path", str(tmp_path / "out")),
        ],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "exact_match" in done.stdout
