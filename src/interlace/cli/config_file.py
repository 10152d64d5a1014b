"""Options from a YAML file, the command line, and defaults, in this order of precedence from the
end: the command line wins.

A command's options are a frozen dataclass. Its parser has the same names and no defaults of its own
(`argument_default=argparse.SUPPRESS`): what it does not find, it does not set. Options that hold
options themselves, such as those of a task, are written as `--task-options digits=2 steps=3`, as
`--task-options.digits 2`, or as a mapping in YAML.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from interlace.errors import ConfigError

Settings = TypeVar("Settings")
# What `--model` takes, in every command's help.
MODELS = (
    "hub id, folder, .gguf file, saved blocks, or one of tiny, tiny-bridge, tiny-rlvr, "
    "tiny-pmatch (packaged), smollm2-135m"
)
_DOTTED = re.compile(r"(--[a-z-]+)\.([A-Za-z_]\w*)(?:=(.*))?", re.S)


class Parser(argparse.ArgumentParser):
    """As argparse's, with `--name.key VALUE` for `--name key=VALUE`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse."""
        return super().parse_known_args(None if args is None else _undotted(args), namespace)


def _undotted(arguments: Sequence[str]) -> list[str]:
    found: list[str] = []
    left = iter(arguments)
    for argument in left:
        dotted = _DOTTED.fullmatch(argument)
        if dotted is None:
            found.append(argument)
            continue
        option, key, value = dotted.groups()
        found += [option, f"{key}={next(left, '') if value is None else value}"]
    return found


class KeyValues(argparse.Action):
    """`key=value ...` into a mapping; values as JSON, or as text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Add the pairs to those that are there."""
        collected = dict(getattr(namespace, self.dest, {}))
        for text in values:
            name, sign, value = text.partition("=")
            if not sign or not name.strip():
                raise argparse.ArgumentError(
                    self, f"takes NAME=VALUE, such as digits=2; got {text!r}"
                )
            collected[name.strip()] = value_of(value)
        setattr(namespace, self.dest, collected)


def value_of(text: str) -> Any:
    """A value as JSON, or the text itself.

    >>> value_of("2"), value_of("true"), value_of("path/to.jsonl")
    (2, True, 'path/to.jsonl')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def settle(
    arguments: argparse.Namespace,
    settings: type[Settings],
    build_parser: Callable[[str], argparse.ArgumentParser],
) -> Settings:
    """A command's settings, from its command line, the YAML file of its `--config`, and defaults.

    Args:
        arguments: What the parser found.
        settings: The dataclass; lists reach it as tuples.
        build_parser: Makes the parser, which also checks the file's values.

    Raises:
        ConfigError: for a file that cannot be used, or a name or value in it that does not fit.
    """
    given = dict(vars(arguments))
    path = given.pop("config", None)
    values = {} if path is None else _from_yaml(Path(path), settings, build_parser)
    nested = {
        name: {**values[name], **given[name]}
        for name in values.keys() & given.keys()
        if isinstance(values[name], Mapping)
    }
    together = {**values, **given, **nested}
    return settings(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in together.items()}
    )


def _from_yaml(
    path: Path, settings: type[Any], build_parser: Callable[[str], argparse.ArgumentParser]
) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"A configuration holds options by name, such as `width: 8`; {path} holds "
            f"{type(content).__name__}."
        )
    known = [field.name for field in dataclasses.fields(settings)]
    parser = build_parser("configuration")
    words: list[str] = []
    for written, value in content.items():
        name = str(written).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{path} has {written!r}, which is no option."
                + (f" Did you mean {near[0]!r}?" if near else " --help lists the options.")
            )
        words += _as_words(f"--{name.replace('_', '-')}", value)

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{path}: {message}")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    return vars(parser.parse_args(words))


def _as_words(option: str, value: Any) -> list[str]:
    """An option of the file as the command line would have it."""
    if value is True:
        return [option]
    if value is None or value is False:
        return []
    if isinstance(value, Mapping):
        return [f"{option}.{key}={json.dumps(item)}" for key, item in value.items()]
    if isinstance(value, list):
        return [f"{option}={item}" for item in value]
    return [f"{option}={value}"]
