"""The models that come with the package: small, and what their names say."""

from __future__ import annotations

import pytest

import interlace
from interlace.attached import get_attachment, is_attached, new_parameters
from interlace.models.source import PACKAGED
from support.processes import held_out

NAMES = ["tiny", "tiny-bridge", "tiny-pmatch", "tiny-rlvr"]
BYTES = 4 * 2**20


def test_all_of_them_are_there_in_small_files() -> None:
    assert sorted(PACKAGED) == NAMES
    files = [path for folder in PACKAGED.values() for path in folder.rglob("*.safetensors")]
    assert len(files) == 6  # two arms have blocks beside their base
    assert max(path.stat().st_size for path in files) <= BYTES


def test_arms_have_the_blocks_that_they_are_named_after() -> None:
    models = {name: interlace.load(name)[0] for name in NAMES}
    assert not is_attached(models["tiny"])
    assert not is_attached(models["tiny-rlvr"])
    assert get_attachment(models["tiny-bridge"]).config.kind == "bridge"
    assert get_attachment(models["tiny-pmatch"]).config.kind == "pmatch"
    sizes = {sum(p.numel() for _, p in new_parameters(models[name]))
             for name in ("tiny-bridge", "tiny-pmatch")}  # fmt: skip
    assert len(sizes) == 1


def test_arms_are_trained_and_siblings_help_bridge() -> None:
    """By margins far beyond what another processor's rounding can change."""
    arms = ("tiny", 1), ("tiny-rlvr", 1), ("tiny-bridge", 1), ("tiny-bridge", 8)
    base, rlvr, alone, together = held_out(*arms, problems=64)
    assert rlvr > base + 0.08
    assert together > rlvr + 0.08
    assert together > alone + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_names_lead_to_a_model_and_its_tokenizer(name: str) -> None:
    model, tokenizer = interlace.load(name)
    assert not model.training
    assert tokenizer.decode(tokenizer("3 7 8 -> 45 :").input_ids) == "3 7 8 -> 45 :"
