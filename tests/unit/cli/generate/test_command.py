"""`interlace generate` from end to end, on a tiny model."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import interlace
from interlace.answers import extract_answer, majority_vote
from interlace.cli import generate as command
from interlace.cli import shared
from interlace.cli.generate import view
from interlace.cli.generate.lines import as_text
from support.task_files import read_lines, write_lines

FEW = ("--width", 3, "--max-new-tokens", 8)
UNEVEN = ("--width", 6, "--max-new-tokens", 40, "--stop", "5")  # rows end after 3 to 16 tokens


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Seven prompts, the first of them twice."""
    texts = ["10 11", "12", "13 14 15", "10 11", "16", "17 18", "19"]
    lines = [{"id": f"q{i}", "prompt": text, "answer": "12"} for i, text in enumerate(texts)]
    return write_lines(tmp_path / "in.jsonl", lines)


def test_one_prompt_without_a_terminal(generate: Any) -> None:
    status, out, err = generate(*FEW, "10 11")
    assert (status, err) == (0, "")
    assert out.count("--- row ") == 3
    assert "=== majority (" in out


def test_one_prompt_in_a_terminal(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    status, out, _ = generate(*FEW, "10 11")
    assert status == 0
    assert "step 0 " in out
    assert "step 8 " in out
    assert "majority vote: " in out
    assert "\x1b[?25h" in out  # the cursor is back


def test_json_is_what_the_engine_gives(generate: Any, folder: Path) -> None:
    status, out, _ = generate(*FEW, "--json", "--raw", "--top-logprobs", 2, "--seed", 5, "10 11")
    assert status == 0
    line = json.loads(out)
    engine = interlace.Engine(*interlace.load(folder))
    params = interlace.SamplingParams(width=3, max_new_tokens=8, top_logprobs=2, seed=5)
    group = engine.generate(["10 11"], params)[0]
    assert (line["prompt"], line["prompt_tokens"], line["width"]) == ("10 11", 2, 3)
    for found, expected in zip(line["completions"], group.completions, strict=True):
        assert found["text"] == expected.text
        assert found["token_ids"] == expected.token_ids
        assert found["logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
        assert found["finish_reason"] == expected.finish_reason
        assert [[t for t, _ in step] for step in found["top_logprobs"]] == [
            [t for t, _ in step] for step in expected.top_logprobs
        ]
    vote = majority_vote([extract_answer(text) for text in group.texts])
    assert (line["aggregate"]["answer"], line["aggregate"]["row"]) == (vote.winner, vote.index)


def test_a_text_becomes_a_users_message_unless_it_is_raw(generate: Any) -> None:
    def tokens(*arguments: str) -> int:
        return json.loads(generate(*FEW, "--json", *arguments)[1])["prompt_tokens"]

    assert tokens("10 11") == 3  # the template ends a message with <end>
    assert tokens("--raw", "10 11") == 2
    assert tokens("--system", "12 13", "10 11") == 6


def test_a_template_goes_around_every_prompt(generate: Any, tmp_path: Path) -> None:
    """A model that was trained on a task's prompts was asked without their instruction."""
    plain = json.loads(generate(*FEW, "--json", "--raw", "12 10 11 13")[1])
    framed = generate(*FEW, "--json", "--raw", "--template", "12 {question} 13", "10 11")
    line = json.loads(framed[1])
    assert line["prompt"] == "10 11"
    assert line["completions"] == plain["completions"]
    path = write_lines(tmp_path / "one.jsonl", [{"prompt": "10 11"}])
    asked = (*FEW, "--raw", "--template", "12 {question} 13", "--input", path)
    assert json.loads(generate(*asked)[1])["completions"] == plain["completions"]
    status, _, err = generate(*FEW, "--template", "{prompt}", "10 11")
    assert status == 2
    assert "--template says with {question}" in err


def test_a_prompt_from_standard_input(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("10 11 12"))
    assert json.loads(generate(*FEW, "--json", "--raw", "-")[1])["prompt_tokens"] == 3


@pytest.mark.parametrize("name", ["majority", "weighted", "best-of-n", "medoid", "synthesize"])
def test_every_aggregate_makes_one_response(generate: Any, name: str, prompts: Path) -> None:
    alone = json.loads(generate(*FEW, "--json", "--aggregate", name, "10 11")[1])
    assert alone["aggregate"]["method"] == name
    assert alone["aggregate"]["text"]
    status, out, _ = generate(*FEW, "--aggregate", name, "--input", prompts)
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["id"] for line in lines] == [f"q{i}" for i in range(7)]
    assert all(line["aggregate"]["text"] for line in lines)
    assert lines[0]["aggregate"]["text"] == alone["aggregate"]["text"]


def test_none_leaves_the_responses_as_they_are(generate: Any) -> None:
    assert "aggregate" not in json.loads(generate(*FEW, "--json", "--aggregate", "none", "10")[1])


def test_a_synthesis_is_shortened_until_it_fits_the_context(generate: Any) -> None:
    line = json.loads(
        generate("--width", 4, "--max-new-tokens", 150, "--ignore-eos", "--json", "--aggregate",
                 "synthesize", "10 11")[1]
    )  # fmt: skip
    assert line["aggregate"]["shortened"] == [0, 1, 2, 3]
    assert line["aggregate"]["text"]


def test_a_synthesis_fits_what_the_engine_gives_the_model(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongRoPE's context is shorter than its configuration says: a synthesis of more was refused,
    and ended the call."""
    from interlace.engine.backends.hf import HFBackend

    monkeypatch.setattr(
        HFBackend, "context", property(lambda self: (400, ""), lambda *_: None), raising=False
    )
    status, out, err = generate("--width", 4, "--max-new-tokens", 100, "--ignore-eos", "--json",
                                "--aggregate", "synthesize", "10 11")  # fmt: skip
    assert status == 0, err
    assert json.loads(out)["aggregate"]["shortened"] == [0, 1, 2, 3]


def test_an_aggregator_of_ones_own(generate: Any, tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from interlace import Aggregate, Responses\n"
        "def longest(responses: Responses) -> Aggregate:\n"
        "    text = max(responses.texts, key=len)\n"
        "    return Aggregate('longest', text, index=responses.texts.index(text))\n"
        "def broken(responses):\n    raise SystemExit(0)\n"
        "def text(responses):\n    return responses.texts[0]\n"
    )
    status, out, _ = generate(*FEW, "--json", "--aggregate", f"{path}:longest", "10")
    line = json.loads(out)
    lengths = [len(completion["text"]) for completion in line["completions"]]
    assert (status, line["aggregate"]["method"]) == (0, "longest")
    assert line["aggregate"]["row"] == lengths.index(max(lengths))
    for name, message in [
        ("broken", r"my.py, line 7: SystemExit: 0"),
        ("text", "returns an interlace.Aggregate"),
    ]:
        status, _, said = generate(*FEW, "--aggregate", f"{path}:{name}", "10")
        assert (status, message in said) == (2, True), said


def test_a_scorer_of_ones_own(generate: Any, tmp_path: Path, prompts: Path) -> None:
    path = tmp_path / "my.py"
    path.write_text(
        "def low(text):\n    return -sum(map(int, text.split()))\n"
        "def reward(prompts, completions, answer, **columns):\n"
        "    assert answer == ['12'] * 3\n"
        "    return [float(right in text.split()) for text, right in zip(completions, answer)]\n"
        "def broken(text):\n    return 1 / 0\n"
        "number = 5\n"
    )
    best = ("--aggregate", "best-of-n", "--scorer")
    line = json.loads(generate(*FEW, "--json", *best, f"{path}:low", "10")[1])
    sums = [sum(map(int, c["text"].split())) for c in line["completions"]]
    assert line["aggregate"]["row"] == sums.index(min(sums))
    status, out, _ = generate(*FEW, *best, f"{path}:reward", "--input", prompts)
    assert status == 0
    for line in map(json.loads, out.splitlines()):
        expected = [float("12" in c["text"].split()) for c in line["completions"]]
        assert line["aggregate"]["scores"] == expected
    for where, message in [
        (f"{path}:broken", "my.py, line 7: ZeroDivisionError"),
        (f"{path}:missing", "cannot be imported"),
        (f"{path}:number", "is no function, but 5"),
        ("no.such.module:f", "cannot be imported"),
        ("low", "file.py:NAME"),
    ]:
        status, _, err = generate(*FEW, "--json", *best, where, "10")
        assert (status, message in err) == (2, True), err


def test_a_consensus_ends_groups_early(generate: Any) -> None:
    usual = json.loads(generate(*UNEVEN, "--json", "10 11")[1])
    early = json.loads(generate(*UNEVEN, "--json", "--consensus", "10 11")[1])
    assert {c["finish_reason"] for c in usual["completions"]} == {"stop"}
    reasons = [c["finish_reason"] for c in early["completions"]]
    assert (reasons.count("stop"), reasons.count("consensus")) == (5, 1)
    assert early["aggregate"]["answer"] == usual["aggregate"]["answer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "0", "10"], "width is a whole number, at least 1; got 0"),
        ([""], "Prompt 0 is empty"),
        (["10 " * 600], "tokens, and the model's context is"),
        (["--temperatur", "1", "10"], "no option '--temperatur'. Did you mean '--temperature'?"),
        (["--system", "a", "--raw", "10"], "drop one"),
        (["--aggregate", "best", "10"], "Did you mean 'best-of-n'?"),
    ],
)
def test_what_cannot_be_done_is_explained(
    generate: Any, arguments: list[str], message: str
) -> None:
    status, out, err = generate("--raw" if "--raw" not in arguments else "--json", *arguments)
    assert (status, out) == (2, "")
    assert message in err


# Files --------------------------------------------------------------------------------------------


def test_a_file_gives_a_line_for_each_prompt(generate: Any, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    status, printed, err = generate(*FEW, "--input", prompts, "--output", out)
    assert (status, printed) == (0, "")
    assert "21 rows, " in err
    assert "tokens/s" in err
    lines = read_lines(out)
    assert [line["id"] for line in lines] == [f"q{i}" for i in range(7)]
    texts = [[c["text"] for c in line["completions"]] for line in lines]
    assert texts[0] != texts[3]  # the same prompt, another group
    alone = json.loads(generate(*FEW, "--json", "10 11")[1])
    for found, expected in zip(lines[0]["completions"], alone["completions"], strict=True):
        assert found["token_ids"] == expected["token_ids"]
        assert found["logprobs"] == pytest.approx(expected["logprobs"], abs=2e-6)


def test_lines_do_not_depend_on_the_batch(generate: Any, prompts: Path, tmp_path: Path) -> None:
    uneven = ("--width", 2, "--max-new-tokens", 30, "--stop", "5")  # later groups end first
    lines = {}
    for size in (1, 3, 64):
        out = tmp_path / str(size)
        generate(*uneven, "--batch-size", size, "--input", prompts, "--output", out)
        lines[size] = [
            (line["id"], [c["token_ids"] for c in line["completions"]]) for line in read_lines(out)
        ]
    assert [name for name, _ in lines[64]] == [f"q{i}" for i in range(7)]
    assert lines[1] == lines[3] == lines[64]
    lengths = [max(map(len, rows)) for _, rows in lines[64]]
    assert lengths != sorted(lengths)


@pytest.mark.parametrize("aggregate", ["majority", "synthesize"])
def test_a_file_cut_anywhere_is_completed_to_the_same_lines(
    generate: Any, prompts: Path, tmp_path: Path, aggregate: str
) -> None:
    out = tmp_path / "out.jsonl"
    command = (*FEW, "--batch-size", 3, "--aggregate", aggregate, "--input", prompts)
    command += ("--output", out)
    generate(*command)
    whole = out.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in (0, ends[1], ends[3] + 40, len(whole)):
        out.write_bytes(whole[:size])
        status, _, err = generate(*command)
        assert status == 0
        assert out.read_bytes() == whole
        done = whole[:size].count(b"\n")
        assert (f"{3 * done} rows were there before" in err) == (done > 0)
        assert ("All 21 rows were there before" in err) == (done == 7)


def test_a_killed_run_goes_on_to_the_same_file(generate: Any, folder: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ({"prompt": f"{i}"} for i in range(10, 50)))
    scorer = tmp_path / "my.py"
    scorer.write_text(
        "import os, time\n"
        "def score(text):\n"
        "    time.sleep(float(os.environ.get('SECONDS_A_ROW', 0)))\n"
        "    return len(text)\n"
    )
    options = ("--width", 2, "--max-new-tokens", 8, "--batch-size", 16, "--input", source)
    options += ("--aggregate", "best-of-n", "--scorer", f"{scorer}:score")
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    command = [sys.executable, "-m", "interlace.cli.main", "generate", "--model", str(folder)]
    process = subprocess.Popen(
        [*command, *map(str, options), "--output", str(cut)],
        env={**os.environ, "SECONDS_A_ROW": "0.02"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not cut.exists() or cut.read_bytes().count(b"\n") < 20:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    done = cut.read_bytes().count(b"\n")
    assert 20 <= done < 40
    status, _, err = generate(*options, "--output", cut)
    assert status == 0
    assert f"{2 * done} rows were there before" in err
    generate(*options, "--output", whole)
    assert cut.read_bytes() == whole.read_bytes()


def test_ctrl_c_in_a_step_keeps_the_lines(
    generate: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    command = (*FEW, "--batch-size", 2, "--input", prompts, "--output", out)
    generate(*command)
    whole = out.read_bytes()
    out.unlink()
    show = shared.Bar.__call__

    def interrupting(self: shared.Bar, tally: Any) -> None:
        show(self, tally)
        if tally.groups == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(shared.Bar, "__call__", interrupting)
    status, _, err = generate(*command)
    assert status == 130
    assert "Interrupted: 4 of 7 lines are written. Run the same command again to go on." in err
    assert whole.startswith(out.read_bytes())
    assert out.read_bytes().count(b"\n") == 4
    monkeypatch.undo()
    assert generate(*command)[0] == 0
    assert out.read_bytes() == whole


def test_ctrl_c_keeps_the_columns_and_lets_finished_rows_vote(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = view.Columns.take
    whole = generate(*UNEVEN, "10 11")[1]

    def interrupting(self: view.Columns, step: Any) -> None:
        take(self, step)
        if sum(row.finish_reason is not None for row in self.rows) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(view.Columns, "take", interrupting)
    status, out, _ = generate(*UNEVEN, "10 11")
    assert status == 130
    heads = [line for line in out.splitlines() if line.startswith("---")]
    ended = [line for line in heads if "interrupted" not in line]
    assert (len(heads), len(ended)) == (6, 3)
    assert all(line in whole for line in ended)
    assert "=== majority (7: 2, 84: 1) ===\n7" in out
    status, out, _ = generate(*UNEVEN, "--aggregate", "weighted", "10 11")
    assert (status, "\n7\n" in out.partition("=== weighted")[2]) == (130, True)
    status, out, _ = generate(*UNEVEN, "--aggregate", "medoid", "10 11")
    assert status == 130
    assert "===" not in out


def test_ctrl_c_with_json_gives_the_line_so_far(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interlace.engine.core import EngineCore

    advance, calls = EngineCore.advance, []

    def interrupting(self: EngineCore) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(EngineCore, "advance", interrupting)
    status, out, _ = generate("--width", 3, "--ignore-eos", "--json", "10 11")
    assert status == 130
    line = json.loads(out)
    assert [c["finish_reason"] for c in line["completions"]] == ["interrupted"] * 3
    assert [len(c["token_ids"]) for c in line["completions"]] == [4] * 3
    assert "aggregate" not in line


def test_bad_lines_are_named_or_left_out(generate: Any, tmp_path: Path) -> None:
    lines = [
        {"prompt": "10"},
        b"{",
        {"prompt": "10 " * 600},
        {"prompt": [5, 1_000_000]},
        {"prompt": [5, 6]},
        {"messages": [{"role": "user", "content": "11"}]},
    ]
    source, out = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    status, printed, err = generate(*FEW, "--input", source, "--output", out)
    assert (status, printed) == (2, "")
    assert "3 lines of" in err
    assert "line 2: is not JSON" in err
    assert "line 3: its prompt has 601 tokens, and the model's context is" in err
    assert "line 4: its prompt has token ids outside the model's vocabulary" in err
    assert not out.exists()
    status, _, err = generate(*FEW, "--skip-bad", "--input", source, "--output", out)
    assert status == 0
    assert err.count("Left out") == 3
    assert [line["id"].split("-")[0] for line in read_lines(out)] == ["1", "5", "6"]
    assert [line["prompt_tokens"] for line in read_lines(out)] == [2, 2, 2]


def test_input_and_output_cannot_be_one_file(generate: Any, prompts: Path) -> None:
    before = prompts.read_bytes()
    link = prompts.with_name("link.jsonl")
    os.symlink(prompts, link)
    status, _, err = generate(*FEW, "--input", prompts, "--output", link, "--overwrite")
    assert status == 2
    assert "same file" in err
    assert prompts.read_bytes() == before


def test_logits_that_are_no_numbers_are_reported_with_the_lines(
    generate: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = command._load

    def spoilt(*arguments: Any) -> interlace.Engine:
        engine = load(*arguments)
        bad = engine.tokenizer("16", return_tensors="pt")["input_ids"]

        def spoil(module: Any, inputs: Any, output: Any) -> Any:
            return output * float("nan") if torch.equal(inputs[0], bad) else output

        engine.model.get_input_embeddings().register_forward_hook(spoil)
        return engine

    monkeypatch.setattr(command, "_load", spoilt)
    status, _, err = generate(
        *FEW, "--raw", "--batch-size", 2, "--input", prompts, "--output", tmp_path / "out"
    )
    assert status == 2
    assert "Sampling for line 5 to line 6 (prompts 0 to 1 of the call) failed" in err
    assert "NaN" in err
    assert len(read_lines(tmp_path / "out")) == 4


def test_what_the_engine_remarks_is_shown(
    generate: Any, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interlace.engine.core import EngineCore

    advance, calls = EngineCore.advance, []

    def remarking(self: EngineCore) -> Any:
        if not calls:
            self._note("Out of memory at 64 rows: going on with at most 32 at once.")
        calls.append(1)
        return advance(self)

    monkeypatch.setattr(EngineCore, "advance", remarking)
    assert "going on with at most 32 at once" in generate(*FEW, "--input", prompts)[2]


def test_without_a_terminal_a_line_now_and_then_tells_how_far_it_is(
    generate: Any, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SECONDS_BETWEEN_LINES", 0.0)
    err = generate(*FEW, "--batch-size", 2, "--input", prompts)[2]
    assert "21 of 21 rows" in err
    monkeypatch.setattr(shared, "SECONDS_BETWEEN_LINES", 1000.0)
    assert "of 21 rows" not in generate(*FEW, "--batch-size", 2, "--input", prompts)[2]


def test_in_a_terminal_a_bar_tells_how_far_it_is(
    generate: Any, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    status, out, err = generate(*FEW, "--input", prompts)
    assert status == 0
    assert len(out.splitlines()) == 7
    assert "21/21 rows" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)


def test_a_config_file_runs(generate: Any, tmp_path: Path, prompts: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"width: 3\nmax_new_tokens: 8\ninput: {prompts}\nseed: 4\n")
    by_file = generate("--config", path)[1]
    assert by_file == generate(*FEW, "--seed", 4, "--input", prompts)[1]
    assert by_file != generate("--config", path, "--seed", 5)[1]


def test_a_system_prompt_needs_a_template(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "chat_template", None, raising=False)
    monkeypatch.setattr(PreTrainedTokenizerFast, "__setattr__", _without_template)
    status, _, err = generate(*FEW, "--system", "12", "10")
    assert status == 2
    assert "--system needs a chat template" in err


def _without_template(self: Any, name: str, value: Any) -> None:
    if name != "chat_template":
        object.__setattr__(self, name, value)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("plain", "plain"),
        ([5, 6], "[5, 6]"),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "u"),
    ],
)
def test_a_prompt_as_text(prompt: Any, text: str) -> None:
    assert as_text(prompt) == text
