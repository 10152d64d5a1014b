"""Heat maps of who listened to whom: what is averaged, and what model text cannot do to them.

Axes: W width, L layers with blocks.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import interlace
from interlace.cli.generate.listening import NOBODY, maps_of, view, write_png
from interlace.engine.types import GroupOutput
from interlace.errors import ConfigError
from support.architectures import LAYERS, attach_random, build

TEXTS = ["1 + 2 = 3", "costs $5 \x1b[31mor $6", "a\nb", "long " * 99]
PARAMS = interlace.SamplingParams(
    width=4, max_new_tokens=[9, 2, 5, 7], seed=3, ignore_eos=True, record_attention="layers"
)


def sampled(params: interlace.SamplingParams = PARAMS, kind: str = "bridge") -> GroupOutput:
    model = attach_random(build("llama"), kind)
    return interlace.Engine(model).generate([[5, 6, 7]], params)[0]


def test_a_reader_is_averaged_over_its_own_steps() -> None:
    """Catches a mean over all steps, which counts those after a row's end as zeros."""
    group = sampled()
    ((title, mean),) = maps_of(group)
    assert title == f"mean of {LAYERS} layers"
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-5)
    (_, second), (_, first) = maps_of(group, [2, 1])
    assert group.attention is not None
    own = np.stack(group.attention)[:4, :, 2]  # the row of five tokens feeds four
    np.testing.assert_allclose(first[2], own[:, 0].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(second[2], own[:, 1].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("layer", [0, -1, LAYERS + 1])
def test_a_layer_without_a_block_is_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match=f"from 1 to {LAYERS}; got {layer}"):
        maps_of(sampled(), [layer])


def test_nobody_listens_at_width_1_or_without_attention(tmp_path: Path) -> None:
    alone = PARAMS.replace(width=1, max_new_tokens=4)
    for group in (sampled(alone), sampled(kind="pmatch")):
        assert maps_of(group) == []
    console = Console(file=io.StringIO(), width=80)
    assert str(view([], ["x"], console)) == NOBODY
    with pytest.raises(ConfigError, match="nothing to draw"):
        write_png([], ["x"], tmp_path / "who.png")


def test_rows_stand_beside_their_maps() -> None:
    maps = maps_of(sampled(), [1, 3])
    plain = Console(file=io.StringIO(), width=80)
    plain.print(view(maps, TEXTS, plain))
    printed: Any = plain.file
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    assert len(lines) == 2 * (2 + 4)
    assert f"layer 3 of {LAYERS}" in lines[6]
    assert [line.endswith("1 + 2 = 3") for line in lines].count(True) == 2
    assert not any("\x1b" in line for line in lines)
    own = [int(number) for number in lines[2].split()[1:5]]
    assert own == [round(100 * share) for share in maps[0][1][0]]
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    console.print(view(maps, TEXTS, console))
    shown: Any = console.file
    assert max(len(line.rstrip()) for line in shown.getvalue().splitlines()) <= 60


def test_a_figure_of_any_text(tmp_path: Path) -> None:
    write_png(maps_of(sampled(), [1, 2]), TEXTS, tmp_path / "who.png")
    assert (tmp_path / "who.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_and_draws(generate: Any, tmp_path: Path) -> None:
    few = ("--width", 3, "--max-new-tokens", 8)
    status, out, err = generate(*few, "--attention-png", tmp_path / "who.png", "10 11")
    assert (status, err) == (0, "")
    assert out.index("=== majority") < out.index("row listens to row")
    assert (tmp_path / "who.png").stat().st_size > 1000
    assert "row listens" not in generate(*few, "10 11")[1]
    status, _, err = generate(*few, "--attention", "--json", "10 11")
    assert status == 2
    assert "leave out --json" in err
