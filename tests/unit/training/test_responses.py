"""Responses of the warm-up: sampled, stored, used again, or brought along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from interlace import Engine
from interlace.engine.types import Completion
from interlace.errors import ConfigError, DataFileError, TaskError
from interlace.tasks.drawn import Draw
from interlace.training import responses
from interlace.training.arguments import WarmupConfig
from interlace.training.responses import Item, read_responses, sample_responses
from support.text import NUMBERS, byte_tokenizer, number_tokenizer
from support.training import QUIET, Evens, metrics, read_lines, tiny_model, warmup, write_responses

TOKENIZER = number_tokenizer()
END = NUMBERS.index("<end>")


def arguments(tmp_path: Path, **options: Any) -> Any:
    return warmup(tmp_path / "run", tiny_model(), train_dataset=Copying(), **options).args


def sample(path: Path, args: Any, **options: Any) -> None:
    engine = Engine(tiny_model(), TOKENIZER, max_rows=12)
    sample_responses(engine, Evens(), args, path, **options)


def read(
    paths: list[Path],
    fewest: int = 2,
    longest: int = 9,
    tokenizer: Any = TOKENIZER,
    vocabulary: int = len(NUMBERS),
) -> list[Item]:
    numbers: dict[str, Any] = {"fewest_correct": fewest, "max_new_tokens": longest}
    args = WarmupConfig(output_dir="unused", data="given", **QUIET, **numbers)
    return read_responses(paths, tokenizer, args, vocabulary)


def test_only_correct_and_finished_responses_are_stored(tmp_path: Path) -> None:
    task, path = Evens(), tmp_path / "a" / "b.jsonl"
    args = arguments(tmp_path, samples=12)
    sample(path, args)
    lines = read_lines(path)
    assert {line["example"] for line in lines} == {example.id for example in task}
    rows = [(line, row) for line in lines for row in line["completions"]]
    assert 20 < len(rows) < 12 * len(lines)
    stops = {NUMBERS.index(word) for word in ("<end>", "5", "7", "16")}
    for line, row in rows:
        assert row[-1] in stops
        assert not stops & set(row[:-1])
        text = TOKENIZER.decode(row[:-1])
        assert task.verify(task.find(line["example"]), text).correct
        prompt = TOKENIZER.encode(task.prompt(task.find(line["example"])))
        assert line["prompt_token_ids"] == prompt


def test_responses_of_a_prompt_differ(tmp_path: Path) -> None:
    sample(tmp_path / "a.jsonl", arguments(tmp_path, samples=12))
    lines = read_lines(tmp_path / "a.jsonl")
    assert any(len({tuple(row) for row in line["completions"]}) > 1 for line in lines)


def test_what_is_stored_is_not_sampled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "_CHUNK", 4)
    args = arguments(tmp_path)
    path = tmp_path / "a.jsonl"
    sample(path, args)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    # Cut within the second chunk: it is sampled again, whole, and what it lacks is added.
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    sample(path, args)
    assert path.read_bytes() == whole

    def silent(*args: Any, **options: Any) -> Any:
        raise AssertionError("nothing is left to sample")

    monkeypatch.setattr(Engine, "generate", silent)
    sample(path, args)
    assert path.read_bytes() == whole


def test_processes_share_the_problems(tmp_path: Path) -> None:
    args = arguments(tmp_path, problems=7)
    sample(tmp_path / "all.jsonl", args)
    for index in range(2):
        sample(tmp_path / f"{index}.jsonl", args, share=(index, 2))
    shares = [read_lines(tmp_path / f"{index}.jsonl") for index in range(2)]
    assert [len(share) for share in shares] == [4, 3]
    by_example = {line["example"]: line for line in read_lines(tmp_path / "all.jsonl")}
    assert len(by_example) == 7
    assert {line["example"]: line for share in shares for line in share} == by_example


def test_a_run_uses_its_stored_responses_again(tmp_path: Path) -> None:
    warmup(tmp_path / "a", max_steps=2, samples=12).run()
    stored = tmp_path / "a" / "responses" / "0-of-1.jsonl"
    line = metrics(tmp_path / "a")[0]
    assert line["groups"] == 5
    warmup(tmp_path / "b", max_steps=2, data=str(stored)).run()
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")
    assert not (tmp_path / "b" / "responses").exists()


def test_own_responses_get_an_end_token(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    message = [{"role": "user", "content": "3"}]
    path.write_text(
        json.dumps({"prompt": "1 2", "responses": ["4", "5 6"]})
        + "\n"
        + json.dumps({"prompt": message, "responses": ["7", "8"]})
        + "\n"
        + json.dumps({"prompt_token_ids": [9], "completions": [[10, 11], [12]]})
        + "\n"
        + json.dumps({"prompt": "1", "responses": ["2"]})  # too few
        + "\n"
    )
    numbers = [NUMBERS.index(str(n)) for n in range(9)]
    first, second, third = read([path])
    assert first == Item(
        [numbers[1], numbers[2]], [[numbers[4], END], [numbers[5], numbers[6], END]]
    )
    assert numbers[3] in second.prompt
    assert second.completions == [[numbers[7], END], [numbers[8], END]]
    assert third == Item([9], [[10, 11], [12]])


def test_ragged_groups_train_with_the_weight_of_their_tokens(tmp_path: Path) -> None:
    path = write_responses(tmp_path / "data.jsonl")
    warmup(tmp_path / "run", data=str(path), groups_per_step=9).run()
    items = read([path])
    assert len(items) == 9
    assert {len(item.completions) for item in items} == {2, 3, 4}
    tokens = sum(len(row) for item in items for row in item.completions)
    assert metrics(tmp_path / "run")[0]["tokens/train"] == tokens


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "1", "respo', "line 2"),
        ("[1, 2]", "line 2 is .*not an object"),
        ('{"prompt": "1"}', r"line 2: a line has a prompt and its responses.*\['prompt'\]"),
        ('{"prompt": "1", "responses": "2"}', "line 2: a line has a prompt"),
        ('{"prompt": "1", "responses": [2, 3]}', "line 2: .*texts"),
        ('{"prompt": 1, "responses": ["2", "3"]}', "line 2"),
        ('{"prompt_token_ids": "1", "completions": [[1], [2]]}', "line 2: .*token ids"),
        ('{"prompt_token_ids": [1], "completions": [1, 2]}', "line 2: .*token ids"),
        ('{"prompt_token_ids": [], "completions": [[1], [2]]}', "line 2: .*token ids"),
        ('{"prompt_token_ids": [1], "completions": [[1], [99]]}', "line 2: .* got 99. Were the"),
        ('{"prompt_token_ids": [-1], "completions": [[1], [2]]}', "line 2: .* got -1"),
        ('{"prompt_token_ids": [1], "completions": [[1], []]}', "line 2: .*at least one token"),
        ('{"prompt": [1, 99], "responses": ["2", "3"]}', "line 2: .* got 99. Were the"),
    ],
)
def test_damaged_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    good = json.dumps({"prompt": "1 2", "responses": ["4", "5 6"]})
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(DataFileError, match=message):
        read([path])


@pytest.mark.parametrize(
    ("entry", "largest"),
    [
        ({"prompt": "1 18", "responses": ["2", "3"]}, "18"),
        ({"prompt": [{"role": "user", "content": "17"}], "responses": ["2", "3"]}, "17"),
        ({"prompt": "1", "responses": ["2", "3 18 4"]}, "18"),
    ],
)
def test_texts_of_tokens_that_the_model_lacks_are_refused(
    entry: dict[str, Any], largest: str, tmp_path: Path
) -> None:
    """Fails without a check: the embedding would raise an index error in the middle of a step."""
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(entry) + "\n")
    token = NUMBERS.index(largest)
    read([path], vocabulary=token + 1)
    message = f"line 1: token ids are from 0 to {token - 1}, .* got {token} \\('{largest}'\\)"
    with pytest.raises(DataFileError, match=f"{message}.*resize_token_embeddings"):
        read([path], vocabulary=token)


def test_empty_texts_without_an_end_token_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "1", "responses": ["2", ""]}) + "\n")
    assert read([path])[0].completions[1] == [END]
    endless = number_tokenizer()
    endless.eos_token = None
    with pytest.raises(DataFileError, match="line 1: a response has at least one token"):
        read([path], tokenizer=endless)


def test_only_the_first_process_warns_of_overlong_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if every process of a run warns of the same file."""
    path = tmp_path / "own.jsonl"
    rows = [[1, 2, 3, 4], [5], [6, 7]]
    path.write_text(json.dumps({"prompt_token_ids": [1], "completions": rows}) + "\n")
    monkeypatch.setattr(WarmupConfig, "process_index", 1, raising=False)
    read([path], longest=3)  # warnings are errors here


