"""I9 over all architectures: save, load give the same outputs bit for bit, and no base weight
changes.

Shown to fail by: not copying the loaded blocks into the model; saving in bfloat16; loading the base
in its checkpoint's data type instead of the one it was saved in; leaving `base/` out of a full
save; and letting `save` write through to the base (`p.mul_(1)` with another factor).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import interlace
from interlace import Groups
from support.architectures import (
    RIVALS,
    attach_random,
    every_architecture,
    random_alive,
    random_ids,
    random_mixing,
    randomise,
)
from support.saves import assert_same_weights, base_folder, outputs, weights


@every_architecture()
@pytest.mark.parametrize("kind", ["bridge", "pmatch"])
def test_I9_saved_blocks_give_the_same_outputs(name: str, kind: str, tmp_path: Path) -> None:
    model, tokenizer = interlace.load(base_folder(tmp_path / "base", name))
    plain = weights(model)
    attach_random(model, kind)
    before, expected = weights(model), {w: outputs(model, w) for w in (1, 2, 3)}

    interlace.save(model, tmp_path / "out", tokenizer=tokenizer)
    assert_same_weights(weights(model), before)
    loaded, _ = interlace.load(tmp_path / "out")

    assert not loaded.training
    assert_same_weights(weights(loaded), before)
    for width, logits in expected.items():
        assert torch.equal(outputs(loaded, width), logits)
    interlace.detach(loaded)
    assert_same_weights(weights(loaded), plain)


@pytest.mark.parametrize(
    "options",
    [
        {"reads": "finished"},
        {"reads": "history", "alone": "skip"},
        *({"kind": kind} for kind in RIVALS),
    ],
    ids=str,
)
def test_I9_reach_width_1_and_options_are_saved_with_the_blocks(
    options: dict[str, str], tmp_path: Path
) -> None:
    model, tokenizer = interlace.load(base_folder(tmp_path / "base"))
    attach_random(model, **options)  # type: ignore[arg-type]
    alive = random_alive(2, 3, 5)
    start = torch.tensor([1, 2])
    mixing = random_mixing(2, 3, 5, alive, start)
    groups = [Groups(1), Groups(3, alive, start, mixing=mixing)]
    with torch.no_grad():
        expected = [model(random_ids(6, 5), groups=one).logits for one in groups]
    interlace.save(model, tmp_path / "out", tokenizer=tokenizer)
    loaded, _ = interlace.load(tmp_path / "out")
    assert loaded.interlace_attachment.config == model.interlace_attachment.config
    with torch.no_grad():
        again = [loaded(random_ids(6, 5), groups=one).logits for one in groups]
    assert all(map(torch.equal, again, expected))


@every_architecture()
def test_I9_a_full_save_gives_the_same_outputs(name: str, tmp_path: Path) -> None:
    model, tokenizer = interlace.load(base_folder(tmp_path / "base", name))
    attach_random(model)
    randomise(model.named_parameters(), seed=5)  # as training of all parameters would
    before, expected = weights(model), outputs(model)

    interlace.save(model, tmp_path / "out", full=True, tokenizer=tokenizer)
    assert_same_weights(weights(model), before)
    loaded, _ = interlace.load(tmp_path / "out")

    assert_same_weights(weights(loaded), before)
    assert torch.equal(outputs(loaded), expected)
    with pytest.raises((OSError, ValueError)):  # never without its blocks
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_I9_holds_in_lower_precision_than_the_base_checkpoint(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, _ = interlace.load(base_folder(tmp_path / "base"), dtype=dtype)
    attach_random(model)
    expected = outputs(model)
    interlace.save(model, tmp_path / "out")
    loaded, _ = interlace.load(tmp_path / "out")
    assert loaded.dtype == dtype
    assert torch.equal(outputs(loaded), expected)
