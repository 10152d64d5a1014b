"""Configurations: the paper's shares, P-Match's count, layers, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from interlace import BridgeConfig, PMatchConfig, attach
from interlace.attached import new_parameters
from interlace.attaching import count_parameters
from interlace.coupling.bridge import BridgeBlock
from interlace.coupling.config import BlockConfig
from interlace.coupling.pmatch import PMatchBlock
from interlace.coupling.registry import config_from_dict
from interlace.errors import ConfigError
from support.typecheck import unchecked

DISTILL_QWEN_1_5B = Qwen2Config(
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=False,
)
DISTILL_QWEN_7B = Qwen2Config(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    tie_word_embeddings=False,
)
DISTILL_LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
)
SMOLLM2_135M = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    tie_word_embeddings=True,
)


def shares(config: PretrainedConfig, block: BlockConfig) -> tuple[int, float]:
    """Base parameters and the share of new ones, counted on a model without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    base = count_parameters(model)
    attach(model, block)
    new = sum(parameter.numel() for _, parameter in new_parameters(model))
    assert count_parameters(model) == base + new
    return base, new / base


@pytest.mark.parametrize("kind", [BridgeConfig, PMatchConfig])
def test_default_gives_the_papers_shares(kind: type[BlockConfig]) -> None:
    small, share_small = shares(DISTILL_QWEN_1_5B, kind())
    large, share_large = shares(DISTILL_QWEN_7B, kind())
    llama, share_llama = shares(DISTILL_LLAMA_8B, kind())
    # The papers' models, to the digit: 1.777 B, 7.616 B and 8.030 B parameters.
    assert [round(n / 1e9, 3) for n in (small, large, llama)] == [1.777, 7.616, 8.030]
    assert round(100 * share_small, 1) == 5.1
    assert round(100 * share_large, 1) == 2.8
    assert share_large < share_llama < share_small


def test_default_is_far_too_much_for_a_small_model_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"27\.\d% .*134,515,008.*parameter_share=0\.05"):
        _, share = shares(SMOLLM2_135M, BridgeConfig())
    assert round(share, 2) == 0.27


def test_parameter_share_lands_near_what_was_asked() -> None:
    base, share = shares(SMOLLM2_135M, BridgeConfig(parameter_share=0.05))
    assert base == 134_515_008
    assert abs(share - 0.05) < 0.002


@given(
    kv_heads=st.integers(1, 12),
    ratio=st.integers(1, 5),
    hidden=st.sampled_from([64, 576, 1536, 4096]),
    layers=st.integers(1, 40),
    share=st.floats(0.01, 0.5),
)
def test_parameter_share_takes_the_nearest_legal_shape(
    kv_heads: int, ratio: int, hidden: int, layers: int, share: float
) -> None:
    heads = kv_heads * ratio
    base = 12 * layers * hidden**2 + 5000 * hidden
    asked = BridgeConfig(num_heads=heads, num_kv_heads=kv_heads, parameter_share=share)
    got = asked.resolve(hidden, layers, base)
    assert got.parameter_share is None
    assert got.layers == list(range(layers))
    assert got.num_heads <= heads
    assert got.num_heads % got.num_kv_heads == 0
    assert got.head_dim % 8 == 0
    # No legal shape with one head is nearer: the step of one head of 8 with its key-value head.
    step = 2 * 8 * 2 * hidden
    target = share * base / layers
    assert abs(got.parameters_per_layer(hidden) - target) <= max(step / 2, step + hidden - target)


def test_share_counts_only_the_layers_that_carry_blocks() -> None:
    _, share = shares(SMOLLM2_135M, BridgeConfig(parameter_share=0.05, layers=3))
    assert abs(share - 0.05) < 0.002


@given(
    heads=st.integers(1, 6),
    kv_heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    hidden=st.integers(1, 40),
)
def test_p_match_has_the_very_count_of_its_bridge(
    heads: int, kv_heads: int, head_dim: int, hidden: int
) -> None:
    sizes = {"num_heads": heads * kv_heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
    bridge, pmatch = BridgeConfig(**sizes), PMatchConfig(**sizes)
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in block.parameters())
            for block in (BridgeBlock(bridge, hidden), PMatchBlock(pmatch, hidden))
        ]
    expected = bridge.parameters_per_layer(hidden)
    assert counts == [expected, expected]
    assert pmatch.parameters_per_layer(hidden) == expected


