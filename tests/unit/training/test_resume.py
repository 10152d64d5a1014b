"""Invariant I10: a run that was stopped at any moment goes on to what it would have been."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import interlace
from interlace.errors import CheckpointError, ConfigError
from interlace.training import checkpoints
from support.processes import run_program
from support.training import at_step, grpo, metrics, read_lines, same_bits, warmup, weights


class Stop(Exception):
    """Stands for whatever ends a run."""


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("kind", ["grpo", "warmup"])
def test_I10_a_killed_run_that_is_run_again_is_the_uninterrupted_one(
    kind: str, tmp_path: Path
) -> None:
    said = run_program("support.killed_training", str(tmp_path), kind, "29", timeout=250)
    found = json.loads(said.splitlines()[-1])
    assert found["killed"] > 4
    assert found["different"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "warmup"])
def test_I10_killed_at_every_single_write(kind: str, tmp_path: Path) -> None:
    said = run_program("support.killed_training", str(tmp_path), kind, "1", timeout=1500)
    found = json.loads(said.splitlines()[-1])
    assert found["killed"] > 40
    assert found["different"] == []


def test_a_finished_run_that_is_run_again_changes_nothing(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, max_steps=2)
    trainer.run()
    before = metrics(tmp_path), read_lines(tmp_path / "completions.jsonl"), weights(trainer.model)
    again = grpo(tmp_path, max_steps=2)
    again.run()
    assert metrics(tmp_path) == before[0]
    assert read_lines(tmp_path / "completions.jsonl") == before[1]
    assert len(same_bits(weights(again.model), before[2])) == len(before[2])


@pytest.mark.parametrize("options", [{"save_steps": 3}, {"save_steps": 0.25}])
def test_checkpoints_fall_between_rollouts(options: dict[str, Any], tmp_path: Path) -> None:
    grpo(tmp_path, max_steps=7, mini_batches=2, passes=2, save_total_limit=None, **options).run()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_epochs_are_whole_rollouts(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, max_steps=-1, num_train_epochs=1, mini_batches=2, passes=2)
    assert trainer.args.max_steps == 12  # 10 problems, 4 a rollout: 2.5 rollouts of 4 steps


def test_what_was_tallied_is_logged_before_a_checkpoint(tmp_path: Path) -> None:
    warmup(tmp_path, max_steps=5, save_steps=2, logging_steps=3).run()
    assert [line["step"] for line in metrics(tmp_path)] == [2, 3, 4, 5]


# A full disk.

WRITERS = [
    ("safetensors.torch.save_file", OSError(errno.ENOSPC, "No space left on device")),
    ("torch.save", RuntimeError("[enforce fail] PytorchStreamWriter failed writing file")),
    ("transformers.TrainerState.save_to_json", OSError(errno.ENOSPC, "No space left on device")),
    ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
]


@pytest.mark.parametrize(("writer", "error"), WRITERS, ids=[name for name, _ in WRITERS])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(
    writer: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grpo(tmp_path / "whole", max_steps=6, save_steps=2).run()
    folder = tmp_path / "full"

    def fill_the_disk() -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(writer, fail)

    trainer = grpo(folder, callbacks=[at_step(4, fill_the_disk)], max_steps=6, save_steps=2)
    with pytest.raises(CheckpointError, match=r"step 4 .*checkpoint-2; make room and run the same"):
        trainer.run()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["checkpoint-2"]
    monkeypatch.undo()
    grpo(folder, max_steps=6, save_steps=2).run()
    assert metrics(folder) == metrics(tmp_path / "whole")
    for name in ("bridge.safetensors", "base/model.safetensors"):
        place = Path("model", name)
        assert (folder / place).read_bytes() == (tmp_path / "whole" / place).read_bytes()


def test_the_first_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(CheckpointError, match="The last good one is none"):
        grpo(tmp_path).run()


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file that may not grow further, which is what each writer then makes of it."""
    said = run_program("support.killed_training", str(tmp_path), timeout=600)
    found = [json.loads(line) for line in said.splitlines() if line.startswith('{"stopped')]
    kinds = ("checkpoint", "journal", "result")
    assert found == [{"stopped": kind, "same": True} for kind in kinds]


def test_a_checkpoint_that_a_killed_run_had_yet_to_delete_is_deleted(tmp_path: Path) -> None:
    grpo(tmp_path, max_steps=3, save_steps=1).run()
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-1")
    grpo(tmp_path, max_steps=3, save_steps=1).run()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_fewer_steps_than_were_taken_are_refused(tmp_path: Path) -> None:
    grpo(tmp_path, max_steps=3, save_steps=1).run()
    with pytest.raises(ConfigError, match="holds checkpoint-3, beyond the 2 steps"):
        grpo(tmp_path, max_steps=2, save_steps=1).run()


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        grpo(tmp_path, callbacks=[at_step(2, stop)], max_steps=3, save_steps=1).run()
    with pytest.raises(CheckpointError, match=r"holds other weights .* another output_dir"):
        grpo(tmp_path, max_steps=3, save_steps=1, train="new").run()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        grpo(tmp_path, callbacks=[at_step(2, stop)], max_steps=3, save_steps=1).run()
    path = tmp_path / "checkpoint-1" / checkpoints.WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"trained.safetensors is not what was written"):
        grpo(tmp_path, max_steps=3, save_steps=1).run()


def test_a_checkpoint_holds_trained_weights_alone(tmp_path: Path) -> None:
    trainer = warmup(tmp_path)
    trainer.run()
    stored = safetensors.torch.load_file(tmp_path / "checkpoint-1" / checkpoints.WEIGHTS)
    assert all("bridge" in name for name in stored)
    own = dict(trainer.model.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())


def test_the_result_is_the_model_that_trained(tmp_path: Path) -> None:
    trainer = warmup(tmp_path)
    loaded, _ = interlace.load(trainer.run())
    expected = weights(trainer.model)
    assert len(same_bits(weights(loaded), expected)) == len(expected)
