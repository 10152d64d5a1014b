"""The public names, frozen, and an import that stays light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import interlace

PUBLIC = [
    "Aggregate",
    "Aggregator",
    "Attachment",
    "BridgeConfig",
    "Engine",
    "GRPOConfig",
    "GRPOTrainer",
    "GatedConfig",
    "GroupOutput",
    "Groups",
    "HogwildConfig",
    "InterlaceError",
    "LaneRoPEConfig",
    "MixConfig",
    "PMatchConfig",
    "ParScaleConfig",
    "RemoteEngine",
    "Responses",
    "SamplingParams",
    "Vote",
    "WarmupConfig",
    "WarmupTrainer",
    "attach",
    "best_of_n",
    "collate",
    "detach",
    "evaluate",
    "extract_answer",
    "g_pass_at_k",
    "last_groups",
    "load",
    "logprob_weights",
    "majority_vote",
    "medoid",
    "mg_pass_at_k",
    "new_parameters",
    "pass_at_k",
    "rewards",
    "save",
    "score",
    "synthesize",
    "tasks",
    "weighted_vote",
]
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "numpy", "rich", "huggingface_hub")


def test_the_public_names_are_these() -> None:
    assert interlace.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_explains_itself(name: str) -> None:
    value = getattr(interlace, name)
    assert value.__doc__
    assert name in dir(interlace)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        AttributeError, match=r"no attribute 'bridge_config'; it has .*BridgeConfig"
    ):
        interlace.bridge_config  # noqa: B018


def test_the_import_stays_light() -> None:
    code = "import interlace"
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "interlace" in imported
    assert not imported.intersection(HEAVY)


CONSUMER = """
import interlace

params = interlace.SamplingParams(width=8, max_new_tokens=16)


def answer(engine: interlace.Engine) -> str | None:
    (group,) = engine.generate(["1 2"], params)
    return group.vote().winner


wrong: int = interlace.majority_vote(["1"]).share
missing = interlace.Engine.no_such_method
"""


@pytest.mark.slow
def test_a_consumers_type_checker_sees_our_types(tmp_path: Path) -> None:
    """Fails without `py.typed` in the package: everything of ours would be Any."""
    (tmp_path / "consumer.py").write_text(CONSUMER)
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "consumer.py"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    said = [line for line in result.stdout.splitlines() if "error:" in line]
    assert len(said) == 2, result.stdout + result.stderr
    assert "consumer.py:12: error: Incompatible types in assignment" in said[0]
    assert 'consumer.py:13: error: "type[Engine]" has no attribute "no_such_method"' in said[1]
