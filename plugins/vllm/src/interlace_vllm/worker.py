"""Model Runner V1: before each pass it tells the blocks who sees whom.

`CoupledCPUWorker` and `CoupledGPUWorker` are made when vLLM asks for one by name, since importing
its worker of a CPU sets the process up for a CPU. The GPU's has not been run yet.
"""

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
        given = kwargs["inputs_embeds"] if kwargs["input_ids"] is None else kwargs["input_ids"]
        rows.set(_step(runner), given.shape[0], runner.device)
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


class RunnerTells:
    """Mixed into the class of a worker of vLLM's: its runner tells blocks who sees whom."""

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        cls = type(runner)
        runner.__class__ = type(f"Coupled{cls.__name__}", (TellsRows, cls), {})


def __getattr__(name: str) -> Any:
    if name == "CoupledCPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker as Base
    elif name == "CoupledGPUWorker":
        from vllm.v1.worker.gpu_worker import Worker as Base
    else:
        raise AttributeError(f"{__name__} has no {name}")
    return type(name, (RunnerTells, Base), {})
