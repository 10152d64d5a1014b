"""I1 to I8 on every architecture: fp32 and sdpa here, eager attention and bf16 in the slow tier.

I9 is tested with the checkpoints, I10 and I11 with the engine and the trainer.
"""

from __future__ import annotations

import pytest
import torch

from invariants.checks import CHECKS, Subject
from invariants.subject import REACHES
from support.architectures import NAMES, RIVALS, every_architecture


@every_architecture()
def test_I1_fresh_blocks_change_no_bit(name: str) -> None:
    CHECKS["I1"](Subject(name))


@every_architecture()
def test_I2_permuted_rows_permute_outputs(name: str) -> None:
    CHECKS["I2"](Subject(name))


@every_architecture()
def test_I3_other_groups_and_finished_rows_change_nothing(name: str) -> None:
    CHECKS["I3"](Subject(name))


@every_architecture()
def test_I4_a_token_reaches_siblings_from_its_position_on(name: str) -> None:
    CHECKS["I4"](Subject(name))


@every_architecture()
def test_I5_width_1_and_identical_rows_are_no_siblings(name: str) -> None:
    CHECKS["I5"](Subject(name))


@every_architecture()
def test_I6_one_prefill_shared_is_exact(name: str) -> None:
    CHECKS["I6"](Subject(name))


@every_architecture()
def test_I7_sampling_and_training_agree(name: str) -> None:
    CHECKS["I7"](Subject(name))


@every_architecture()
def test_I7_hugging_face_generate_and_training_agree(name: str) -> None:
    CHECKS["I7-generate"](Subject(name))


@every_architecture()
def test_I8_gradients_reach_siblings(name: str) -> None:
    CHECKS["I8"](Subject(name))


def test_I8_gradients_are_slopes() -> None:
    CHECKS["I8-differences"](Subject("starcoder2"))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("reads", REACHES)
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe"])
def test_invariant_with_another_reach(name: str, reads: str, check: str) -> None:
    CHECKS[check](Subject("starcoder2" if check == "I8-differences" else name, reads=reads))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_invariant_of_another_kind(name: str, kind: str, check: str) -> None:
    if kind.startswith(("lanerope", "hogwild", "parscale")) and name == "gpt2":
        name = "olmo2"  # one with rotary positions, and with heads as its configuration says
    subject = Subject("starcoder2" if check == "I8-differences" else name, kind=kind)
    if check == "I5" or check.split("-")[0] in subject.claims:  # of I5 a part holds for all
        CHECKS[check](subject)


def test_I3_what_is_read_is_what_the_plain_loops_read() -> None:
    CHECKS["I3-reach"](Subject("llama"))


@pytest.mark.slow
@pytest.mark.parametrize("check", [check for check in CHECKS if check != "I8-differences"])
@pytest.mark.parametrize(
    ("attn", "dtype"),
    [("eager", torch.float32), ("sdpa", torch.bfloat16), ("eager", torch.bfloat16)],
    ids=["eager-fp32", "sdpa-bf16", "eager-bf16"],
)
@pytest.mark.parametrize("name", NAMES)
def test_invariant_with_other_attention_and_dtype(
    name: str, attn: str, dtype: torch.dtype, check: str
) -> None:
    CHECKS[check](Subject(name, attn, dtype))
