"""The log-probabilities that vLLM should give: Interlace's own, of whole groups in one pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel

from interlace import Groups


@torch.no_grad()
def scores_of(
    model: PreTrainedModel, prompt: list[int], rows: list[list[int]], blind_to_ends: bool = False
) -> torch.Tensor:
    """Log-probabilities of every token of the vocabulary at each step of a sampled group, in one
    teacher-forced pass: `[W, T, V]`.

    Args:
        model: Model with its blocks.
        prompt: Tokens of the prompt.
        rows: Tokens of each row; the last one ended it and was fed to nobody.
        blind_to_ends: Whether rows read siblings that have ended, as they must not.
    """
    longest = max(map(len, rows))
    on = {"device": model.device}
    ids = torch.tensor([prompt + row + [0] * (longest - len(row)) for row in rows], **on)
    fed = torch.tensor([len(prompt) + len(row) - 1 for row in rows], **on)
    alive = torch.arange(ids.shape[1], **on) < fed[:, None]
    groups = Groups(len(rows), None if blind_to_ends else alive[None])
    return model(ids, groups=groups).logits.float().log_softmax(-1)[:, len(prompt) - 1 :]


def logprobs_of(
    model: PreTrainedModel, prompt: list[int], rows: list[list[int]], blind_to_ends: bool = False
) -> list[list[float]]:
    """What each token of a sampled group should have got."""
    scores = scores_of(model, prompt, rows, blind_to_ends)
    return [
        [float(scores[w, at, token]) for at, token in enumerate(row)] for w, row in enumerate(rows)
    ]


def gaps(model: PreTrainedModel, outputs: list[Any], **options: Any) -> list[float]:
    """Differences of log-probabilities between vLLM and Interlace, of every sampled token."""
    found = []
    for output in outputs:
        rows = [list(choice.token_ids) for choice in output.outputs]
        expected = logprobs_of(model, list(output.prompt_token_ids), rows, **options)
        for choice, wanted in zip(output.outputs, expected, strict=True):
            steps = zip(choice.token_ids, choice.logprobs, wanted, strict=True)
            found += [abs(step[token].logprob - value) for token, step, value in steps]
    return found


def largest_gap(model: PreTrainedModel, outputs: list[Any], **options: Any) -> float:
    """The largest of the differences."""
    return max(gaps(model, outputs, **options))


def apart(output: Any) -> list[Any]:
    """The rows of a group as groups of width 1."""
    return [
        SimpleNamespace(prompt_token_ids=output.prompt_token_ids, outputs=[choice])
        for choice in output.outputs
    ]


def narrowed_gap(
    model: PreTrainedModel,
    prompt: list[int],
    rows: list[list[int]],
    steps: list[list[dict[int, float]]],
) -> float:
    """The largest difference under a grammar, which leaves some tokens of each step.

    Args:
        model: Model with its blocks.
        prompt: Tokens of the prompt.
        rows: Tokens of each row.
        steps: Log-probabilities of the whole vocabulary at each step of each row.
    """
    scores, found, narrowed = scores_of(model, prompt, rows), [0.0], False
    for w, row in enumerate(steps):
        for at, step in enumerate(row):
            allowed = [token for token, value in step.items() if value > -9e3]
            narrowed |= len(allowed) < scores.shape[2]
            wanted = scores[w, at, allowed].log_softmax(-1)
            given = torch.tensor([step[token] for token in allowed])
            found.append(float((given - wanted).abs().max()))
    assert narrowed
    return max(found)
