"""Groups from a server: an engine's methods over any OpenAI-compatible API.

One request is one group: its n choices. Interlace's own server keeps the rows of a group together,
and takes seeds, sample ids and all sampling options; so does vLLM with the plug-in. A plain server
gives n independent rows: the baseline.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from interlace.engine.request import checked_ids, checked_prompt, list_of_prompts, one_each
from interlace.engine.types import (
    Completion,
    EngineStats,
    GroupOutput,
    Prompt,
    SamplingParams,
    Step,
)
from interlace.errors import GenerationError, GenerationInterrupted, require

UNKNOWN = -1  # token id where the server tells none
_SEEDS = 2**31  # what every server takes
_MOST_TOLD = 300  # characters of a server's message
_Job = tuple[Future[GroupOutput], Callable[[], GroupOutput]]


class RemoteEngine:
    """Samples groups from a model that a server has.

    It has the methods of `Engine` that `evaluate`, `generate` and data generation use. Requests run
    side by side; one that fails for a moment (connection, 429, 5xx) is repeated with growing
    pauses.

    Args:
        base_url: Address of the API, such as "http://127.0.0.1:8000/v1".
        model: Name of the model there; None takes the only one. A server that lists none is
            believed to have it.
        api_key: Key; None takes OPENAI_API_KEY, or none.
        coupled: Whether the n choices of a request read each other there; None asks the server,
            and takes False where it does not say.
        chat: Whether texts are sent as a user's message; None asks the server, and takes True
            where it does not say.
        concurrency: Number of requests side by side.
        retries: Number of times that a request is repeated.
        timeout: Number of seconds that a request may take.

    Attributes:
        id: Address and name of the model, for records.
        kind: Kind of blocks that the server says its model has, or None.

    Raises:
        GenerationError: for an address that is none, no requests side by side, and if the server
            cannot be reached, or has no such model.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        coupled: bool | None = None,
        chat: bool | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 600.0,
    ) -> None:
        require("openai", "serve", "RemoteEngine")
        import openai

        if concurrency < 1 or retries < 0 or not timeout > 0:
            raise GenerationError(
                "concurrency is at least 1, retries at least 0 and timeout above 0; got "
                f"{concurrency}, {retries} and {timeout}."
            )
        _check_address(base_url)

        self._openai = openai
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=retries,
            timeout=timeout,
        )
        self._concurrency = concurrency
        self.stats = EngineStats()
        entry = self._find(model)
        self.model_name: str = entry["id"]
        self.id = f"{base_url.rstrip('/')}#{self.model_name}"
        self._is_ours = entry.get("owned_by") == "interlace"
        self.kind: str | None = entry.get("coupling") if self._is_ours else None
        self.coupled = bool(self.kind and entry.get("couples")) if coupled is None else coupled
        self.chats = bool(entry.get("chat", True)) if chat is None else chat

    @property
    def description(self) -> dict[str, Any]:
        """What tells this model from another, as far as the server says."""
        blocks = {"kind": self.kind} if self.kind else None
        unknown = dict.fromkeys(("revision", "parameters", "dtype", "dequantised_from", "weights"))
        return {"id": self.id, "architecture": "a server's", "blocks": blocks, **unknown}

    # What `Engine` has --------------------------------------------------------------------------

    def encode(self, prompt: Prompt, index: int = 0) -> Prompt:
        """The prompt as it is: the server makes tokens of it.

        Raises:
            GenerationError: for an empty one, and for what is no prompt.
        """
        prompt = checked_prompt(prompt, index)
        if not len(prompt):
            raise GenerationError(f"Prompt {index} is empty: give at least one token or character.")
        return prompt

    def generate(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sample_ids: Sequence[int | str] | None = None,
        progress: Callable[[EngineStats], None] | None = None,
    ) -> list[GroupOutput]:
        """One group for each prompt, in order; arguments and errors as `Engine.generate` has them.

        Args:
            prompts: Texts, token ids, or lists of messages.
            params: Parameters of sampling; one for all or one for each prompt.
            sample_ids: Ids that tell groups of one prompt apart; by default its occurrence.
            progress: Function called after each group with the call's statistics.
        """
        found: dict[int, GroupOutput] = {}
        try:
            found.update(
                self.as_completed(prompts, params, sample_ids=sample_ids, progress=progress)
            )
        except GenerationInterrupted as interrupt:  # what was there before is not lost
            raise GenerationInterrupted(str(interrupt), found | interrupt.groups) from None
        return [found[index] for index in range(len(found))]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, sample_id: int | str = 0
    ) -> RemoteStream:
        """The steps of one group, once the server has sent it whole.

        Args:
            prompt: Text, token ids, or list of messages.
            params: Parameters of sampling.
            sample_id: Id that tells groups of one prompt apart.
        """
        return RemoteStream(lambda: self.generate([prompt], params, sample_ids=[sample_id])[0])

    def as_completed(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sample_ids: Sequence[int | str] | None = None,
        progress: Callable[[EngineStats], None] | None = None,
    ) -> Iterator[tuple[int, GroupOutput]]:
        """The same groups, each with its prompt's index, as soon as it is there.

        Args:
            prompts: Prompts as in `generate`, like the other arguments.
            params: Parameters as in `generate`.
            sample_ids: Ids as in `generate`.
            progress: Function as in `generate`.

        Raises:
            GenerationError: for what the server does not carry out.
            GenerationInterrupted: on Ctrl-C; its `groups` hold what was not handed out yet.
        """
        listed = [self.encode(p, index) for index, p in enumerate(list_of_prompts(prompts))]
        each = one_each(params, len(listed))
        ids = _occurrences(listed) if sample_ids is None else checked_ids(sample_ids, len(listed))
        self.stats = stats = EngineStats()
        return self._as_completed(listed, each, ids, stats, progress)

    def _as_completed(
        self,
        prompts: list[Prompt],
        params: list[SamplingParams],
        sample_ids: list[int | str],
        stats: EngineStats,
        progress: Callable[[EngineStats], None] | None,
    ) -> Iterator[tuple[int, GroupOutput]]:
        stop, waiting = threading.Event(), queue.SimpleQueue[_Job]()
        jobs: dict[Future[GroupOutput], int] = {}
        try:
            for index, job in enumerate(zip(prompts, params, sample_ids, strict=True)):
                future: Future[GroupOutput] = Future()
                jobs[future] = index
                waiting.put((future, partial(self._group, *job, stats, stop)))
            for _ in range(min(self._concurrency, len(jobs))):
                # Daemons: a process whose call was interrupted would not end before their requests
                # do, which may take minutes, and are repeated.
                threading.Thread(target=_work, args=(waiting, stop), daemon=True).start()
            while jobs:
                done, _ = wait(jobs, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=jobs.__getitem__):
                    index, group = jobs.pop(future), future.result()
                    stats.sampled_tokens += group.num_tokens
                    stats.prefill_tokens += len(group.prompt_token_ids)
                    yield index, group
                    if progress is not None:
                        progress(stats)
        except KeyboardInterrupt:
            groups = {index: f.result() for f, index in jobs.items() if _succeeded(f)}
            raise GenerationInterrupted(
                f"Interrupted with {len(jobs) - len(groups)} groups not there yet.", groups
            ) from None
        finally:
            stop.set()

    # One group ------------------------------------------------------------------------------------

    def _group(
        self,
        prompt: Prompt,
        params: SamplingParams,
        sample_id: int | str,
        stats: EngineStats,
        stop: threading.Event,
    ) -> GroupOutput:
        began = time.perf_counter()
        prompt_ids: list[int] = []
        rows: list[Completion] = []
        while len(rows) < params.width:
            if stop.is_set():
                raise GenerationError("The call has ended.")
            reply = self._ask(prompt, params, sample_id, len(rows))
            try:
                choices = sorted(
                    reply.choices, key=lambda choice: getattr(choice, "index", None) or 0
                )
                got = [self._completion(choice) for choice in choices]
                prompt_ids = prompt_ids or _prompt_ids(reply)
            except (AttributeError, IndexError, TypeError, ValueError) as error:
                raise GenerationError(
                    f"{self.id} gave an answer that is none of OpenAI's: no choices can be read. "
                    "Does its address end in /v1?"
                ) from error
            if not got:
                raise GenerationError(f"{self.id} gave no choice.")
            if len(got) < params.width and self.coupled:
                raise GenerationError(
                    f"{self.id} gave {len(got)} of {params.width} choices: it does not keep the "
                    "rows of a group in one request. Ask for fewer, or say coupled=False."
                )
            if len(got) < params.width and not rows:
                _note(stats, f"{self.id} gives {len(got)} choices a request.")
            if any(row.text and not row.logprobs for row in got):
                lacking = "no log-probabilities: neither they nor tokens are counted"
                _note(stats, f"{self.id} gives {lacking}.")
            rows += got
        return GroupOutput(
            prompt=prompt,
            prompt_token_ids=prompt_ids,
            completions=rows[: params.width],
            params=params,
            seconds=time.perf_counter() - began,
        )

    def _ask(self, prompt: Prompt, params: SamplingParams, sample_id: int | str, first: int) -> Any:
        """A reply with the group's rows from `first` on."""
        fields = self._fields(prompt, params, sample_id, first)
        completions: Any = self._client.completions
        if isinstance(prompt, str) and self.chats:
            prompt = [{"role": "user", "content": prompt}]
        if _is_chat(prompt):
            completions = self._client.chat.completions
            fields |= {"messages": list(prompt), "logprobs": True}
        else:
            fields |= {"prompt": prompt if isinstance(prompt, str) else list(prompt)}
            fields |= {"logprobs": 1}  # 0 is none at some servers
        try:
            return completions.create(model=self.model_name, **fields)
        except self._openai.APIStatusError as error:
            told = _message(error)
            raise GenerationError(f"{self.id} refuses ({error.status_code}): {told}") from error
        except (self._openai.OpenAIError, ValueError) as error:  # ValueError: no JSON
            raise GenerationError(
                f"{self.id} cannot be asked: {type(error).__name__}: {str(error)[:_MOST_TOLD]}"
            ) from error

    def _fields(
        self, prompt: Prompt, params: SamplingParams, sample_id: int | str, first: int
    ) -> dict[str, Any]:
        if not isinstance(params.max_new_tokens, int) or params.logits_processors:
            raise GenerationError(
                "A server takes one max_new_tokens for all rows, and no logits processors."
            )
        for name in ("consensus", "hidden", "record_attention", "top_logprobs"):
            if getattr(params, name):
                raise GenerationError(f"A server does not carry out {name}: leave it out.")
        extra: dict[str, Any] = {}
        for name, plain in (("top_k", None), ("min_p", 0.0), ("repetition_penalty", 1.0)):
            if getattr(params, name) not in (plain, 0):
                extra[name] = getattr(params, name)
        if params.stop_token_ids:
            extra["stop_token_ids"] = list(params.stop_token_ids)
        if params.ignore_eos:
            extra["ignore_eos"] = True
        seed = params.seed
        if self._is_ours:
            extra |= {"sample_id": sample_id, "return_token_ids": True}
            if self.kind and not self.coupled:
                extra["coupled"] = False
        else:
            seed = _seed_for(seed, prompt, sample_id, first)
        return {
            "n": params.width - first,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": seed,
            **({"stop": list(params.stop)} if params.stop else {}),
            **({"extra_body": extra} if extra else {}),
        }

    def _completion(self, choice: Any) -> Completion:
        text = choice.text if hasattr(choice, "text") else choice.message.content
        logprobs = _logprobs(choice)
        ids = (choice.model_extra or {}).get("token_ids") or [UNKNOWN] * len(logprobs)
        reason = "length" if choice.finish_reason == "length" else "stop"
        return Completion(
            text=text or "",
            token_ids=list(ids),
            logprobs=logprobs,
            sampled_logprobs=[],
            finish_reason=reason,  # type: ignore[arg-type]
        )

    def _find(self, model: str | None) -> dict[str, Any]:
        """The server's entry for the model."""
        base = str(self._client.base_url)
        try:
            entries = [entry.model_dump() for entry in self._client.models.list()]
            entries = [entry for entry in entries if isinstance(entry.get("id"), str)]
        except self._openai.APIStatusError as error:
            if model is None or error.status_code in (401, 403):
                told = _message(error)
                raise GenerationError(f"{base} refuses ({error.status_code}): {told}") from error
            entries = []
        # What is no JSON, or JSON of another shape, is a ValueError or an AttributeError there.
        except (self._openai.OpenAIError, ValueError, AttributeError) as error:
            raise GenerationError(
                f"{base} cannot be reached: {type(error).__name__}: {str(error)[:_MOST_TOLD]}. "
                "Is it an OpenAI-compatible API, and does its address end in /v1?"
            ) from error
        if model is not None and not entries:
            return {"id": model}
        chosen = [entry for entry in entries if model in (None, entry["id"])]
        if len(chosen) != 1:
            names = ", ".join(repr(entry["id"]) for entry in entries[:20]) or "none"
            asked = "no name was given" if model is None else f"{model!r} is none of them"
            raise GenerationError(
                f"{base} has the models {names}; {asked}. Name one by model=NAME, or on a command "
                "line by ADDRESS#NAME."
            )
        return chosen[0]


