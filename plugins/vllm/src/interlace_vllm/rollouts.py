"""Groups for a training, sampled by vLLM in the process that trains:
`GRPOConfig(rollout_backend="vllm")`.

Before each call the weights go over as they are now, in memory. What comes back is what Interlace's
own engine gives: token ids, and log-probabilities under the distribution that was sampled from.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from interlace.attached import base_model_of
from interlace.engine.request import encode, forbidden_token_ids, row_keys, stop_ids_of
from interlace.engine.types import Completion, GroupOutput, Prompt, SamplingParams
from interlace.errors import ConfigError, GenerationError, in_one_line
from interlace.saving.vllm import export_for_vllm
from interlace_vllm.supported import why_not_version

# They warn of what is so by intention: no tokenizer there, modules without weights of their own.
QUIET = ("renderers.base", "model_executor.model_loader.reload.layerwise")
NEVER = -1e9  # added to the logits of tokens that are never sampled: their probability is 0 exactly


class VllmSampler:
    """vLLM's engine on a copy of a model that trains.

    Args:
        model: Model with blocks, whole and in plain weights.
        tokenizer: Tokenizer of the model.
        max_rows: Number of rows in a step, at most; None leaves it to vLLM.
        options: Options of `vllm.LLM`, before those that are chosen here.

    Raises:
        CheckpointError: if vLLM cannot carry these blocks or this base.
        ConfigError: for a version of vLLM or options that cannot be.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_rows: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        # In one process the weights need no way of their own. vLLM reads it when an engine starts.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        for name in QUIET:
            logging.getLogger(f"vllm.{name}").setLevel(logging.ERROR)
        if why := why_not_version(vllm.__version__):
            raise ConfigError(why)
        self.model, self.tokenizer = base_model_of(model), tokenizer
        # vLLM's engine seeds the whole process.
        with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
            folder = export_for_vllm(self.model, Path(name))
            self._names = list(_names(folder))
            settings = self._settings() | (options or {})
            if max_rows is not None:
                settings["max_num_seqs"] = max_rows
            try:
                self._llm = vllm.LLM(str(folder), **settings)
            except ValueError as error:
                raise ConfigError(
                    f"vLLM does not start with rollout_options={options or {}}: "
                    f"{in_one_line(error)}"
                ) from error

    def _settings(self) -> dict[str, Any]:
        on_cpu = self.model.device.type == "cpu"
        memory = {"kv_cache_memory_bytes": 2**30} if on_cpu else {"gpu_memory_utilization": 0.3}
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "skip_tokenizer_init": True,
            "logprobs_mode": "processed_logprobs",
            "enforce_eager": on_cpu,
            # vLLM's CPU runner cannot sample a seeded row beside a part of a prompt.
            "enable_chunked_prefill": False,
            "disable_log_stats": True,
            **memory,
        }

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        sample_ids: Sequence[int | str],
    ) -> list[GroupOutput]:
        """One group for each prompt, in order, under the weights that the model has now.

        Args:
            prompts: Prompts as `interlace.Engine.generate` takes them.
            params: Parameters, of which width, max_new_tokens, temperature and seed count; one for
                all or one for each prompt.
            sample_ids: Ids that tell groups of the same prompt apart for their seeds.

        Raises:
            GenerationError: for prompts that vLLM does not take.
        """
        from vllm.exceptions import VLLMValidationError

        self.synchronise()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        ids = [encode(prompt, index, self.tokenizer) for index, prompt in enumerate(prompts)]
        asked = [
            self._params(own, row_keys(own.seed, tokens, sample_id, 1)[0])
            for own, tokens, sample_id in zip(each, ids, sample_ids, strict=True)
        ]
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": tokens} for tokens in ids], asked, use_tqdm=False
            )
        except VLLMValidationError as error:
            raise GenerationError(f"vLLM refuses a group: {in_one_line(error)}") from error
        return [
            GroupOutput(prompt, tokens, [self._completion(row) for row in output.outputs], own)
            for prompt, tokens, output, own in zip(prompts, ids, outputs, each, strict=True)
        ]

    def synchronise(self) -> None:
        """Hand over the weights that the model has now."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._weights()})
        self._llm.apply_model(_pack_head)
        self._llm.reset_prefix_cache()  # of prompts under the weights before

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        now = self.model.state_dict()
        for name in self._names:
            yield name, now[name].detach()

    def _params(self, params: SamplingParams, key: Any) -> Any:
        from vllm import SamplingParams as Theirs

        stop_ids = stop_ids_of(self.model, self.tokenizer, params)
        forbidden = forbidden_token_ids(self.model, self.tokenizer, stop_ids)
        return Theirs(
            n=params.width,
            max_tokens=params.longest,
            temperature=params.temperature,
            seed=int(key) >> 2,  # rows count on from it, within 63 bits
            stop_token_ids=sorted(stop_ids),
            ignore_eos=True,  # those ids hold it
            logit_bias=dict.fromkeys(forbidden, NEVER) or None,
            logprobs=0,
            detokenize=False,
        )

    def _completion(self, row: Any) -> Completion:
        tokens = list(row.token_ids)
        shown = tokens[:-1] if row.finish_reason == "stop" else tokens
        found = [step[token].logprob for step, token in zip(row.logprobs, tokens, strict=True)]
        return Completion(
            text=self.tokenizer.decode(shown, skip_special_tokens=True),
            token_ids=tokens,
            logprobs=[],  # vLLM gives one of the two
            sampled_logprobs=found,
            finish_reason=row.finish_reason,
        )


def _pack_head(model: Any) -> None:
    """On CPUs vLLM multiplies by packed copies, and leaves a tied head's out when it reloads."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            yield from file.keys()
