"""A kind is one file and one registry line: a toy for each seat goes through all that Bridge does.

Axes: P groups, W width, S positions.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import interlace
from interlace import Groups
from interlace.attached import get_attachment, new_parameters
from interlace.coupling.base import AT_LAYERS, AT_MODEL, Coupling, check_carried
from interlace.coupling.registry import COUPLINGS, coupling_class
from interlace.engine import backends
from interlace.errors import AttachError, GenerationError, GroupError
from support.architectures import (
    RIVALS,
    attach_random,
    build,
    checkpointed,
    random_alive,
    random_ids,
    randomise,
)
from support.engine import largest_gap
from support.evaluation import quick
from support.text import number_folder, number_tokenizer, sums
from support.toy_couplings import TOYS, ToyAttention, ToyHead, ToyInput, ToyLayer
from support.training import grpo, stopping, warmup

P, W, S = 2, 3, 7
IDS = random_ids(P * W, S)
STOPS = list(range(5, 25))

every_seat = pytest.mark.parametrize("toy", TOYS, ids=["+".join(toy.seats) for toy in TOYS])


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for toy in TOYS:
        monkeypatch.setitem(COUPLINGS, toy.kind, f"support.toy_couplings.{toy.__name__}")


def attached(toy: type[Coupling], name: str = "qwen3", **options: Any) -> PreTrainedModel:
    """A model with a toy whose weights are random."""
    model = build(name, **options)
    attach(model, toy)
    learn(model)
    return model


def attach(model: PreTrainedModel, toy: type[Coupling]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The blocks add")
        interlace.attach(model, toy.Config(), seed=5)


@torch.no_grad()
def learn(model: PreTrainedModel) -> None:
    randomise(new_parameters(model), seed=6)
    for name, parameter in new_parameters(model):
        if "toyattention" in name:
            parameter.add_(100)  # its share of attention, from next to nothing to a part


@every_seat
@torch.no_grad()
def test_a_fresh_toy_changes_nothing_and_a_detached_one_neither(toy: type[Coupling]) -> None:
    model = build("qwen3")
    before, attention = set(model.state_dict()), model.config._attn_implementation
    expected = model(IDS).logits
    attach(model, toy)
    added = [name for name, _ in new_parameters(model)]
    assert set(model.state_dict()) == before | set(added)
    assert all(toy.kind in name for name in added)
    at_layers, at_model = set(AT_LAYERS) & set(toy.seats), set(AT_MODEL) & set(toy.seats)
    assert len(added) == (3 if at_layers else 0) + (1 if at_model else 0)
    close = {} if "I1" in toy.claims(toy.Config()) else {"atol": 1e-5}
    torch.testing.assert_close(
        model(IDS, groups=Groups(W)).logits, expected, **{"atol": 0, "rtol": 0} | close
    )
    learn(model)
    assert (model(IDS, groups=Groups(W)).logits - expected).abs().max() > 0.05
    with get_attachment(model).disabled():
        assert torch.equal(model(IDS, groups=Groups(W)).logits, expected)
    interlace.detach(model)
    assert torch.equal(model(IDS).logits, expected)
    assert set(model.state_dict()) == before
    assert model.config._attn_implementation == attention


@every_seat
@torch.no_grad()
def test_rows_that_see_each_other_are_those_of_the_group_while_alive(toy: type[Coupling]) -> None:
    """I2, I3, I4 and I5, for each seat."""
    model, alive = attached(toy), random_alive(P, W, S)
    alive[0, 1, 3:], alive[0, 0] = False, True
    groups = Groups(W, alive)
    out = model(IDS, groups=groups).logits
    changed = IDS.clone()
    changed[1, 4] = (changed[1, 4] + 1) % 90 + 1  # a finished row, later
    torch.testing.assert_close(
        model(changed, groups=groups).logits[[0, 2, 3, 4, 5]], out[[0, 2, 3, 4, 5]]
    )
    changed[0, 2] = (changed[0, 2] + 1) % 90 + 1  # a live row at 2
    again = model(changed, groups=groups).logits
    torch.testing.assert_close(again[3:], out[3:])  # another group
    torch.testing.assert_close(again[1, :2], out[1, :2])  # earlier positions
    assert (again[1, 2] - out[1, 2]).abs().max() > 1e-3
    order = torch.tensor([2, 0, 1, 3, 4, 5])
    moved = Groups(W, alive.flatten(0, 1)[order].unflatten(0, (P, W)))
    torch.testing.assert_close(
        model(IDS[order], groups=moved).logits, out[order], atol=2e-5, rtol=0
    )
    same = IDS[:1].expand(W, -1)
    alone = model(IDS[:1]).logits
    torch.testing.assert_close(
        model(same, groups=Groups(W)).logits, alone.expand(W, -1, -1), atol=2e-5, rtol=0
    )


@every_seat
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_gradients_reach_the_toy_and_the_siblings(toy: type[Coupling], attn: str) -> None:
    """I8, for each seat."""
    model = attached(toy, attn=attn)
    embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, groups=Groups(W)).logits
    logits[0, 4].log_softmax(dim=-1)[9].backward()
    assert embeddings.grad is not None
    assert embeddings.grad[1, :5].abs().sum() > 0
    assert not embeddings.grad[3:].any()
    assert not embeddings.grad[1, 5:].any()
    assert all(p.grad is not None and p.grad.any() for _, p in new_parameters(model))


@torch.no_grad()
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_attention_beside_is_one_softmax_over_both_parts(name: str, attn: str) -> None:
    """Padding, windows and soft-capping stay the base model's."""
    model = attached(ToyAttention, name, attn=attn)
    mask = torch.ones(P * W, S, dtype=torch.long)
    mask[:W, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(IDS, attention_mask=mask, position_ids=positions, groups=Groups(W)).logits
    cut = model(IDS[:W, 2:], groups=Groups(W)).logits
    torch.testing.assert_close(padded[:W, 2:], cut, atol=2e-5, rtol=0)


@every_seat
@torch.no_grad()
def test_saved_and_loaded_it_gives_the_same(toy: type[Coupling], tmp_path: Path) -> None:
    """I9, for each seat."""
    model = attached(toy)
    expected = model(IDS, groups=Groups(W)).logits
    interlace.save(model, tmp_path / "saved", full=True)
    assert (tmp_path / "saved" / f"{toy.kind}.safetensors").is_file()
    loaded, _ = interlace.load(tmp_path / "saved")
    assert get_attachment(loaded) == get_attachment(model)
    assert torch.equal(loaded(IDS, groups=Groups(W)).logits, expected)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "base")
    assert plain.config._attn_implementation == "sdpa"
    card = (tmp_path / "saved" / "README.md").read_text()
    assert toy.about in card


