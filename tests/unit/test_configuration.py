"""Options from defaults, a YAML file and flags: their spellings, and errors of one short line.

Mutations that were seen to fail here: a file that beats a flag; a key that stands twice; an alias
that is followed without bound; a value that an error prints whole; null or infinity that passes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from interlace.configuration import Parser, load_text, read_yaml
from interlace.errors import ConfigError


@dataclass(frozen=True)
class Shared:
    """Sampling.

    Args:
        max_new_tokens: Number of tokens of a row,
            at most 100 %.
        temperature: Temperature.
        stop: Text that ends a row.
    """

    max_new_tokens: int = 8
    temperature: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings(Shared):
    """Options.

    Args:
        prompt: Prompt.
        raw: Feed it as it is.
        task_options: Options of the task.
        scorer: Functions by name.
        widths: Widths.
        figures: Types of figures.
        layers: Layers.
        split: Split.
    """

    prompt: str | None = None
    raw: bool = False
    task_options: dict[str, Any] = field(default_factory=dict)
    scorer: dict[str, str] = field(default_factory=dict)
    widths: tuple[int, ...] = (1, 2)
    figures: tuple[Literal["pdf", "svg"], ...] = ("pdf",)
    layers: Literal["all"] | int | list[int] | None = None
    split: Literal["train", "test"] | None = None
    max_new_tokens: int = 16


def parser() -> Parser:
    made = Parser(
        "interlace try",
        "[PROMPT] [options]",
        "Try it.",
        "examples:\n  interlace try 1",
        "raw: true",
    )
    made.add_options(Settings, words=["prompt"])
    return made


def parsed(*words: str) -> dict[str, Any]:
    """What differs from the defaults."""
    settings = Settings(**vars(parser().parse(words)))
    return {n: value for n, value in vars(settings).items() if value != getattr(Settings(), n)}


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parser().parse(words)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("hello --max-new-tokens 3 --raw", {"prompt": "hello", "max_new_tokens": 3, "raw": True}),
        ("--max_new_tokens=3 --raw=false -", {"max_new_tokens": 3, "prompt": "-"}),
        ("--raw -- --raw", {"raw": True, "prompt": "--raw"}),
        ("--prompt 3 --temperature 1e-5", {"prompt": "3", "temperature": 1e-5}),
        ("--widths 1,2,4 --widths 8", {"widths": (1, 2, 4, 8)}),
        ("--widths [4] --figures none", {"widths": (4,), "figures": ()}),
        ("--stop yes --stop 3 --stop {a}", {"stop": ("yes", "3", "{a}")}),
        ("--layers 0,2", {"layers": [0, 2]}),
        ("--layers=all --split test", {"layers": "all", "split": "test"}),
        (
            "--task-options a=2 b={x} --task-options.c.d [1] --task_options e=-1",
            {"task_options": {"a": 2, "b": "{x}", "c": {"d": [1]}, "e": -1}},
        ),
        ("--scorer a=my.py:f b=3", {"scorer": {"a": "my.py:f", "b": "3"}}),
    ],
)
def test_flags_are_taken_in_all_their_spellings(words: str, found: dict[str, Any]) -> None:
    assert parsed(*words.split()) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--widht 3", "interlace try has no option '--widht'. Did you mean '--widths'?"),
        ("--zzz", "no option '--zzz'. `interlace try --help` explains the options."),
        ("--temperature.x 3", "has no option '--temperature.x'"),
        ("--max-new-tokens 1.5", "--max-new-tokens takes a whole number; got '1.5'."),
        ("--max-new-tokens true", "takes a whole number; got 'true'."),
        ("--max-new-tokens", "--max-new-tokens takes a whole number; got none."),
        ("--temperature nan", "--temperature takes a number; got 'nan'."),
        ("--temperature 1e400", "--temperature takes a number; got inf."),
        ("--raw=maybe", "--raw takes true or false; got 'maybe'."),
        ("--split trian", "one of 'train', 'test'; got 'trian'. Did you mean 'train'?"),
        ("--widths 1,x", "--widths takes a list with commas (each a whole number); got '1,x'."),
        ("--figures png", "a list with commas (each one of 'pdf', 'svg'); got 'png'."),
        (
            "--layers one",
            "or a whole number or a list with commas (each a whole number); got 'one'.",
        ),
        ("--task-options digits", "takes NAME=VALUE, such as digits=2; got 'digits'."),
        ("a b", "interlace try takes no further words; got 'b'."),
        (f"--max-new-tokens {'9' * 5000}", "characters left out]"),
        (f"--{'x' * 100_000}", "characters left out]"),
    ],
    ids=lambda text: text[:30],
)
def test_a_flag_that_does_not_fit_is_refused_in_a_line(words: str, message: str) -> None:
    assert message in refused(*words.split())


def test_a_file_stands_between_defaults_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "prompt: 2 + 2 = -1?\nmax-new-tokens: 1e2\nraw: true\nsplit: null\nwidths: 1,4\n"
        "stop: [\"\\n\", '--']\ntask_options: {a: 1, b: 2}\nfigures: none\ntemperature: 1e-5\n"
    )
    found = parsed("--task-options.b", "3", "--config", str(path), "--raw=false", "--widths", "8")
    assert found == {
        "prompt": "2 + 2 = -1?",
        "max_new_tokens": 100,
        "stop": ("\n", "--"),
        "task_options": {"a": 1, "b": 3},
        "widths": (8,),
        "figures": (),
        "temperature": 1e-5,
    }
    assert parsed("--config", str(path), "other")["prompt"] == "other"


def test_what_is_printed_is_a_file_of_the_same_options(tmp_path: Path, capsys: Any) -> None:
    words = ("--task-options", "a={x}", "--stop", "yes", "--widths", "3", "--layers", "0,2")
    with pytest.raises(SystemExit):
        parser().parse([*words, "--print_config"])
    path = tmp_path / "x.yaml"
    path.write_text(capsys.readouterr().out)
    assert parsed("--config", str(path)) == parsed(*words)


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k0: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{','.join([f'*m{n - 1}' if n else '*a'] * 10)}]}}\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wdith: 8", "x.yaml: there is no option 'wdith'. Did you mean 'widths'?"),
        ("config: other.yaml", "there is no option 'config'"),
        ("max_new_tokens: wide", "x.yaml: max_new_tokens takes a whole number; got 'wide'."),
        ("max_new_tokens: null", "max_new_tokens takes a whole number; got None."),
        ("max_new_tokens: 2024-01-01", "takes a whole number; got '2024-01-01'."),
        ("max_new_tokens: 2024-13-45", "takes a whole number; got '2024-13-45'."),
        (f"max_new_tokens: {'9' * 5000}", "line 1: a number has more than 40 digits."),
        (f"prompt: [{'a, ' * 9000}]", "prompt takes a text; got ['a', 'a'"),
        ('prompt: "a\\0b"', "x.yaml: prompt holds NUL; got 'a\\x00b'. Drop it."),
        ('stop: ["a", "\\0"]', "x.yaml: stop holds NUL"),
        ("temperature: .inf", "temperature takes a number; got inf."),
        ("temperature: .nan", "temperature takes a number; got nan."),
        ("prompt: 3", "prompt takes a text; got 3."),
        ("task_options: 3", "task_options takes a mapping; got 3."),
        ("- widths", "holds options by name, such as `width: 8`;"),
        ("raw: true\nraw: false", "line 2: the key 'raw' stands twice."),
        ("prompt: a\n? [prompt]\n: b", "cannot be read: line 2: found unhashable key."),
        ("widths: [1", "cannot be read: line 1: expected"),
        ("prompt: !!python/name:os.system", "could not determine a constructor"),
        (BOMB, "it holds more than 50,000 values."),
        (MERGES, "it holds more than 50,000 values."),
        ("a: &a [*a]", "it is nested too deeply, or in itself."),
        (f"a: {'[' * 60}{']' * 60}", "there is no option 'a'"),
        (f"a: {'[' * 70}{']' * 70}", "it is nested too deeply, or in itself."),
        (f"a: {'[' * 5000}", "it is nested too deeply, or in itself."),
        (f"a:\n {'- ' * 5000}", "it holds what cannot be read (RecursionError)."),
        (f"prompt: {'a' * 2**20}", "it has more than 1,048,576 characters."),
        ("prompt: \x00", "cannot be read"),
        (b"prompt: \xff", "cannot be read: 'utf-8' codec"),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_a_file_that_does_not_fit_is_refused_in_a_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused("--config", str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml cannot be read: .*No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_aliases_within_bounds_are_followed() -> None:
    assert load_text("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


def test_help_teaches_in_groups_within_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parser().parse(["--widht", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: interlace try [PROMPT] [options]\n")
    assert "\noptions:\n" in text
    sampling = text.split("\nsampling:\n")[1]
    assert "  --max-new-tokens N    Number of tokens of a row, at most 100 % (default: 16)\n" in (
        " ".join(sampling.split("\n", 1)[0:1]) + "\n" + sampling.replace("\n" + " " * 24, " ")
    )
    assert "--figures" in text
    assert "--split {train,test}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.endswith("interlace try 1\n")


def test_an_option_without_a_word_of_help_is_noticed() -> None:
    @dataclass(frozen=True)
    class Silent(Settings):
        """Options."""

        quiet: bool = False

    with pytest.raises(AssertionError, match="explains no quiet"):
        Parser("x", "", "").add_options(Silent)
