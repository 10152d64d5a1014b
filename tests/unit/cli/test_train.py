"""`interlace train` from the command line: both stages on a tiny model, going on, starting anew,
--dry-run, help.

Mutations that were seen to fail here: GRPO that forgets the warm-up's blocks; a run that begins
anew instead of going on; --dry-run that writes; help without the options' texts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import interlace
from interlace.attached import is_attached
from interlace.cli.main import main
from interlace.training.recipe import DECISIVE, SECTIONS
from support.text import number_folder, number_tokenizer

WARMUP = {
    "groups_per_step": 2,
    "max_steps": 2,
    "max_new_tokens": 3,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "report_to": "none",
}
GRPO = {
    "prompts_per_rollout": 4,
    "num_generations": 4,
    "width": [2, 4],
    "mini_batches": 2,
    "max_steps": 4,
    "max_new_tokens": 3,
    "use_cpu": True,
    "save_steps": 2,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return number_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def train(model, tmp_path, capfd, monkeypatch):
    """Runs the command beside a recipe; gives its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    responses = tmp_path / "responses.jsonl"
    _write_responses(responses)
    recipe = {
        "model": str(model),
        "attach": {"method": "bridge", "parameter_share": 0.05},
        "task": "chain-arithmetic",
        "task_options": {"digits": 1, "steps": 1, "size": 8},
        "output_dir": "out",
        "warmup": WARMUP | {"data": str(responses)},
        "grpo": GRPO,
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))

    def command(*arguments, recipe="recipe.yaml"):
        capfd.readouterr()
        stage, *rest = arguments
        try:
            status = main(["train", stage, recipe, *map(str, rest)])
        except SystemExit as ended:  # as --help and --print_config end
            status = ended.code
        out, err = capfd.readouterr()
        return status, out, err

    return command


def _write_responses(path):
    """Two right answers for each of some sums, as a warm-up takes them from elsewhere."""
    tokenizer = number_tokenizer()
    end = tokenizer.eos_token_id
    lines = []
    for a in range(1, 5):
        prompt = tokenizer(f"{a} 3", add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"{a + 3}", add_special_tokens=False)["input_ids"]
        completions = [[*answer, end], [*answer, *answer, end]]
        line = {"example": str(a), "prompt_token_ids": prompt, "completions": completions}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")


def test_both_stages_and_the_next_command(train, tmp_path):
    status, out, err = train("warmup")
    assert status == 0, err
    assert "The trained model is in out/warmup/model" in out
    assert "interlace train grpo recipe.yaml" in out
    warm, _ = interlace.load("out/warmup/model")
    status, out, err = train("grpo")
    assert status == 0, err
    assert "fresh blocks" not in err
    assert "interlace eval --model out/grpo/model --task chain-arithmetic --split test" in out
    assert "--max-new-tokens 3" in out
    assert "digits=1 steps=1" in out
    written = yaml.safe_load(Path("out/grpo/recipe.yaml").read_text())
    assert written["blocks"] == "warmup"
    assert "warmup" not in written
    trained, _ = interlace.load("out/grpo/model")
    assert is_attached(trained)
    name, value = next((n, p) for n, p in warm.named_parameters() if "bridge" in n and "o" in n)
    moved = (dict(trained.named_parameters())[name] - value).abs().max()
    assert value.abs().max() > 0
    assert moved < 1e-3  # the warm-up's weights, a few small steps on


def test_the_same_command_goes_on_and_another_recipe_is_refused(train):
    train("grpo")
    first = Path("out/grpo/metrics.jsonl").read_text()
    status, _, err = train("grpo")
    assert status == 0, err
    assert Path("out/grpo/metrics.jsonl").read_text().startswith(first)
    status, _, err = train("grpo", "grpo.clip_low=0.1")
    assert status == 2
    assert "grpo.clip_low was 0.2 and is 0.1" in err
    status, _, err = train("grpo", "grpo.clip_low=0.1", "--restart")
    assert status == 0
    assert "is now in out/grpo.before-1" in err
    assert Path("out/grpo.before-1/metrics.jsonl").exists()


def test_a_run_may_go_on_with_other_widths_to_measure_at(train):
    """After all its steps it ended with a traceback, from the first evaluation's table."""
    measuring = ["grpo.eval_strategy=steps", "grpo.eval_steps=2", "grpo.lr_scheduler_type=constant"]
    assert train("grpo", *measuring, "grpo.max_steps=2", "grpo.eval_widths=[1]")[0] == 0
    status, out, err = train("grpo", *measuring, "grpo.max_steps=4", "grpo.eval_widths=[1,2]")
    assert status == 0, err
    assert "optimizer step 4 -> 4" in out


def test_fresh_blocks_are_warned_about(train):
    _, _, err = train("grpo", "grpo.max_steps=2")
    assert "GRPO starts from fresh blocks. Without a warm-up nothing was seen to happen" in err


def test_rlvr_only_and_p_match_are_another_line(train):
    status, _, err = train("grpo", "attach=none", "output_dir=rlvr", "grpo.max_steps=2")
    assert status == 0, err
    assert "fresh blocks" not in err
    assert not is_attached(interlace.load("rlvr/grpo/model")[0])
    status, _, err = train("grpo", "attach.method=pmatch", "output_dir=pm", "grpo.max_steps=2")
    assert status == 0, err
    assert any("pmatch" in n for n, _ in interlace.load("pm/grpo/model")[0].named_parameters())


