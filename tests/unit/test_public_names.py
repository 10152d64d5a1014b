"""The public names, frozen, and an import that stays light."""

from __future__ import annotations

import subprocess
import sys

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
    "GroupOutput",
    "Groups",
    "InterlaceError",
    "PMatchConfig",
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
