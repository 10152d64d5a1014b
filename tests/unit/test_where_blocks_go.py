"""Finding the decoder's layers, their device and the data type they compute in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from interlace.attached import base_model_of
from interlace.attaching import _calls_with_double_star, block_device, block_dtype, find_decoder
from interlace.errors import AttachError
from support.architectures import HIDDEN, LAYERS, build, every_architecture


@every_architecture()
def test_layers_are_found_in_order_with_their_names(name: str) -> None:
    model = build(name)
    decoder = find_decoder(model)
    assert len(decoder.layers) == LAYERS
    assert decoder.hidden_size == HIDDEN
    for index, (layer, path) in enumerate(zip(decoder.layers, decoder.names, strict=True)):
        assert model.get_submodule(path) is layer
        assert path.endswith(f".{index}")


def test_a_model_of_several_modalities_has_its_text_layers_found() -> None:
    text = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
    config = transformers.Gemma3Config(
        text_config={"vocab_size": 97, "intermediate_size": 37, "num_key_value_heads": 2, **text},
        vision_config={"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    )
    with torch.device("meta"):
        model = transformers.Gemma3ForConditionalGeneration(config)
    decoder = find_decoder(model)
    assert decoder.names == [f"model.language_model.layers.{index}" for index in range(3)]
    assert decoder.hidden_size == 24


class Handing(nn.Module):
    def forward(self, x: Any, **kwargs: Any) -> Any:
        for layer in self.children():
            x = layer(x, **kwargs)
        return x


class Swallowing(nn.Module):
    def forward(self, x: Any, **kwargs: Any) -> Any:
        for layer in self.children():
            x = layer(x)
        return x


def test_kwargs_handed_on_are_told_from_kwargs_swallowed() -> None:
    assert _calls_with_double_star(Handing)
    assert not _calls_with_double_star(Swallowing)


def test_class_without_source_gets_the_benefit_of_the_doubt() -> None:
    """A block that is not reached is still an error at the first forward pass."""
    namespace: dict[str, Any] = {"forward": eval("lambda self, x, **kwargs: x")}
    assert _calls_with_double_star(type("Opaque", (nn.Module,), namespace))


def test_wrapper_around_something_else_is_refused() -> None:
    with pytest.raises(AttachError, match=r"got DataParallel\. Unwrap"):
        base_model_of(nn.DataParallel(build("llama")))
    compiled = torch.compile(build("llama"), backend="eager")
    with pytest.raises(AttachError, match=r"got OptimizedModule\. Unwrap compiled"):
        base_model_of(compiled)


def test_block_device_is_where_the_layer_computes() -> None:
    layer = nn.Linear(2, 3)
    assert block_device(layer) == torch.device("cpu")
    offloaded = nn.Linear(2, 3, device="meta")
    offloaded._hf_hook = SimpleNamespace(execution_device="cpu")  # type: ignore[assignment]
    assert block_device(offloaded) == torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_block_dtype_is_the_layers(dtype: torch.dtype) -> None:
    model = build("llama", dtype=dtype)
    assert block_dtype(model, find_decoder(model).layers[0]) == dtype


def test_block_dtype_of_a_quantised_layer_is_that_of_its_norms() -> None:
    model = build("llama", dtype=torch.bfloat16)
    layer = find_decoder(model).layers[0]
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            stored = module.weight.data.to(torch.int8)
            module.weight = nn.Parameter(stored, requires_grad=False)
            module.register_parameter("scale", nn.Parameter(torch.ones(3, 1)))
    model.hf_quantizer = object()
    assert block_dtype(model, layer) == torch.bfloat16