@every_seat
@torch.no_grad()
def test_hugging_faces_generate_carries_it(toy: type[Coupling]) -> None:
    """The logits of each cached step are those of one pass over the whole sequences."""
    model = attached(toy)
    torch.manual_seed(0)
    options = {"do_sample": True, "max_new_tokens": 4, "num_return_sequences": W, "top_k": 0}
    asked = {"output_logits": True, "return_dict_in_generate": True}
    out: Any = model.generate(IDS[:1], **options, **asked)
    assert len({tuple(row) for row in out.sequences.tolist()}) == W
    expected = model(out.sequences, groups=Groups(W)).logits[:, S - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), expected, atol=2e-5, rtol=0)


def test_labels_with_a_head_coupling_are_refused() -> None:
    """The loss would be of the base model's own logits."""
    with pytest.raises(GroupError, match=r"before toyhead changes them\. Leave labels out"):
        attached(ToyHead)(IDS, labels=IDS, groups=Groups(W))


@torch.no_grad()
def test_head_couplings_read_the_positions_that_are_kept() -> None:
    model, groups = attached(ToyHead), Groups(W, random_alive(P, W, S))
    whole = model(IDS, groups=groups).logits
    assert torch.equal(model(IDS, groups=groups, logits_to_keep=2).logits, whole[:, -2:])
    assert torch.equal(model(IDS, groups=groups, return_dict=False)[0], whole)


def test_attention_that_gives_no_place_beside_it_is_refused() -> None:
    model = build("qwen3")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(AttachError, match=r"flex_attention attention.*attn_implementation='sdpa'"):
        attach(model, ToyAttention)
    assert not interlace.attached.is_attached(model)


def test_unknown_kinds_name_the_known_ones() -> None:
    known = r"'mystery'; known are bridge, pmatch, gated, lanerope, hogwild, mix, parscale, toy"
    with pytest.raises(interlace.InterlaceError, match=known):
        coupling_class("mystery")


