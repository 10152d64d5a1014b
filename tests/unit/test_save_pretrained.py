"""Checkpoints of an attached model by `transformers.Trainer`: it resumes from them and goes back to
the best, and `interlace.load` reads them, while `from_pretrained` never gives a model without its
blocks. The same by TRL's SFTTrainer: tests/training/test_sft_checkpoints.py.

Axes: W = 3, rows of a batch R = 6, S = 7, V = 97.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import interlace
from interlace import Groups
from interlace.errors import AttachError, CheckpointError
from support.architectures import attach_random, build, random_ids
from support.saves import assert_same_weights, weights
from support.text import tiny_tokenizer

WIDTH, ROWS, POSITIONS = 3, 6, 7
DATA = [{"input_ids": row} for row in random_ids(24, POSITIONS)]
QUIET: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}


def grouped(rows: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """Rows as whole groups, with labels."""
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids, "groups": Groups(WIDTH)}


def trainer(folder: Path, model: PreTrainedModel, **options: Any) -> Trainer:
    """A plain Trainer of an attached model."""
    settings = {"max_steps": 4, "per_device_train_batch_size": ROWS, "learning_rate": 1e-2}
    settings |= {"save_steps": 2, "save_strategy": "steps", "remove_unused_columns": False}
    args = TrainingArguments(output_dir=str(folder), **QUIET | settings | options)
    return Trainer(
        model=model,
        args=args,
        train_dataset=DATA,
        eval_dataset=DATA[:ROWS],
        data_collator=grouped,
        processing_class=tiny_tokenizer(),
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "bridge"), ("qwen3", "pmatch")], ids=["tied", "pmatch"]
)
def test_a_resumed_run_of_trainer_is_the_uninterrupted_one(
    tmp_path: Path, name: str, kind: str
) -> None:
    whole = trainer(tmp_path / "whole", attach_random(build(name), kind))
    whole.train()

    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    first = trainer(tmp_path / "parts", attach_random(build(name), kind))
    first.add_callback(Stop())
    first.train()
    assert first.state.global_step == 2
    # Other weights everywhere: all must come from the checkpoint.
    again = trainer(tmp_path / "parts", attach_random(build(name, seed=9), kind, seed=8))
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(again.model), weights(whole.model))
    assert not torch.equal(random_block(first.model), random_block(whole.model)), "it went on"

    loaded, tokenizer = interlace.load(tmp_path / "parts" / "checkpoint-4")
    assert_same_weights(weights(loaded), weights(whole.model))
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_with_adapters_the_blocks_are_in_pefts_checkpoint_as_modules_to_save(
    tmp_path: Path,
) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        torch.manual_seed(5)
        config = LoraConfig(target_modules=["q_proj"], r=3, modules_to_save=["bridge"])
        return get_peft_model(attach_random(build("llama")), config)

    whole = trainer(tmp_path / "whole", adapted())
    whole.train()
    trainer(tmp_path / "parts", adapted(), max_steps=4).train()
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")
    again = trainer(tmp_path / "parts", adapted())
    again.train(resume_from_checkpoint=True)
    found, expected = weights(again.model), weights(whole.model)
    assert_same_weights(found, expected)
    start = weights(adapted())
    moved = [name for name, value in expected.items() if not torch.equal(value, start[name])]
    assert any("bridge.modules_to_save" in name for name in moved)
    assert any("lora_" in name for name in moved)
    merged = again.model.merge_and_unload()
    interlace.save(merged, tmp_path / "result", full=True)
    loaded, _ = interlace.load(tmp_path / "result", tokenizer=tiny_tokenizer())
    assert_same_weights(weights(loaded), weights(merged))


def random_block(model: Any) -> Tensor:
    """A weight of the first block."""
    return next(parameter for _, parameter in interlace.new_parameters(model))


def test_trainer_goes_back_to_its_best_checkpoint(tmp_path: Path) -> None:
    model = attach_random(build("llama"))
    # The highest loss counts as the best, so that it is not the last.
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "greater_is_better": True,
    }
    run = trainer(tmp_path, model, load_best_model_at_end=True, **options)
    run.train()
    best = Path(str(run.state.best_model_checkpoint))
    assert best.name == "checkpoint-1"
    loaded, _ = interlace.load(best)
    assert_same_weights(weights(model), weights(loaded))
    last, _ = interlace.load(tmp_path / "checkpoint-4")
    assert not torch.equal(random_block(last), random_block(model))


def test_from_pretrained_never_gives_a_model_without_its_blocks(tmp_path: Path) -> None:
    model = attach_random(build("llama"))
    model.save_pretrained(tmp_path)
    for cls in (AutoModelForCausalLM, type(build("llama"))):
        with pytest.raises(ValueError, match=r"Load both with interlace\.load\(folder\)"):
            cls.from_pretrained(tmp_path)
    with pytest.raises(KeyError, match="metadata"):  # the index is not one that it can read
        type(build("llama")).from_pretrained(tmp_path, config=model.config)
    loaded, _ = interlace.load(tmp_path, tokenizer=tiny_tokenizer())
    assert_same_weights(weights(loaded), weights(model))


def test_from_pretrained_says_what_to_call_at_a_checkpoint_of_trainer(tmp_path: Path) -> None:
    trainer(tmp_path, attach_random(build("llama")), max_steps=2).train()
    for cls in (AutoModelForCausalLM, type(build("llama"))):
        with pytest.raises(ValueError, match=r"Load both with interlace\.load\(folder\)"):
            cls.from_pretrained(tmp_path / "checkpoint-2")
    interlace.load(tmp_path / "checkpoint-2")


def test_a_plain_models_configuration_is_not_overwritten(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'config\.json', which no earlier save put there"):
        attach_random(build("llama")).save_pretrained(tmp_path)


def adapters(**options: Any) -> Any:
    """A configuration of PEFT's."""
    from peft import LoraConfig

    return LoraConfig(target_modules=["q_proj"], r=3, **options)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_that_would_leave_the_blocks_out_of_their_checkpoints_are_warned_of(
    tmp_path: Path,
) -> None:
    from peft import PeftModel, get_peft_model

    with pytest.warns(UserWarning, match=r"not the bridge blocks.*modules_to_save=\['bridge'\]"):
        wrapped = get_peft_model(attach_random(build("llama")), adapters())
    wrapped.save_pretrained(tmp_path)
    # What is loaded for sampling alone is no reason to warn, and neither is a model without blocks.
    PeftModel.from_pretrained(attach_random(build("llama")), tmp_path)
    get_peft_model(attach_random(build("llama")), adapters(modules_to_save=["bridge"]))
    late = get_peft_model(build("llama"), adapters(modules_to_save=["bridge"]))
    with pytest.warns(UserWarning, match="Attach the blocks before the adapters"):
        attach_random(late)


