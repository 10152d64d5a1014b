"""What does a step of sampling, and a pass of training, cost with each kind of coupling?

Question: time of a decode step at W = 8 (over 96 tokens after a prompt of 32), and of a
teacher-forced pass over that group, forward and backward, with each kind attached, over the base
model.

Method
- A model of 4 layers, D = 96 and 4 heads, with random weights. At this size a step is all
  overhead, so the ratios of decoding are near their worst. Kinds have their default options, Bridge
  and P-Match the share 0.05, gated a rank of 16, ParScale 8 streams with prefixes of 8. A row of
  ParScale is 8 rows of the base model: its ratio is for a response, not for a group.
- All kinds decode as modules on the backend `hf`, on one thread. No row ends.
- All kinds run in turn, again and again, with one unmeasured round first; a ratio is between times
  of the same round, so that a drift of the machine's speed cancels; reported are median, smallest
  and largest. Time is processor time.

Usage: python benchmarks/couplings.py [--width 8] [--prompt 32] [--tokens 96] [--repeats 5]
    [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import interlace
from interlace import Groups
from interlace.attached import is_attached

KINDS = {
    "base": None,
    "bridge": interlace.BridgeConfig(parameter_share=0.05),
    "bridge, history": interlace.BridgeConfig(parameter_share=0.05, reads="history"),
    "pmatch": interlace.PMatchConfig(parameter_share=0.05),
    "gated": interlace.GatedConfig(rank=16),
    "gated, history": interlace.GatedConfig(rank=16, reads="history"),
    "lanerope": interlace.LaneRoPEConfig(slot=256),
    "hogwild": interlace.HogwildConfig(),
    "mix": interlace.MixConfig(),
    "parscale": interlace.ParScaleConfig(prefix=8),
}


def model_with(kind: str) -> PreTrainedModel:
    """The model of the benchmark with a kind attached."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 128, "hidden_size": 96, "intermediate_size": 256}
    heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, eos_token_id=None)).eval()
    config = KINDS[kind]
    if config is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The blocks add")
            interlace.attach(model, config, seed=2)
    return model


def decoding(model: PreTrainedModel, args: argparse.Namespace) -> Callable[[], None]:
    """Sampling of one group."""
    engine = interlace.Engine(model, backend="hf")
    params = interlace.SamplingParams(width=args.width, max_new_tokens=args.tokens, seed=3)
    prompt = list(range(1, args.prompt + 1))

    def run() -> None:
        engine.generate([prompt], params)

    return run


def training(model: PreTrainedModel, args: argparse.Namespace) -> Callable[[], None]:
    """A teacher-forced pass over one group, forward and backward."""
    ids = torch.randint(1, 128, (args.width, args.prompt + args.tokens))
    ids[:, : args.prompt] = ids[0, : args.prompt]
    mixing = torch.full((1, *ids.shape[1:], args.width, args.width), 1 / args.width)
    groups = Groups(args.width, None, torch.tensor([args.prompt]), mixing=mixing)
    rows = {"groups": groups} if is_attached(model) else {}

    def run() -> None:
        logits = model(ids, use_cache=False, **rows).logits
        logits.log_softmax(-1).square().mean().backward()
        model.zero_grad()

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("width", 8), ("prompt", 32), ("tokens", 96), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quick", action="store_true", help="8 tokens, 1 repeat")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.repeats = 8, 1
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    for what, make in (("step", decoding), ("training", training)):
        runs = {kind: make(model_with(kind), args) for kind in KINDS}
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(args.repeats + 1):
            for kind, run in runs.items():
                began = time.process_time()
                run()
                if number:
                    seconds[kind].append(time.process_time() - began)
            print(f"{what}: round {number} of {args.repeats}", file=sys.stderr)
        found[what] = {
            kind: [a / b for a, b in zip(own, seconds["base"], strict=True)]
            for kind, own in seconds.items()
        }
    table = {
        kind: {
            what: [round(f(ratios[kind]), 2) for f in (statistics.median, min, max)]
            for what, ratios in found.items()
        }
        for kind in KINDS
    }
    print(json.dumps({"options": vars(args), "torch": torch.__version__, "ratios": table}))


if __name__ == "__main__":
    main()
