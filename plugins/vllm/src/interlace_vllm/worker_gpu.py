"""The worker of a GPU under Model Runner V1. Written from vLLM's sources; not run yet."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from interlace_vllm.worker import telling


class CoupledGPUWorker(Worker):
    """vLLM's, with a runner that tells blocks who sees whom."""

    def init_device(self) -> None:
        super().init_device()
        telling(self.model_runner)