def test_a_base_in_shards_is_found_by_the_index(tmp_path: Path) -> None:
    from transformers.trainer_utils import load_sharded_checkpoint

    model = attach_random(build("qwen3"))
    folder = interlace.save(model, tmp_path / "save", full=True)
    shards = tmp_path / "save" / "base"
    for file in shards.glob("*.safetensors"):
        file.unlink()
    plain = build("qwen3")
    plain.save_pretrained(shards, max_shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    from interlace.saving.checkpoint import _write_index

    _write_index(folder, "bridge.safetensors")
    other = attach_random(build("qwen3", seed=9), seed=8)
    load_sharded_checkpoint(other, str(folder), strict=True)
    assert_same_weights(weights(other), weights(model))


def test_what_would_be_ignored_is_refused(tmp_path: Path) -> None:
    model = attach_random(build("llama"))
    for options in ({"push_to_hub": True}, {"variant": "fp16"}, {"max_shard_size": "1GB"}):
        (name,) = options
        with pytest.raises(AttachError, match=rf"{name}=.*without effect.*interlace\.save"):
            model.save_pretrained(tmp_path, **options)
    state = model.state_dict()
    model.save_pretrained(tmp_path, state_dict=state, safe_serialization=True)
    other = {name: value + 1 for name, value in state.items()}
    with pytest.raises(AttachError, match="own weights"):
        model.save_pretrained(tmp_path, state_dict=other)
    model.save_pretrained(tmp_path / "second process", is_main_process=False)
    assert not (tmp_path / "second process").exists()
    with pytest.raises(AttachError, match=r"interlace\.save\(model, folder, push_to"):
        model.push_to_hub("someone/blocks")
