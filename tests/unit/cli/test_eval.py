"""`interlace eval` from the command line: options, YAML, going on, measuring again, what is shown.

Mutations that were seen to fail here: --from that samples; a YAML value that beats the command
line; a task option that is lost; an interrupted run that says it is done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interlace.cli.main import main
from interlace.evaluation.evaluate import Recorder
from interlace.evaluation.records import read_records
from support.text import number_folder

Eval = Callable[..., tuple[int, str, str]]
SUMS = ("--task", "chain-arithmetic", "--task-options", "digits=1", "steps=1", "size=6")
QUICK = ("--timed", 0, "--figures", "none", "--max-new-tokens", 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved Bridge blocks on a tiny model whose words are numbers."""
    return number_folder(tmp_path_factory.mktemp("models"), "bridge")


@pytest.fixture
def run(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Eval:
    """Runs the command in an empty folder; gives its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object, model: Path | None = model) -> tuple[int, str, str]:
        capfd.readouterr()
        given = [] if model is None else ["--model", str(model)]
        status = main(["eval", *given, *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return command


def test_every_width_is_run_and_shown(run, model, tmp_path):
    status, out, err = run(*SUMS, *QUICK, "--widths", "1,2,4", "--seed", 3)
    assert status == 0
    folder = tmp_path / "runs" / f"chain-arithmetic-{model.name}"
    assert f"runs/chain-arithmetic-{model.name} has result.json" in err.replace("\n", "")
    assert out == (folder / "report.md").read_text()
    assert "|  | W = 1 | W = 2 | W = 4 |" in out
    assert "\n| maj@W (%) | " in out
    assert "chain-arithmetic, split test, digits=1, steps=1, size=6: 6 problems" in out
    found = read_records(folder / "records.jsonl")
    assert {(record.width, record.seed, record.coupled) for record in found} == {
        (1, 3, True),
        (2, 3, True),
        (4, 3, True),
    }
    assert len(found) == 18
    assert not (folder / "figures").exists()


def test_json_is_the_result_file(run):
    status, out, _ = run(*SUMS, *QUICK, "--widths", "1,2", "--json", "--output", "x")
    assert status == 0
    assert json.loads(out) == json.loads(Path("x/result.json").read_text())


def test_figures_are_drawn(run):
    run(
        *SUMS,
        "--timed",
        1,
        "--max-new-tokens",
        4,
        "--widths",
        "1,2",
        "--figures",
        "svg",
        "--output",
        "x",
    )
    names = sorted(path.name for path in Path("x/figures").iterdir())
    assert names == [f"{n}.svg" for n in ("accuracy", "diversity", "g-pass", "latency", "votes")]


def test_measuring_again_samples_nothing(run, monkeypatch):
    run(*SUMS, *QUICK, "--widths", "1,2", "--output", "x")
    before = Path("x/result.json").read_bytes(), Path("x/records.jsonl").read_bytes()
    monkeypatch.setattr(Recorder, "take", None)
    monkeypatch.setattr("interlace.models.loading.load", None)
    status, _, _ = run("--from", "x", "--figures", "none", model=None)
    assert status == 0
    assert (Path("x/result.json").read_bytes(), Path("x/records.jsonl").read_bytes()) == before
    status, out, _ = run("--from", "x", "--figures", "none", "--level", 0.8, model=None)
    assert status == 0
    assert "80 % intervals" in out


def test_a_model_without_blocks_is_sampled_once(run, model):
    base = model.parent / "base"
    status, out, _ = run(*SUMS, *QUICK, "--widths", "1,8", "--output", "x", model=base)
    assert status == 0
    assert "independent rows, sampled once: 8 a problem" in out
    assert {record.width for record in read_records("x/records.jsonl")} == {8}
    status, out, _ = run("--from", "x", "--figures", "none", "--ks", "3,5", model=None)
    assert "|  | W = 3 | W = 5 |" in out


def test_a_model_without_a_chat_template_gets_plain_text(run, tmp_path):
    bare = number_folder(tmp_path / "bare", chat=False)
    status, _, err = run(*SUMS, *QUICK, "--widths", "1", "--output", "x", model=bare)
    assert status == 0
    assert "no chat template: prompts are plain text" in " ".join(err.split())
    config = json.loads(Path("x/config.json").read_text())
    assert config["settings"]["task"]["prompts"] == "text"
    status, _, err = run(*SUMS, "chat=true", *QUICK, "--widths", "1", "--output", "y", model=bare)
    assert status == 2
    assert "no chat template" in err


def test_problems_come_from_a_file(run):
    rows = [{"question": f"{n} + 1", "answer": f"#### {n + 1}"} for n in range(5)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    status, out, _ = run(
        "--task", "gsm8k", "--data", "train.jsonl", "--limit", 3, *QUICK, "--widths", "2"
    )
    assert status == 0
    assert "split all, data='train.jsonl': 3 problems" in out


def test_options_stand_in_a_file_and_the_command_line_wins(run, model):
    Path("eval.yaml").write_text(
        f"model: {model}\n"
        "task: chain-arithmetic\n"
        "task_options: {digits: 1, steps: 1, size: 6}\n"
        "widths: [1, 2]\n"
        "max-new-tokens: 4\n"
        "temperature: 0.5\n"
        "timed: 0\n"
        "figures: [none]\n"
        "symbolic_votes: true\n"
        "stop: ['17', '18']\n"
        "output: x\n"
    )
    status, _, err = run(
        "--config",
        "eval.yaml",
        "--temperature",
        0.7,
        "--task-options.size",
        4,
        "--task-options.steps=2",
        model=None,
    )
    assert status == 0, err
    settings = json.loads(Path("x/config.json").read_text())["settings"]
    assert settings["widths"] == [1, 2]
    assert settings["sampling"]["temperature"] == 0.7
    assert settings["sampling"]["max_new_tokens"] == 4
    assert settings["sampling"]["stop"] == ["17", "18"]
    assert settings["symbolic_votes"]
    assert settings["notes"]["task_options"] == {"digits": 1, "steps": 2, "size": 4}
    assert settings["task"]["problems"] == 4


def test_scorers_of_ones_own(run):
    Path("mine.py").write_text(
        "def ones(text):\n    return float(text.count('1'))\n"
        "def long(prompts, completions, question, **columns):\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    status, out, _ = run(
        *SUMS, *QUICK, "--widths", "2", "--scorer", "ones=mine.py:ones", "long=mine.py:long"
    )
    assert status == 0
    assert "best of n, by ones" in out
    assert "weighted, by long" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--widths", "1,2"), "Say which task"),
        ((*SUMS, "--widths", "1;2"), "a list with commas (each a whole number); got '1;2'"),
        ((*SUMS, "--widths", "1,1"), "different whole numbers"),
        ((*SUMS, "--ks", "2"), "--ks and --level go with --from"),
        ((*SUMS, "--temperature", "-1"), "temperature is 0 (greedy) or a number"),
        ((*SUMS, "--figures", "gif"), "each one of 'pdf', 'svg', 'png'); got 'gif'"),
        ((*SUMS, "--memory", "0"), "--memory is a number of GiB above 0"),
        ((*SUMS, "--task-options", "size"), "takes NAME=VALUE, such as digits=2; got 'size'"),
        ((*SUMS, "--task-options.sizes", "3"), "Did you mean 'size'?"),
        ((*SUMS, "--scorer", "a=nowhere.py:f"), "cannot be imported"),
        (("--task", "chain-arithmatic"), "Did you mean 'chain-arithmetic'?"),
        ((*SUMS, "--widht", "4"), "Did you mean '--widths'?"),
        (("--from", "nowhere"), "leave out --model"),
        (("--config", "missing.yaml"), "missing.yaml cannot be read"),
    ],
)
def test_what_cannot_be_done_is_explained(arguments, message, run):
    status, out, err = run(*arguments)
    assert status == 2
    assert message in err
    assert out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("widhts: [1]\n", "there is no option 'widhts'. Did you mean 'widths'?"),
        ("limit: many\n", "eval.yaml: limit takes a whole number; got 'many'"),
        ("[1, 2]\n", "holds list"),
        ("limit: {a: 1}\n", "limit takes a whole number; got {'a': 1}"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_wrong_configuration_file_is_corrected(content, message, run):
    Path("eval.yaml").write_text(content)
    status, _, err = run(*SUMS, "--config", "eval.yaml")
    assert status == 2
    assert message in err


def test_a_missing_run_is_named(run):
    status, _, err = run("--from", "nowhere", model=None)
    assert status == 2
    assert "nowhere is no run folder" in err


def test_another_configuration_is_refused_and_can_be_overwritten(run):
    run(*SUMS, *QUICK, "--widths", "1", "--output", "x")
    again = (*SUMS, *QUICK, "--widths", "1", "--output", "x", "--temperature", 0.5)
    status, _, err = run(*again)
    assert status == 2
    assert "sampling.temperature was 1.0 and is 0.5" in err
    assert run(*again, "--overwrite")[0] == 0


def test_ctrl_c_says_how_to_go_on(run, monkeypatch):
    from interlace.engine.engine import Engine

    whole = Engine.as_completed

    def interrupted(self, *arguments, **options):
        for count, found in enumerate(whole(self, *arguments, **options)):
            if count == 2:
                raise KeyboardInterrupt
            yield found

    command = (*SUMS, *QUICK, "--widths", "1,2", "--output", "x")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "as_completed", interrupted)
        status, out, err = run(*command)
    assert (status, out) == (130, "")
    assert "Run the same command again to go on" in " ".join(err.split())
    assert len(read_records("x/records.jsonl")) == 2
    status, _, err = run(*command)
    assert status == 0
    assert "2 rows were there before" in err


@pytest.mark.parametrize(
    ("size", "name"), [(100, "config.json"), (2_500, "records.jsonl"), (9_000, "'disk'")]
)
def test_a_full_disk_is_named_with_the_way_out_and_loses_nothing(run, size, name):
    resource = pytest.importorskip("resource")
    command = (*SUMS, *QUICK[:2], "--max-new-tokens", 5, "--widths", "1,2")
    command = (*command, "--figures", "png" if name == "'disk'" else "none")
    # First, so that no child has to start, and to write bytecode, on the full disk.
    assert run(*command, "--output", "whole")[0] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # stands for the disk
    try:
        status, out, err = run(*command, "--output", "disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = " ".join(err.split())
    assert (status, out) == (2, "")
    assert name in said
    assert "File too large" in said
    assert "ake room and start the same run again" in said
    before = Path("disk/records.jsonl").read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert run(*command, "--output", "disk")[0] == 0
    assert Path("disk/records.jsonl").read_bytes().startswith(kept)
    same = [{r.key: r.texts for r in read_records(f"{p}/records.jsonl")} for p in ("disk", "whole")]
    assert same[0] == same[1]


@pytest.mark.slow
def test_a_command_killed_from_outside_goes_on_to_the_same_result(run, model):
    command = ["--model", str(model), "--task", "chain-arithmetic", "--limit", "60"]
    command += ["--max-new-tokens", "60", "--timed", "0", "--figures", "none"]
    command += ["--widths", "1,2,4", "--batch-rows", "16"]
    records = Path("killed/records.jsonl")
    deadline = time.monotonic() + 120
    with Path("log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "interlace.cli.main", "eval", *command, "--output", "killed"],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stderr=log,
        )
        while time.monotonic() < deadline and process.poll() is None:
            if records.exists() and records.read_bytes().count(b"\n") >= 40:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, Path("log").read_text()
    assert 40 <= records.read_bytes().count(b"\n") < 180
    assert run(*command, "--output", "killed", model=None)[0] == 0
    assert run(*command, "--output", "whole", model=None)[0] == 0
    results = [json.loads(Path(name, "result.json").read_text()) for name in ("killed", "whole")]
    for result in results:
        (arm,) = result["results"]
        arm["measurements"] = [m for m in arm["measurements"] if m["metric"] != "seconds"]
    assert results[0] == results[1]