@dataclass
class RemoteStream:
    """A server's group as `Engine.stream` gives one: texts come with each row's last token."""

    fetch: Callable[[], GroupOutput]
    group: GroupOutput | None = None

    def __iter__(self) -> Iterator[Step]:
        self.group = group = self.fetch()
        lengths = [max(1, len(row.token_ids)) for row in group.completions]
        for step in range(1, max(lengths) + 1):
            last = [length == step for length in lengths]
            alive = [length >= step for length in lengths]
            yield Step(
                tokens=[UNKNOWN if is_alive else None for is_alive in alive],
                alive=alive,
                texts=[t if is_last else "" for t, is_last in zip(group.texts, last, strict=True)],
                finish_reasons=[
                    row.finish_reason if is_last else None
                    for row, is_last in zip(group.completions, last, strict=True)
                ],
            )

    def close(self) -> None:
        """Nothing is left to be done."""


def _work(waiting: queue.SimpleQueue[_Job], stop: threading.Event) -> None:
    """In a thread: one group after the other, until there are no more or the call has ended."""
    with suppress(queue.Empty):
        while not stop.is_set():
            future, ask = waiting.get_nowait()
            try:
                future.set_result(ask())
            except BaseException as error:  # whoever waits for the group raises it
                future.set_exception(error)


