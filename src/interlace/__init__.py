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
    from interlace.answers.choose import Aggregate as Aggregate
    from interlace.answers.choose import Aggregator as Aggregator
    from interlace.answers.choose import Responses as Responses
    from interlace.answers.choose import best_of_n as best_of_n
    from interlace.answers.choose import medoid as medoid
    from interlace.answers.extract import extract_answer as extract_answer
    from interlace.answers.synthesis import synthesize as synthesize
    from interlace.answers.vote import Vote as Vote
    from interlace.answers.vote import logprob_weights as logprob_weights
    from interlace.answers.vote import majority_vote as majority_vote
    from interlace.answers.vote import weighted_vote as weighted_vote
    from interlace.attached import Attachment as Attachment
    from interlace.attached import new_parameters as new_parameters
    from interlace.attaching import attach as attach
    from interlace.attaching import detach as detach
    from interlace.coupling.bridge import BridgeConfig as BridgeConfig
    from interlace.coupling.gated import GatedConfig as GatedConfig
    from interlace.coupling.hogwild import HogwildConfig as HogwildConfig
    from interlace.coupling.lanerope import LaneRoPEConfig as LaneRoPEConfig
    from interlace.coupling.mix import MixConfig as MixConfig
    from interlace.coupling.parscale import ParScaleConfig as ParScaleConfig
    from interlace.coupling.pmatch import PMatchConfig as PMatchConfig
    from interlace.engine.engine import Engine as Engine
    from interlace.engine.types import GroupOutput as GroupOutput
    from interlace.engine.types import SamplingParams as SamplingParams
    from interlace.errors import InterlaceError as InterlaceError
    from interlace.evaluation.evaluate import evaluate as evaluate
    from interlace.evaluation.metrics import g_pass_at_k as g_pass_at_k
    from interlace.evaluation.metrics import mg_pass_at_k as mg_pass_at_k
    from interlace.evaluation.metrics import pass_at_k as pass_at_k
    from interlace.generate_hf import last_groups as last_groups
    from interlace.models.loading import load as load
    from interlace.remote import RemoteEngine as RemoteEngine
    from interlace.rows import Groups as Groups
    from interlace.saving.checkpoint import save as save
    from interlace.training.arguments import GRPOConfig as GRPOConfig
    from interlace.training.arguments import WarmupConfig as WarmupConfig
    from interlace.training.batch import collate as collate
    from interlace.training.grpo import GRPOTrainer as GRPOTrainer
    from interlace.training.scoring import score as score
    from interlace.training.warmup import WarmupTrainer as WarmupTrainer


__version__ = "0.2.0"

# Module -> the public names that it defines.
_HOMES = {
    "answers.choose": "Aggregate Aggregator Responses best_of_n medoid",
    "answers.extract": "extract_answer",
    "answers.synthesis": "synthesize",
    "answers.vote": "Vote logprob_weights majority_vote weighted_vote",
    "attached": "Attachment new_parameters",
    "attaching": "attach detach",
    "coupling.bridge": "BridgeConfig",
    "coupling.gated": "GatedConfig",
    "coupling.hogwild": "HogwildConfig",
    "coupling.lanerope": "LaneRoPEConfig",
    "coupling.mix": "MixConfig",
    "coupling.parscale": "ParScaleConfig",
    "coupling.pmatch": "PMatchConfig",
    "engine.engine": "Engine",
    "engine.types": "GroupOutput SamplingParams",
    "errors": "InterlaceError",
    "evaluation.evaluate": "evaluate",
    "evaluation.metrics": "g_pass_at_k mg_pass_at_k pass_at_k",
    "generate_hf": "last_groups",
    "models.loading": "load",
    "remote": "RemoteEngine",
    "rows": "Groups",
    "saving.checkpoint": "save",
    "training.arguments": "GRPOConfig WarmupConfig",
    "training.batch": "collate",
    "training.grpo": "GRPOTrainer",
    "training.scoring": "score",
    "training.warmup": "WarmupTrainer",
}
_EXPORTS = {
    name: f"interlace.{module}" for module, names in _HOMES.items() for name in names.split()
}

# Public name -> the extra whose packages it needs.
_NEEDS = {
    "GRPOConfig": "train",
    "GRPOTrainer": "train",
    "WarmupConfig": "train",
    "WarmupTrainer": "train",
    "evaluate": "eval",
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
    if name in _NEEDS:
        from interlace.errors import require_extras

        require_extras(f"interlace.{name}", _NEEDS[name])
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
