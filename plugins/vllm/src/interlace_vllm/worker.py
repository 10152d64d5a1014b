"""Model Runner V1: before each pass it tells the blocks who sees whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from interlace_vllm.requests import membership
from interlace_vllm.rows import Fed


class TellsRows:
    """Mixed into the class of a runner of vLLM's."""

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        runner: Any = self
        rows = runner.get_model().interlace_rows
        tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        rows.set(_step(runner), tokens.shape[0], runner.device)
        try:
            return super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            rows.clear()  # profiling and warm-up do not come by here: they see nobody


def _step(runner: Any) -> Iterator[Fed]:
    batch, starts = runner.input_batch, runner.query_start_loc.np
    for place, name in enumerate(batch.req_ids):
        first = int(starts[place])
        yield Fed(
            membership(name, runner.requests[name].sampling_params),
            first,
            int(starts[place + 1]) - first,
            int(batch.num_computed_tokens_cpu[place]),
            int(batch.num_prompt_tokens[place]),
        )


def telling(runner: Any) -> None:
    """Have a runner tell its model's blocks, in place."""
    cls = type(runner)
    runner.__class__ = type(f"Coupled{cls.__name__}", (TellsRows, cls), {})
