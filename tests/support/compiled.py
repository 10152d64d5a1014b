"""Run as a program: compiled models against eager ones, without the tests' run-time type checks.

The checks would break the graph, so test_compile.py runs this in a process of its own:
`python -m support.compiled CASE ARCHITECTURE`.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor
from transformers import CompileConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from interlace import Groups, score
from interlace.training.batch import collate_ids
from support.architectures import attach_random, build, random_alive, random_ids

WIDTH = 3
ROWS, POSITIONS = 6, 11


def models(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model twice: the eager one, and one to compile."""
    return attach_random(build(name)), attach_random(build(name))


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def inference(name: str) -> None:
    """One graph for a forward pass, whatever the mask holds, and another for width 1."""
    eager, model = models(name)
    compiled = torch.compile(model, fullgraph=True)
    ids = random_ids(ROWS, POSITIONS)
    with torch.no_grad():
        for alive in (random_alive(2, WIDTH, POSITIONS, seed=seed) for seed in (1, 2)):
            groups = Groups(WIDTH, alive)
            out = compiled(ids, groups=groups, use_cache=False).logits
            assert_close(out, eager(ids, groups=groups).logits)
            assert (out - eager(ids).logits).abs().max() > 0.05
        assert_close(compiled(ids, use_cache=False).logits, eager(ids).logits)
    assert graphs() == 2, f"one for the mask, one for width 1; got {graphs()}"


def training(name: str) -> None:
    """Forward and backward, with the loss inside the graph."""
    eager, model = models(name)
    model.train()
    eager.train()
    compiled = torch.compile(model, fullgraph=True)
    ids = random_ids(ROWS, POSITIONS)
    groups = Groups(WIDTH, random_alive(2, WIDTH, POSITIONS))
    for one in (eager, compiled):
        one(ids, labels=ids, groups=groups, use_cache=False).loss.backward()
    for (key, parameter), (_, expected) in zip(
        model.named_parameters(), eager.named_parameters(), strict=True
    ):
        assert (parameter.grad is None) == (expected.grad is None), key
        if expected.grad is not None:
            assert_close(parameter.grad, expected.grad)


def layers(name: str) -> None:
    """Layers compiled one by one, as trainers do for fast starts: no block counts as missed."""
    eager, model = models(name)
    for layer in model.model.layers:
        layer.compile(fullgraph=True)
    ids, groups = random_ids(ROWS, POSITIONS), Groups(WIDTH, random_alive(2, WIDTH, POSITIONS))
    with torch.no_grad():
        out = model(ids, groups=groups, use_cache=False).logits
        assert_close(out, eager(ids, groups=groups).logits)


def generation(name: str) -> None:
    """A static cache, for which Hugging Face compiles the decode step by itself on GPUs: with
    blocks as often as without."""
    settings = {
        "max_new_tokens": 6,
        "num_return_sequences": WIDTH,
        "do_sample": True,
        "eos_token_id": list(range(30, 45)),
        "pad_token_id": 0,
        "cache_implementation": "static",
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    config = CompileConfig(fullgraph=True, mode="default")
    config._compile_all_devices = True

    def generate(model: PreTrainedModel, **extra: CompileConfig) -> GenerateDecoderOnlyOutput:
        torch.manual_seed(3)
        return model.generate(random_ids(2, 7), **settings, **extra)

    generate(build(name), compile_config=config)
    without = graphs()
    assert without > 0
    eager, model = models(name)
    expected, out = generate(eager), generate(model, compile_config=config)
    assert graphs() == 2 * without, f"{without} without blocks, {graphs() - without} with"
    assert torch.equal(out.sequences, expected.sequences)
    assert_close(torch.stack(out.logits), torch.stack(expected.logits))


def scores(name: str) -> None:
    """Log-probabilities and gradients of a training pass: of a model that is compiled whole, and of
    one whose layers are, which computes the prompt once. The graphs alone are compiled, no code."""
    rows = [[[20, 21, 22, 23], [24], [25, 26]], [[27, 28, 29], [], [30, 40, 41, 42]]]
    batch = collate_ids([[5, 6, 7], [8, 9, 10, 11, 12]], rows, pad_token_id=0)
    eager, whole = models(name)
    _, in_parts = models(name)
    for layer in in_parts.model.layers:
        layer.compile(backend="eager")
    expected = score(eager, batch).logprobs
    expected.sum().backward()
    for model, called in ((whole, torch.compile(whole, backend="eager")), (in_parts, in_parts)):
        got = score(called, batch).logprobs
        got.sum().backward()
        assert_close(got, expected)
        for parameter, other in zip(model.parameters(), eager.parameters(), strict=True):
            assert parameter.grad is not None
            assert other.grad is not None
            assert_close(parameter.grad, other.grad)


CASES = {case.__name__: case for case in (inference, training, layers, generation, scores)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    CASES[sys.argv[1]](sys.argv[2])
