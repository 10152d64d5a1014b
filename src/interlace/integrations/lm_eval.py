"""lm-evaluation-harness with groups: the `repeats` of a document are the rows of one group.

    python -m interlace.integrations.lm_eval run --model interlace \\
        --model_args pretrained=out/,width=8 --tasks my_task.yaml

That is `lm_eval` with the model `interlace` registered, which the harness has no other way of
finding; from Python, importing this module does the same. A task says how many responses it wants
of a document with `repeats: 8`, and what to make of them with its filters, such as `majority_vote`.
The responses of a document are sampled as groups of `width` rows that see each other (all of them
as one group by default). Log-likelihoods come from Hugging Face's forward at width 1.

Letters: W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from interlace.errors import ConfigError, GenerationError, MissingDependencyError

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from tqdm import tqdm  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingDependencyError(
        "The integration with lm-evaluation-harness needs the package lm-eval, which is not "
        'installed: pip install "interlace[lm-eval]"'
    ) from error

from transformers import PreTrainedModel

from interlace.engine.engine import Engine
from interlace.engine.types import EngineStats, GroupOutput, SamplingParams
from interlace.models.loading import load

# What a task may ask of a generation, besides where it ends, and what it is called here.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class _Ask:
    """One group to sample: a document, and how."""

    prompt: list[int]
    params: SamplingParams
    sample_id: str
    stop: list[str]


@register_model("interlace")
class InterlaceLM(HFLM):  # type: ignore[misc]
    """A model whose responses to one document see each other.

    Args:
        pretrained: Source of the model, as `interlace.load` takes it, or a loaded model.
        tokenizer: Tokenizer, for a loaded model.
        width: Number of rows of a group, W; a task's `repeats` is a multiple of it. None takes all
            repeats as one group.
        seed: Seed; the same one gives the same responses.
        base: Base model of saved blocks, if not where they say.
        revision: Branch, tag or commit of a hub id.
        dtype: Data type of the weights; by default the checkpoint's.
        device: Device, such as "cuda"; by default a GPU if there is one.
        gguf_file: Name of the file, where a folder or repository holds several GGUF files.
        trust_remote_code: Whether to run code that comes with the model.
        memory: GiB for keys and values; None takes what fits.
        think_end_token: Text after which the answer begins, if the model thinks first.
        **options: Options as for the harness's `hf` model: `batch_size` (for log-likelihoods),
            `max_length`, `add_bos_token` and so on.

    Raises:
        ConfigError: for a width below 1, or a thinking token that is no text.
        LoadError: if the model cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        tokenizer: Any = None,
        *,
        width: int | None = None,
        seed: int = 0,
        base: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        memory: float | None = None,
        think_end_token: str | int | None = None,
        **options: Any,
    ) -> None:
        if width is not None and width < 1:
            raise ConfigError(f"width is at least 1; got {width}.")
        if think_end_token is not None and not isinstance(think_end_token, str):
            raise ConfigError(
                f"think_end_token is given as text, such as </think>; got {think_end_token!r}."
            )
        if isinstance(pretrained, str):
            pretrained, tokenizer = load(
                pretrained,
                base=base,
                tokenizer=tokenizer,
                revision=revision,
                dtype=None if dtype == "auto" else dtype,
                device=_device(device),
                gguf_file=gguf_file,
                trust_remote_code=trust_remote_code,
            )
        super().__init__(
            pretrained=pretrained,
            tokenizer=tokenizer,
            think_end_token=think_end_token,
            **options,
        )
        budget = None if memory is None else int(memory * 2**30)
        self.engine = Engine(self.model, self.tokenizer, memory_budget=budget)
        self.width = width
        self.seed = seed

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The responses to all requests; consecutive requests for one document are one document's
        repeats.

        Args:
            requests: Requests as the harness gives them: each document's as often as its `repeats`.
            disable_tqdm: Whether to hide progress.

        Raises:
            GenerationError: for repeats that do not make up groups, or options that the engine does
                not have.
        """
        documents = [list(run) for _, run in groupby(requests, key=id)]
        asks = [ask for document in documents for ask in self._asks(document)]
        groups = self._sample(asks, disable_tqdm)
        texts = [
            postprocess_generated_text(text, ask.stop, self.think_end_token)
            for ask, group in zip(asks, groups, strict=True)
            for text in group.texts
        ]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _asks(self, document: Sequence[Instance]) -> list[_Ask]:
        """The groups of one document."""
        request, repeats = document[0], len(document)
        width = self.width or repeats
        if repeats % width:
            raise GenerationError(
                f"The task {request.task_name!r} wants {repeats} responses to a document, which "
                f"do not fill whole groups of width {width}. Set the task's `repeats` to a "
                "multiple of it, or leave out width."
            )
        context, options = request.args
        params, stop = self._params(options, width, request.task_name)
        room = self.max_length - params.longest
        if room < 1:
            raise GenerationError(
                f"The task {request.task_name!r} wants up to {params.longest} tokens, and the "
                f"model's context is {self.max_length}: there is no room for a prompt. Lower "
                "max_gen_toks with --gen_kwargs."
            )
        prompt = self.tok_encode(context, left_truncate_len=room)
        name = f"{request.task_name}/{request.doc_id}/{request.idx}"
        return [_Ask(prompt, params, f"{name}/{m}", stop) for m in range(repeats // width)]

    def _params(
        self, options: Mapping[str, Any], width: int, task: str | None
    ) -> tuple[SamplingParams, list[str]]:
        """How to sample, and where texts end."""
        asked = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        stop = [text for text in asked.pop("until") if text]
        most, samples = asked.pop("max_gen_toks"), asked.pop("do_sample", False)
        values = {name: asked.pop(name) for name in SAMPLING if name in asked}
        if asked:
            raise GenerationError(
                f"The task {task!r} asks for {', '.join(asked)}, which the engine does not have; "
                f"it has {', '.join(SAMPLING)}. Override the task's generation_kwargs."
            )
        if not samples:
            values["temperature"] = 0.0
        if width > 1 and values.get("temperature") == 0:
            raise GenerationError(
                f"The task {task!r} samples greedily, and {width} greedy rows are {width} copies. "
                "Pass --gen_kwargs do_sample=True,temperature=1.0, or width=1."
            )
        # The end of thinking is found in the text, and stop strings count after it only.
        ends = () if self.think_end_token else tuple(stop)
        params = SamplingParams(
            width=width, max_new_tokens=most, stop=ends, seed=self.seed, **values
        )
        return params, stop

    def _sample(self, asks: Sequence[_Ask], quiet: bool) -> list[GroupOutput]:
        groups: dict[int, GroupOutput] = {}
        rows = sum(ask.params.width for ask in asks)
        with tqdm(total=rows, disable=quiet, desc="Sampling groups, rows") as bar:

            def show(stats: EngineStats) -> None:
                bar.set_postfix(tokens=stats.sampled_tokens, refresh=False)

            for index, group in self.engine.as_completed(
                [ask.prompt for ask in asks],
                [ask.params for ask in asks],
                sample_ids=[ask.sample_id for ask in asks],
                progress=show,
            ):
                groups[index] = group
                bar.update(group.params.width)
        return [groups[index] for index in range(len(asks))]


def _device(asked: str | None) -> str | None:
    """The harness says "cuda:0" where nothing was said: then a GPU only if there is one."""
    import torch

    if asked is None or asked.startswith("cuda"):
        return (asked or "cuda") if torch.cuda.is_available() else None
    return asked


if __name__ == "__main__":
    cli_evaluate()
