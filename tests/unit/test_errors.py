"""Errors: they cross processes, stay short, and stand for whatever a library raised."""

from __future__ import annotations

import pickle

import pytest

from interlace import errors
from interlace.errors import ConfigError, GenerationInterrupted, InterlaceError, LoadError, reading

OURS = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, InterlaceError)
]


class Odd(Exception):
    """A foreign error whose own message fails."""

    def __init__(self, one: int, two: int) -> None:
        self.one, self.two = one, two

    def __str__(self) -> str:
        raise RuntimeError("no message")


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_error_crosses_processes(kind: type[InterlaceError]) -> None:
    error = kind("rule", {3: "group"}) if kind is GenerationInterrupted else kind("rule")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is kind
    assert str(twin) == "rule"
    assert vars(twin) == vars(error)
    assert len(kind.__mro__) > len(InterlaceError.__mro__) or kind is InterlaceError


def test_a_long_value_is_cut_out_of_the_middle_of_a_message() -> None:
    error = ConfigError(f"One of a, b; got {'x' * 5_000_000!r}. Pass another.")
    assert len(str(error)) <= errors.LONGEST
    assert str(error).startswith("One of a, b; got 'xxx")
    assert str(error).endswith("xxx'. Pass another.")
    assert "characters left out" in str(error)
    twin = pickle.loads(pickle.dumps(error))
    assert str(twin) == str(error)


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        (KeyError("vocab"), "KeyError: 'vocab'"),
        (Exception("data did not match"), "Exception: data did not match"),
        (OSError("no such\nfile"), "no such file"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (BaseException("panicked"), "BaseException: panicked"),
        (ValueError("y" * 1_000_000), "characters left out"),
        (Odd(1, 2), "Odd"),
    ],
)
def test_whatever_reading_raises_is_one_error_of_ours(foreign: BaseException, words: str) -> None:
    with pytest.raises(LoadError) as caught, reading(LoadError, "x cannot be read", "Do y."):
        raise foreign
    text = str(caught.value)
    assert text.startswith("x cannot be read: ")
    assert text.endswith(". Do y.")
    assert words in text
    assert "\n" not in text
    assert len(text) < 1_000
    assert caught.value.__cause__ is foreign


@pytest.mark.parametrize("ours", [ConfigError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_our_own_errors_and_interrupts_pass(ours: BaseException) -> None:
    with pytest.raises(type(ours)) as caught, reading(LoadError, "x cannot be read"):
        raise ours
    assert caught.value is ours
