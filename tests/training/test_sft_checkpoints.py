"""TRL's SFTTrainer on an attached model: its checkpoints resume, and `interlace.load` reads them.

Needs the extra `trl`: `pip install -e '.[dev,trl]'`, then `pytest -m slow` on this file.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interlace
from support.architectures import attach_random, build
from support.saves import assert_same_weights, weights
from support.text import tiny_tokenizer

pytest.importorskip("trl", reason="needs the extra trl: pip install trl")

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TEXTS = [" ".join(f"w{(7 * row + word) % 90 + 3}" for word in range(6)) for row in range(24)]


def trainer(folder: Path, model: Any, **options: Any) -> SFTTrainer:
    """SFT of texts of six words; without groups each row is a group of its own."""
    settings = {"max_steps": 4, "per_device_train_batch_size": 6, "learning_rate": 1e-2}
    settings |= {"save_steps": 2, "use_cpu": True, "report_to": "none", "bf16": False}
    settings |= {"gradient_checkpointing": False, "max_length": 16, "disable_tqdm": True}
    data = Dataset.from_dict({"text": TEXTS})
    return SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(folder), **settings | options),
        train_dataset=data,
        eval_dataset=data.select(range(6)),
        processing_class=tiny_tokenizer(),
    )


def block(model: Any) -> Tensor:
    """A weight of the first block."""
    return next(parameter for _, parameter in interlace.new_parameters(model))


def test_a_resumed_sft_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    start = block(attach_random(build("llama")))
    whole = trainer(tmp_path / "run", attach_random(build("llama")))
    whole.train()
    loaded, tokenizer = interlace.load(tmp_path / "run" / "checkpoint-4")
    assert_same_weights(weights(loaded), weights(whole.model))
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert not torch.equal(block(loaded), start)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again = trainer(tmp_path / "run", attach_random(build("llama", seed=9), seed=8))
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(again.model), weights(whole.model))


def test_sft_goes_back_to_its_best_checkpoint(tmp_path: Path) -> None:
    # The highest loss counts as the best, so that it is not the last.
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "greater_is_better": True,
    }
    run = trainer(tmp_path, attach_random(build("llama")), load_best_model_at_end=True, **options)
    run.train()
    best = Path(str(run.state.best_model_checkpoint))
    assert best.name == "checkpoint-1"
    assert_same_weights(weights(run.model), weights(interlace.load(best)[0]))
