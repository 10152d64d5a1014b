"""One stage of a recipe, from its folder to its trained model."""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interlace.attaching import (
    attach,
    count_parameters,
    get_attachment,
    is_attached,
    new_parameters,
)
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import default_config
from interlace.errors import ConfigError
from interlace.models.loading import load
from interlace.training.recipe import Recipe, Stage
from interlace.training.rewarding import named_rewards
from interlace.training.run_folder import Note, holding, prepare_folder, starting_folder

if TYPE_CHECKING:
    from interlace.tasks.base import Task
    from interlace.training.trainer import GroupTrainer

# Options of interlace.load that say where the recipe's model is, not how to load it.
_YES = ("1", "true", "yes", "y", "t", "on")  # as accelerate reads it
_WHERE = ("revision", "gguf_file", "base", "subfolder", "variant")


def train(
    recipe: Recipe, stage: Stage, *, restart: bool = False, note: Note = warnings.warn
) -> Path:
    """Run a stage, or go on with it.

    Args:
        recipe: what to do.
        stage: "warmup" or "grpo".
        restart: begin anew; what is in the stage's folder is moved aside, not deleted.
        note: is told what the user should know, in the first of several processes.

    Returns:
        The folder of the trained model, as `interlace.load` takes it.

    Raises:
        ConfigError: if the recipe contradicts itself, the model, or this machine.
        RunError: if the stage's folder holds something else.
    """
    task = build_task(recipe, stage)  # mistakes show before a model is loaded
    check_rewards(recipe, stage, task)
    start = starting_folder(recipe, stage)
    args = recipe.arguments(stage)
    _refuse_empty_processes()
    first = args.process_index == 0
    with ExitStack() as held:
        # The first process settles the folder; the others then find it settled, or refuse it too.
        with args.main_process_first(local=False):
            if first:  # before anything moves: not from under a run at work
                held.enter_context(holding(recipe.folder(stage)))
            moved = prepare_folder(recipe, stage, restart=restart, first=first, note=note)
            if moved:
                held.enter_context(holding(recipe.folder(stage)))
        return _trained(recipe, stage, start, task, args, note)


def _trained(
    recipe: Recipe, stage: Stage, start: Path | None, task: Task, args: Any, note: Note
) -> Path:
    """Load the model and train it, in a folder that is this run's."""
    if args.process_index == 0:
        model, tokenizer = build_model(recipe, stage, start, note)
    else:  # the same model, of which the first process says what is to say
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model, tokenizer = build_model(recipe, stage, start, note=_say_nothing)
    if task.chat and not tokenizer.chat_template and "chat" not in recipe.task_of(stage)[1]:
        task = build_task(recipe, stage, chat=False)
    evaluated = _evaluation_task(recipe, stage, args, task)
    if stage == "warmup":
        from interlace.training.warmup import WarmupTrainer

        trainer: GroupTrainer = WarmupTrainer(model, None, args, task, evaluated, tokenizer)
    else:
        from interlace.training.grpo import GRPOTrainer

        trainer = GRPOTrainer(model, None, args, task, evaluated, tokenizer)
    trainer.folder_is_held = True
    return trainer.run()


def _say_nothing(text: str) -> None:
    pass


def build_task(recipe: Recipe, stage: Stage, **more: Any) -> Task:
    """The task that a stage trains on."""
    from interlace.tasks import get_task

    name, options = recipe.task_of(stage)
    return get_task(name, **{**options, **more})


def _evaluation_task(recipe: Recipe, stage: Stage, args: Any, task: Task) -> Task | None:
    """The held-out problems of the stage's task, if it measures while it trains.

    Raises:
        ConfigError: if the stage trains on more than the split "train".
    """
    if getattr(args.eval_strategy, "value", args.eval_strategy) == "no":
        return None
    if recipe.task_of(stage)[1].get("split") != "train":
        raise ConfigError(
            f"{stage}.eval_strategy measures on the task's split 'test', and this stage trains on "
            f"more than 'train': {recipe.task_of(stage)[1]}. Set task_options.split=train, or "
            "leave eval_strategy out."
        )
    return build_task(recipe, stage, split="test", **({} if task.chat else {"chat": False}))


def check_rewards(recipe: Recipe, stage: Stage, task: Task) -> None:
    """Raise if a reward that the recipe names is not there.

    Raises:
        ConfigError: for a name that is not known or cannot be imported.
    """
    if stage == "grpo":
        named_rewards(recipe.options(stage).rewards, task)


def _refuse_empty_processes() -> None:
    if os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "").lower() in _YES:
        raise ConfigError(
            "With fsdp_cpu_ram_efficient_loading only one process loads the weights, and blocks "
            "are attached after loading, in every process. Set it to false, as in "
            "recipes/accelerate/fsdp2.yaml."
        )


def build_model(
    recipe: Recipe, stage: Stage, start: Path | None, note: Note = warnings.warn
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a stage trains, blocks attached, and its tokenizer.

    Raises:
        ConfigError: if `attach` contradicts what the model has.
        LoadError: if it cannot be loaded.
    """
    if start is None:
        model, tokenizer = load(recipe.model, **recipe.load)
    else:
        kept = {name: value for name, value in recipe.load.items() if name not in _WHERE}
        model, tokenizer = load(start, **kept)
    fresh = attach_blocks(model, recipe, start)
    if fresh and stage == "grpo":
        note(
            "GRPO starts from fresh blocks. Without a warm-up nothing was seen to happen in 100 "
            "optimizer steps: run `interlace train warmup` with this recipe first."
        )
    return model, tokenizer


def attach_blocks(model: PreTrainedModel, recipe: Recipe, start: Path | None) -> bool:
    """Attach what the recipe says, or check that it is attached.

    Returns:
        Whether the blocks are fresh.

    Raises:
        ConfigError: if the model has other blocks.
    """
    where = recipe.model if start is None else str(start)
    wanted = recipe.attach
    if is_attached(model):
        found = get_attachment(model).config
        if wanted == "none":
            raise ConfigError(
                f"attach is none, but {where} has {found.kind} blocks. Use the base model, or "
                "leave attach out to go on training them."
            )
        if isinstance(wanted, CouplingConfig) and _resolved(wanted, model) != found:
            raise ConfigError(
                f"{where} has {_in_words(found)}, but attach asks for "
                f"{_in_words(_resolved(wanted, model))}. Leave attach out to use what is there."
            )
        return False
    if wanted == "none":
        return False
    if start is not None and isinstance(wanted, CouplingConfig):
        raise ConfigError(
            f"attach asks for {wanted.kind} blocks, but {where}, where this stage starts, has "
            "none. Set attach=none, or blocks=fresh."
        )
    attach(model, default_config() if wanted == "auto" else wanted, seed=recipe.seed)
    return True


def _resolved(config: CouplingConfig, model: PreTrainedModel) -> CouplingConfig:
    sizes = model.config.get_text_config(decoder=True)
    base = count_parameters(model) - sum(p.numel() for _, p in new_parameters(model))
    return config.resolve(sizes.hidden_size, sizes.num_hidden_layers, base)


def _in_words(config: CouplingConfig) -> str:
    layers = len(config.layers) if isinstance(config.layers, list) else config.layers
    return (
        f"{config.kind} blocks ({', '.join(map(' '.join, config.facts().items()))}) "
        f"on {layers} layers"
    )
