"""Train from Python: a list of dicts, a reward in Python, blocks attached, rows of width 4.

    python examples/train_from_python.py                # minutes on a CPU, with the packaged model
    python examples/train_from_python.py --steps 2      # to see it run

Names and order of the arguments are those of TRL's trainers; see docs/guide/trl.md.
"""

from __future__ import annotations

import argparse
import ast
import operator
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import interlace
from interlace import GRPOConfig, GRPOTrainer, WarmupConfig, WarmupTrainer

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: Fraction}
WIDTH = 4


def problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Reach a target from three numbers, as the packaged model `tiny` was taught to read it."""
    draw, found = random.Random(seed), []
    while len(found) < count:
        a, b, c = (draw.randint(1, 9) for _ in range(3))
        target = draw.choice([(a + b) * c, a * b - c, a + b + c])
        if 1 <= target <= 99:
            numbers = sorted((a, b, c))
            prompt = f"{' '.join(map(str, numbers))} -> {target} :"
            found.append({"prompt": prompt, "numbers": numbers, "target": target})
    return found


def right(
    completions: Sequence[str], numbers: Sequence[list[int]], target: Sequence[int], **columns: Any
) -> list[float]:
    """1 where the last try uses each number once and reaches the target. `numbers` and `target` are
    the columns of the data set, with one value a completion."""
    return [
        float(_value_and_numbers(text.split("yes")[-1].split(";")[-1]) == (goal, sorted(given)))
        for text, given, goal in zip(completions, numbers, target, strict=True)
    ]


def _value_and_numbers(attempt: str) -> tuple[Any, list[int]]:
    """What the left side of `( 6 - 2 ) + 9 = 13` is, and its numbers. A model's text is parsed,
    never run."""
    used: list[int] = []

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(int(number)):
                used.append(number)
                return number
            case ast.BinOp(left, sign, over) if type(sign) in SIGNS:
                return SIGNS[type(sign)](value(left), value(over))
        raise ValueError(ast.dump(node))

    try:
        found = value(ast.parse(attempt.partition("=")[0].strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError):
        return None, []
    return found, sorted(used)


def main() -> None:
    """A warm-up, then GRPO, measured at width 1 and 4 on problems that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each stage")
    parser.add_argument("--output", default="runs/train-from-python")
    given = parser.parse_args()

    model, tokenizer = interlace.load("tiny")
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
    shared: dict[str, Any] = {"max_new_tokens": 40, "report_to": "none", "use_cpu": True}

    WarmupTrainer(
        model=model,
        reward_funcs=right,  # which responses are right, and so worth learning
        args=WarmupConfig(
            output_dir=f"{given.output}/warmup",
            samples=WIDTH,
            learning_rate=1e-3,
            max_steps=given.steps,
            problems=8 * given.steps,
            **shared,
        ),
        train_dataset=problems(8 * given.steps, seed=0),
        processing_class=tokenizer,
    ).train()

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=right,
        args=GRPOConfig(
            output_dir=f"{given.output}/grpo",
            num_generations=8,
            width=[1, WIDTH],
            prompts_per_rollout=16,
            learning_rate=1e-4,
            new_learning_rate=1e-3,
            max_steps=given.steps,
            correct_reward="right",  # so that pass@1, votes and coverage are measured
            eval_strategy="steps",
            eval_steps=max(given.steps // 3, 1),
            eval_widths=[1, WIDTH],
            **shared,
        ),
        train_dataset=problems(1000, seed=0),
        eval_dataset=problems(8 * given.steps, seed=1),
        processing_class=tokenizer,
    )
    trainer.train()
    folder = trainer.save_model()
    found = trainer.evaluate()
    for width in (1, WIDTH):
        print(f"width {width}: pass@1 {found[f'eval_width_{width}/pass@1']:.2f}")
    print(f"The trained model is in {folder}: interlace.load reads it.")


if __name__ == "__main__":
    main()
