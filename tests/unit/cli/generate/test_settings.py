"""Where the options of `interlace generate` come from, and which contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlace.cli.generate import AGGREGATES, Settings, build_parser, settle
from interlace.errors import ConfigError, GenerationError


def settled(*arguments: str) -> Settings:
    return settle(build_parser("interlace generate").parse(arguments))


def test_defaults_are_those_of_the_settings() -> None:
    assert settled("--model", "m", "hello") == Settings(model="m", prompt="hello")


def test_every_option_reaches_the_settings(tmp_path: Path) -> None:
    settings = settled(
        *("--model", "m", "--input", "in", "--output", "out", "--width", "3", "--seed", "7"),
        *("--max-new-tokens", "5", "--temperature", "0.5", "--top-k", "4", "--top-p", "0.9"),
        *("--min-p", "0.1", "--repetition-penalty", "1.2", "--stop", "a", "--stop", "b"),
        *("--ignore-eos", "--top-logprobs", "2", "--consensus", "--aggregate", "best-of-n"),
        *("--scorer", "my.py:f", "--system", "Be brief.", "--field", "q", "--skip-bad"),
        *("--overwrite", "--batch-size", "9", "--memory", "1.5", "--json", "--base", "b"),
        *("--revision", "r", "--gguf-file", "g", "--dtype", "bfloat16", "--device", "cpu"),
        "--trust-remote-code",
    )
    left = {name for name, value in vars(settings).items() if value == getattr(Settings(), name)}
    shown = {"attention", "attention_layer", "attention_png"}  # for one prompt
    assert left == {"prompt", "raw", "template"} | shown  # --template contradicts --raw
    params = settings.sampling()
    assert (params.width, params.max_new_tokens, params.temperature) == (3, 5, 0.5)
    assert (params.top_k, params.top_p, params.min_p, params.seed) == (4, 0.9, 0.1, 7)
    assert (params.repetition_penalty, params.stop, params.top_logprobs) == (1.2, ("a", "b"), 2)
    assert params.ignore_eos
    assert params.consensus is not None
    assert params.consensus("It is 5") == "5"


def test_a_yaml_file_stands_between_defaults_and_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: m\nprompt: 2 + 2 = -1?\nwidth: 4\ntop-p: 0.5\nmax_new_tokens: 9\nconsensus: true\n"
        "raw: false\nstop: [\"\\n\", '--']\nscorer: null\n"
    )
    settings = settled("--config", str(path), "--width", "6")
    assert (settings.model, settings.prompt) == ("m", "2 + 2 = -1?")
    assert (settings.width, settings.top_p, settings.max_new_tokens) == (6, 0.5, 9)
    assert (settings.consensus, settings.raw, settings.stop) == (True, False, ("\n", "--"))
    assert settled("--config", str(path), "other").prompt == "other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wdith: 8", "there is no option 'wdith'. Did you mean 'width'"),
        ("width: wide", "width takes a whole number; got 'wide'"),
        ("width: [1", "cannot be read"),
        ("- width", "holds list"),
        ("aggregate: most", "or WHERE:NAME of your own, .* got 'most'"),
        ("config: other.yaml", "there is no option 'config'"),
    ],
)
def test_a_yaml_file_with_a_mistake_is_explained(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        settled("--model", "m", "--config", str(path), "hello")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello"], "Say which model"),
        (["--model", "m"], "nothing to respond to"),
        (["--model", "m", "hello", "--input", "i"], "give one of them"),
        (["--model", "m", "hello", "--output", "o"], "--output goes with --input"),
        (["--model", "m", "hello", "--scorer", "a:b"], "--scorer goes with"),
        (["--model", "m", "hello", "--batch-size", "0"], "at least 1; got 0"),
        (["--model", "m", "hello", "--memory", "0"], "above 0; got 0"),
        (["--model", "m", "hello", "--memory", "nan"], "--memory takes a number; got 'nan'"),
        (["--model", "m", "hello", "--raw", "--system", "s"], "drop one"),
        (["--model", "m", "hello", "--config", "nowhere.yaml"], r"nowhere.yaml cannot be read"),
    ],
)
def test_contradictions_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(*arguments)


def test_values_out_of_range_are_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(GenerationError, match="width is a whole number, at least 1; got 0"):
        settled("--model", "m", "hello", "--width", "0").sampling()


def test_help_teaches() -> None:
    text = build_parser("interlace generate").format_help()
    for name in vars(Settings()):
        assert name == "prompt" or f"--{name.replace('_', '-')}" in text
    for name in AGGREGATES:
        assert name in text
    assert "examples:" in text
    assert "usage: interlace generate --model MODEL [options] PROMPT" in text


def test_lines_depend_on_all_but_where_they_come_from_and_go_to() -> None:
    here = settled("--model", "m", "--input", "a", "--output", "b", "--stop", "x", "--skip-bad")
    there = settled("--model", "m", "--input", "c", "--output", "d", "--stop", "x", "--overwrite")
    assert here.in_lines() == there.in_lines()
    assert here.in_lines()["stop"] == ["x"]
    assert settled("--model", "m", "--input", "a", "--seed", "1").in_lines()["seed"] == 1


def test_an_aggregator_of_ones_own_has_a_place_and_a_name() -> None:
    with pytest.raises(ConfigError, match=r"or WHERE:NAME of your own.*Did you mean 'medoid'"):
        settled("--model", "m", "--aggregate", "medoidd", "x")
    assert settled("--model", "m", "--aggregate", "my.py:f", "x").aggregate == "my.py:f"
