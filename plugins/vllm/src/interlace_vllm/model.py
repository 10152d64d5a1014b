"""The model: whatever decoder vLLM runs through its Transformers backend, with blocks after its
layers.

A block is one operator to torch.compile and to graphs. It looks up who sees whom when it runs:
vLLM drops Dynamo's guards, so that anything read while a graph is traced would stay as it was then,
without siblings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.transformers import TransformersForCausalLM

from interlace.attached import Swapped, swap
from interlace.coupling.registry import config_from_dict, coupling_class
from interlace.engine.backends.cpu import PackedWeights, why_not_packed
from interlace_vllm.rows import StepRows
from interlace_vllm.supported import refuse_options

FORMAT = 1  # of the section in config.json


def _couple(hidden: Tensor, place: str) -> Tensor:
    """What the block at `place` makes of the step's hidden states `[T, D]`."""
    layer = get_forward_context().no_compile_layers[place]
    return layer.interlace_rows.apply(layer.interlace_block, hidden)


_library = torch.library.Library("interlace", "DEF")
_library.define("couple(Tensor hidden, str place) -> Tensor")
_library.impl("couple", _couple, "CompositeExplicitAutograd")
_library._register_fake("couple", lambda hidden, place: torch.empty_like(hidden))


class LayerInStep(Swapped, nn.Module):
    """Mixed into a decoder layer's class: the layer's own forward, then its block."""

    interlace_rows: StepRows
    interlace_block: Any
    interlace_place: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        coupled = torch.ops.interlace.couple(hidden.flatten(0, 1), self.interlace_place)
        coupled = coupled.view(hidden.shape)
        return (coupled, *output[1:]) if isinstance(output, tuple) else coupled


class InterlaceForCausalLM(TransformersForCausalLM):
    """A decoder with blocks, as `interlace export --to vllm` describes it in config.json."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        refuse_options(vllm_config)  # again: vLLM has since chosen what was left to it
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # vLLM decorates the decoder's class in place: others of it in this process, such as one
        # that trains, are Hugging Face's as ever. vLLM's own instance says for itself.
        self._pre_trained_model_classes.decoder.do_not_compile = True
        section = self.config.interlace
        if section["format"] > FORMAT:
            raise ValueError(
                f"This export has format {section['format']}, and the plug-in reads up to "
                f"{FORMAT}. Install the interlace-vllm that belongs to the interlace that wrote it."
            )
        config = config_from_dict(section["blocks"])
        self.interlace_rows = StepRows(tells_alone=config.skips_alone)
        indices = config.layer_indices(self.text_config.num_hidden_layers)
        places = self.compilation_config.static_forward_context
        for index, name in zip(indices, section["layers"], strict=True):
            path = self.hf_to_vllm_mapper.apply_list([name])[0]
            layer: Any = self.get_submodule(path)
            block = coupling_class(config.kind).build(
                config, self.text_config, index, dtype=self.model_config.dtype
            )
            layer.add_module(config.kind, block)
            layer.interlace_rows, layer.interlace_block = self.interlace_rows, block
            layer.interlace_place = f"{prefix}{path}.{config.kind}"
            places[layer.interlace_place] = layer
            swap(layer, LayerInStep, config.kind)

    def _create_hf_to_vllm_mapper(self) -> None:
        own = self.config.architectures
        self.config.architectures = self.config.interlace["base"]  # whose weights are renamed
        super()._create_hf_to_vllm_mapper()
        self.config.architectures = own

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As vLLM's; on a CPU Bridge's products are packed, as in Interlace's own engine."""
        loaded: set[str] = super().load_weights(weights)
        places = self.compilation_config.static_forward_context.values()
        blocks = nn.ModuleList(p.interlace_block for p in places if isinstance(p, LayerInStep))
        if why_not_packed(blocks) is None:
            for module, name, packed in PackedWeights().refresh(blocks):
                if name == "step":  # others stand in for weights, which vLLM wants to reload
                    setattr(module, name, packed)
        return loaded

    @classmethod
    def get_model_state_cls(cls) -> type[Any]:
        """What tells the blocks who sees whom under Model Runner V2."""
        from interlace_vllm.state import GroupState

        return GroupState
