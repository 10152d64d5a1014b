"""A resumed run goes on from a whole checkpoint, and says so where the latest is none."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from interlace.errors import CheckpointError, RunError
from interlace.training import checkpoints
from interlace.training.checkpoints import SEAL, STATE, WEIGHTS, held
from interlace.training.grpo import GRPOTrainer
from support.save_faults import in_child
from support.training import at_step, grpo, metrics, same_bits, weights

STEPS = 5


class Stop(Exception):
    """Stands for whatever ends a run."""


def stop() -> None:
    raise Stop


def trainer(folder: Path, **options: object) -> GRPOTrainer:
    return grpo(folder, max_steps=STEPS, save_steps=1, **options)


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, keep: int = 100) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def fill(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def reshape(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    name = max(tensors)
    tensors[name] = torch.full([1], 0.5)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def to_int8(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    as_int8 = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    safetensors.torch.save_file(as_int8, folder / WEIGHTS)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("unpickled",)


ODD_JSON = {
    "null": b"null",
    "list": b"[1]",
    "deep": b'{"log_history":' + b"[" * 99_999,
    "no UTF-8": b'{"global_step": "\xff"}',
    "digits": b'{"global_step": ' + b"9" * 5000 + b"}",
}
STATES = {f"state: {name}": fill(STATE, content) for name, content in ODD_JSON.items()}
SEALS = {f"seal: {name}": fill(SEAL, content) for name, content in ODD_JSON.items()}
DAMAGE: dict[str, Callable[[Path], None]] = {
    "no optimizer": drop("optimizer.pt"),
    "no schedule": drop("scheduler.pt"),
    "no random states": drop("rng_state.pth"),
    "no state": drop(STATE),
    "no weights": drop(WEIGHTS),
    "shape [1]": reshape,
    "int8": to_int8,
    "cut weights": cut(WEIGHTS),
    "cut optimizer": cut("optimizer.pt"),
    "empty schedule": cut("scheduler.pt", 0),
    "cut random states": cut("rng_state.pth", 700),
    "code": fill("scheduler.pt", pickle.dumps(Code())),
    **STATES,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, dict]:
    """Metrics and weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(folder)
    run.run()
    return metrics(folder), weights(run.model)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its fourth step, with the checkpoints of steps 2 and 3."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(Stop):
        trainer(folder, callbacks=[at_step(4, stop)]).run()
    assert [c.name for c in checkpoints.all_checkpoints(folder)] == ["checkpoint-3", "checkpoint-2"]
    return folder


def copied(begun: Path, target: Path, sealed: bool = True) -> Path:
    folder = shutil.copytree(begun, target / "run")
    if not sealed:  # as 0.1 wrote them
        for seal in folder.glob(f"checkpoint-*/{SEAL}"):
            seal.unlink()
    return folder


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "of 0.1"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_gives_way(
    name: str, sealed: bool, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copied(begun, tmp_path, sealed)
    DAMAGE[name](folder / "checkpoint-3")
    model = trainer(folder).model
    with pytest.warns(UserWarning, match=r"checkpoint-3 is damaged: .* goes on from checkpoint-2"):
        assert checkpoints.best_checkpoint(folder, model) == folder / "checkpoint-2"
    assert (folder / "damaged-checkpoint-3").is_dir()
    assert not Path("unpickled").exists()
    DAMAGE[name](folder / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is damaged: .*--restart"):
        checkpoints.best_checkpoint(folder, model)
    assert (folder / "checkpoint-2").is_dir()
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("damage", [flip_a_bit, *SEALS.values()], ids=["bit", *SEALS])
def test_checksums_find_what_nothing_else_does(
    damage: Callable[[Path], None], begun: Path, tmp_path: Path
) -> None:
    folder = copied(begun, tmp_path)
    damage(folder / "checkpoint-3")
    with pytest.warns(UserWarning, match="checkpoint-3 is damaged"):
        assert checkpoints.best_checkpoint(folder, None) == folder / "checkpoint-2"


@pytest.mark.parametrize("damage", [None, drop("optimizer.pt"), reshape])
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "of 0.1"])
def test_the_run_that_goes_on_is_the_undisturbed_one(
    damage: Callable[[Path], None] | None,
    sealed: bool,
    begun: Path,
    whole: tuple[list, dict],
    tmp_path: Path,
) -> None:
    folder = copied(begun, tmp_path, sealed)
    run = trainer(folder)
    if damage is None:
        run.run()
    else:
        damage(folder / "checkpoint-3")
        with pytest.warns(UserWarning, match="goes on from checkpoint-2"):
            run.run()
    assert metrics(folder) == whole[0]
    assert len(same_bits(weights(run.model), whole[1])) == len(whole[1])


def test_moments_of_another_shape_are_refused(begun: Path, tmp_path: Path) -> None:
    folder = copied(begun, tmp_path, sealed=False)
    for place in ("checkpoint-2", "checkpoint-3"):
        path = folder / place / "optimizer.pt"
        state = torch.load(path, weights_only=True)
        state["state"][0]["exp_avg"] = torch.ones(1)
        torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"exp_avg of shape \[1\].*--restart"):
        trainer(folder).run()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    met: list[str] = []

    def second() -> None:
        with pytest.raises(RunError, match=r"Another run is at work in .*another output_dir"):
            trainer(tmp_path).run()
        met.append("refused")

    trainer(tmp_path, callbacks=[at_step(2, second)]).run()
    assert met == ["refused"]
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_killed_run_keeps_nobody_out(tmp_path: Path) -> None:
    def killed() -> None:
        with held(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert not in_child(killed)
    with held(tmp_path), pytest.raises(RunError, match="Another run"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


@pytest.mark.parametrize("line", [*ODD_JSON.values(), b'{"loss": 1}', b'{"step": null}'])
def test_a_damaged_line_of_the_metrics_is_named(line: bytes, begun: Path, tmp_path: Path) -> None:
    folder = copied(begun, tmp_path)
    path = folder / "metrics.jsonl"
    content = json.dumps({"step": 1}).encode() + b"\n" + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"metrics.jsonl, line 2 "):
        trainer(folder).run()
    assert path.read_bytes() == content
