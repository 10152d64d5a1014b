"""One stage of a recipe, from its folder to its trained model.

The folder holds `recipe.yaml` (the recipe with all defaults, for that stage), the trainer's
checkpoints and logs, and in the end `model/`. The same recipe goes on there; another one is
refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interlace import __version__
from interlace.attached import get_attachment, is_attached, new_parameters
from interlace.attaching import attach, count_parameters
from interlace.configuration import defaults_of
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import default_config
from interlace.errors import ConfigError, RunError, differences, reading
from interlace.files import LOCK, is_complete, locate, move_aside, write_text
from interlace.models.loading import load
from interlace.saving.manifest import MANIFEST
from interlace.training.checkpoints import RESULT, held
from interlace.training.data import given_rewards
from interlace.training.recipe import OPERATIONAL, OWN_WARMUP, SECTIONS, Recipe, Stage
from interlace.training.responses import check_splice
from interlace.training.trl_fields import RENAMED

RECIPE = "recipe.yaml"
_CONSTANT = ("constant", "constant_with_warmup")
Note = Callable[[str], object]


def starting_folder(recipe: Recipe, stage: Stage) -> Path | None:
    """The folder of saved blocks (or of a whole model) that a stage starts from; None for the
    recipe's model with fresh blocks.

    Raises:
        ConfigError: if the folder is missing, or the warm-up in it was of other blocks.
    """
    if stage == "warmup" or recipe.blocks == "fresh":
        return None
    if recipe.blocks not in ("auto", OWN_WARMUP):
        folder = Path(recipe.blocks).expanduser()
        if not locate(folder, MANIFEST).exists():
            raise ConfigError(
                f"blocks is auto, warmup, fresh, or a folder that interlace.save wrote; "
                f"{recipe.blocks!r} is none: it has no {MANIFEST}."
            )
        return folder
    folder = recipe.folder("warmup") / RESULT
    if is_complete(folder):
        _check_warmup(recipe)
        return folder
    if recipe.blocks == OWN_WARMUP:
        raise ConfigError(
            f"blocks is warmup, but {folder} holds no finished warm-up. Run `interlace train "
            "warmup` with this recipe first."
        )
    return None


def _check_warmup(recipe: Recipe) -> None:
    """Refuse a warm-up of another model or of other blocks."""
    path = recipe.folder("warmup") / RECIPE
    if not path.exists():
        return
    then, now = _read(path), recipe.resolved("grpo")
    changed = differences({k: then.get(k) for k in ("model", "attach")}, now | {"blocks": None})
    changed = [line for line in changed if line.startswith(("model", "attach"))]
    if changed:
        raise ConfigError(
            f"The warm-up in {path.parent} was another one: {'; '.join(changed)}. Use another "
            "output_dir, `interlace train warmup --restart`, or blocks=fresh."
        )


def prepare_folder(
    recipe: Recipe,
    stage: Stage,
    *,
    restart: bool = False,
    first: bool = True,
    note: Note = warnings.warn,
) -> bool:
    """Make sure that the stage's folder is this recipe's, and write the resolved recipe there. The
    first process does so; others only look.

    Returns:
        Whether something was moved aside, for `restart`, and the folder is a new one.

    Raises:
        RunError: if the folder holds another run, or something else.
    """
    folder = recipe.folder(stage)
    now = recipe.resolved(stage)
    if stage == "grpo":
        start = starting_folder(recipe, stage)
        now["blocks"] = _blocks_word(recipe, start)
    moved = restart and first and bool(_content(folder))
    if moved:
        note(f"What was in {folder} is now in {move_aside(folder)}.")
    begun = bool(_content(folder) - {RECIPE})
    if (folder / RECIPE).exists() and begun:
        changed = blocking_differences(_read(folder / RECIPE), now, stage)
        if changed:
            raise RunError(
                f"{folder} holds a run of another recipe: {'; '.join(changed)}. Undo that to go on "
                "with it, choose another output_dir, or begin anew with --restart, which moves the "
                "folder aside."
            )
        return moved
    if begun:
        raise RunError(
            f"{folder} is not empty and has no {RECIPE} that says what it is. Choose another "
            "output_dir, or --restart, which moves the folder aside."
        )
    if first:
        with reading(RunError, f"The run folder {folder} cannot be written"):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / RECIPE, as_yaml(now, stage))
    return moved


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other runs out of a stage's folder; one of something else is left untouched."""
    content = _content(folder)
    if content and RECIPE not in content:
        yield  # `prepare_folder` refuses it, or moves it aside
        return
    with held(folder):
        yield


def _content(folder: Path) -> set[str]:
    if not folder.exists():
        return set()
    with reading(RunError, f"The run folder {folder} cannot be read"):
        # A kill while the recipe was written leaves no run that could be lost.
        return {entry.name for entry in folder.iterdir()} - {LOCK, f".{RECIPE}"}


