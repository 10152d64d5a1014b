"""First steps: attach Bridge blocks to a model and watch its rows read each other.

Runs in seconds on a tiny random decoder that is built here, with nothing to download.
The tokens mean nothing, since nothing has been trained; what counts is who changes whom.
"""

from __future__ import annotations

import string

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import interlace
from interlace.attached import new_parameters
from interlace.attaching import count_parameters

ALPHABET = string.ascii_lowercase + string.ascii_uppercase + string.digits + ".,"
P, W, S = 2, 4, 6  # two prompts, four rows each, six positions
console = Console()


def tiny_model() -> LlamaForCausalLM:
    """A random two-layer Llama over the letters of ALPHABET, without stop tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.15,  # wide enough that the random model has preferences
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def train_pretend(model: LlamaForCausalLM) -> None:
    """Give every W_O the non-zero values that training would; until then blocks change nothing."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in new_parameters(model):
        if name.endswith("o_weight"):
            parameter.data.normal_(std=0.15, generator=generator)


@torch.no_grad()
def next_token_log_probs(
    model: LlamaForCausalLM, ids: Tensor, groups: interlace.Groups | None = None
) -> Tensor:
    """Log-probabilities of each row's next token, `[R, V]`."""
    extra = {} if groups is None else {"groups": groups}
    return model(ids, **extra).logits[:, -1].log_softmax(dim=-1)


def change(ids: Tensor, row: int, position: int) -> Tensor:
    """The same tokens with one of them replaced."""
    changed = ids.clone()
    changed[row, position] = (changed[row, position] + 1) % len(ALPHABET)
    return changed


def show_who_changes_whom(model: LlamaForCausalLM, ids: Tensor) -> None:
    """Change one token somewhere, and see how far row 0's next-token distribution moves."""
    alive = torch.ones(P, W, S, dtype=torch.bool)
    alive[0, 3, 4:] = False  # row 3 of the first group finished: it is not alive from position 4 on
    groups = interlace.Groups(width=W, alive=alive)
    before = next_token_log_probs(model, ids, groups)[0]
    cases = {
        "a token of sibling row 2": change(ids, row=2, position=4),
        "sibling row 3, before it finished": change(ids, row=3, position=3),
        "sibling row 3, after it finished": change(ids, row=3, position=5),
        "a row of the other prompt's group": change(ids, row=W + 2, position=4),
    }
    table = Table(box=box.SIMPLE_HEAD, title="What moves row 0?", title_justify="left")
    table.add_column("changed")
    table.add_column("row 0's log-probabilities move by", justify="right")
    for what, changed in cases.items():
        moved = (next_token_log_probs(model, changed, groups)[0] - before).abs().max().item()
        table.add_row(what, f"{moved:.3f}" if moved else "exactly 0")
    console.print(table)


def show_generation(model: LlamaForCausalLM, prompt: Tensor) -> None:
    """Sample W rows with plain Hugging Face calls and the same random draws, isolated and as one
    group."""

    def sample(ids: Tensor, width: int) -> list[str]:
        torch.manual_seed(7)
        rows = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            num_return_sequences=width,
            max_new_tokens=24,
            pad_token_id=0,
        )
        return ["".join(ALPHABET[token] for token in row[prompt.shape[1] :]) for row in rows]

    isolated, group = sample(prompt.repeat(W, 1), width=1), sample(prompt, width=W)
    table = Table(box=box.SIMPLE_HEAD, title="One prompt, the same draws", title_justify="left")
    table.add_column("row", justify="right")
    table.add_column(f"{W} groups of width 1")
    table.add_column(f"one group of width {W}")
    for row, (alone, together) in enumerate(zip(isolated, group, strict=True)):
        pairs = enumerate(zip(alone, together, strict=True))
        same = next((i for i, (a, b) in pairs if a != b), len(alone))
        table.add_row(str(row), alone, f"{together[:same]}[bold cyan]|{together[same:]}[/]")
    console.print(table)
    console.print("From the bar on, a row of the group went another way: it read its siblings.\n")


def main() -> None:
    """Attach, see that nothing changed, then see siblings change each other."""
    model = tiny_model()
    ids = torch.randint(0, len(ALPHABET), (P * W, S))
    before = next_token_log_probs(model, ids)

    base_parameters = count_parameters(model)
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05), seed=0)
    share = count_parameters(model) / base_parameters - 1
    console.print(f"\nAttached: {share:.1%} new parameters in {len(model.model.layers)} layers.")

    after = next_token_log_probs(model, ids, interlace.Groups(width=W))
    same = "the same, bit for bit" if torch.equal(before, after) else "DIFFERENT"
    console.print(f"W_O is zero, so the model's outputs at width {W} are {same}.")

    train_pretend(model)
    console.print("Now W_O is random, standing in for training.\n")
    show_who_changes_whom(model, ids)
    show_generation(model, prompt=ids[:1])


if __name__ == "__main__":
    main()
