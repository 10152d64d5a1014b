"""Blocks with another reach than the paper's, against plain loops, and what width 1 may mean.

Axes: P groups, W width, S positions, D hidden size.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interlace
from interlace import BridgeConfig, Groups
from interlace.attached import new_parameters
from interlace.coupling import reach as reach_module
from interlace.coupling.attention import merged
from interlace.coupling.bridge import BridgeBlock
from interlace.coupling.reach import attend_with_lse, turned, turns
from interlace.coupling.registry import config_from_dict
from interlace.engine.backends import BACKENDS
from interlace.errors import ConfigError, GenerationError, GroupError
from interlace.rows import Owners, Prompts, Reads
from support.architectures import attach_random, build, random_ids, randomise
from support.engine import attention_by_teacher_forcing, largest_gap
from support.reference import reference
from support.text import number_folder, number_tokenizer
from support.training import grpo, stopping, warmup
from support.typecheck import unchecked

D = 5
FLOAT64 = torch.float64


def random_block(reads: Reads = "history", **options: Any) -> BridgeBlock:
    config = BridgeConfig(num_heads=4, num_kv_heads=2, head_dim=6, reads=reads, **options)
    block = BridgeBlock(config, D).to(FLOAT64)
    randomise(block.named_parameters(), seed=1)
    return block


def random_case(
    count: int, width: int, positions: int, seed: int, ends: bool
) -> tuple[Tensor, Groups]:
    """Rows that end, or masks as no generation leaves them, with starts of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count * width, positions, D, generator=generator, dtype=FLOAT64)
    if ends:
        last = torch.randint(0, positions + 2, (count, width, 1), generator=generator)
        alive = torch.arange(positions) < last
    else:
        alive = torch.rand(count, width, positions, generator=generator) < 0.6
    start = torch.randint(0, positions + 2, (count,), generator=generator)
    return 2 * x, Groups(width, alive, start)