def _note(stats: EngineStats, remark: str) -> None:
    if remark not in stats.notes:
        stats.notes.append(remark)


def _occurrences(prompts: Sequence[Prompt]) -> list[int | str]:
    """0, 1, ... for the prompts that are the same."""
    seen: dict[str, itertools.count[int]] = defaultdict(itertools.count)
    return [next(seen[repr(prompt)]) for prompt in prompts]


def _seed_for(seed: int, prompt: Prompt, sample_id: int | str, first: int) -> int:
    """A seed of its own for each group, for servers that know no sample ids."""
    name = f"{seed}|{prompt!r}|{type(sample_id).__name__}:{sample_id}|{first}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _SEEDS


def _is_chat(prompt: Any) -> bool:
    return not isinstance(prompt, str) and isinstance(prompt[0], dict)


def _logprobs(choice: Any) -> list[float]:
    found = choice.logprobs
    if found is None:
        return []
    if hasattr(choice, "text"):
        return [float(value) for value in found.token_logprobs or [] if value is not None]
    return [float(token.logprob) for token in found.content or []]


def _prompt_ids(reply: Any) -> list[int]:
    """The prompt's token ids; without them their number, if the server counts."""
    ids = (reply.model_extra or {}).get("prompt_token_ids")
    if ids:
        return list(ids[0])
    return [UNKNOWN] * (reply.usage.prompt_tokens if reply.usage else 0)


def _message(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)[:_MOST_TOLD]


def _succeeded(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        found = parts.hostname if parts.scheme in ("http", "https") else None
        parts.port  # noqa: B018 - it raises for what is none
    except ValueError:
        found = None
    if not found or any(sign.isspace() or not sign.isprintable() for sign in url):
        raise GenerationError(
            f"An address begins with http:// or https:// and a host, such as "
            f"http://127.0.0.1:8000/v1; got {url!r:.200}."
        )
