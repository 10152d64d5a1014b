"""`interlace.evaluate`: sample a task at every width, judge the rows, measure, write it all down.

Letters: W width, M groups of a problem, n = M W rows of a problem. Rows of a coupled model depend
on their siblings, so every width is a generation run of its own; rows of an independent model are
exchangeable, so it is sampled once at the largest width and every k is derived (METHOD.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.answers.choose import Scorer
from interlace.batch import Progress, Tally, run_groups
from interlace.coupling.registry import coupling_class
from interlace.errors import ConfigError
from interlace.evaluation.figures import FORMATS
from interlace.evaluation.provenance import (
    as_json,
    describe_engine,
    describe_sampling,
    describe_task,
    qualified_name,
)
from interlace.evaluation.results import ArmResult
from interlace.evaluation.run import RunFolder, report_of, result_of, write_report
from interlace.evaluation.sampler import Jobs, Recorder, groups_by_width
from interlace.tasks import Task

if TYPE_CHECKING:
    from interlace.engine.engine import Engine
    from interlace.engine.types import SamplingParams
    from interlace.evaluation.responses import RecordedResponses
    from interlace.remote import RemoteEngine

WIDTHS = (1, 2, 4, 8, 16)
BATCH_ROWS = 256
TIMED = 4
MAX_NEW_TOKENS = 512
BASE_ARM = "base"


def evaluate(
    engine: Engine | RemoteEngine | RecordedResponses,
    task: Task,
    widths: Sequence[int] = WIDTHS,
    *,
    limit: int | None = None,
    groups_per_problem: int = 1,
    samples: int | None = None,
    params: SamplingParams | None = None,
    seed: int | None = None,
    arm: str | None = None,
    training_seed: int | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    symbolic_votes: bool = False,
    timed: int = TIMED,
    batch_rows: int = BATCH_ROWS,
    output: str | Path | None = None,
    overwrite: bool = False,
    figures: Sequence[str] = FORMATS,
    progress: Progress | None = None,
    notes: Mapping[str, Any] | None = None,
) -> ArmResult:
    """Sample a task at every width and measure pass@1, votes, G-Pass@k, diversity, tokens, seconds.

    Args:
        engine: Engine with the model, attached or not; a server, or responses made elsewhere.
        task: Task with the problems; `interlace.tasks.get_task` builds one.
        widths: Widths to measure. A model whose rows see each other (Bridge) runs each of them. Any
            other runs the largest, and every k up to it follows.
        limit: Number of problems, from the first on; None for all.
        groups_per_problem: Number of groups of each problem at every width, M.
        samples: Number of rows of each problem at every width, n, instead of M, so that means over
            rows rest on equally many; a multiple of every width.
        params: Parameters of sampling; their width does not count. By default temperature 1 and up
            to 512 tokens.
        seed: Seed instead of that of `params`.
        arm: Name of the arm; by default "base", or the title of what is attached, such as "Bridge".
        training_seed: Seed the model was trained with; None for one that was not trained here.
        scorers: Functions by name that score rows without knowing the right answer, for weighted
            and best-of-n votes: `f(text) -> float`, or with TRL's signature `f(prompts,
            completions, question, **columns) -> list[float]`. Scores are at least 0.
        symbolic_votes: Whether answers that math-verify finds equal are one vote (extra `math`).
        timed: Number of problems of which a group is sampled once more, alone, at every width, for
            its seconds (of the processor on a CPU); with 0 there are no seconds.
        batch_rows: Number of rows in one call of the engine; after a kill at most so many are
            sampled again.
        output: Folder for the raw generations, the result, a report and figures. If it holds an
            unfinished run of the same configuration, that run goes on.
        overwrite: Whether to begin the folder anew.
        figures: File types of the figures; none draws none.
        progress: Function called after every step of the engine.
        notes: Facts to keep with the result, as JSON values; they have to be the same when a run
            goes on.

    Returns:
        The result, with an interval for every number.

    Raises:
        ConfigError: for arguments that are out of range or contradict each other.
        RunError: if `output` holds another run.
        GenerationError: for prompts that the engine cannot carry out.
        GenerationInterrupted: on Ctrl-C; what was recorded in `output` is kept.

    ```
    result = interlace.evaluate(engine, task, widths=[1, 2, 4, 8, 16], output="runs/bridge")
    result.get("maj", 8).estimate
    ```
    """
    chosen = _params(params, seed)
    model = describe_engine(engine)
    coupling = coupling_class(model["blocks"]["kind"]) if model["blocks"] else None
    coupled = getattr(engine, "coupled", coupling is not None and coupling.couples)
    if (limit is not None and limit < 1) or timed < 0:
        raise ConfigError(f"limit is at least 1 and timed at least 0; got {limit} and {timed}.")
    examples = list(task)[:limit]
    groups = groups_by_width(
        widths, coupled=coupled, groups_per_problem=groups_per_problem, samples=samples
    )
    settings = as_json(
        {
            "arm": arm or (coupling.title if coupling else BASE_ARM),
            "training_seed": training_seed,
            "coupled": coupled,
            "widths": sorted(widths),
            "groups": groups,
            "seed": chosen.seed,
            "sampling": getattr(engine, "sampling", None) or describe_sampling(chosen),
            "batch_rows": batch_rows,
            "timed": timed,
            "scorers": {name: qualified_name(scorer) for name, scorer in (scorers or {}).items()},
            "symbolic_votes": symbolic_votes,
            "model": model,
            "task": describe_task(task, examples),
            "notes": notes or {},
        }
    )
    prompts = [engine.encode(task.prompt(example), n) for n, example in enumerate(examples)]
    jobs = Jobs(task, examples, prompts)
    calls = jobs.calls(groups, batch_rows)
    tally = Tally(sum(map(len, calls)), sum(job.width for call in calls for job in call))
    progress = progress or (lambda tally: None)
    with RunFolder(output, settings, overwrite=overwrite) as kept:
        recorder = Recorder(engine, task, chosen, coupled, scorers or {}, kept, tally)
        run_groups(engine, calls, chosen, recorder, tally, progress)
        recorder.time(jobs.timed(timed, widths), progress)
        result = result_of(settings, kept.environments, kept.records.values(), kept.timings)
        if output is not None:
            write_report(Path(output), report_of(result), figures)
    return result


def _params(params: SamplingParams | None, seed: int | None) -> SamplingParams:
    from interlace.engine.types import SamplingParams

    chosen = params or SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    return chosen if seed is None else chosen.replace(seed=seed)