def case_with_ends() -> tuple[Tensor, Groups]:
    """Two groups of three rows, in both of which somebody reads a finished sibling."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 7, D, generator=generator, dtype=FLOAT64)
    alive = torch.arange(7) < torch.tensor([[7, 4, 2], [5, 6, 7]])[..., None]
    return 2 * x, Groups(3, alive, torch.tensor([1, 2]))


cases = st.fixed_dictionaries(
    {
        "count": st.integers(1, 3),
        "width": st.integers(1, 4),
        "positions": st.integers(1, 5),
        "seed": st.integers(0, 1000),
        "ends": st.booleans(),
    }
)
every_reach = pytest.mark.parametrize("reads", ["finished", "history"])


@every_reach
@pytest.mark.parametrize("entries", [2**24, 40], ids=["whole", "blocks"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "inference"])
@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_block_matches_the_equation(
    case: dict[str, Any], gradients: bool, entries: int, reads: Reads
) -> None:
    block = random_block(reads)
    x, groups = random_case(**case)
    with torch.set_grad_enabled(gradients), patch.object(reach_module, "_MASK_ENTRIES", entries):
        out = block(x, groups)
    torch.testing.assert_close(out, reference(block, x, groups), rtol=0, atol=1e-12)


@every_reach
@pytest.mark.parametrize("entries", [2**24, 40], ids=["whole", "blocks"])
def test_gradients_match_the_equation(entries: int, reads: Reads) -> None:
    block = random_block(reads)
    x, groups = case_with_ends()
    inputs = [x.requires_grad_(), *block.parameters()]
    weight = torch.randn(x.shape, dtype=FLOAT64)
    with patch.object(reach_module, "_MASK_ENTRIES", entries):
        got = torch.autograd.grad((block(x, groups) * weight).sum(), inputs)
    expected = torch.autograd.grad((reference(block, x, groups) * weight).sum(), inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@every_reach
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_lower_precision_follows_the_equation(dtype: torch.dtype, reads: Reads) -> None:
    exact, low = random_block(reads), random_block(reads).to(dtype)
    exact.load_state_dict(low.state_dict())
    x, groups = case_with_ends()
    out = low(x.to(dtype), groups)
    assert out.dtype == dtype
    allowed = {torch.float32: 1e-5, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    expected = reference(exact, x.to(dtype).double(), groups)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=allowed)


def test_reach_and_meaning_of_width_1_are_words() -> None:
    with (
        unchecked(),
        pytest.raises(ConfigError, match=r"reads is one of 'position', .*; got 'past'"),
    ):
        BridgeConfig(reads="past")  # type: ignore[arg-type]
    with (
        unchecked(),
        pytest.raises(ConfigError, match=r"alone is one of 'block', 'skip'; got True"),
    ):
        BridgeConfig(alone=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"reads='history' head_dim is even; got 7"):
        BridgeConfig(head_dim=7, reads="history")
    config = BridgeConfig(reads="finished", alone="skip")
    assert config_from_dict(config.to_dict()) == config
    assert config.facts().keys() == {"heads x head dim", "reads", "at width 1"}
    assert BridgeConfig().facts().keys() == {"heads x head dim"}


def test_a_mask_of_all_pairs_is_never_made() -> None:
    """Blocks of queries cover all positions in order, and no mask has more entries than allowed."""
    groups = Groups(16, completion_start=torch.tensor([3]))
    earlier = groups.earlier("history", 1, 2048, torch.device("cpu"))
    assert earlier is not None
    blocks = reach_module._blocks(1, 16, 2048, earlier)
    assert blocks[0][0] == earlier.first == 4
    assert blocks[-1][1] == 2048
    assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
    sizes = [
        16 * (stop - start) * (earlier.upto[stop - 1] + 16 * (stop - start))
        for start, stop in blocks
    ]
    assert max(sizes) <= reach_module._MASK_ENTRIES < (16 * 2048) ** 2 / 60


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 6, dtype=FLOAT64)

    def score(at: int, of: int) -> float:
        here, there = (turns(torch.tensor(p), 6, FLOAT64) for p in (at, of))
        return float(turned(q, *here) @ turned(k, *there))

    assert score(9, 4) == pytest.approx(score(1009, 1004), abs=1e-10)
    assert score(7, 7) == pytest.approx(float(q @ k), abs=1e-12)
    assert abs(score(9, 4) - score(4, 9)) > 1e-3
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_parts_of_a_decode_step_merge_to_the_whole() -> None:
    q, k, v = torch.randn(5, 4, 6), torch.randn(5, 2, 6), torch.randn(5, 2, 6)
    first = (torch.arange(5) < 2).expand(1, 1, 5, 5)
    whole, lse = attend_with_lse(q, k, v, None)
    parts = [attend_with_lse(q, k, v, part) for part in (first, ~first)]
    torch.testing.assert_close(merged(*parts[0], *parts[1]), whole)
    torch.testing.assert_close(torch.logaddexp(parts[0][1], parts[1][1]), lse)


@every_reach
def test_steps_without_what_was_kept_are_refused(reads: Reads) -> None:
    block = random_block(reads)
    with pytest.raises(GroupError, match=rf"reads='{reads}' read what siblings wrote.*kept=\.\.\."):
        block(torch.zeros(3, 1, D, dtype=FLOAT64), Owners([1, 1, 2]))


@every_reach
def test_passes_with_a_cache_that_nobody_keeps_for_are_refused(reads: Reads) -> None:
    model, ids = attach_random(build("llama"), reads=reads), random_ids(6, 5)
    prompt = Groups(3, completion_start=torch.tensor([5, 5]))
    cache = model(ids, groups=prompt, use_cache=True).past_key_values
    with pytest.raises(GroupError, match=r"use_cache=False; model\.generate and Engine keep it"):
        model(ids[:, :1], past_key_values=cache, groups=Groups(3))
    model(ids[:, :2], past_key_values=cache, groups=prompt)  # a further chunk of the prompt
    model(ids[:, :1], past_key_values=cache)  # without siblings


@pytest.mark.parametrize("ends", [True, False])
@every_reach
def test_what_a_row_reads_of_a_sibling_is_summed_over_its_positions(
    reads: Reads, ends: bool
) -> None:
    """Against one softmax over all pairs of rows and positions. Catches positions summed to
    another row, and scores without rotary positions."""
    block = random_block(reads)
    x, groups = random_case(3, 4, 7, seed=8, ends=ends)
    weights = block.attention_weights(x, groups)
    assert weights is not None
    assert weights.shape == (3, 7, 4, 4, 4)  # P S H W W
    assert groups.alive is not None
    assert groups.completion_start is not None
    q, k, _ = block._project(block.norm(x), 3)
    place = torch.arange(7) - groups.completion_start[:, None]
    angles = turns(place[:, None, :, None], 6, FLOAT64)
    q, k = turned(q, *angles), turned(k.repeat_interleave(2, dim=3), *angles)
    scores = torch.einsum("pwshc,pvthc->phwsvt", q, k) / 6**0.5
    alive, at = groups.alive, torch.arange(7)
    wrote = alive & (at >= groups.completion_start[:, None, None])  # P V T
    others = ~torch.eye(4, dtype=torch.bool)[None, :, None, :, None]  # W V
    before = (at < at[:, None])[None, None, :, None] & wrote[:, None, None] & others
    if reads == "finished":
        before = before & ~alive.transpose(1, 2)[:, None, :, :, None]  # P S V
    here = torch.eye(7, dtype=torch.bool)[None, None, :, None]
    here = here & (alive[:, None, None] | ~others)
    seen = (here | before)[:, None]
    flat = scores.masked_fill(~seen, float("-inf")).flatten(4).softmax(dim=-1)
    expected = flat.unflatten(4, (4, 7)).sum(-1).permute(0, 3, 1, 2, 4)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


@every_reach
@pytest.mark.parametrize("kind", ["bridge", "gated"])
def test_recorded_attention_is_that_of_the_teacher_forced_pass(
    reads: Reads, kind: str, backend: str
) -> None:
    """With rows that end early, beside a wider group. Catches finished siblings left out, and
    columns of another group's rows."""
    if kind == "gated" and reads == "finished":
        pytest.skip("gated reads the position or the history")
    model = attach_random(build("llama"), kind, reads=reads)
    limits = interlace.SamplingParams(
        width=4, max_new_tokens=[9, 2, 5, 7], seed=3, ignore_eos=True, record_attention="layers"
    )
    wider = limits.replace(width=5, max_new_tokens=8, record_attention=None)
    _, group = interlace.Engine(model, backend=backend).generate(
        [[5, 6, 7], [8, 9]], [wider, limits]
    )
    assert group.attention is not None
    assert len(group.attention) == 8
    expected = attention_by_teacher_forcing(model, group)
    for t, got in enumerate(group.attention):
        live = [w for w in range(4) if t + 1 < len(group.completions[w].token_ids)]
        np.testing.assert_allclose(got[:, live].sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(got[:, live], expected[t][:, live], atol=1e-5)
    last = group.attention[-1][:, 0]
    assert (last[:, 1:] > 1e-4).all()  # the one row left reads those that have finished


@pytest.mark.parametrize("name", BACKENDS)
def test_a_reach_that_a_backend_lacks_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BACKENDS[name], "reads", ("finished",))
    interlace.Engine(attach_random(build("llama"), reads="finished"), backend=name)
    other = r"model\.generate" if name == "hf" else "backend='hf'"
    with pytest.raises(
        GenerationError, match=rf"reads='history' read .*{name} backend does not.* Use {other}"
    ):
        interlace.Engine(attach_random(build("llama"), reads="history"), backend=name)


