"""What every kind in the registry says of itself, and that nothing asks for it by name.

Axes: P groups, W width, S positions, D hidden size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import interlace
from interlace import Groups
from interlace.coupling.base import Coupling, places
from interlace.coupling.bridge import BridgeBlock, BridgeConfig
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import (
    COUPLINGS,
    DEFAULT_KIND,
    config_from_dict,
    coupling_class,
    default_config,
)
from interlace.rows import Owners
from support.architectures import build, random_alive, randomise
from support.reference import reference

P, W, S, D = 2, 3, 5, 7
SOURCE = Path(interlace.__file__).parent

every_kind = pytest.mark.parametrize("kind", list(COUPLINGS))


@every_kind
def test_a_kind_describes_itself(kind: str) -> None:
    coupling = coupling_class(kind)
    assert (coupling.kind, coupling.Config.kind) == (kind, kind)
    assert issubclass(coupling.Config, CouplingConfig)
    assert coupling.title
    assert coupling.about.endswith(".")
    assert config_from_dict({"kind": kind}) == coupling.Config()
    assert config_from_dict(coupling.Config().to_dict()) == coupling.Config()
    assert all(isinstance(value, str) for value in coupling.Config().facts().values())


def test_what_the_kinds_are() -> None:
    kinds = {kind: coupling_class(kind) for kind in COUPLINGS}
    assert {kind: (coupling.couples, *coupling.seats) for kind, coupling in kinds.items()} == {
        "bridge": (True, "layer"),
        "pmatch": (False, "layer"),
        "gated": (True, "attended"),
        "lanerope": (True, "attention"),
        "hogwild": (True, "attention"),
        "mix": (True, "input"),
        "parscale": (False, "attention", "streams"),
    }
    assert all(coupling.shares_prompt for coupling in kinds.values())
    assert default_config().kind == DEFAULT_KIND


@pytest.mark.parametrize("kind", ["bridge", "pmatch", "gated"])
@torch.no_grad()
def test_a_kind_is_its_reference_in_both_forms(kind: str) -> None:
    coupling: Any = coupling_class(kind)
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 3}
    config = coupling.Config(**({"rank": 8, "num_heads": 2} if kind == "gated" else shape))
    block = coupling(config, D).double()
    randomise(block.named_parameters(), seed=1)
    x = torch.randn(P * W, S, D, dtype=torch.float64)
    groups = Groups(W, random_alive(P, W, S))
    expected = reference(block, x, groups)
    torch.testing.assert_close(block(x, groups), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(x + block.added(x, groups), expected, rtol=0, atol=1e-12)
    step = Owners([0, 0, 0, 1, 1, 1], numbers=[0, 1, 2, 0, 1, 2])
    expected = reference(block, x[:, :1], Groups(W))
    torch.testing.assert_close(block(x[:, :1], step), expected, rtol=0, atol=1e-12)


def test_a_step_of_its_own_serves_decode_steps_alone() -> None:
    class Own(Coupling):
        def layer(self, x: Any, rows: Any) -> Any:
            return x + 1

        def step(self, x: Any, rows: Any) -> Any:
            return x + 2

    x = torch.zeros(2, 1, D)
    assert (Own()(x, Groups(2)) == 1).all()
    assert (Own()(x, Owners([0, 0])) == 2).all()
    assert Own().attention_weights(x, Groups(2)) is None


def test_modules_stand_at_layers_and_at_the_model() -> None:
    class Both(Coupling):
        seats = ("head", "attention")

    class Input(Coupling):
        seats = ("input",)

    assert places(Coupling, [1, 4]) == [1, 4]
    assert places(Input, [1, 4]) == [None]
    assert places(Both, [1, 4]) == [1, 4, None]


def test_nothing_compares_with_the_name_of_a_kind() -> None:
    names = "|".join(COUPLINGS)
    for path in SOURCE.rglob("*.py"):
        found = re.findall(rf"""[!=]=\s*\(?["'](?:{names})["']""", path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(SOURCE)} asks for a kind by name: {found}"


def test_a_block_is_built_in_another_dtype_without_touching_the_process() -> None:
    seen: list[torch.dtype] = []

    class Watched(BridgeBlock):
        def __init__(self, config: BridgeConfig, hidden_size: int) -> None:
            super().__init__(config, hidden_size)
            seen.append(torch.get_default_dtype())  # which other threads compute with

    base = build("llama").config
    config = BridgeConfig(num_heads=2, num_kv_heads=1, head_dim=4)
    block = Watched.build(config, base, 0, torch.device("meta"), torch.bfloat16)
    assert seen == [torch.float32]
    assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in block.parameters()} == {"meta"}
