"""The demo's training: the recipe `tiny`, shortened."""

from __future__ import annotations

import json
from typing import Any

from interlace.cli.demo.plan import Plan
from interlace.training.recipe import Recipe, parse_recipe
from interlace.training.recipe_files import find_recipe, merge_overrides, read_yaml

CHECKPOINT_EVERY = 20


def recipe_of(plan: Plan, arm: str) -> Recipe:
    """The recipe of an arm: that of `recipes/tiny.yaml` with the demo's changes."""
    values = merge_overrides(read_yaml(find_recipe("tiny")), overrides(plan, arm))
    every = parse_recipe(values).options("grpo").steps_per_rollout
    steps = every * plan.settings.rollouts
    return parse_recipe(merge_overrides(values, [f"grpo.max_steps={steps}"]))


def overrides(plan: Plan, arm: str) -> list[str]:
    """What the demo changes in the recipe, as on the command line of `interlace train`."""
    settings = plan.settings
    changes: dict[str, Any] = {
        "output_dir": str(plan.folder / arm),
        "seed": settings.seed,
        "warmup.problems": settings.warmup_problems,
        "warmup.max_steps": settings.warmup_steps,
        "grpo.prompts_per_rollout": settings.prompts,
    }
    for stage in ("warmup", "grpo"):
        changes |= {
            f"{stage}.save_steps": CHECKPOINT_EVERY,
            f"{stage}.save_total_limit": 1,
            f"{stage}.report_to": "none",
            f"{stage}.disable_tqdm": True,
        }
    changes["grpo.log_completions"] = 0
    if arm == "rlvr":
        changes["attach"] = "none"
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()]