def test_the_table_of_reaches_is_that_of_the_backends() -> None:
    text = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| yes \| (yes|no) \| (yes|no) \|$", text, re.M)
    carried = {
        name: tuple("yes" if reads in backend.reads else "no" for reads in ("finished", "history"))
        for name, backend in BACKENDS.items()
    }
    assert {name: cells for name, *cells in table} == {n: list(c) for n, c in carried.items()}


# Width 1 ------------------------------------------------------------------------------------------


def test_at_width_1_the_old_model_may_be_asked_for() -> None:
    base, ids = build("qwen3"), random_ids(6, 5)
    expected = base(ids).logits
    model = attach_random(build("qwen3"), alone="skip")
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model(ids, groups=Groups(1)).logits, expected)
    same = attach_random(build("qwen3"))
    wide = Groups(3)
    assert torch.equal(model(ids, groups=wide).logits, same(ids, groups=wide).logits)
    assert (same(ids).logits - expected).abs().max() > 0.05


def test_skipped_blocks_train_with_zeros_not_none() -> None:
    """Data-parallel reducers wait for a gradient of every parameter."""
    model = attach_random(build("qwen3"), alone="skip")
    model(random_ids(6, 5)).logits.sum().backward()
    gradients = [p.grad for _, p in new_parameters(model)]
    assert all(g is not None and not g.any() for g in gradients)


