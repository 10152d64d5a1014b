"""Responses to learn in the warm-up: sampled from the base model, judged, kept in a JSONL file.

One line is one problem: {"example": id, "sampling": {...}, "prompt_token_ids": [...],
"completions": [[ids], ...]}; "groups" in place of "completions" is a list of such lists, and
"rewritten" says how many of these rows a splice wrote anew.
A ready data set of responses has texts instead: {"prompt": text or messages, "responses": [text,
...]}; each gets the tokenizer's end token.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track

from interlace.engine.engine import Engine
from interlace.engine.request import encode
from interlace.engine.state import RowText
from interlace.engine.types import Completion, GroupOutput, SamplingParams
from interlace.errors import DataFileError, GenerationError, TaskError
from interlace.jsonl import Store, read
from interlace.tasks.base import Example, Task
from interlace.tasks.drawn import Draw
from interlace.tasks.splicing import splice_lines
from interlace.training.arguments import WarmupConfig
from interlace.training.rollout import draw_indices, sampling_seed

REWRITTEN = "rewritten"
_CHUNK = 64  # problems sampled between two writes
_SHOWN_FROM = 16  # problems sampled to show some


@dataclass(frozen=True)
class Item:
    """One prompt with its responses, as token ids, end tokens included: one group."""

    prompt: list[int]
    completions: list[list[int]]


def sample_responses(
    engine: Engine, task: Task, args: WarmupConfig, path: Path, share: tuple[int, int] = (0, 1)
) -> None:
    """Sample the problems' responses from the base model and write the correct ones.

    Rows are independent (width 1), as the base model is, unless the options name widths. Where
    they ask for it, the task rewrites the groups (`Task.splice`) before they are judged. What the
    file has already is kept, so a killed run goes on where it ended.

    The engine's model is the base, or has fresh blocks, which change nothing. Of several processes,
    `share` is (index, count): each samples every count-th problem.
    """
    chosen = draw_indices(int(args.seed), len(task), 0, min(args.problems or len(task), len(task)))
    mine = chosen[share[0] :: share[1]]
    sampling: dict[str, Any] = {
        "samples": args.samples,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "seed": int(args.seed),
    }
    if args.splice:
        sampling["splice"], sampling["splice_by"] = args.splice, args.splice_by
    if args.width is not None:
        sampling["width"] = args.width
    path.parent.mkdir(parents=True, exist_ok=True)
    with Store(path) as store:
        done = _done(path, sampling)
        store.begin()
        # A chunk that a kill cut off is sampled whole again: in low precision a row's tokens can
        # depend on what shares its batch.
        starts = range(0, len(mine), _CHUNK)
        chunks = [[task[index] for index in mine[start : start + _CHUNK]] for start in starts]
        chunks = [chunk for chunk in chunks if any(example.id not in done for example in chunk)]
        hidden = bool(args.disable_tqdm or share[0] > 0)
        for chunk in track(chunks, "Sampling responses", disable=hidden):
            sampled = _sample(engine, task, args, chunk)
            for example, own in zip(chunk, sampled, strict=True):
                if example.id not in done:
                    line = {
                        "example": example.id,
                        "sampling": sampling,
                        "prompt_token_ids": own[0].prompt_token_ids,
                    }
                    store.append(line | _kept(engine.tokenizer, task, example, own, args))


def check_splice(task: Task, args: WarmupConfig) -> None:
    """Raise before a model samples for hours, if its rows are to be rewritten and the task has no
    rule for it."""
    if args.splice and args.splice_by == "task" and type(task).splice is Task.splice:
        task.splice(task[0], [], args.splice, Draw())


def _kept(
    tokenizer: Any, task: Task, example: Example, own: Sequence[GroupOutput], args: WarmupConfig
) -> dict[str, Any]:
    """Rows of a problem that end with a right answer; a copied try may have made one too long."""
    kept = [
        [
            row
            for row in splice_group(tokenizer, task, example, rows, args, n)
            if row.finished
            and len(row.ids) <= args.max_new_tokens
            and task.verify(example, row.text).correct
        ]
        for n, rows in enumerate(_as_groups(own, args))
    ]
    ids = [[row.ids for row in rows] for rows in kept]
    found: dict[str, Any] = {"completions": ids[0]} if len(ids) == 1 else {"groups": ids}
    if args.splice:
        found[REWRITTEN] = sum(row.spliced is not None for rows in kept for row in rows)
    return found


def _sample(
    engine: Engine, task: Task, args: WarmupConfig, chunk: Sequence[Example]
) -> list[list[GroupOutput]]:
    """The groups of every problem, those of one width together."""
    seed = int(args.seed)
    widths = [
        random.Random(f"{seed}:warmup-width:{example.id}").choice(args.sampled_widths)
        for example in chunk
    ]
    found: list[list[GroupOutput]] = [[] for _ in chunk]
    for width in sorted(set(widths)):
        places = [place for place, own in enumerate(widths) if own == width]
        count = args.samples // width
        params = SamplingParams(
            width=width,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            seed=sampling_seed(seed, -1),
        )
        prompts = [task.prompt(chunk[place]) for place in places for _ in range(count)]
        groups = engine.generate(prompts, params)
        for index, place in enumerate(places):
            found[place] = groups[index * count : (index + 1) * count]
    return found


@dataclass(frozen=True)
class Response:
    """A row to judge."""

    ids: list[int]  # the end token included
    text: str
    finished: bool  # it ended by itself, or was given an end
    spliced: int | None = None  # column from which on it was rewritten


def splice_group(
    tokenizer: Any,
    task: Task,
    example: Example,
    rows: Sequence[Completion],
    args: WarmupConfig,
    number: int = 0,
) -> list[Response]:
    """A group's rows, rewritten by the task if the options say so; `number` is the group's among
    the problem's. A row that is rewritten ends as the model ended it, or else a sibling."""
    plain = [Response(r.token_ids, r.text, r.finish_reason == "stop") for r in rows]
    if not args.splice:
        return plain
    ends = [row.ids[-1] for row in plain if row.finished]
    bare = [row.ids[:-1] if row.finished else row.ids for row in plain]
    before = [_pieces(ids, tokenizer) for ids in bare]
    draw = Draw("splice", int(args.seed), example.id, number)
    rewrite = task.splice if args.splice_by == "task" else partial(splice_lines, task)
    after = _checked_rows(rewrite(example, before, args.splice, draw), len(rows), task)
    found = []
    for row, ids, old, new in zip(plain, bare, before, after, strict=True):
        if list(old) == list(new):
            found.append(row)
            continue
        pairs = zip(old, new, strict=False)
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        rest = tokenizer.encode("".join(new[same:]), add_special_tokens=False)
        end = row.ids[-1] if row.finished else next(iter(ends), tokenizer.eos_token_id)
        written = [*ids[:same], *rest, *([] if end is None else [end])]
        found.append(Response(written, "".join(new), end is not None, same))
    return found