def test_overlong_responses_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [[1, 2, 3, 4], [5], [6, 7]]
    path.write_text(json.dumps({"prompt_token_ids": [1], "completions": rows}) + "\n")
    with pytest.warns(UserWarning, match="1 responses are longer than max_new_tokens=3"):
        assert read([path], longest=3) == [Item([1], [[5], [6, 7]])]


@pytest.mark.parametrize("change", [{"samples": 3}, {"temperature": 0.5}, {"seed": 1}])
def test_responses_that_were_sampled_otherwise_are_not_used_again(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    sample(path, arguments(tmp_path))
    with pytest.raises(DataFileError, match=r"were sampled otherwise.*warmup.data"):
        sample(path, arguments(tmp_path, **change))


def test_epochs_of_the_warm_up_are_passes_over_the_groups_that_are_kept(tmp_path: Path) -> None:
    data = str(write_responses(tmp_path / "data.jsonl", 40))
    trainer = warmup(
        tmp_path / "run", data=data, max_steps=-1, num_train_epochs=2, groups_per_step=5
    )
    trainer.run()
    kept = len(read([Path(data)]))
    assert kept == 30
    assert len(metrics(tmp_path / "run")) == 12  # two passes over six batches


def test_a_warm_up_counted_in_epochs_goes_on_by_the_groups_that_are_kept(tmp_path: Path) -> None:
    data = str(write_responses(tmp_path / "data.jsonl", 80))  # 60 groups, and a task of 10 problems

    def run(epochs: int) -> None:
        own = {"max_steps": -1, "num_train_epochs": epochs, "save_steps": 4}
        trainer = warmup(tmp_path / "run", data=data, lr_scheduler_type="constant", **own)
        trainer.run()

    run(1)
    assert len(metrics(tmp_path / "run")) == 12
    run(2)
    assert len(metrics(tmp_path / "run")) == 24
    with pytest.raises(ConfigError, match="checkpoint-24, beyond the 12 steps"):
        run(1)


def test_a_damaged_line_in_the_middle_of_a_stored_file_is_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    args = arguments(tmp_path)
    sample(path, args)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0][:9], "\n", *lines[1:]]))
    with pytest.raises(DataFileError, match=r"a.jsonl, line 1"):
        sample(path, args)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="cannot be read"):
        read([tmp_path / "none.jsonl"])


