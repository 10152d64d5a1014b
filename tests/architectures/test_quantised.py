"""Blocks on a quantised base stay in the data type that it computes in.

Needs bitsandbytes (`pip install interlace[quantised]`), which runs on CPU too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from interlace import Groups, detach
from interlace.attached import new_parameters
from interlace.attaching import count_parameters
from support.architectures import attach_fresh, build, random_alive, random_ids, randomise

IDS = random_ids(6, 11)
GROUPS = Groups(3, random_alive(2, 3, 11))
# Quantisers work in blocks of 64 values.
SIZES = {"hidden_size": 192, "intermediate_size": 128, "head_dim": 32, "tie_word_embeddings": False}

pytestmark = [
    pytest.mark.slow,
    # The quantiser's own business.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


CONFIGS = {
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}


@pytest.fixture(params=CONFIGS)
def quantised(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes")
    build("llama", dtype=torch.bfloat16, **SIZES).save_pretrained(tmp_path)
    config = CONFIGS[request.param]
    return AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )


def test_blocks_compute_beside_quantised_weights(quantised: PreTrainedModel) -> None:
    plain = build("llama", dtype=torch.bfloat16, **SIZES)
    assert count_parameters(quantised) == count_parameters(plain)
    with torch.no_grad():
        base = quantised(IDS).logits
        attach_fresh(quantised)
        assert {parameter.dtype for _, parameter in new_parameters(quantised)} == {torch.bfloat16}
        assert torch.equal(quantised(IDS, groups=GROUPS).logits, base)

        randomise(new_parameters(quantised), seed=3)
        attach_fresh(plain)
        plain.load_state_dict(dict(new_parameters(quantised)), strict=False)
        out, expected = (m(IDS, groups=GROUPS).logits for m in (quantised, plain))
        error, effect = (out - expected).abs().mean(), (out - base).abs().mean()
        assert error < 0.5 * effect, "the plain model's output, up to the quantisation's error"

    quantised(IDS, labels=IDS, groups=GROUPS).loss.backward()
    assert all(parameter.grad is not None for _, parameter in new_parameters(quantised))
    tokens = quantised.generate(IDS[:2], num_return_sequences=3, do_sample=True, max_new_tokens=4)
    assert tokens.shape == (6, 15)
    detach(quantised)
    with torch.no_grad():
        assert torch.equal(quantised(IDS).logits, base)