def test_rows_that_are_alone_go_by_a_block_that_others_pass() -> None:
    skips, passes = random_block("position", alone="skip"), random_block("position")
    x = torch.randn(5, 1, D, dtype=FLOAT64)
    mixed = Owners([1, 2, 1, 3, 4], alone=[False, True, False, True, False])
    out, whole = skips(x, mixed), passes(x, Owners([1, 2, 1, 3, 4]))
    assert torch.equal(out[[1, 3]], x[[1, 3]])
    assert torch.equal(out[[0, 2, 4]], whole[[0, 2, 4]])  # one whose siblings are gone, too
    prompts = torch.randn(2, 4, D, dtype=FLOAT64)
    out = skips(prompts, Prompts([False, True]))
    assert torch.equal(out[1], prompts[1])
    torch.testing.assert_close(out[0], passes(prompts, Groups(1))[0], rtol=0, atol=1e-12)


# All that a user does -----------------------------------------------------------------------------


@every_reach
def test_trained_saved_loaded_and_sampled(reads: Reads, tmp_path: Path) -> None:
    """The guard of the training compares sampling with the teacher-forced pass in every rollout."""
    model, _ = interlace.load(number_folder(tmp_path / "base"))
    config = BridgeConfig(
        parameter_share=0.1, num_heads=2, num_kv_heads=2, reads=reads, alone="skip"
    )
    interlace.attach(stopping(model), config, seed=5)
    randomise(new_parameters(model), seed=6)
    warmup(tmp_path / "warm", model).train()
    grpo(tmp_path / "rl", model).train()
    interlace.save(model, tmp_path / "saved", full=True, tokenizer=number_tokenizer())
    loaded, tokenizer = interlace.load(tmp_path / "saved")
    engine = interlace.Engine(stopping(loaded), tokenizer)
    params = interlace.SamplingParams(width=3, max_new_tokens=6, seed=4, record_attention="mean")
    groups = engine.generate(["7 8", "9"], params)
    assert largest_gap(loaded, groups) < 2e-5


@every_reach
def test_what_is_kept_goes_with_its_group(reads: Reads, backend: str) -> None:
    model = attach_random(build("llama"), reads=reads)
    engine = interlace.Engine(model, backend=backend)
    steps: list[tuple[int, int]] = []
    kept = engine.core.backend

    def note(stats: Any) -> None:
        steps.append((kept._kept.nbytes, len(kept._kept._groups)))

    params = [
        interlace.SamplingParams(width=w, max_new_tokens=n) for w, n in ((1, 9), (3, 5), (2, 7))
    ]
    engine.generate([[5, 6], [7], [8, 9, 10]], params, progress=note)
    most, groups = max(steps)
    assert (most > 0, groups) == (True, 2)  # of the two groups with siblings
    assert engine.stats.peak_cache_bytes > most
    assert steps[-1] == (0, 0)
    engine.generate([[5, 6]], interlace.SamplingParams(width=1, max_new_tokens=4), progress=note)
    assert steps[-2] == (0, 0), "width 1 keeps nothing"


def test_a_budget_counts_what_blocks_keep() -> None:
    """Two groups that fit a budget without it begin one after the other with it."""
    together = {}
    for reads in ("position", "history"):
        model = attach_random(build("llama"), reads=reads)
        engine = interlace.Engine(model, backend="hf", memory_budget=400_000)
        running: list[int] = []
        engine.generate(
            [[5, 6, 7], [8, 9]],
            interlace.SamplingParams(width=4, max_new_tokens=40, ignore_eos=True),
            progress=lambda stats, core=engine.core, seen=running: seen.append(len(core._running)),
        )
        together[reads] = max(running)
    assert together == {"position": 2, "history": 1}
