"""The worker of a CPU; in a file of its own since importing vLLM's sets the process up for one."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from interlace_vllm.worker import telling


class CoupledCPUWorker(CPUWorker):
    """vLLM's, with a runner that tells blocks who sees whom."""

    def init_device(self) -> None:
        super().init_device()
        telling(self.model_runner)
