"""What a run says of itself: sums while a step runs, JSON lines, the table of sampled completions,
and how much the blocks add to what goes through them.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interlace.attaching import get_attachment, is_attached
from interlace.errors import RunError
from interlace.jsonl import Store, as_line, read
from interlace.terminal import Table

Reduce = Callable[[Tensor, str], Tensor]  # (values, "sum" or "max") -> over all processes
LARGEST, SMALLEST = "max", "min"


class Tally:
    """Means (sum over count), extremes and seconds by name.

    Every process must note the same names in a step, since they are added up position by position;
    note a count of 0 where a process has nothing to say.
    """

    def __init__(self) -> None:
        self._within: list[float] = []  # of each phase that runs, the seconds of phases within it
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._totals: dict[str, float] = {}
        self._extremes: dict[tuple[str, str], float] = {}
        self.seconds: dict[str, float] = {}

    def mean(self, name: str, total: float, count: float = 1.0) -> None:
        """Add to what will be logged as total over count."""
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += count

    def total(self, name: str, value: float) -> None:
        """Add to what will be logged as a sum."""
        self._totals[name] = self._totals.get(name, 0.0) + value

    def extreme(self, name: str, value: float, kind: str) -> None:
        """Keep the largest or smallest value."""
        known = self._extremes.get((name, kind), value)
        self._extremes[name, kind] = max(known, value) if kind == LARGEST else min(known, value)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds within to a phase, those of a phase within it left out."""
        start = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            spent, others = time.perf_counter() - start, self._within.pop()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - others
            if self._within:
                self._within[-1] += spent

    def collect(self, reduce: Reduce) -> dict[str, float]:
        """Everything as numbers to log, over all processes; the tally is empty afterwards."""
        logs: dict[str, float] = {}
        means, totals = sorted(self._sums), sorted(self._totals)
        sums = [self._totals[n] for n in totals]
        for name in means:
            sums += self._sums[name]
        found = _reduced(sums, "sum", reduce)
        logs |= dict(zip(totals, found, strict=False))
        for index, name in enumerate(means):
            total, count = found[len(totals) + 2 * index :][:2]
            if count:
                logs[name] = total / count
        keys, phases = sorted(self._extremes), sorted(self.seconds)
        signs = [1.0 if kind == LARGEST else -1.0 for _, kind in keys]
        peaks = [s * self._extremes[k] for s, k in zip(signs, keys, strict=True)]
        found = _reduced(peaks + [self.seconds[p] for p in phases], "max", reduce)
        logs |= {name: s * v for (name, _), s, v in zip(keys, signs, found, strict=False)}
        logs |= {f"seconds/{p}": v for p, v in zip(phases, found[len(keys) :], strict=True)}
        self._clear()
        return logs


def _reduced(values: list[float], how: str, reduce: Reduce) -> list[float]:
    return reduce(torch.tensor(values, dtype=torch.float64), how).tolist() if values else []


class Journal:
    """A file of one JSON object a line, each with the optimizer step that it belongs to.

    Args:
        path: File to write; its folder is created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, or was cut off in writing.

        Raises:
            RunError: for a line that is damaged, or has no step.
        """
        if not self.path.exists():
            return
        partial = self.path.with_suffix(".partial")
        # A new file: who follows the journal sees by that that lines were taken back.
        with partial.open("wb") as stream:
            for number, entry in read(self.path, RunError, own=True):
                if type(entry.get("step")) is not int:
                    partial.unlink()
                    raise RunError(
                        f"{self.path}, line {number} has no step, so it is not of this run. Move "
                        "the file away, or begin anew with --restart."
                    )
                if entry["step"] <= step:
                    stream.write(as_line(entry).encode())
        os.replace(partial, self.path)

    def add(self, step: int, entry: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            RunError: if it cannot be written, as on a full disk.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error}.") from error
        with Store(self.path, RunError, sync_seconds=math.inf) as store:
            store.begin()
            store.append({"step": step, **entry})


_LONGEST = 400  # characters of a text that are shown


def as_markdown(groups: Sequence[Mapping[str, Any]]) -> str:
    """One table a group, given as in completions.jsonl: each row's text, verdict, reward and
    advantage."""
    return "\n\n".join(map(_table, groups))


def show_in_tensorboard(
    callbacks: Sequence[Any], groups: Sequence[Mapping[str, Any]], step: int
) -> None:
    """Write the table wherever a TensorBoard callback writes."""
    for callback in callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            writer.add_text("completions", as_markdown(groups), step)


def _table(group: Mapping[str, Any]) -> str:
    rows = [
        [
            str(number),
            "yes" if row["correct"] else "",
            f"{row['reward']:.2f}",
            "" if row["advantage"] is None else f"{row['advantage']:.2f}",
            _short(row["text"]),
        ]
        for number, row in enumerate(group["rows"])
    ]
    table = Table(("row", "correct", "reward", "advantage", "text"), rows)
    return f"**{_short(str(group['prompt']))}**\n\n{table.markdown()}"


def _short(text: str) -> str:
    """A text in one line that is no HTML."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return " ".join(text.replace("<", "&lt;").split())


WIDE = (torch.float32, torch.float64)


@contextlib.contextmanager
def measuring_blocks(model: nn.Module, note: Callable[[float, float], None]) -> Iterator[None]:
    """Within this context the blocks of an attached model are watched; at its end `note` is given
    the mean over the blocks of the norm of what they add over the norm of their input, and a count
    of 1. Where no hook saw a block, as in the graph of a compiled model, both are 0: that can
    happen in one process and not in another, and all must note the same names.

    Args:
        model: Unwrapped model; without blocks nothing is noted.
        note: Function that is called once, such as `Tally.mean` with its name.
    """
    if not is_attached(model):
        yield
        return
    ratios: list[Tensor] = []
    blocks = [model.get_submodule(name) for name in get_attachment(model).block_names]
    own = set(map(id, blocks))

    @torch.no_grad()
    def compare(block: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if id(block) not in own:
            return  # a copy of the model, such as the guard's, takes the hooks along
        x = inputs[0].detach()
        # In 16 bits a small addition is lost in the sum, so it is computed again by itself.
        added = output.detach() - x if output.dtype in WIDE else block.added(*inputs)
        ratios.append(added.float().norm() / x.float().norm())

    handles = [block.register_forward_hook(compare) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    note(float(torch.stack(ratios).mean()) if ratios else 0.0, float(bool(ratios)))