@pytest.mark.parametrize(
    ("layers", "indices"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        (1, [0, 1, 2, 3, 4, 5, 6]),
        (2, [0, 2, 4, 6]),
        (3, [0, 3, 6]),
        (4, [2, 6]),
        (7, [6]),
        ([4], [4]),
        ([5, 0], [0, 5]),
        ([-1, 1], [1, 6]),
    ],
)
def test_layers_all_every_kth_or_a_list(layers: Any, indices: list[int]) -> None:
    assert BridgeConfig(layers=layers).layer_indices(7) == indices


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, r"1 <= k <= 7 in this model; got 0\. .*layers=\[0\]"),
        (8, "1 <= k <= 7 in this model; got 8"),
        (-2, "got -2"),
        (True, "'all', a whole number k .* or a list; got True"),
        ("every", "got 'every'"),
        (2.0, r"got 2\.0"),
        ([], r"at least one; got \[\]"),
        ([7], r"from -7 to 6 in this model of 7 layers.*got \[7\]"),
        ([-8], r"got \[-8\]"),
        ([1.5], r"got \[1\.5\]"),
        ([True], r"got \[True\]"),
        ([3, 3], r"twice: \[3, 3\]"),
        ([6, -1], r"twice: \[6, -1\] in a model of 7 layers"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(layers: Any, message: str) -> None:
    with unchecked(), pytest.raises(ConfigError, match=message):
        BridgeConfig(layers=layers).layer_indices(7)


@pytest.mark.parametrize("kind", [BridgeConfig, PMatchConfig])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 0}, "num_heads is a whole number, at least 1; got 0"),
        ({"num_kv_heads": -4}, "num_kv_heads is a whole number, at least 1; got -4"),
        ({"head_dim": 8.0}, r"head_dim is a whole number, at least 1; got 8\.0"),
        ({"num_heads": True}, "num_heads is a whole number, at least 1; got True"),
        ({"num_heads": 8, "num_kv_heads": 3}, "multiple of num_kv_heads; got 8 and 3"),
        ({"num_heads": 2}, "multiple of num_kv_heads; got 2 and 4"),
        ({"parameter_share": 0}, "between 0 and 1; got 0"),
        ({"parameter_share": 5}, r"got 5\. For five percent write 0\.05"),
        ({"parameter_share": float("nan")}, "got nan"),
        ({"parameter_share": "5%"}, "got '5%'"),
        ({"parameter_share": True}, "got True"),
    ],
)
def test_values_out_of_range_are_refused(
    kind: type[BlockConfig], values: dict[str, Any], message: str
) -> None:
    with unchecked(), pytest.raises(ConfigError, match=message):
        kind(**values)


@pytest.mark.parametrize("kind", [BridgeConfig, PMatchConfig])
def test_dictionary_round_trip(kind: type[BlockConfig]) -> None:
    config = kind(num_heads=6, num_kv_heads=2, head_dim=5, layers=[0, 2])
    values = config.to_dict()
    assert values["kind"] == kind.kind
    assert config_from_dict(values) == config
    assert config_from_dict(values).to_dict() == values


def test_dictionary_of_another_version_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown kind of block 'gate'; known are bridge, pmatch"
    ):
        config_from_dict({"kind": "gate"})
    with pytest.raises(ConfigError, match="Unknown kind of block None"):
        config_from_dict({})
    with pytest.raises(ConfigError, match=r"Unknown keys \['dropout'\].*bridge.*'head_dim'"):
        config_from_dict({"kind": "bridge", "dropout": 0.1})


def test_config_is_frozen_and_owns_its_list() -> None:
    layers = [0, 1]
    config = BridgeConfig(layers=layers)
    layers.append(9)
    assert config.layers == [0, 1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.head_dim = 3  # type: ignore[misc]
