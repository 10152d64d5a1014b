"""What commands share: which model, on what, and how it samples; the task and the engine that these
options name; and how far a run is."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from interlace.errors import ConfigError
from interlace.terminal import printable, say

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interlace.batch import Tally
    from interlace.engine.engine import Engine
    from interlace.engine.types import SamplingParams
    from interlace.remote import RemoteEngine
    from interlace.tasks import Example, Task

INTERRUPTED = 130  # the exit status after Ctrl-C
SECONDS_BETWEEN_LINES = 10.0
FigureType = Literal["pdf", "svg", "png"]


@dataclass(frozen=True)
class ModelOptions:
    """Model.

    Args:
        model: Model: a hub id, a folder, a .gguf file, saved blocks, or one of tiny, tiny-bridge,
            tiny-rlvr, tiny-pmatch (packaged) and smollm2-135m; or the address of an
            OpenAI-compatible API, such as http://127.0.0.1:8000/v1;
            #NAME after it names one of several models.
        base: Hub id or path of the base model of saved blocks, if it is not where they say.
        revision: Branch, tag or commit of a hub id.
        gguf_file: Name of the file, where a folder or repository holds several GGUF files.
        trust_remote_code: Run code that comes with the model.
    """

    model: str = ""
    base: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False

    def load(self, **more: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer.

        Args:
            **more: Further options of `interlace.load`.
        """
        from interlace.models.loading import load

        given = {field.name: getattr(self, field.name) for field in fields(ModelOptions)}
        return load(given.pop("model"), **given, **more)


@dataclass(frozen=True)
class DeviceOptions:
    """Device.

    Args:
        dtype: Type of the weights, such as bfloat16; by default the checkpoint's.
        device: Device, such as cuda; by default a GPU if there is one.
        memory: GiB for keys and values; by default what fits.
    """

    dtype: str | None = None
    device: str | None = None
    memory: float | None = None


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling.

    Args:
        max_new_tokens: Number of tokens of a row, at most.
        temperature: Temperature; 0 is greedy.
        top_k: Number of the most likely tokens that are kept; by default all.
        top_p: Share of probability that is kept.
        min_p: Share of the best token's probability below which tokens are dropped.
        stop: Text that ends a row; the flag may be repeated.
        seed: Seed; the same one gives the same rows.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def sampling(self, **changes: Any) -> SamplingParams:
        """How to sample: the options that are parameters of sampling."""
        from interlace.engine.types import SamplingParams

        names = {field.name for field in fields(SamplingParams)}
        values = {name: value for name, value in vars(self).items() if name in names}
        return SamplingParams(**values | changes)


def check_loading(settings: Any) -> None:
    """Check that the options of a command name a model, and leave room for it."""
    if not settings.model:
        raise ConfigError("Say which model: --model Qwen/Qwen2.5-1.5B-Instruct, or a folder.")
    if settings.memory is not None and not 0 < settings.memory * 2**30 < math.inf:
        raise ConfigError(f"--memory is a number of GiB above 0; got {settings.memory}.")


def task_of(name: str, settings: Any, options: Mapping[str, Any]) -> Task:
    """The task that a command's settings ask for."""
    from interlace.tasks import get_task

    given = {key: getattr(settings, key) for key in ("data", "split")}
    return get_task(name, **{**options, **{k: v for k, v in given.items() if v is not None}})


def file_name(text: str) -> str:
    """A text as the name of a file or folder."""
    return re.sub(r"[^\w.-]+", "-", text)


def prompt_text(task: Task, example: Example) -> str:
    """What a model is asked, as readable text."""
    prompt = task.prompt(example)
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def load_engine(settings: Any, notes: Console, chat: bool | None = None) -> Engine | RemoteEngine:
    """The engine that a command's settings ask for; a server's where the model is its address, to
    which `chat` says whether texts are sent as a user's message."""
    from rich.markup import escape

    if settings.model.startswith(("http://", "https://")):
        from interlace.remote import RemoteEngine

        address, _, name = settings.model.partition("#")
        return RemoteEngine(address, model=name or None, chat=chat)
    # The imports take their time too.
    with notes.status(escape(printable(f"Loading {settings.model}"))):
        import torch
        from transformers.utils import logging

        from interlace.engine.engine import Engine

        logging.disable_progress_bar()
        device = settings.device or ("cuda" if torch.cuda.is_available() else None)
        model, tokenizer = settings.load(dtype=settings.dtype, device=device)
        budget = None if settings.memory is None else int(settings.memory * 2**30)
        return Engine(model, tokenizer, memory_budget=budget)


class Bar:
    """Shows a tally on standard error: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, bar: bool = True) -> None:
        from rich import progress as bars

        self._console = console
        self._shows_bar = bar and console.is_terminal
        self._said = time.monotonic()
        self.tally: Tally | None = None
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=20),
            bars.TextColumn(
                "{task.completed:,.0f}/{task.total:,.0f} rows  {task.fields[speed]:,.0f} tokens/s"
            ),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[left]}"),
            console=console,
            disable=not self._shows_bar,
            redirect_stdout=False,  # where lines may go
            redirect_stderr=False,
        )
        self._task: bars.TaskID | None = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, tally: Tally) -> None:
        """Show the tally as it is now."""
        self.tally = tally
        if self._shows_bar:
            self._show(tally)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            say(self._console, line_of(tally))

    def _show(self, tally: Tally) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=tally.all_rows, speed=0.0, left="")
        self._bar.update(
            self._task,
            description=f"{tally.stage} width {tally.width}",
            completed=tally.rows,
            speed=tally.tokens_per_second,
            left=_left(tally),
        )


def line_of(tally: Tally) -> str:
    """The tally in a line of text."""
    if tally.stage == "timing":
        return f"timing groups alone, at width {tally.width}"
    judged = "" if tally.correct is None else f"{tally.correct:,} correct, "
    left = _left(tally)
    return (
        f"width {tally.width}: {tally.rows:,} of {tally.all_rows:,} rows, {judged}"
        f"{tally.tokens_per_second:,.0f} tokens/s{left and f', {left}'}"
    )


def summary(tally: Tally) -> list[str]:
    """What a start did, in lines of text."""
    new = tally.rows - tally.resumed_rows
    if not new:
        return [f"All {tally.rows:,} rows were there before", *tally.notes]
    line = (
        f"{new:,} rows, {tally.tokens:,} tokens in {_duration(tally.seconds)}: "
        f"{tally.tokens_per_second:,.0f} tokens/s"
    )
    if tally.resumed_rows:
        line += f"; {tally.resumed_rows:,} rows were there before"
    if tally.computed_row_steps:
        share = tally.alive_row_steps / tally.computed_row_steps
        line += f"; {share:.0%} of the computed row-steps fed an unfinished row"
    return [line, *tally.notes]


def _left(tally: Tally) -> str:
    """How long sampling will take."""
    if tally.stage == "timing" or tally.seconds_left is None:
        return ""
    return f"about {_duration(tally.seconds_left)} left"


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(42.3), _duration(125), _duration(7300)
    ('42 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
