"""Steps in compiled code: the numbers of the cpu backend's function, whatever rows and models."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams
from interlace.engine.backends import choose_backend, native
from interlace.engine.backends.cpu import CPUBackend
from interlace.engine.backends.flat import FAMILIES
from interlace.engine.backends.hf import HFBackend
from interlace.engine.backends.native import NativeBackend
from interlace.engine.kv import Slot, StoredPrompt
from interlace.engine.sampling import sample
from support.architectures import attach_random, build, random_ids
from support.engine import largest_gap, prefilled

KNOWN = [family.lower() for family in FAMILIES]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
PARAMS = SamplingParams(width=4, max_new_tokens=8, seed=3)

needs_compiler = pytest.mark.skipif(
    isinstance(native.library(), str), reason=f"no compiled code: {native.library()}"
)


def random_model(rng: np.random.Generator, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a known family, of odd sizes, with Bridge blocks or without."""
    name, kv_heads = str(rng.choice(KNOWN)), int(rng.integers(1, 4))
    heads = kv_heads * int(rng.choice([1, 2, 4]))
    sizes: dict[str, Any] = {
        "hidden_size": 2 * heads * int(rng.integers(1, 12)),
        "intermediate_size": int(rng.integers(3, 150)),
        "vocab_size": int(rng.integers(60, 200)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
    }
    if name != "qwen2":
        sizes["head_dim"] = int(rng.choice([2, 10, 16, 30, 64]))
    if name in ("llama", "qwen3"):
        sizes["attention_bias"] = bool(rng.integers(2))
    if name == "llama":
        sizes["mlp_bias"] = bool(rng.integers(2))
    if name != "llama":
        sizes["sliding_window"] = int(rng.choice([3, 20, 100]))
    model = build(name, dtype=dtype, **sizes)
    return attach_random(model) if rng.integers(2) else model


class Pair:
    """Two backends that are fed the same."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.backends = CPUBackend(model, 64), NativeBackend(model, 64)
        for backend in self.backends:
            backend.refresh()
        assert self.backends[1].reason is None
        self.prompts: list[tuple[StoredPrompt, ...]] = []
        self.rows: list[tuple[Slot, ...]] = []

    def prefill(self, prompts: list[list[int]]) -> None:
        self.prompts += zip(*(prefilled(b, prompts) for b in self.backends), strict=True)

    def open(self, prompt: int, width: int, hidden: list[tuple[int, int]]) -> None:
        both = zip(self.backends, self.prompts[prompt], strict=True)
        self.rows += zip(*(b.open(p, [400] * width, hidden) for b, p in both), strict=True)

    def release(self, row: int) -> None:
        for backend, slot in zip(self.backends, self.rows.pop(row), strict=True):
            backend.release(slot)

    def decode(self, tokens: list[int]) -> tuple[Tensor, Tensor]:
        slots = zip(*self.rows, strict=True)
        found = []
        for backend, own in zip(self.backends, slots, strict=True):
            logits, _ = backend.decode(tokens, own)
            backend.advance()
            found.append(logits)
        return found[0], found[1]


def random_ways(seed: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of both backends, step by step, while groups come and rows go."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, dtype)
    pair, vocabulary = Pair(model), model.config.vocab_size
    for _ in range(3):
        lengths = rng.integers(1, 150, size=rng.integers(1, 4))
        pair.prefill([rng.integers(vocabulary, size=n).tolist() for n in lengths])
        width = int(rng.integers(1, 12))
        hidden = [(a, b) for a, b in rng.integers(width, size=(3, 2)).tolist() if a != b]
        pair.open(int(rng.integers(len(pair.prompts))), width, hidden if rng.integers(2) else [])
        for _ in range(int(rng.integers(1, 30))):
            if len(pair.rows) > 1 and rng.random() < 0.2:
                pair.release(int(rng.integers(len(pair.rows))))
            yield pair.decode(rng.integers(vocabulary, size=len(pair.rows)).tolist())


@needs_compiler
@pytest.mark.parametrize("seed", range(6))
def test_fp32_equals_the_cpu_backend(seed: int) -> None:
    for expected, logits in random_ways(seed, torch.float32):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("kind", ["default", "yarn", "dynamic"])
def test_rotary_positions_of_all_kinds(kind: str) -> None:
    """Beyond the original length, and beyond the first table of them."""
    rope = {"rope_type": kind, "rope_theta": 10000.0}
    if kind != "default":
        rope |= {"factor": 4.0, "original_max_position_embeddings": 128}
    pair = Pair(build("llama", max_position_embeddings=512, rope_parameters=rope))
    pair.prefill([list(range(5, 60)), [7] * 254])
    pair.open(0, 2, [])
    pair.open(1, 2, [])
    for token in (5, 6, 7):
        expected, logits = pair.decode([token] * 4)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 60))
def test_fp32_equals_the_cpu_backend_more_often(seed: int) -> None:
    test_fp32_equals_the_cpu_backend(seed)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx512bf16"])
def test_other_processors(flag: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is compiled for those that have less than this one."""
    lib = native._declared(ctypes.CDLL(str(native.build([flag], tmp_path))))
    monkeypatch.setattr(native, "library", lambda: lib)
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 2.0)):
        for expected, logits in random_ways(1, dtype):
            torch.testing.assert_close(logits, expected.float(), atol=allowed, rtol=1e-2)


