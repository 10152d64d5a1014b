"""A stage's model without its weights, and its longest prompt."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interlace.attaching import detach
from interlace.coupling.config import CouplingConfig
from interlace.engine.request import encode
from interlace.errors import LoadError, reading
from interlace.models.describe import describe
from interlace.models.loading import base_of, load_tokenizer
from interlace.models.source import GgufFile, HubModel, SavedBlocks, Source, resolve
from interlace.tasks.base import Task
from interlace.training.recipe import Recipe, Stage
from interlace.training.run import attach_blocks, starting_folder
from interlace.training.weights import choose_parameters

_PROMPTS = 256  # looked at for the longest one


def skeleton(recipe: Recipe, stage: Stage) -> tuple[PreTrainedModel, Source]:
    """The model that a stage trains on the meta device, `requires_grad` as it will be.

    Raises:
        ConfigError: if `attach` contradicts what the model has.
        LoadError: if its configuration cannot be read.
    """
    start = starting_folder(recipe, stage)
    options = recipe.load if start is None else {}
    source = resolve(
        recipe.model if start is None else start,
        revision=options.get("revision"),
        gguf_file=options.get("gguf_file"),
        weights=False,
    )
    saved = isinstance(source, SavedBlocks)
    config = recipe.attach if isinstance(recipe.attach, CouplingConfig) and not saved else None
    _, model = describe(
        source,
        config,
        base=options.get("base"),
        dtype=recipe.load.get("dtype"),
        trust_remote_code=bool(recipe.load.get("trust_remote_code")),
    )
    if recipe.attach == "none" and not saved:
        detach(model)
    else:
        attach_blocks(model, recipe, start)
    choose_parameters(model, recipe.options(stage))
    return model, source


def longest_prompt(source: Source, task: Task) -> int:
    """Tokens of the longest of the task's first prompts.

    Raises:
        LoadError: if there is no tokenizer.
    """
    tokenizer = _tokenizer(source)
    found = 0
    for index, example in enumerate(task[:_PROMPTS]):
        prompt: Any = task.prompt(example)
        if not isinstance(prompt, str) and not tokenizer.chat_template:
            prompt = "\n".join(message["content"] for message in prompt)
        found = max(found, len(encode(prompt, index, tokenizer)))
    return found


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    found = source
    if isinstance(source, SavedBlocks):
        if (own := source.own_tokenizer()) is not None:
            return load_tokenizer(own, {})
        found = base_of(source)
    if isinstance(found, GgufFile):
        with reading(LoadError, f"{found.path} has no tokenizer that can be loaded"):
            return AutoTokenizer.from_pretrained(found.path.parent, gguf_file=found.path.name)
    assert isinstance(found, HubModel)
    return load_tokenizer(found, {})
