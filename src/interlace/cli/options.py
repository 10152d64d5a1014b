"""Options that several commands share: which model, on what, and how it samples."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from interlace.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interlace.engine.types import SamplingParams

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
        """How to sample: the options that are parameters of sampling.

        Raises:
            GenerationError: for a value out of its range.
        """
        from interlace.engine.types import SamplingParams

        names = {field.name for field in fields(SamplingParams)}
        values = {name: value for name, value in vars(self).items() if name in names}
        return SamplingParams(**values | changes)


def check_loading(settings: Any) -> None:
    """Check that the options of a command name a model, and leave room for it.

    Raises:
        ConfigError: without a model, or for memory that is none.
    """
    if not settings.model:
        raise ConfigError("Say which model: --model Qwen/Qwen2.5-1.5B-Instruct, or a folder.")
    if settings.memory is not None and not settings.memory > 0:
        raise ConfigError(f"--memory is a number of GiB above 0; got {settings.memory}.")
