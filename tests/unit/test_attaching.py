"""Attach and detach: what is refused, what a model tells the tools around it, and blocks that a
pass did not reach. What holds on every architecture is in tests/architectures."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from interlace import Attachment, BridgeConfig, Groups, attach, detach
from interlace.attached import get_attachment, is_attached, new_parameters
from interlace.attaching import count_parameters
from interlace.coupling.bridge import BridgeBlock
from interlace.errors import AttachError, ConfigError, GroupError
from support.architectures import (
    BRIDGE,
    attach_fresh,
    attach_random,
    build,
    random_alive,
    random_ids,
)
from support.typecheck import unchecked

SMALL = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = random_ids(6, 11)


def test_attach_returns_what_it_attached() -> None:
    model = build("llama")
    with pytest.warns(UserWarning, match="The blocks add 36"):
        attachment = attach(model, BridgeConfig(8, 4, 7, layers=[0, -1]))
    assert isinstance(attachment, Attachment)
    assert attachment is get_attachment(model)
    assert attachment.config == BridgeConfig(8, 4, 7, layers=[0, 2])
    assert attachment.layer_names == ("model.layers.0", "model.layers.2")
    assert attachment.block_names == ["model.layers.0.bridge", "model.layers.2.bridge"]
    assert isinstance(model.get_submodule("model.layers.2.bridge"), BridgeBlock)
    assert type(model.model.layers[1]) is transformers.models.llama.modeling_llama.LlamaDecoderLayer
    assert [name for name, _ in new_parameters(model)][:3] == [
        "model.layers.0.bridge.qkv_weight",
        "model.layers.0.bridge.o_weight",
        "model.layers.0.bridge.norm.weight",
    ]


@torch.no_grad()
def test_blocks_on_some_layers_run_there_only() -> None:
    model = build("llama")
    with warnings.catch_warnings(action="ignore"):
        attach(model, BridgeConfig(8, 4, 7, layers=[1]))
    out = model(IDS, groups=Groups(3), output_hidden_states=True)
    nn.init.normal_(model.get_parameter("model.layers.1.bridge.o_weight"))
    changed = model(IDS, groups=Groups(3), output_hidden_states=True)
    same = [
        torch.equal(a, b) for a, b in zip(out.hidden_states, changed.hidden_states, strict=True)
    ]
    assert same == [True, True, False, False]


def test_share_at_most_a_tenth_or_asked_for_does_not_warn() -> None:
    attach(build("llama"), BridgeConfig(1, 1, 2))  # 3.1 %
    attach(build("llama"), BridgeConfig(parameter_share=0.3))


def test_seed_and_global_generator() -> None:
    def drawn(seed: int | None) -> torch.Tensor:
        model = attach_fresh(build("llama"), seed=seed)
        return model.get_parameter("model.layers.1.bridge.qkv_weight")

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))
    torch.manual_seed(1)
    first = drawn(None)
    assert not torch.equal(drawn(None), first)
    torch.manual_seed(1)
    assert torch.equal(drawn(None), first)


def test_a_seed_draws_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` seeds every device, and those of a GPU were not put back."""
    seeded: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    attach_fresh(build("llama"), seed=5)
    assert seeded == []


def test_a_seed_draws_the_same_weights_in_every_dtype() -> None:
    full = dict(new_parameters(attach_fresh(build("llama"), seed=5)))
    double = attach_fresh(build("llama", dtype=torch.float64), seed=5)
    for key, parameter in new_parameters(double):
        assert torch.equal(parameter, full[key].double())


def test_attach_twice_is_refused() -> None:
    model = attach_fresh(build("llama"))
    with pytest.raises(AttachError, match=r"LlamaForCausalLM has bridge blocks already.*detach"):
        attach(model, BRIDGE)
    detach(model)
    attach_fresh(model)


def test_detach_without_blocks_is_refused() -> None:
    with pytest.raises(AttachError, match=r"LlamaForCausalLM has no blocks; call interl"):
        detach(build("llama"))
    with pytest.raises(AttachError, match="no blocks"):
        list(new_parameters(build("llama")))
    assert not is_attached(build("llama"))


def test_config_of_another_type_is_refused() -> None:
    with (
        unchecked(),
        pytest.raises(AttachError, match="or a PMatchConfig; got dict"),
    ):
        attach(build("llama"), {"num_heads": 8})  # type: ignore[arg-type]


def test_refused_attach_leaves_the_model_as_it_was() -> None:
    model = build("llama")
    with pytest.raises(ConfigError, match="from -3 to 2"):
        attach(model, BridgeConfig(layers=[3]))
    assert not is_attached(model)
    assert type(model) is transformers.LlamaForCausalLM


