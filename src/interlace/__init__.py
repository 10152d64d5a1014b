"""Interlace: interdependent parallel generations (the Bridge method, arXiv 2510.01143) for Hugging
Face decoders.

Names are imported when first used, so `import interlace` itself stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace import rewards as rewards
    from interlace import tasks as tasks
    from interlace.aggregation.aggregators import Aggregate as Aggregate
    from interlace.aggregation.aggregators import Aggregator as Aggregator
    from interlace.aggregation.aggregators import Responses as Responses
    from interlace.aggregation.extract import extract_answer as extract_answer
    from interlace.aggregation.select import best_of_n as best_of_n
    from interlace.aggregation.select import medoid as medoid
    from interlace.aggregation.synthesis import synthesize as synthesize
    from interlace.aggregation.votes import Vote as Vote
    from interlace.aggregation.votes import logprob_weights as logprob_weights
    from interlace.aggregation.votes import majority_vote as majority_vote
    from interlace.aggregation.votes import weighted_vote as weighted_vote
    from interlace.bridge.attach import Attachment as Attachment
    from interlace.bridge.attach import attach as attach
    from interlace.bridge.attach import detach as detach
    from interlace.bridge.checkpoint import save as save
    from interlace.bridge.config import BridgeConfig as BridgeConfig
    from interlace.bridge.config import PMatchConfig as PMatchConfig
    from interlace.errors import InterlaceError as InterlaceError
    from interlace.evaluation.evaluate import evaluate as evaluate
    from interlace.evaluation.metrics import g_pass_at_k as g_pass_at_k
    from interlace.evaluation.metrics import mg_pass_at_k as mg_pass_at_k
    from interlace.evaluation.metrics import pass_at_k as pass_at_k
    from interlace.generation.engine import Engine as Engine
    from interlace.generation.types import SamplingParams as SamplingParams
    from interlace.groups import Groups as Groups
    from interlace.models.loading import load as load
    from interlace.training.arguments import GRPOConfig as GRPOConfig
    from interlace.training.arguments import WarmupConfig as WarmupConfig
    from interlace.training.grpo import GRPOTrainer as GRPOTrainer
    from interlace.training.warmup import WarmupTrainer as WarmupTrainer


__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    "Aggregate": "interlace.aggregation.aggregators",
    "Aggregator": "interlace.aggregation.aggregators",
    "Attachment": "interlace.bridge.attach",
    "BridgeConfig": "interlace.bridge.config",
    "Engine": "interlace.generation.engine",
    "GRPOConfig": "interlace.training.arguments",
    "GRPOTrainer": "interlace.training.grpo",
    "Groups": "interlace.groups",
    "InterlaceError": "interlace.errors",
    "PMatchConfig": "interlace.bridge.config",
    "Responses": "interlace.aggregation.aggregators",
    "SamplingParams": "interlace.generation.types",
    "Vote": "interlace.aggregation.votes",
    "WarmupConfig": "interlace.training.arguments",
    "WarmupTrainer": "interlace.training.warmup",
    "attach": "interlace.bridge.attach",
    "best_of_n": "interlace.aggregation.select",
    "detach": "interlace.bridge.attach",
    "evaluate": "interlace.evaluation.evaluate",
    "extract_answer": "interlace.aggregation.extract",
    "g_pass_at_k": "interlace.evaluation.metrics",
    "load": "interlace.models.loading",
    "logprob_weights": "interlace.aggregation.votes",
    "majority_vote": "interlace.aggregation.votes",
    "medoid": "interlace.aggregation.select",
    "mg_pass_at_k": "interlace.evaluation.metrics",
    "pass_at_k": "interlace.evaluation.metrics",
    "save": "interlace.bridge.checkpoint",
    "synthesize": "interlace.aggregation.synthesis",
    "weighted_vote": "interlace.aggregation.votes",
}

# Reached as `interlace.tasks.get_task(...)`, without an import of their own.
_SUBPACKAGES = ("rewards", "tasks")

__all__ = sorted([*_EXPORTS, *_SUBPACKAGES])


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"interlace.{name}")
    if name not in _EXPORTS:
        raise AttributeError(
            f"module 'interlace' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
