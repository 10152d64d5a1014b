"""Test-wide setup: shapes and types of every annotated call are checked."""

import gc
import os
import signal

from jaxtyping import install_import_hook

import support.typecheck  # noqa: F401  (the hook names it)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # so a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Under torch.compile the checks would break the graph: those tests run in processes without it.
_hook = install_import_hook("interlace", "support.typecheck.checked")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# Both measure the wall clock, and so how busy the machine is.
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")


def pytest_collection_finish() -> None:
    """What is imported is not looked through again, which was half of a short training run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# What the graph backend refuses, and the native one leaves to the cpu backend:
# reaches, seats, and other families (tests/unit/engine/backends).
_NOT_STATIC = (
    "finished",
    "history",
    "gated",
    "lane",
    "hogwild",
    "I7-moving",
    "mix-",
    "said",
    "parscale",
    "I7-streams",
)
_STATIC = {"llama", "mistral", "qwen2", "qwen3"}


@pytest.fixture(params=["hf", "cpu", "graph", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each of the engine's backends; what is asked of one is asked of all."""
    name: str = request.param
    asked = request.node.callspec.params
    is_known = asked.get("name", "llama") in _STATIC and "toy" not in asked
    values = [f"{value}-" for value in asked.values()]
    is_static = not any(word in value for value in values for word in _NOT_STATIC)
    if name in ("graph", "native") and not (is_known and is_static):
        pytest.skip(f"the {name} backend does not compute it")
    if name == "native":
        from interlace.engine.backends.native import library

        if isinstance(lib := library(), str):
            pytest.skip(f"no compiled code: {lib}")
    return name