@pytest.mark.parametrize("kind", ["toylayer", *RIVALS])
def test_a_kind_trains_saves_loads_generates_and_is_evaluated(kind: str, tmp_path: Path) -> None:
    """All that a user does, with nothing of it written for this kind."""
    model, _ = interlace.load(number_folder(tmp_path / "base"))
    if kind == "toylayer":
        attach(stopping(model), ToyLayer)
        learn(model)
    else:
        attach_random(stopping(model), kind)
    before = weights_of_toy(model)
    if before:  # else there is nothing to warm up
        warmup(tmp_path / "warm", model).train()
    warmed = weights_of_toy(model)
    assert all(not torch.equal(warmed[name], before[name]) for name in before)
    grpo(tmp_path / "rl", model).train()
    assert all(not torch.equal(weights_of_toy(model)[name], warmed[name]) for name in before)

    interlace.save(model, tmp_path / "saved", full=True, tokenizer=number_tokenizer())
    loaded, tokenizer = interlace.load(tmp_path / "saved")
    assert weights_of_toy(loaded).keys() == before.keys()
    engine = interlace.Engine(stopping(loaded), tokenizer)
    params = interlace.SamplingParams(width=3, max_new_tokens=6, seed=4)
    groups = engine.generate(["7 8", "9"], params)
    assert largest_gap(loaded, groups) < 2e-5
    if kind == "toylayer":
        recorded = engine.generate(["7 8"], params.replace(record_attention="mean"))
        assert recorded[0].attention is not None

    result = quick(engine, sums(3), [1, 2], output=tmp_path / "evaluation")
    coupling = get_attachment(model).coupling
    assert (result.arm, result.coupled) == (coupling.title, coupling.couples)
    assert result.widths == [1, 2]  # a part of a group of 2 is no group of 1: both were sampled


def weights_of_toy(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies of the toy's weights."""
    return {name: p.detach().clone() for name, p in new_parameters(model)}


@every_seat
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_I7_the_engine_carries_every_seat(toy: type[Coupling], name: str, backend: str) -> None:
    """Log-probabilities while sampling are those of the teacher-forced pass: rows that end early,
    several prompts and widths in one step."""
    model = attached(toy, name)
    engine = interlace.Engine(model, backend=backend)
    params = [
        interlace.SamplingParams(width=w, max_new_tokens=n, seed=2, stop_token_ids=STOPS)
        for w, n in ((4, 9), (4, 5), (2, 7))
    ]
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    groups = engine.generate(prompts, params)
    assert len({len(c.token_ids) for c in groups[0].completions}) > 1
    assert largest_gap(model, groups[:2]) < 2e-5
    assert largest_gap(model, groups[2:]) < 2e-5
    interlace.detach(model)
    assert largest_gap(model, groups[:2]) > 1e-3, "the toy changes nothing, so this checks nothing"


def test_what_a_backend_does_not_carry_is_refused_by_name() -> None:
    carried = ("layer", "head")
    with pytest.raises(GenerationError, match=r"toyinput works at the input seat.*cpu backend.*Go"):
        check_carried(ToyInput, carried, "cpu", "Go elsewhere.")
    check_carried(ToyLayer, carried, "cpu", "Go elsewhere.")


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ({"shares_prompt": False}, r"toylayer needs every row's prompt computed apart"),
    ],
)
def test_what_no_backend_gives_yet_is_refused_by_name(
    need: dict[str, bool], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in need.items():
        monkeypatch.setattr(ToyLayer, name, value)
    with pytest.raises(GenerationError, match=message + r".*Use model\.generate"):
        interlace.Engine(attached(ToyLayer), backend="hf")


def test_the_table_of_seats_is_that_of_the_backends() -> None:
    text = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text(encoding="utf-8")
    cells = r" (\w+) \|" * 6
    _, *rows = re.findall(rf"^\| (\S+) \|{cells}$", text, re.M)
    seats = (*AT_LAYERS, *AT_MODEL)
    table = {
        name.strip("`"): {seat for seat, cell in zip(seats, cells, strict=True) if cell == "yes"}
        for name, *cells in rows
        if name.startswith("`")
    }
    assert table == {backend.name: set(backend.seats) for backend in every_backend()}


def every_backend() -> list[Any]:
    """The classes in `engine/backends/` that say which seats they carry."""
    modules = [
        importlib.import_module(f"{backends.__name__}.{module.name}")
        for module in pkgutil.iter_modules(backends.__path__)
    ]
    return [
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type)
        and found.__module__ == module.__name__
        and getattr(found, "seats", None)
        and getattr(found, "name", None)
    ]


@every_seat
def test_gradient_checkpointing_replays_it(toy: type[Coupling]) -> None:
    """The replay of a layer in the backward pass is the layer with its coupling."""

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = attached(toy).train()
        if checkpointing:
            checkpointed(model)
        logits = model(IDS, groups=Groups(W, random_alive(P, W, S)), use_cache=False).logits
        (logits * torch.arange(S)[:, None]).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, replayed = gradients(False), gradients(True)
    assert plain.keys() == replayed.keys()
    assert any(toy.kind in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(replayed[name], gradient, atol=1e-4, rtol=1e-4)
