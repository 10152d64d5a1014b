"""Values of a recipe against the types of options: refused where they do not fit, converted where
YAML reads a number as text (`1e-6` has no dot, so YAML makes it a string)."""

from __future__ import annotations

import difflib
import enum
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union

from interlace.errors import ConfigError

_NO = object()
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
    list: "a list",
    dict: "a mapping",
}


def fit(value: Any, hint: Any, name: str) -> Any:
    """The value as an option of type `hint` takes it.

    Args:
        value: as YAML read it.
        hint: the option's type.
        name: the option's, for the error.

    Raises:
        ConfigError: if it does not fit.

    >>> fit("1e-6", float, "grpo.learning_rate"), fit(3, float, "x"), fit([1, 2], list[int], "x")
    (1e-06, 3, [1, 2])
    >>> fit("yes", bool, "grpo.bf16")
    Traceback (most recent call last):
    interlace.errors.ConfigError: grpo.bf16 is true or false; got 'yes'.
    """
    options = _options(hint)
    for lenient in (False, True):
        for option in options:
            found = _converted(value, option, lenient)
            if found is not _NO:
                return found
    raise ConfigError(f"{name} is {wanted(hint)}; got {value!r}.{_quoting(value, options)}")


def wanted(hint: Any) -> str:
    """A type in words.

    >>> wanted(int | list[int]), wanted(Literal["row", "group"])
    ('a whole number or a list (each a whole number)', "one of 'row', 'group'")
    """
    return " or ".join(dict.fromkeys(_word(option) for option in _options(hint)))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def _options(hint: Any) -> list[Any]:
    """The types of a union; an enumeration there says what its strings may be."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        found = [option for part in typing.get_args(hint) for option in _options(part)]
    else:
        found = [hint]
    if any(_is_enum(option) for option in found):
        found = [option for option in found if option is not str]
    return found


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _converted(value: Any, hint: Any, lenient: bool) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        return value if any(value == v and type(value) is type(v) for v in inner) else _NO
    if _is_enum(hint):
        return value if value in [member.value for member in hint] else _NO
    if list in (hint, origin):
        return _list(value, inner, lenient)
    if dict in (hint, origin):
        return _mapping(value, inner, lenient)
    if hint in (int, float):
        return _number(value, hint, lenient)
    return value if isinstance(hint, type) and type(value) is hint else _NO


def _list(value: Any, inner: tuple[Any, ...], lenient: bool) -> Any:
    if not isinstance(value, list):
        return _NO
    found = [_converted(item, inner[0], lenient) for item in value] if inner else value
    return _NO if any(item is _NO for item in found) else found


def _mapping(value: Any, inner: tuple[Any, ...], lenient: bool) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return _NO
    if not inner:
        return dict(value)
    found = {key: _converted(item, inner[1], lenient) for key, item in value.items()}
    return _NO if any(item is _NO for item in found.values()) else found


def _number(value: Any, kind: type, lenient: bool) -> Any:
    if lenient and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _NO
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return _NO
    if kind is float:
        return value  # whole ones as they were written: save_steps is 50, not 50.0
    return int(value) if isinstance(value, int) or (lenient and value.is_integer()) else _NO


def _word(hint: Any) -> str:
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if _is_enum(hint):
        return f"one of {', '.join(repr(member.value) for member in hint)}"
    kind = typing.get_origin(hint) or hint
    word = _WORDS.get(kind, "nothing that a recipe can hold")
    known = inner and inner[-1] is not Any
    return f"{word} (each {wanted(inner[-1])})" if known else word


def _quoting(value: Any, options: list[Any]) -> str:
    text = str in options or any(_is_enum(o) for o in options)
    if isinstance(value, bool) and text:
        return " YAML reads bare yes, no, on and off as true and false: write the word in quotes."
    return ""