@needs_compiler
@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_bf16_is_no_further_from_fp32_than_hugging_face(name: str) -> None:
    """The mean over 1,000 tokens that follow a prompt of six."""
    sizes = {"hidden_size": 96, "intermediate_size": 148, "vocab_size": 97}
    model = build(name, dtype=torch.bfloat16, max_position_embeddings=256, **sizes)
    backend, ids = NativeBackend(model, 64), random_ids(8, 132)
    (prompt,) = prefilled(backend, [ids[0, :6].tolist()])
    ids[:, :6] = ids[0, :6]
    slots, steps = backend.open(prompt, [200] * 8), []
    for place in range(6, 131):
        logits, _ = backend.decode(ids[:, place].tolist(), slots)
        backend.advance()
        steps.append(logits)

    def chosen(logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1).gather(-1, ids[:, 7:, None])

    ours, theirs = chosen(torch.stack(steps, 1)), chosen(model(ids).logits[:, 6:-1])
    exact = chosen(model.float()(ids).logits[:, 6:-1])
    assert ours.numel() == 1000
    assert (ours - exact).abs().mean() < 1.1 * (theirs - exact).abs().mean()


@needs_compiler
def test_a_row_is_the_same_to_the_bit_beside_others_and_with_more_threads() -> None:
    model = build("qwen3", dtype=torch.bfloat16)
    backend = NativeBackend(model, 64)
    (prompt,) = prefilled(backend, [PROMPTS[1]])
    found, threads = [], torch.get_num_threads()
    try:
        for width, count in ((1, 1), (11, 1), (11, 3)):
            torch.set_num_threads(count)
            slots = backend.open(prompt, [9] * width)
            for token in (5, 6, 7):
                logits, _ = backend.decode([token] * width, slots)
                backend.advance()
            found.append(logits[0].clone())
            for slot in reversed(slots):
                backend.release(slot)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_compiler