def test_no_problem_left(tmp_path: Path) -> None:
    path = write_responses(tmp_path / "data.jsonl")
    with pytest.raises(DataFileError, match=r"No problem has 9 correct .* 12 problems were read"):
        read([path], fewest=9)


class Copying(Evens):
    """Evens whose rows, from their third token on, become what the longest row begins with."""

    def splice(
        self, example: Any, rows: Sequence[Sequence[str]], probability: float, draw: Draw
    ) -> list[list[str]]:
        longest = max(rows, key=len)
        return [
            [*row[:2], *longest[:2]] if len(row) > 2 and draw.chance(probability) else list(row)
            for row in rows
        ]


def sample_copies(path: Path, args: Any, **options: Any) -> list[Any]:
    sample_responses(Engine(tiny_model(), TOKENIZER, max_rows=12), Copying(), args, path, **options)
    return read_lines(path)


def test_spliced_rows_keep_their_columns_and_end_as_the_model_ends_them(tmp_path: Path) -> None:
    """Failed where the tokenizer's end token is not the only one: those of chat models stayed in
    the middle of rows that were rewritten after it, and such rows ended with another."""
    tokens: list[int] = []
    stops = {NUMBERS.index(word) for word in ("<end>", "5", "7", "16")}
    plain = sample_copies(tmp_path / "a.jsonl", arguments(tmp_path, samples=12))
    spliced = sample_copies(tmp_path / "b.jsonl", arguments(tmp_path, samples=12, splice=1.0))
    assert plain != spliced
    task = Copying()
    rewritten = 0
    for line in spliced:
        assert line["sampling"]["splice"] == 1.0
        for row in line["completions"]:
            assert task.verify(task.find(line["example"]), TOKENIZER.decode(row[:-1])).correct
            assert row[-1] in stops
            tokens += row[:-1]
            rewritten += len(row) == 5
    assert rewritten > 5
    assert not stops & set(tokens)
    assert rewritten >= sum(line["rewritten"] for line in spliced) > 5
    assert "rewritten" not in plain[0]


def test_a_group_without_an_end_token_has_no_row_that_ends(tmp_path: Path) -> None:
    """Failed: a tokenizer without one put None among the ids."""
    args = arguments(tmp_path, samples=12, splice=1.0)
    endless = number_tokenizer()
    endless.eos_token = None
    ids = [NUMBERS.index(word) for word in ("1", "2", "3", "4", "8")]
    rows = [Completion("", one, [], [], "length") for one in (ids[:4], [ids[4]] * 6)]
    group = responses.splice_group(endless, Copying(), Copying()[0], rows, args)
    copied = [*ids[:2], ids[4], ids[4]]
    assert [(row.ids, row.finished) for row in group] == [(copied, False), ([ids[4]] * 4, False)]