def _blocks_word(recipe: Recipe, start: Path | None) -> str:
    if recipe.blocks not in ("auto", OWN_WARMUP):
        return recipe.blocks
    return "fresh" if start is None else OWN_WARMUP


def blocking_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], stage: Stage
) -> list[str]:
    """What forbids a run to go on: all differences but those of options that change nothing but
    rounding, of where the folder is, and of its length under a constant learning rate."""
    free = {f"{stage}.{name}" for name in OPERATIONAL} | {"output_dir"}
    if isinstance(written := then.get(stage), Mapping):  # it may lack what is newer than it
        defaults = defaults_of(SECTIONS[stage].config)
        newer = {name: defaults.get(name) for name in now[stage] if name not in written}
        then = {**then, stage: {**newer, **written}}
    if now[stage].get("lr_scheduler_type") in _CONSTANT:
        free |= {f"{stage}.max_steps", f"{stage}.num_train_epochs"}
    return [d for d in differences(then, now) if d.partition(" was ")[0] not in free]


def _read(path: Path) -> dict[str, Any]:
    with reading(RunError, f"{path} cannot be read", "--restart moves its folder aside."):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise RunError(f"{path} is no recipe. --restart moves its folder aside.")
    for section in filter(lambda own: isinstance(own, dict), values.values()):
        for old in RENAMED.keys() & section.keys():  # as version 0.1 wrote it
            section[RENAMED[old]] = section.pop(old)
    return values


def as_yaml(values: Mapping[str, Any], stage: Stage) -> str:
    """A resolved recipe as text."""
    head = (
        f"# interlace {__version__}: this run with all its defaults. A recipe for train {stage}.\n"
    )
    return head + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)


if TYPE_CHECKING:
    from interlace.tasks.base import Task
    from interlace.training.trainer import GroupTrainer

_YES = ("1", "true", "yes", "y", "t", "on")  # as accelerate reads it
# Options of interlace.load that say where the recipe's model is, not how to load it.
_WHERE = ("revision", "gguf_file", "base", "subfolder", "variant")


def train(
    recipe: Recipe, stage: Stage, *, restart: bool = False, note: Note = warnings.warn
) -> Path:
    """Run a stage, or go on with it.

    Args:
        recipe: Recipe to carry out.
        stage: Stage, "warmup" or "grpo".
        restart: Whether to begin anew; what is in the stage's folder is moved aside, not deleted.
        note: Function that is told what the user should know, in the first of several processes.

    Returns:
        The folder of the trained model, as `interlace.load` takes it.

    Raises:
        ConfigError: if the recipe contradicts itself, the model, or this machine.
        RunError: if the stage's folder holds something else.
    """
    task = build_task(recipe, stage)  # mistakes show before a model is loaded
    check_task(recipe, stage, task)
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
    else:  # the same model; the first process gives the warnings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model, tokenizer = build_model(recipe, stage, start, note=lambda text: None)
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


def build_task(recipe: Recipe, stage: Stage, **more: Any) -> Task:
    """The task that a stage trains on."""
    from interlace.tasks import get_task

    name, options = recipe.task_of(stage)
    return get_task(name, **{**options, **more})


def _evaluation_task(recipe: Recipe, stage: Stage, args: Any, task: Task) -> Task | None:
    """The held-out problems of the stage's task, if it measures while it trains."""
    if getattr(args.eval_strategy, "value", args.eval_strategy) == "no":
        return None
    if recipe.task_of(stage)[1].get("split") != "train":
        raise ConfigError(
            f"{stage}.eval_strategy measures on the task's split 'test', and this stage trains on "
            f"more than 'train': {recipe.task_of(stage)[1]}. Set task_options.split=train, or "
            "leave eval_strategy out."
        )
    return build_task(recipe, stage, split="test", **({} if task.chat else {"chat": False}))


def check_task(recipe: Recipe, stage: Stage, task: Task) -> None:
    """Raise if a reward that the recipe names is not there, or the task cannot splice."""
    options = recipe.options(stage)
    if stage == "grpo":
        given_rewards(list(options.rewards), list(options.rewards.values()), task)
    else:
        check_splice(task, options)


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
    """The model that a stage trains, blocks attached, and its tokenizer."""
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
    if not fresh and stage == "warmup" and is_attached(model):
        note(
            f"{recipe.model} has blocks already: they are trained further, and what is measured "
            "before is the model with them, not the model alone."
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
                "set attach=auto to go on training them."
            )
        if isinstance(wanted, CouplingConfig) and _resolved(wanted, model) != found:
            raise ConfigError(
                f"{where} has {_in_words(found)}, but attach asks for "
                f"{_in_words(_resolved(wanted, model))}. Set attach=auto to use what is there."
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
