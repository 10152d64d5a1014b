"""Where recipes are, how their YAML is read, and how overrides change it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from interlace.errors import ConfigError, reading
from interlace.training.values import nearest

# Inside an installed package; a checkout has them at its root.
PACKAGED = Path(__file__).parents[1] / "recipes"
CHECKOUT = Path(__file__).parents[3] / "recipes"
ENDINGS = (".yaml", ".yml")


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with Interlace."""
    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe: a path, or the name of one that comes with Interlace.

    Raises:
        ConfigError: if there is none.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if path.is_file():
        return path
    known = packaged_recipes()
    if text in known:
        return known[text]
    if path.is_dir():
        raise ConfigError(f"A recipe is a YAML file; {text} is a folder.")
    near = nearest(path.stem, known)
    raise ConfigError(
        f"There is no recipe {text!r}: neither a file, nor one of those that come with Interlace "
        f"({', '.join(known)})." + (f" Did you mean {near!r}?" if near else "")
    )


class _Loader(yaml.SafeLoader):
    """As PyYAML's, refusing a key that stands twice, of which PyYAML keeps the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if isinstance(key, str) and key in found:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        found.add(str(key))
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if it cannot be read, or holds something else.
    """
    with reading(ConfigError, f"The recipe {path} cannot be read"):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        raise ConfigError(
            f"A recipe holds keys and values, such as `model: tiny`; {path} holds "
            f"{type(content).__name__}."
        )
    return content


def merge_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `section.key=value` overrides, the last of which wins.

    Raises:
        ConfigError: for an override that has no such form, or goes into something that has no keys.

    >>> merge_overrides({"attach": "bridge"}, ["attach.num_heads=4", "grpo.width=[1,2]"])
    {'attach': {'method': 'bridge', 'num_heads': 4}, 'grpo': {'width': [1, 2]}}
    """
    merged = copy.deepcopy(dict(values))
    for text in overrides:
        path, sign, written = text.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise ConfigError(
                f"An override is section.key=value, such as grpo.learning_rate=1e-5; got {text!r}."
            )
        with reading(ConfigError, f"The value of {text!r} is no YAML"):
            value = yaml.load(written, Loader=_Loader)
        _set(merged, keys, value, text)
    return merged


def _set(values: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    place = values
    for depth, key in enumerate(keys[:-1]):
        inner = place.get(key)
        if inner is None:
            inner = {}
        elif depth == 0 and key == "attach" and isinstance(inner, str):
            inner = {"method": inner}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{'.'.join(keys[: depth + 1])} is {inner!r}, which has no keys of its own; got "
                f"the override {text!r}."
            )
        place[key] = inner
        place = inner
    place[keys[-1]] = value
