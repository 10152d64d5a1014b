"""Seconds by phase, how much blocks add, and the table of sampled completions: a hostile text stays
in its cell, TensorBoard gets it; and what other trackers get."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from interlace.attached import get_attachment
from interlace.engine.types import Completion, GroupOutput, SamplingParams
from interlace.rows import Groups
from interlace.tasks.base import Example, Verdict
from interlace.training import trainer
from interlace.training.logging import as_markdown, show_in_tensorboard
from interlace.training.rollout import RolledGroup
from interlace.training.trainer import Tally, measuring_blocks
from support.training import Evens, grpo, tiny_model


def test_a_phase_within_a_phase_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 4.0, 10.0, 20.0, 22.0])
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(now))
    tally = Tally()
    with tally.timed("score"), tally.timed("guard"):
        pass
    with tally.timed("score"):
        pass
    assert tally.seconds == {"score": 10.0 - 3.0 + 2.0, "guard": 3.0}


def test_the_bar_shows_what_people_watch_and_not_every_number(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fails where Hugging Face's callback prints a dict of some forty numbers a step."""
    measured = {"eval_strategy": "steps", "eval_steps": 2, "eval_widths": [1, 2]}
    run = grpo(tmp_path, max_steps=2, disable_tqdm=False, eval_dataset=Evens(), **measured)
    run.train()
    out, err = capfd.readouterr()
    shown = out + err
    assert "{" not in shown
    assert "loss=" in err
    assert "coverage=" in err
    assert "Held-out, step 2: width 1/coverage" in shown


@pytest.mark.parametrize("kind", ["bridge", "pmatch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_blocks_add_is_measured_of_the_model_alone(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(kind).to(dtype)
    names = get_attachment(model).block_names
    with torch.no_grad():
        for name in names:
            model.get_submodule(name).o_weight.mul_(1e-2)  # so small that sums in 16 bits hide it
    exact = copy.deepcopy(model).double()
    ids, groups = torch.randint(0, 19, (6, 5)), Groups(width=3)
    expected: list[float] = []
    for name in names:
        exact.get_submodule(name).register_forward_hook(
            lambda block, inputs, output: expected.append(
                float((output - inputs[0]).norm() / inputs[0].norm())
            )
        )
    found: list[tuple[float, float]] = []
    with torch.no_grad(), measuring_blocks(model, lambda *noted: found.append(noted)):
        model(ids, groups=groups)
        other = copy.deepcopy(model)
        for name in names:
            other.get_submodule(name).o_weight.mul_(1e4)
        other(ids, groups=groups)  # as the guard's copy
    with torch.no_grad():
        exact(ids, groups=groups)
    ((mean, count),) = found
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    assert mean == pytest.approx(sum(expected) / len(expected), rel=tolerance)
    assert count == 1
    model(ids, groups=groups)
    assert len(found) == 1


def test_blocks_that_no_hook_sees_count_for_nothing() -> None:
    """As in a compiled model, whose graph may leave out hooks that come later. Fails if the mean of
    nothing is taken, or if nothing is noted: another process may have seen its blocks, and sums are
    added up over processes by their place."""
    found: list[tuple[float, float]] = []
    with measuring_blocks(tiny_model(), lambda *noted: found.append(noted)):
        pass
    assert found == [(0.0, 0.0)]
    tally = Tally()
    with measuring_blocks(tiny_model(), partial(tally.mean, "blocks")):
        pass
    assert tally.collect(lambda values, how: values) == {}


def rolled(texts: list[str]) -> RolledGroup:
    rows = [Completion(text, [1], [0.0], [0.0], "stop") for text in texts]
    group = GroupOutput("1 | 2\n?", [5], rows, SamplingParams(width=len(texts)))
    verdicts = [Verdict(index == 0, 0.0, None, "") for index in range(len(texts))]
    gains = torch.linspace(-1, 1, len(texts))
    return RolledGroup(0, Example("x", "q", "a"), group, verdicts, [0.5] * len(texts), gains)


def test_every_row_is_one_line_of_five_cells() -> None:
    table = as_markdown([rolled(["a | b\n<script>", "x" * 900]).to_dict()]).splitlines()
    rows = table[4:]
    assert len(rows) == 2
    assert all(line.replace("\\|", "").count("|") == 6 for line in rows)
    assert rows[0] == "| 0 | yes | 0.50 | -1.00 | a \\| b &lt;script> |"
    assert len(rows[1]) < 460


def test_tensorboard_gets_the_table(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        callbacks = [SimpleNamespace(), SimpleNamespace(tb_writer=writer)]
        show_in_tensorboard(callbacks, [rolled(["found it"]).to_dict()], 3)
    assert b"found it" in next(tmp_path.iterdir()).read_bytes()


TRACKED = """
import sys
from support.training import grpo
grpo(sys.argv[2], report_to=sys.argv[1], run_name="a-run", project="a-project").train()
"""


@pytest.mark.parametrize(
    ("tracker", "file"), [("wandb", "*/offline*/*.wandb"), ("trackio", "*/*.db")]
)
def test_trackers_get_what_is_logged(tracker: str, file: str, tmp_path: Path) -> None:
    """As transformers reports it, without a network; by itself, since both leave processes or
    threads behind. trackio wants huggingface-hub 1, so that constraints.txt has neither."""
    if find_spec(tracker) is None:
        pytest.skip(f"needs the package: pip install {tracker}")
    paths = {"WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run(
        [sys.executable, "-c", TRACKED, tracker, str(tmp_path / "run")],
        cwd=Path(__file__).parents[2],
        env=os.environ | paths | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    (said,) = tmp_path.glob(file)
    assert b"sampled_gap/max" in b"".join(f.read_bytes() for f in said.parent.glob(f"{said.name}*"))