@pytest.mark.parametrize(
    ("config", "decoder"),
    [
        (transformers.FalconConfig(**SMALL), "FalconModel.*FalconDecoderLayer"),
        (
            transformers.BloomConfig(vocab_size=97, hidden_size=24, n_layer=2, n_head=4),
            "BloomModel.*BloomBlock",
        ),
        (
            transformers.GPTJConfig(
                vocab_size=97,
                n_embd=24,
                n_layer=2,
                n_head=4,
                rotary_dim=4,
                bos_token_id=0,
                eos_token_id=0,
            ),
            "GPTJModel.*GPTJBlock",
        ),
        (
            transformers.MptConfig(vocab_size=97, d_model=24, n_layers=2, n_heads=4),
            "MptModel.*MptBlock",
        ),
    ],
    ids=["falcon", "bloom", "gptj", "mpt"],
)
def test_architecture_that_swallows_kwargs_is_refused_by_name(
    config: transformers.PretrainedConfig, decoder: str
) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(AttachError, match=f"{type(model).__name__} is not supported: {decoder}.*"):
        attach(model, BRIDGE)


def test_models_that_sample_no_responses_are_refused() -> None:
    with torch.device("meta"):
        t5 = transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=97, d_model=24, num_layers=2, num_heads=4)
        )
        headless = transformers.LlamaModel(transformers.LlamaConfig(**SMALL))
        bert = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    with pytest.raises(AttachError, match="T5ForConditionalGeneration is an encoder-decoder"):
        attach(t5, BRIDGE)
    with pytest.raises(AttachError, match=r"LlamaModel has no language-model head.*ForCausalLM"):
        attach(headless, BRIDGE)
    with pytest.raises(AttachError, match="BertForMaskedLM: expected one list of 2 layers in Bert"):
        attach(bert, BRIDGE)
    with pytest.raises(AttachError, match=r"got Linear\. Unwrap compiled or distributed models"):
        attach(nn.Linear(2, 3), BRIDGE)


def test_architecture_with_other_hidden_states_is_refused_by_name() -> None:
    """Gemma 3n's layers hand on several versions of the hidden states at once."""
    config = transformers.Gemma3nTextConfig(
        vocab_size=97,
        hidden_size=24,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        head_dim=8,
        vocab_size_per_layer_input=97,
        laurel_rank=4,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    )
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(config)
    attach_fresh(model)
    message = r"Gemma3nTextDecoderLayer passes hidden states of shape \[4, 6, 11, 24\] on"
    with pytest.raises(AttachError, match=message):
        model(IDS.to("meta"), groups=Groups(3))


def test_layers_that_return_tuples_keep_what_else_they_return() -> None:
    model = build("llama")
    layer = model.model.layers[0]

    class TupleLayer(type(layer)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> tuple[torch.Tensor, str]:
            return super().forward(*args, **kwargs), "more"

    layer.__class__ = TupleLayer
    attach_random(model)
    hidden = torch.randn(6, 11, 24)
    positions = model.model.rotary_emb(hidden, torch.arange(11)[None])
    out, more = layer(hidden, position_embeddings=positions, groups=Groups(3))
    plain, _ = layer._interlace_base.forward(layer, hidden, position_embeddings=positions)
    assert more == "more"
    assert torch.equal(out, layer.bridge(plain, Groups(3)))


def test_groups_that_do_not_fit_the_call_are_refused_before_it_runs() -> None:
    model = attach_fresh(build("llama"))
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(GroupError, match="got 6 rows at width 4"):
        model(IDS, groups=Groups(4))
    with pytest.raises(GroupError, match="S = 11, got 10"):
        model(IDS, groups=Groups(3, random_alive(2, 3, 10)))
    with unchecked(), pytest.raises(GroupError, match=r"such as Groups\(width=8\); got int"):
        model(IDS, groups=3)
    with pytest.raises(GroupError, match="neither input_ids nor inputs_embeds"):
        model(attention_mask=torch.ones_like(IDS), groups=Groups(3))


@torch.no_grad()
def test_rows_are_counted_from_whatever_holds_them() -> None:
    model, groups = attach_random(build("llama")), Groups(3)
    expected = model(IDS, groups=groups).logits
    embeddings = model.get_input_embeddings()(IDS)
    assert torch.equal(model(input_ids=IDS, groups=groups).logits, expected)
    assert torch.equal(model(inputs_embeds=embeddings, groups=groups).logits, expected)
    assert torch.equal(model(None, inputs_embeds=embeddings, groups=groups).logits, expected)


@torch.no_grad()
def test_the_decoder_alone_takes_groups_too() -> None:
    model, groups = attach_random(build("llama")), Groups(3)
    hidden = model.model(IDS, groups=groups).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(IDS, groups=groups).logits)


def test_save_pretrained_is_the_base_models_once_detached(tmp_path: Path) -> None:
    model = attach_fresh(build("llama"))
    detach(model)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_parameters_are_counted_once_when_tied() -> None:
    model = build("llama")  # tied
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())
    assert count_parameters(nn.Linear(3, 5)) == 20


def test_trainers_see_a_model_that_takes_groups_and_returns_a_loss() -> None:
    from transformers.utils.generic import can_return_loss, find_labels

    model = attach_fresh(build("llama"))
    assert can_return_loss(type(model)) == can_return_loss(transformers.LlamaForCausalLM)
    assert find_labels(type(model)) == ["labels"]


def test_blocks_attach_without_weights() -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    attach_fresh(model)
    assert all(parameter.device.type == "meta" for _, parameter in new_parameters(model))
