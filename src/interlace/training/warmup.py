"""The warm-up: next-token loss on groups of responses that the base model got right.

Its point is that the blocks leave zero in a direction that helps: siblings' features start to say
something about the next token (METHOD.md, "Training", 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from interlace.answers import extract_answer
from interlace.attached import unwrapped
from interlace.engine.engine import Engine
from interlace.errors import ConfigError
from interlace.tasks.base import Example, Verdict
from interlace.training.arguments import WarmupConfig
from interlace.training.batch import GroupBatch, collate_ids
from interlace.training.data import PROMPT, NamedReward, RowsTask, given_rewards
from interlace.training.responses import Item, check_splice, read_responses, sample_responses
from interlace.training.rollout import add_up, as_completion, columns_of, draw_indices
from interlace.training.scoring import score
from interlace.training.trainer import GroupTrainer

RESPONSES = "responses"


class WarmupTrainer(GroupTrainer):
    """Trains freshly attached blocks on groups of correct responses.

    Takes the arguments of `GroupTrainer`, which are TRL's: the model has fresh blocks; while they
    are zero it is the base model, which is sampled. Where problems come without a verifier,
    `reward_funcs` say which responses are right: those whose rewards add up to at least 1.
    """

    config_class = WarmupConfig
    args: WarmupConfig
    _items: Sequence[Item] = ()

    def make_ready(self) -> None:
        task = self.task
        if self.args.data is None:
            check_splice(task, self.args)
        if not isinstance(task, RowsTask) or task.judge or self.args.data is not None:
            return
        if self._reward_funcs is None:
            raise ConfigError(
                "The warm-up learns responses that are right, and a plain data set has no "
                "verifier. Pass reward_funcs (right is a sum of at least 1), a task, or ready "
                "responses as args.data."
            )
        self.task = RowsTask(
            task.rows, partial(_right, given_rewards(self._reward_funcs, None, task))
        )

    def steps_per_epoch(self, args: Any) -> float:
        problems = min(args.problems or len(self.task), len(self.task))
        groups = len(self._items) or problems  # until it is known how many problems are kept
        return float(max(groups / args.groups_per_step, 1.0))

    def prepare(self) -> None:
        self._items = self._data_set()
        self.settle_steps(self.args)

    def _data_set(self) -> list[Item]:
        """The data set: the one given, or sampled from the base model and stored."""
        args = self.args
        if args.data is not None:
            paths = [Path(args.data)]
        else:
            folder = self.folder / RESPONSES
            paths = [
                folder / f"{index}-of-{args.world_size}.jsonl" for index in range(args.world_size)
            ]
            own = args.process_index
            with self._placed_model() as model:
                engine = Engine(model, self.tokenizer, max_rows=args.max_rows)
                sample_responses(engine, self.task, args, paths[own], (own, args.world_size))
            self.accelerator.wait_for_everyone()
        vocabulary = int(self.model.config.get_text_config(decoder=True).vocab_size)
        items = read_responses(paths, self.tokenizer, args, vocabulary)
        widest = max(len(item.completions) for item in items)
        if args.micro_rows is not None and args.micro_rows < widest:
            raise ConfigError(
                "A forward pass holds whole groups, never a part of one: micro_rows="
                f"{args.micro_rows} is less than the {widest} responses of the widest group. Use "
                f"micro_rows={widest} or more, or fewer samples."
            )
        return items

    @contextmanager
    def _placed_model(self) -> Iterator[nn.Module]:
        """The whole model where it computes: one that is sharded later is still on the CPU."""
        model = unwrapped(self.model)
        home = next(model.parameters()).device
        if not self.is_fsdp_enabled or home == self.args.device:
            yield model
            return
        model.to(self.args.device)
        try:
            yield model
        finally:
            model.to(home)

    def parts_of(self, step: int) -> tuple[Sequence[GroupBatch], GroupBatch]:
        args = self.args
        count = args.groups_per_step
        indices = draw_indices(int(args.seed), len(self._items), step * count, (step + 1) * count)
        chosen = [self._items[index] for index in indices]
        mine = sorted(chosen[args.process_index :: args.world_size], key=_size)
        spare = replace(self._part(sorted(chosen, key=_size)[:1]), counts=False)
        return [self._part(entries) for entries in self._micro_batches(mine)], spare

    def weight_of(self, part: GroupBatch) -> float:
        return float(part.completion_mask.sum())

    def loss_of(
        self, model: nn.Module, part: GroupBatch, denominator: float, first: bool
    ) -> Tensor:
        # At temperature 1 and with nothing forbidden: the plain next-token loss.
        logprobs = score(model, part, prompt_once=self.args.prompt_once).logprobs
        tokens = self.weight_of(part) if part.counts else 0.0
        self.tally.total("tokens/train", tokens)
        self.tally.total("groups", part.count if part.counts else 0.0)
        return -logprobs.sum() / denominator

    def _micro_batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """Groups of similar size, as many as `micro_rows` holds with their widest one's width."""
        most = self.args.micro_rows
        found: list[list[Item]] = []
        for item in items:  # ascending, so the item that is added is the widest
            width = len(item.completions)
            full = most is not None and found and (len(found[-1]) + 1) * width > most
            if not found or full:
                found.append([])
            found[-1].append(item)
        return found

    def _part(self, items: Sequence[Item]) -> GroupBatch:
        batch = collate_ids(
            [item.prompt for item in items],
            [item.completions for item in items],
            self.pad_token_id,
        )
        return batch.to(self.args.device)


def _right(rewards: Sequence[NamedReward], example: Example, text: str) -> Verdict:
    """The verdict of rewards on one text."""
    prompt = example.data[PROMPT]
    columns = columns_of(RowsTask([dict(example.data)]), [example])
    columns |= {"examples": [example], "groups": [0], "completion_ids": [[]]}
    total = add_up(rewards, [prompt], [as_completion(prompt, text)], columns)[0][0]
    return Verdict(total >= 1.0, total, extract_answer(text), "by its rewards")


def _size(item: Item) -> tuple[int, int]:
    return len(item.completions), max(map(len, item.completions))
