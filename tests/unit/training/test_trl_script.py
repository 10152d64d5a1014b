"""A script that was written for TRL trains here after three edits: the import, the attach line, and
the width. Mutation that was seen to fail here: a batch size of TRL's that is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from interlace.attached import is_attached
from interlace.models.loading import load
from support.text import number_folder
from support.training import read_lines

SCRIPT = """
import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

source, output = sys.argv[1:]
dataset = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": f"{n} + {n % 3}"}], "answer": str(n + n % 3)}
        for n in range(12)
    ]
)


def accuracy_reward(completions, answer, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if own in text.split() else 0.0 for text, own in zip(contents, answer)]


def brevity_reward(completions, completion_ids, **kwargs):
    return [-len(ids) / 10 for ids in completion_ids]


model = AutoModelForCausalLM.from_pretrained(source)
training_args = GRPOConfig(
    output_dir=output,
    learning_rate=1e-3,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=3,
    num_generations=6,
    max_completion_length=8,
    num_iterations=2,
    beta=0.04,
    epsilon=0.2,
    epsilon_high=0.28,
    loss_type="dapo",
    scale_rewards="group",
    mask_truncated_completions=False,
    reward_weights=[1.0, 0.5],
    temperature=0.9,
    top_p=1.0,
    use_vllm=False,
    max_steps=2,
    logging_steps=1,
    log_completions=True,
    bf16=False,
    use_cpu=True,
    report_to="none",
)
trainer = GRPOTrainer(
    model=model,
    reward_funcs=[accuracy_reward, brevity_reward],
    args=training_args,
    train_dataset=dataset,
)
result = trainer.train()
print("steps", result.global_step)
trainer.save_model(training_args.output_dir)
"""
EDITS = (
    (
        "from trl import GRPOConfig, GRPOTrainer",
        "import interlace\nfrom interlace import GRPOConfig, GRPOTrainer",
    ),
    (
        "model = AutoModelForCausalLM.from_pretrained(source)\n",
        "model = AutoModelForCausalLM.from_pretrained(source)\n"
        "interlace.attach(model, interlace.BridgeConfig())\n",
    ),
    ("    num_generations=6,\n", "    num_generations=6,\n    width=3,\n"),
)


def run(text: str, folder: Path) -> Path:
    (folder / "script.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "script.py", str(number_folder(folder)), str(folder / "out")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "steps 2" in done.stdout
    return folder / "out"


def test_a_script_of_trls_trains_here_after_three_edits(tmp_path: Path) -> None:
    text = SCRIPT
    for before, after in EDITS:
        assert text.count(before) == 1
        text = text.replace(before, after)
    out = run(text, tmp_path)
    assert is_attached(load(out / "model")[0])
    lines = read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert {"reward/accuracy_reward", "reward/brevity_reward", "kl"} <= set(lines[0])
    assert lines[0]["tokens/rollout"] <= 2 * 6 * 8  # two prompts a rollout, as in TRL
    assert len(read_lines(out / "completions.jsonl")) == 2  # both steps are passes over one rollout


@pytest.mark.slow
def test_the_script_is_one_of_trls(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra trl: pip install trl")
    run(SCRIPT, tmp_path)