def test_attach_that_contradicts_the_model(train, tmp_path, model):
    blocks = number_folder(tmp_path / "attached", "bridge")
    status, _, err = train("grpo", f"model={blocks}", "attach=pmatch")
    assert status == 2
    assert "has bridge blocks (" in err
    assert "asks for pmatch blocks" in err
    assert "Set attach=auto" in err
    status, _, err = train("grpo", f"model={blocks}", "attach=none", "--restart")
    assert status == 2
    assert "Use the base model, or set attach=auto" in err
    status, _, err = train("grpo", f"model={blocks}", "attach=none", "--dry-run")
    assert status == 2
    status, _, err = train("grpo", f"model={blocks}", "attach=auto", "--restart")
    assert status == 0, err


def test_a_dry_run_says_what_it_takes_and_writes_nothing(train):
    status, out, err = train("grpo", "--dry-run", "grpo.max_steps=7", "--memory", 1)
    assert status == 0, err
    numbers = dict(
        line.strip().rsplit("  ", 1) for line in out.splitlines() if "  " in line.strip()
    )
    found = {name.strip(): value.strip() for name, value in numbers.items()}
    assert found["optimizer steps"] == "8"
    assert found["rows sampled"] == "64"
    assert found["tokens sampled, at most"] == "192"
    assert found["starts from"] == "fresh blocks"
    assert "activations, 8 rows" in found
    assert "The first prompt:\n\n  user: What is " in out  # and the instruction that follows
    assert "end with one line of the form\n  Answer: <number>\n" in out
    assert re.search(r"A response that is accepted:\n\n(  .*\n)*  Answer: \d+\n", out)
    assert not Path("out").exists()


def test_what_cannot_fit_is_refused_with_what_to_change(train):
    words = ["grpo.prompts_per_rollout=256", "grpo.max_new_tokens=200"]
    status, out, err = train("grpo", "--dry-run", *words, "--memory", 0.02)
    assert status == 2
    assert "memory while training" in out
    assert "This does not fit" in err
    assert "Try grpo.micro_rows=" in err
    change = err.split("Try ")[1].split(". If")[0].split(";")[0].split()
    status, _, err = train("grpo", "--dry-run", *words, *change, "--memory", 0.02)
    assert status == 0, err


def test_mistakes_end_with_one_message(train):
    for words, message in (
        (("grpo", "grpo.widht=3"), "Did you mean 'width'?"),
        (("grpo", "--dryrun"), "Did you mean '--dry-run'?"),
        (("gropo",), "STAGE takes one of 'warmup', 'grpo'; got 'gropo'. Did you mean 'grpo'?"),
        (("warmup", "attach=none"), "RLVR-only has no warm-up"),
        (("grpo", "task_options.digit=2"), "Did you mean 'digits'?"),
        (("grpo", "--dry-run", "--memory", -1), "above 0"),
        (("grpo", "--dry-run", "--processes", 3), "3 processes do not divide it"),
    ):
        status, _, err = train(*words)
        assert status == 2, words
        assert message in err
        assert err.count("\n") == 1, err


def test_options_may_stand_anywhere(train):
    status, _, err = train("grpo", "--dry-run", "grpo.max_steps=2", "--processes=2", "seed=3")
    assert status == 0, err


def test_keys_of_the_recipe_may_be_flags(train):
    words = ("--grpo.max_steps", 3, "--seed=4", "--attach", "none", "--output-dir", "flags")
    status, out, err = train("grpo", *words, "--print_config", "--grpo.lr_scheduler_kwargs.a=1")
    assert status == 0, err
    written = yaml.safe_load(out)
    assert (written["seed"], written["attach"], written["output_dir"]) == (4, "none", "flags")
    assert written["grpo"]["max_steps"] == 3
    assert written["grpo"]["lr_scheduler_kwargs"] == {"a": 1}
    assert "warmup" not in written
    assert not Path("flags").exists()


def test_what_is_printed_is_a_recipe(train):
    _, out, _ = train("grpo", "grpo.learning_rate=1e-5", "--print_config")
    Path("printed.yaml").write_text(out)
    status, again, err = train("grpo", "--print_config", recipe="printed.yaml")
    assert status == 0, err
    assert again == out
    status, again, err = train("grpo", "--print_config", recipe="--config=printed.yaml")
    assert (status, again) == (0, out), err


@pytest.mark.parametrize("stage", ["warmup", "grpo"])
def test_help_teaches_every_option(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main(["train", stage, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"interlace train {stage} tiny" in text
    section = SECTIONS[stage]
    assert all(f"  --{stage}.{name} " in text for name in [*section.own, *DECISIVE])
    assert "neftune_noise_alpha" not in text
    if stage == "grpo":
        assert "Number of rows that see each other, W. A list draws one for each" in text
        assert "(default: 0.28)" in text
    else:
        assert "Number of groups in an optimizer step, over all processes (default:" in text
        assert 'by default only the "new" ones' in text
