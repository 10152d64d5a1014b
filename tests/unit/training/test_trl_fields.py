"""TRL's GRPOConfig, field by field: accepted, mapped or refused, and the guide says which.

Mutations that were seen to fail here: a field that is in no table; epsilon that leaves clip_high at
its default; a batch that forgets the processes; a table in the guide that is not the code's.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from interlace.errors import ConfigError, MissingDependencyError
from interlace.training.arguments import GRPOConfig, WarmupConfig
from interlace.training.grpo import GRPOTrainer
from interlace.training.trl_fields import FIELDS, VERSION, Accepted, Mapped, Refused
from support.training import QUIET

STORED = json.loads((Path(__file__).parent / "trl_grpo_fields.json").read_text())
SCRIPT = Path(__file__).parents[3] / "docs" / "tables" / "trl_fields.py"
OWN = {f.name for f in dataclasses.fields(GRPOConfig)}
WHOLE = {"num_generations": 6, "width": 3}
# Most of TRL's fields are those of transformers; the stored list is of newer ones than the oldest
# that is supported.
HUGGING_FACES = {f.name for f in dataclasses.fields(TrainingArguments)}
with_newer = pytest.mark.skipif(
    "activation_checkpointing" not in HUGGING_FACES, reason="needs newer transformers"
)


def config(folder: Path, **options: Any) -> GRPOConfig:
    return GRPOConfig(output_dir=str(folder), **QUIET | WHOLE | options)


@with_newer
def test_every_field_of_trl_has_its_place() -> None:
    known = HUGGING_FACES | set(FIELDS)
    assert STORED["version"].startswith(VERSION)
    assert not [name for name in STORED["fields"] if name not in known]
    assert not [name for name in FIELDS if name not in STORED["fields"]]


def test_what_the_table_says_is_what_the_config_has() -> None:
    for name, entry in FIELDS.items():
        if isinstance(entry, Mapped):
            assert entry.to in OWN, name
            assert set(entry.values or {}) <= {True, False} | set(map(str, entry.values or {}))
        elif isinstance(entry, Accepted):
            assert name in OWN or entry.note, name


@with_newer
def test_the_stored_list_is_trls() -> None:
    trl = pytest.importorskip("trl", reason="needs the extra trl: pip install trl")
    assert trl.__version__.startswith(VERSION)
    assert [f.name for f in dataclasses.fields(trl.GRPOConfig)] == STORED["fields"]


def test_the_trainers_arguments_are_trls_in_its_order() -> None:
    """`peft_config` and the rest are by name here."""
    own = inspect.signature(GRPOTrainer.__init__).parameters
    order = ["model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class"]
    assert [n for n, p in own.items() if p.kind is p.POSITIONAL_OR_KEYWORD][1:] == order
    if find_spec("trl") is not None:
        import trl

        theirs = list(inspect.signature(trl.GRPOTrainer.__init__).parameters)
        assert theirs[1 : len(order) + 1] == order
        assert {"callbacks", "optimizers", "peft_config"} <= set(own) & set(theirs)


def test_the_guide_has_the_table() -> None:
    module = runpy.run_path(str(SCRIPT))
    assert module["table"]() in module["PAGE"].read_text(), f"run python {SCRIPT.name}"


@pytest.mark.parametrize("name", [n for n, e in FIELDS.items() if isinstance(e, Refused)])
def test_a_refused_field_says_why_unless_it_asks_for_nothing(name: str, tmp_path: Path) -> None:
    entry = FIELDS[name]
    assert isinstance(entry, Refused)
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **{name: 977})
    assert f"{name}=977 is refused: {entry.reason}" in str(caught.value)
    for value in entry.neutral:
        config(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_completion_length": 17}, {"max_new_tokens": 17}),
        ({"beta": 0.5}, {"kl_weight": 0.5}),
        ({"loss_type": "grpo"}, {"loss": "sequence"}),
        ({"loss_type": "dapo"}, {"loss": "token"}),
        ({"scale_rewards": False}, {"scale": "none"}),
        ({"scale_rewards": "group"}, {"scale": "std"}),
        ({"num_iterations": 3}, {"passes": 3}),
        ({"epsilon": 0.1}, {"clip_low": 0.1, "clip_high": 0.1}),
        ({"epsilon": 0.1, "epsilon_high": 0.3}, {"clip_low": 0.1, "clip_high": 0.3}),
        ({"epsilon_high": None}, {"clip_low": 0.2, "clip_high": 0.2}),
        ({}, {"clip_low": 0.2, "clip_high": 0.28, "prompts_per_rollout": 64, "micro_rows": None}),
        ({"importance_sampling_level": "sequence"}, {"ratio_level": "sequence"}),
        ({"log_completions": True}, {"log_completions": 2}),
        ({"log_completions": False}, {"log_completions": 0}),
        ({"log_completions": 1}, {"log_completions": 1}),
        ({"use_bias_correction_kl": False}, {"kl_corrected": False}),
        ({"entropy_coef": 0.01}, {"entropy_weight": 0.01}),
        ({"per_device_train_batch_size": 12}, {"prompts_per_rollout": 2, "micro_rows": 12}),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 9},
            {"prompts_per_rollout": 3, "micro_rows": 3, "gradient_accumulation_steps": 1},
        ),
        (
            {"per_device_train_batch_size": 6, "steps_per_generation": 4},
            {"prompts_per_rollout": 4, "mini_batches": 4},
        ),
        (
            {"per_device_train_batch_size": 6, "generation_batch_size": 30, "micro_rows": 18},
            {"prompts_per_rollout": 5, "mini_batches": 5, "micro_rows": 18},
        ),
    ],
    ids=str,
)
def test_trls_names(given: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    found = config(tmp_path, **given)
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_batch_is_that_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    from interlace.training.trl_fields import translated

    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, **WHOLE}
    found = translated(given, OWN)
    assert (found["prompts_per_rollout"], found["mini_batches"]) == (4 * 3 * 5 // 6, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rollouts": 6}, "rollouts is called num_generations now: num_generations=6"),
        ({"beta": 0.1, "kl_weight": 0.1}, "beta is TRL's name of kl_weight; pass one of them"),
        ({"loss_type": "cispo"}, "loss_type='cispo' has no counterpart .* 'dapo', 'grpo'"),
        ({"scale_rewards": "batch"}, "scale_rewards='batch' has no counterpart"),
        ({"per_device_train_batch_size": 4}, "4 x gradient_accumulation_steps=1 .* multiple of 6"),
        ({"generation_batch_size": 6, "steps_per_generation": 1}, "say the same"),
        ({"gradient_accumulation_steps": 3, "prompts_per_rollout": 4}, "pass one of them"),
        ({"eval_widths": [0]}, r"eval_widths is a list of whole numbers from 1 on; got \[0\]"),
        ({"num_generations_eval": 7}, "num_generations_eval=7 and width="),
        ({"eval_widths": [4], "num_generations_eval": 6}, "whole groups of every width"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        config(tmp_path, **given)


def test_an_unknown_name_is_pythons_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_generation'"):
        config(tmp_path, num_generation=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_iterations'"):
        WarmupConfig(output_dir=str(tmp_path), num_iterations=2)  # type: ignore[call-arg]


def test_a_tracker_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """Hugging Face's own error came with a traceback, once the model was loaded."""
    with pytest.raises(ConfigError, match=r"got 'tensorbord'\. Did you mean 'tensorboard'"):
        config(tmp_path, report_to="tensorbord")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_missing_is_named_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interlace.training import arguments

    monkeypatch.setattr(arguments, "find_spec", lambda package: None)
    with pytest.raises(
        MissingDependencyError, match=f"report_to='{name}' needs .* pip install {name}"
    ):
        config(tmp_path, report_to=name)