@pytest.mark.parametrize("vocabulary", [1, 255, 256, 1300, 49152])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_tokens_equal_the_portable_ones(vocabulary: int, temperature: float) -> None:
    """Else a border of two tokens is within rounding of the uniform."""
    rng, rows = np.random.default_rng(vocabulary), 24
    numbers = rng.normal(size=(rows, vocabulary)) * rng.choice([0.1, 1, 3, 10], size=(rows, 1))
    logits, uniform = torch.tensor(numbers, dtype=torch.float32), rng.random(rows)
    logits[0, vocabulary // 2 + 1 :] = -torch.inf
    forbidden = torch.tensor([0, vocabulary - 1, vocabulary // 2] if vocabulary > 3 else [])
    forbidden = forbidden.long()
    params = SamplingParams(temperature=temperature)
    expected = sample(logits, uniform, params, forbidden)
    got = native.draw(logits, uniform, temperature, forbidden)
    assert got is not None
    allowed = (logits.double() / temperature).index_fill(1, forbidden, -torch.inf)
    borders = allowed.softmax(-1).cumsum(-1)
    near = (borders - torch.as_tensor(uniform)[:, None]).abs().amin(-1) < 1e-6
    same = got.tokens == expected.tokens
    assert (same | near).all()
    for name in ("logprobs", "sampled_logprobs"):
        ours, theirs = getattr(got, name)[same], getattr(expected, name)[same]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    plain = logits.double().log_softmax(-1).gather(1, got.tokens[:, None])[:, 0]
    torch.testing.assert_close(got.logprobs.double(), plain, atol=1e-6, rtol=1e-6)


@needs_compiler
def test_a_rows_token_is_the_same_beside_others_and_with_more_threads() -> None:
    rng = np.random.default_rng(0)
    logits, uniform = torch.tensor(rng.normal(size=(9, 1300))).float(), rng.random(9)
    forbidden, threads = torch.tensor([3]), torch.get_num_threads()
    found = []
    try:
        for rows, count in ((1, 1), (9, 1), (9, 3)):
            torch.set_num_threads(count)
            got = native.draw(logits[:rows], uniform[:rows], 0.8, forbidden)
            assert got is not None
            found.append([t[0].item() for t in (got.tokens, got.logprobs, got.sampled_logprobs)])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@needs_compiler
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_cannot_be_drawn_are_left_to_the_portable_sampler(value: float) -> None:
    logits, nothing = torch.zeros(3, 300), torch.tensor([], dtype=torch.long)
    logits[1] = value
    assert native.draw(logits, np.full(3, 0.5), 1.0, nothing) is None
    backend = NativeBackend(build("llama"), 64)
    got = backend.sample(logits, np.full(3, 0.5), SamplingParams(), nothing)
    assert got.logprobs.isnan().tolist() == [False, True, False]


@needs_compiler
def test_blocks_that_are_switched_off_are_skipped() -> None:
    model = attach_random(build("qwen3"))
    plain = Engine(build("qwen3"), backend="native").generate(PROMPTS, PARAMS)
    with model.interlace_attachment.disabled():
        off = Engine(model, backend="native").generate(PROMPTS, PARAMS)
    assert [g.completions for g in off] == [g.completions for g in plain]


def test_other_blocks_and_models_go_through_the_cpu_backend() -> None:
    cases = [
        (attach_random(build("llama"), "pmatch"), "no P-Match blocks"),
        (attach_random(build("llama"), reads="finished"), "do not read finished"),
        (attach_random(build("granite")), "Granite is none of Llama"),
    ]
    for model, reason in cases:
        engine = Engine(model, backend="native")
        assert largest_gap(model, engine.generate(PROMPTS, PARAMS)) < 2e-5
        backend = engine.core.backend
        assert isinstance(backend, NativeBackend)
        assert isinstance(native.library(), str) or reason in str(backend.reason)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no compiler: none of \$CXX, g\+\+"):
        native.build(folder=tmp_path)
    monkeypatch.setattr(native, "library", lambda: "no compiler")
    model = attach_random(build("llama"))
    engine = Engine(model, backend="native")
    assert largest_gap(model, engine.generate(PROMPTS, PARAMS)) < 2e-5
    assert native.report()[-1] == "decode steps: cpu backend, not compiled code: no compiler"


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'no room' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(OSError, match=r"c\+\+ failed: no room"):
        native.build(folder=tmp_path)
    assert list(tmp_path.iterdir()) == [compiler]


def test_auto_chooses_it_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    names = []
    for value in ("0", "1"):
        monkeypatch.setenv(native.SWITCH, value)
        backend = choose_backend("auto", model, 64)
        assert isinstance(backend, HFBackend)
        names.append(backend.name)
    assert names[0] != "native"
    assert names[1] in ("native", "hf")
