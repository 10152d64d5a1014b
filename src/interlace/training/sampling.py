"""The part of a trainer that samples from the model that trains: its engine, the judge of what was
sampled, and evaluations on problems of their own."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from interlace.engine.engine import Engine
from interlace.errors import ConfigError
from interlace.tasks.base import Task
from interlace.training.arguments import GroupArguments
from interlace.training.data import RowsTask, as_task
from interlace.training.measuring import measure
from interlace.training.parameters import unwrapped
from interlace.training.resumable import ResumableTrainer
from interlace.training.rewarding import NamedReward, Verdicts, given_rewards, named_rewards
from interlace.training.rollout import Judge
from interlace.training.whole import gathered, without_autocast


class SamplingTrainer(ResumableTrainer):
    """See this module's head.

    Attributes:
        eval_tasks: Problems to measure on by name; one without a name has "".
    """

    eval_tasks: dict[str, Task]

    @abstractmethod
    def reduce(self, values: Tensor, how: str) -> Tensor:
        """Values summed or maximised over all processes."""

    def take_rewards(self, reward_funcs: Any) -> None:
        """Keep what a user gave as rewards; they are built for each set of problems."""
        self._reward_funcs = reward_funcs
        self._engine: Engine | None = None

    def take_evaluation(self, args: GroupArguments, given: Any, tokenizer: Any) -> None:
        """Keep the problems to measure on, and check that they can be.

        Raises:
            ConfigError: if there are none and the options ask to measure, or rewards do not fit.
        """
        named = given if isinstance(given, dict) else {} if given is None else {"": given}
        self.eval_tasks = {n: as_task(own, "test", tokenizer) for n, own in named.items()}
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        if strategy != "no" and not named:
            raise ConfigError(
                f"eval_strategy={strategy} needs eval_dataset: problems to measure on."
            )
        # Also before training, so that a reward that does not fit shows here.
        self._eval_judges = {n: self.judge_of(t, args) for n, t in self.eval_tasks.items()}

    def _rewards(self, task: Task, args: GroupArguments) -> list[NamedReward]:
        first = args.process_index == 0
        if self._reward_funcs is None:
            named = getattr(args, "rewards", {"correctness": 1.0})  # the warm-up names none
            return named_rewards(named, task, warn=first)
        weights = getattr(args, "reward_weights", None)
        return given_rewards(self._reward_funcs, weights, task, warn=first)

    def judge_of(self, task: Task, args: GroupArguments) -> Judge:
        """Verdicts and rewards for what is sampled of these problems."""
        verdicts = Verdicts(task)
        correct = args.correct_reward if isinstance(task, RowsTask) else None
        return Judge(verdicts, self._rewards(verdicts.task, args), correct)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """pass@1, votes, coverage and rewards at `eval_widths`, logged and returned.

        Args:
            eval_dataset: Problems instead of the trainer's, as there.
            ignore_keys: Not read.
            metric_key_prefix: Beginning of every metric's name.

        Raises:
            ConfigError: if there is nothing to measure on.
        """
        if eval_dataset is not None:
            self.take_evaluation(self.args, eval_dataset, self.tokenizer)
        if not self.eval_tasks:
            raise ConfigError("An evaluation needs eval_dataset: problems to measure on.")
        found: dict[str, float] = {}
        for name, task in self.eval_tasks.items():
            if len(task) < self.args.world_size:
                raise ConfigError(f"{len(task)} problems are fewer than processes measure.")
            with self.sampling_model() as model:
                engine, judge = self.sampler(model), self._eval_judges[name]
                own = measure(engine, task, judge, self.args, self.reduce, self.state)
            head = f"{metric_key_prefix}_{name}_" if name else f"{metric_key_prefix}_"
            found |= {head + metric: value for metric, value in own.items()}
        self.log(dict(found))
        base: Any = self
        base.control = base.callback_handler.on_evaluate(self.args, self.state, base.control, found)
        return found

    # Sampling.

    def sampler(self, model: nn.Module) -> Engine:
        """The engine on the modules that train."""
        if self._engine is None:
            self._engine = self.new_engine(model)
        return self._engine

    def new_engine(self, model: nn.Module) -> Engine:
        """Such an engine as samples the rollouts."""
        return Engine(model, self.tokenizer, max_rows=self.args.max_rows)

    @contextlib.contextmanager
    def sampling_model(self) -> Iterator[nn.Module]:
        """The very modules that train, whole, and without the autocast that accelerate wraps around
        their forward pass: the engine's packed products take the weights' own type."""
        model = unwrapped(self.model)
        on_cpu = self.args.device.type == "cpu"
        plain = without_autocast(model) if on_cpu else contextlib.nullcontext()
        with plain, gathered(self.model):
            yield model
