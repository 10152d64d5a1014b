"""The table of sampled completions: a hostile text stays in its cell, TensorBoard gets it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from interlace.engine.types import Completion, GroupOutput, SamplingParams
from interlace.tasks.base import Example, Verdict
from interlace.training.rollout import RolledGroup
from interlace.training.tables import as_markdown, show_in_tensorboard


def rolled(texts: list[str]) -> RolledGroup:
    rows = [Completion(text, [1], [0.0], [0.0], "stop") for text in texts]
    group = GroupOutput("1 | 2\n?", [5], rows, SamplingParams(width=len(texts)))
    verdicts = [Verdict(index == 0, 0.0, None, "") for index in range(len(texts))]
    gains = torch.linspace(-1, 1, len(texts))
    return RolledGroup(0, Example("x", "q", "a"), group, verdicts, [0.5] * len(texts), gains)


def test_every_row_is_one_line_of_five_cells() -> None:
    table = as_markdown([rolled(["a | b\n<script>", "x" * 900])]).splitlines()
    rows = table[4:]
    assert len(rows) == 2
    assert all(line.replace("\\|", "").count("|") == 6 for line in rows)
    assert rows[0] == "| 0 | yes | 0.50 | -1.00 | a \\| b &lt;script> |"
    assert len(rows[1]) < 460


def test_tensorboard_gets_the_table(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        callbacks = [SimpleNamespace(), SimpleNamespace(tb_writer=writer)]
        show_in_tensorboard(callbacks, [rolled(["found it"])], 3)
    assert b"found it" in next(tmp_path.iterdir()).read_bytes()
