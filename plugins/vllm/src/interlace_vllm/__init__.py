"""vLLM's plug-in for models with Bridge blocks: `interlace export MODEL OUT --to vllm` writes what
it serves.

| file | what it changes in vLLM |
| --- | --- |
| `supported.py` | nothing: versions and options that are refused |
| `requests.py` | the n children of a request learn their group; what cannot be served is a 400 |
| `scheduler.py` | groups enter, run and end whole |
| `rows.py` | nothing: who sees whom in a step |
| `model.py` | the blocks after their layers |
| `worker.py` | Model Runner V1 tells the blocks who sees whom |
| `state.py` | Model Runner V2 does |
| `rollouts.py` | nothing: GRPO's groups, sampled by vLLM in the process that trains |

docs/guide/vllm.md lists every name of vLLM's that is touched.
"""

from __future__ import annotations

from interlace_vllm.supported import ARCHITECTURE, why_not_version


def register() -> None:
    """Called by vLLM in each of its processes. Models of others are not touched."""
    import vllm
    from vllm import ModelRegistry

    if why_not_version(vllm.__version__):
        # Other models run as ever; this one says why it does not.
        ModelRegistry.register_model(ARCHITECTURE, f"interlace_vllm.supported:{ARCHITECTURE}")
        return
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from interlace_vllm import requests
    from interlace_vllm.supported import Config

    ModelRegistry.register_model(ARCHITECTURE, f"interlace_vllm.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Config
    requests.install()
