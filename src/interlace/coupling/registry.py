"""The one list of the kinds of coupling; whatever differs between kinds is asked of their classes.

No torch here: command lines name the kinds in their help without loading it.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from interlace.errors import ConfigError

if TYPE_CHECKING:
    from interlace.coupling.base import Coupling
    from interlace.coupling.config import CouplingConfig

# Kind to the class that is it. A further kind is a file and a line here.
COUPLINGS: dict[str, str] = {
    "bridge": "interlace.coupling.bridge.BridgeBlock",
    "pmatch": "interlace.coupling.pmatch.PMatchBlock",
    "gated": "interlace.coupling.gated.GatedBlock",
    "lanerope": "interlace.coupling.lanerope.LaneRoPE",
    "hogwild": "interlace.coupling.hogwild.Hogwild",
    "mix": "interlace.coupling.mix.Mix",
    "parscale": "interlace.coupling.parscale.ParScale",
}
DEFAULT_KIND = "bridge"


def coupling_class(kind: Any) -> type[Coupling]:
    """The class of a kind.

    >>> coupling_class("bridge").couples, coupling_class("pmatch").couples
    (True, False)
    """
    if kind not in COUPLINGS:
        raise ConfigError(f"Unknown kind of block {kind!r}; known are {', '.join(COUPLINGS)}.")
    module, _, name = COUPLINGS[kind].rpartition(".")
    found: type[Coupling] = getattr(importlib.import_module(module), name)
    return found


def config_from_dict(values: dict[str, Any]) -> CouplingConfig:
    """The configuration that `to_dict` wrote."""
    values = dict(values)
    kind = values.pop("kind", None)
    config_class = coupling_class(kind).Config
    known = {f.name for f in dataclasses.fields(config_class)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(
            f"Unknown keys {unknown} in the configuration of a {kind} block; known are "
            f"{sorted(known)}."
        )
    return config_class(**values)


def default_config() -> CouplingConfig:
    """The configuration of what is attached where nothing else is asked for."""
    return config_from_dict({"kind": DEFAULT_KIND})