def _checked_rows(rows: Any, count: int, task: Task) -> list[list[str]]:
    """What a task's splice gave, if it is rows of texts."""
    lists = isinstance(rows, list | tuple) and all(isinstance(row, list | tuple) for row in rows)
    if lists and len(rows) == count and all(isinstance(t, str) for row in rows for t in row):
        return [list(row) for row in rows]
    raise TaskError(
        f"The splice of the task {task.name!r} gives every row back, each a list of its tokens' "
        f"texts: {count} lists here; got {rows!r:.80}."
    )


def spliced_groups(
    engine: Engine, task: Task, args: WarmupConfig, count: int
) -> Iterator[tuple[Example, list[Response]]]:
    """The first groups of the warm-up into which something is copied, at most `count`; few problems
    are sampled, so there may be fewer."""
    order = draw_indices(int(args.seed), len(task), 0, min(_SHOWN_FROM, len(task)))
    chunk = [task[index] for index in order]
    for example, own in zip(chunk, _sample(engine, task, args, chunk), strict=True):
        for number, rows in enumerate(_as_groups(own, args)):
            group = splice_group(engine.tokenizer, task, example, rows, args, number)
            if count and any(row.spliced is not None for row in group):
                count -= 1
                yield example, group


def _as_groups(sampled: Sequence[GroupOutput], args: WarmupConfig) -> list[list[Completion]]:
    """A problem's rows by group: all of them, where they were sampled alone."""
    rows = [group.completions for group in sampled]
    return [[row for group in rows for row in group]] if args.width is None else rows