class Damaged(Evens):
    """A task whose splice gives whatever it is told to."""

    given: Any = None

    def splice(self, example: Any, rows: Any, probability: float, draw: Draw) -> Any:
        return self.given


@pytest.mark.parametrize("given", [None, [], [["4"]] * 11, [5] * 12, [[5]] * 12, ["45"] * 12])
def test_a_splice_of_ones_own_that_gives_no_rows_is_named(given: Any, tmp_path: Path) -> None:
    """Failed with a traceback of zip, or of list(5)."""
    task = Damaged()
    task.given = given
    args = arguments(tmp_path, samples=12, splice=1.0)
    engine = Engine(tiny_model(), TOKENIZER, max_rows=12)
    with pytest.raises(TaskError, match=r"splice of the task 'evens' gives every row back.*12"):
        sample_responses(engine, task, args, tmp_path / "a.jsonl")


def test_a_task_without_a_splice_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    """Failed: it was refused after the first 64 problems, which take a large model an hour."""
    with pytest.raises(TaskError, match=r"no splice of its own.*splice_by=lines"):
        warmup(tmp_path / "a", splice=0.5)
    warmup(tmp_path / "b", splice=0.5, splice_by="lines")


def test_a_splice_that_copies_nothing_is_told(tmp_path: Path) -> None:
    """Failed: the run was a plain warm-up, and nobody was told."""
    with pytest.warns(UserWarning, match="No row copied a sibling's find"):
        warmup(tmp_path / "a", samples=12, splice=1e-12, train_dataset=Copying()).run()


def test_a_copied_try_makes_no_row_too_long(tmp_path: Path) -> None:
    """Such rows were stored, and left out with a warning when they were read."""
    args = arguments(tmp_path, samples=12, splice=1.0, max_new_tokens=4)
    stored = sample_copies(tmp_path / "a.jsonl", args)
    assert max(len(row) for line in stored for row in line["completions"]) <= 4


def test_splicing_follows_from_the_seed_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path, samples=12, splice=0.5)
    first = sample_copies(tmp_path / "a.jsonl", args)
    monkeypatch.setattr(responses, "_CHUNK", 3)
    assert sample_copies(tmp_path / "b.jsonl", args) == first
    shares = [sample_copies(tmp_path / f"{i}.jsonl", args, share=(i, 2)) for i in range(2)]
    assert sorted(map(str, [*shares[0], *shares[1]])) == sorted(map(str, first))


def test_sampled_widths_give_groups_of_those_widths(tmp_path: Path) -> None:
    args = arguments(tmp_path, samples=12, width=[1, 3, 4], fewest_correct=1)
    sample(tmp_path / "a.jsonl", args)
    lines = read_lines(tmp_path / "a.jsonl")
    assert {len(line["groups"]) for line in lines} <= {12, 4, 3}
    assert len({len(line["groups"]) for line in lines}) > 1
    kept = [rows for line in lines for rows in line["groups"] if rows]
    items = read([tmp_path / "a.jsonl"], fewest=1)
    assert sorted(str(item.completions) for item in items) == sorted(map(str, kept))


def test_responses_spliced_otherwise_are_refused(tmp_path: Path) -> None:
    sample_copies(tmp_path / "a.jsonl", arguments(tmp_path, splice=0.5))
    with pytest.raises(DataFileError, match="sampled otherwise"):
        sample_copies(tmp_path / "a.jsonl", arguments(tmp_path))
    with pytest.raises(ConfigError, match="probability"):
        arguments(tmp_path, splice=1.5)
    with pytest.raises(ConfigError, match="divisor"):
        arguments(tmp_path, samples=8, width=3)
    with pytest.raises(ConfigError, match=r"at most width=2 .*; got 3"):
        arguments(tmp_path, width=[1, 2], fewest_correct=3)
    with pytest.raises(ConfigError, match="up to width=4 rows: micro_rows=2"):
        arguments(tmp_path, samples=8, width=4, micro_rows=2)
    arguments(tmp_path, samples=8, width=2, micro_rows=2)
    with pytest.raises(ConfigError, match="ready ones"):
        arguments(tmp_path, splice=0.5, data="ready.jsonl")


def test_pieces_of_a_row_are_its_text_character_by_character() -> None:
    """Fails if a character of several tokens is lost, or a later token takes an earlier's place."""
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("é ; 日本 = 5", add_special_tokens=False)
    pieces = responses._pieces(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[0] == ""  # half of the é
    assert responses._pieces([], tokenizer) == []
