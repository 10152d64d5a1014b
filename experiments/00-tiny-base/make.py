"""Make a tiny base model: a Llama of 0.4 M parameters that searches for countdown solutions.

    python experiments/00-tiny-base/make.py --seed 0     # minutes on one core
    python experiments/00-tiny-base/make.py --seed 0 --max-number 25 --steps 4500   # for 05

Trains on search traces (`traces.py`) of problems of the split "train" only, then measures on the
held-out ones. Seed 0 with the default settings becomes the packaged model `tiny`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from habits import habits
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from traces import ID, TRIES, TRY_TOKENS, VOCABULARY, Policy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import interlace
from interlace.jsonl import to_json
from interlace.saving.fingerprint import remember_origin
from interlace.tasks import get_task

HERE = Path(__file__).parent
MEASURED = 400  # of the problems held out, where there are more than 395
PACKAGED = HERE.parents[1] / "src" / "interlace" / "models" / "packaged" / "tiny"


@dataclass(frozen=True)
class Settings:
    """How a base is made; see the README for why."""

    seed: int = 0
    steps: int = 1500
    rows: int = 128
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    followed_weight: float = 3.0  # loss weight of a token that follows, against one drawn
    odd: float = 0.1
    guided: float = 0.2
    reach: float = 10.0
    max_number: int = 9

    @property
    def folder(self) -> Path:
        """Where results go, and the model unless it is the packaged one."""
        home = HERE if self.max_number == 9 else HERE / f"up-to-{self.max_number}"
        return home / f"seed-{self.seed}"

    def task(self, split: Any, size: int | None = None) -> Any:
        """The problems of a split."""
        return get_task("tiny-countdown", split=split, max_number=self.max_number, size=size)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Every whole number and every sign a token; texts are tokens set apart by spaces."""
    words = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    pieces = pre_tokenizers.Split(Regex(r"[0-9]+|[a-z]+|->|."), "isolated")
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def new_model() -> LlamaForCausalLM:
    """Four layers of width 96, input and output embeddings tied."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=ID["<pad>"],
        eos_token_id=ID["<eos>"],
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        pad_token_id=ID["<pad>"], eos_token_id=ID["<eos>"], do_sample=True
    )
    return model


def train(settings: Settings) -> LlamaForCausalLM:
    """The trained model: next-token loss on fresh traces, prompts left out."""
    torch.manual_seed(settings.seed)
    model = new_model().train()
    problems = [(e.data["numbers"], e.data["target"]) for e in settings.task("train")]
    policy = Policy(
        problems,
        odd=settings.odd,
        guided=settings.guided,
        reach=settings.reach,
        seed=settings.seed,
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    columns = [TextColumn("seed {task.fields[seed]}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[state]}"), TimeElapsedColumn()]
    with Progress(*columns) as bar:
        shown = bar.add_task("", total=settings.steps, seed=settings.seed, state="")
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate(step, settings)
            ids, kinds = (torch.from_numpy(array) for array in policy(settings.rows))
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            follows = (kinds[:, 1:] == 2).flatten()
            weights = torch.where(follows, settings.followed_weight, 1.0)
            weights = weights * (kinds[:, 1:] > 0).flatten()
            loss = (losses * weights).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 20 == 0:
                state = f"loss {loss.item():.3f}, of what follows {losses[follows].mean():.3f}"
                bar.update(shown, completed=step + 1, state=state)
                if step % 200 == 0:
                    bar.console.print(f"{step:5d} {state}")
        bar.update(shown, completed=settings.steps)
    return model.eval()


def rate(step: int, settings: Settings) -> float:
    """Share of the learning rate: up in a line, then down a cosine to a fiftieth."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2


def measure(folder: Path, settings: Settings) -> dict[str, Any]:
    """Sample held-out problems, 16 rows each; records and report go into the results."""
    task = settings.task("test", None if settings.max_number == 9 else MEASURED)
    output = settings.folder / "evaluation"
    model, tokenizer = interlace.load(folder)
    # By name, not by where the repository happens to be.
    name = (
        "tiny" if folder == PACKAGED else Path(os.path.relpath(folder, HERE.parents[1])).as_posix()
    )
    remember_origin(model, name, None)
    result = interlace.evaluate(
        interlace.Engine(model, tokenizer),
        task,
        widths=[1, 8, 16],
        params=interlace.SamplingParams(max_new_tokens=TRIES * TRY_TOKENS),
        arm="base",
        training_seed=settings.seed,
        timed=0,
        output=output,
        overwrite=True,
        figures=(),
    )
    table = [
        {"metric": f"{name}@{width}", **to_json(result.get(metric, width).estimate)}
        for name, metric, width in (
            ("pass", "pass@1", 1),
            ("pass", "coverage", 8),
            ("pass", "coverage", 16),
            ("maj", "maj", 8),
            ("maj", "maj", 16),
            ("distinct", "distinct_answers", 8),
        )
    ]
    raw = output / "records.jsonl"
    lines = raw.read_text().split("\n")[:-1]
    with gzip.GzipFile(f"{raw}.gz", "wb", mtime=0) as file:
        file.write(raw.read_bytes())
    raw.unlink()
    return {"held_out": table, "habits": habits(task, map(json.loads, lines))}


def options() -> tuple[Settings, Path]:
    """What the command line says: the settings, and the model's folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in fields(Settings):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    parser.add_argument("--out", type=Path, help="folder of the model, for seed 0 the packaged one")
    given = vars(parser.parse_args())
    folder = given.pop("out")
    settings = Settings(**given)
    packaged = settings == Settings()
    return settings, folder or (PACKAGED if packaged else settings.folder / "model")


def main() -> None:
    torch.set_num_threads(1)
    settings, folder = options()
    started = time.monotonic()
    model = train(settings)
    seconds = time.monotonic() - started
    model.save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    outcome = {
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "vocabulary": len(VOCABULARY),
        "training_seconds": round(seconds),
        **measure(folder, settings),
    }
    (settings.folder / "outcome.json").write_text(json.dumps(outcome, indent=1) + "\n")
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