def _pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text; "" while a character is incomplete."""
    row, found = RowText(tokenizer, ()), []
    for token in ids:
        before = len(row.text)
        row.add(token)
        found.append(row.text[before:])
    before = len(row.text)
    row.finish()
    if found:
        found[-1] += row.text[before:]
    return found


def _done(path: Path, sampling: dict[str, Any]) -> set[str]:
    """The problems that a file has already, if they were sampled in the same way."""
    done = set()
    for number, entry in read(path, own=True):
        if entry.get("sampling") != sampling:
            raise DataFileError(
                f"{path} holds responses that were sampled otherwise: {entry.get('sampling')}, and "
                f"now {sampling}. Use another output_dir, delete the file, or pass it as "
                "warmup.data to train on it as it is."
            )
        if not isinstance(entry.get("example"), str):
            raise DataFileError(
                f"{path}, line {number} names no problem. Delete the file to sample it anew."
            )
        done.add(entry["example"])
    return done


def read_responses(
    paths: Sequence[Path], tokenizer: Any, args: WarmupConfig, vocabulary: int
) -> list[Item]:
    """The groups of these files with at least `fewest_correct` responses, in a fixed order.

    Responses longer than `max_new_tokens` are left out, with a warning of the first process.

    Raises:
        DataFileError: for a file that cannot be read or is no such data set, or if no problem is
            left.
    """
    items: dict[str, Item] = {}
    problems = overlong = 0
    copied = False
    fewest, most = args.fewest_correct, args.max_new_tokens
    for path in paths:
        for number, entry in read(path):
            problems += 1
            copied = copied or bool(entry.get(REWRITTEN, True))  # older files do not say
            name = str(entry.get("example", f"{path.name}:{number:09d}"))
            for group, each in enumerate(_groups(entry)):
                item = _item(each, tokenizer, f"{path.name}, line {number}", vocabulary)
                fitting = [row for row in item.completions if len(row) <= most]
                overlong += len(item.completions) - len(fitting)
                if len(fitting) >= fewest:
                    items[f"{name}:{group:03d}" if group else name] = Item(item.prompt, fitting)
    if overlong and args.process_index == 0:  # all processes read all files
        warnings.warn(
            f"{overlong} responses are longer than max_new_tokens={most} and are left out. Raise "
            "warmup.max_new_tokens to learn them, too.",
            stacklevel=2,
        )
    if args.splice and not copied and items and args.process_index == 0:
        warnings.warn(
            "No row copied a sibling's find, so the groups show no reading, and this is a plain "
            "warm-up: rows find too seldom, or all at the same time. `--dry-run` shows how groups "
            "are rewritten.",
            stacklevel=2,
        )
    if not items:
        raise DataFileError(
            f"No problem has {fewest} correct responses; {problems} problems were read. A model "
            "that solves next to nothing cannot warm up on its own responses: take easier "
            "problems, more samples, a longer max_new_tokens, or pass responses from elsewhere "
            "(warmup.data)."
        )
    return [items[key] for key in sorted(items)]


def _groups(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """A line as one line a group."""
    groups = entry.get("groups")
    if not isinstance(groups, list):
        return [entry]
    return [{**entry, "completions": rows} for rows in groups]


def _item(entry: dict[str, Any], tokenizer: Any, place: str, vocabulary: int) -> Item:
    if "completions" in entry and "prompt_token_ids" in entry:
        prompt, rows = entry["prompt_token_ids"], entry["completions"]
        if not (isinstance(rows, list) and all(map(_are_ids, [prompt, *rows])) and prompt):
            raise DataFileError(
                f"{place}: prompt_token_ids is a list of token ids, and completions a list of such "
                f"lists; got {prompt!r:.60} and {rows!r:.60}."
            )
        return _checked(Item(prompt, rows), place, vocabulary)
    if "prompt" not in entry or not isinstance(entry.get("responses"), list):
        raise DataFileError(
            f"{place}: a line has a prompt and its responses, or prompt_token_ids and completions; "
            f"got {sorted(entry)}."
        )
    if not all(isinstance(text, str) for text in entry["responses"]):
        raise DataFileError(f"{place}: responses are texts; got {entry['responses']!r:.80}.")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows = [tokenizer.encode(t, add_special_tokens=False) + end for t in entry["responses"]]
    try:
        prompt = encode(entry["prompt"], 0, tokenizer)
    except (GenerationError, TypeError) as error:
        raise DataFileError(f"{place}: {error}") from error
    return _checked(Item(prompt, rows), place, vocabulary, tokenizer)


def _checked(item: Item, place: str, vocabulary: int, tokenizer: Any = None) -> Item:
    """The item, if the model can take it; `tokenizer` is what made ids of its texts."""
    for token in (token for row in (item.prompt, *item.completions) for token in row):
        if 0 <= token < vocabulary:
            continue
        made = tokenizer is not None and 0 <= token < len(tokenizer)
        name = f" ({tokenizer.convert_ids_to_tokens(token)!r})" if made else ""
        cause = (
            "This tokenizer has tokens that the model lacks: use the model's own, or add them to "
            "the model with resize_token_embeddings(len(tokenizer))."
            if made
            else "Were the responses made with another tokenizer?"
        )
        raise DataFileError(
            f"{place}: token ids are from 0 to {vocabulary - 1}, the model's vocabulary; got "
            f"{token}{name}. {cause}"
        )
    if not all(item.completions):
        raise DataFileError(
            f"{place}: a response has at least one token, its end token if it is empty."
        )
    return item


def _are_ids(row: Any) -> bool:
    return isinstance(row, list) and all(type(token) is int for token in row)
