"""The gated side path: its configuration, and what it adds to a model.

Its equation, invariants and mutations are in tests/invariants; all that a user does with it is in
test_seats.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interlace import GatedConfig, Groups
from interlace.attached import get_attachment, new_parameters
from interlace.coupling.gated import GatedBlock
from interlace.coupling.registry import config_from_dict
from interlace.errors import ConfigError, GroupError
from interlace.rows import Owners
from support.architectures import GATED, HEADS, LAYERS, attach_fresh, build
from support.typecheck import unchecked


def test_it_goes_to_every_other_layer_from_the_middle_on() -> None:
    assert GatedConfig().layer_indices(28) == list(range(14, 28, 2))
    assert GatedConfig().layer_indices(3) == [1]
    assert GatedConfig(layers=[0, -1]).layer_indices(4) == [0, 3]
    model = attach_fresh(build("llama"), "gated", layers="upper")
    assert get_attachment(model).config.layers == [1]


def test_its_parameters_are_those_of_the_equation() -> None:
    model = attach_fresh(build("llama"), "gated")  # heads of 10 in a hidden size of 24
    size, rank = HEADS * 10, GATED.rank
    expected = LAYERS * (2 * rank * size + 3 * rank * rank + size + 1)
    assert sum(p.numel() for _, p in new_parameters(model)) == expected


def test_options_that_make_no_sense_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rank": 0}, r"rank is a whole number, at least 1; got 0"),
        ({"rank": 12, "num_heads": 4}, r"multiple of 2 \* num_heads; got 12 and 4"),
        ({"row_features": 3}, r"even number up to the head dim, 16; got 3"),
        ({"row_features": 18}, r"even number up to the head dim, 16; got 18"),
        ({"reads": "finished"}, r"reads is one of 'position', 'history'; got 'finished'"),
        ({"gate": "head"}, r"gate is one of 'row', 'feature'; got 'head'"),
    ]
    for options, message in cases:
        with unchecked(), pytest.raises(ConfigError, match=message):
            GatedConfig(**options)
    config = GatedConfig(rank=24, num_heads=2, reads="history", row_features=4)
    assert config_from_dict(config.to_dict()) == config
    assert (config.head_dim, GatedConfig().features_of_rows) == (12, 8)
    assert config.facts()["heads x head dim"] == "2 x 12"


def test_what_it_claims_follows_from_its_options() -> None:
    lost = {
        name: sorted({"I2", "I5"} - GatedBlock.claims(config))
        for name, config in {
            "rows": GATED,
            "anonymous": GatedConfig(row_features=0),
            "history": GatedConfig(row_features=0, reads="history"),
        }.items()
    }
    assert lost == {"rows": ["I2"], "anonymous": [], "history": ["I5"]}


def test_rows_without_numbers_are_refused() -> None:
    block = GatedBlock(GATED, 5)
    with pytest.raises(GroupError, match=r"these Owners have no numbers\. Pass Owners"):
        block.attended(torch.zeros(2, 1, 5), Owners([1, 1]))
    assert block.attended(torch.ones(2, 1, 5), Groups(2)).shape == (2, 1, 5)
