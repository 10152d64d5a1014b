"""Which prompts are stored in the backend, by their token ids, with their last logits.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interlace.engine.backends.base import Backend
from interlace.engine.kv import StoredPrompt
from interlace.engine.memory import is_out_of_memory
from interlace.engine.state import Request


@dataclass(frozen=True, eq=False)
class Stored:
    """A prompt that is in the backend, with the logits after its last token."""

    prompt: StoredPrompt
    logits: Float[Tensor, " V"]


class PromptStore:
    """Computes a prompt once for all groups that answer it, one after another too.

    Args:
        backend: What computes and keeps them.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stored: dict[bytes, Stored] = {}
        self._outdated: list[Stored] = []  # of which rows may be left

    def __contains__(self, key: bytes) -> bool:
        return key in self._stored

    def __getitem__(self, key: bytes) -> Stored:
        return self._stored[key]

    def store(self, requests: Sequence[Request]) -> dict[bytes, Exception]:
        """Compute the prompts that are not stored; those that cannot be, with what they raise.

        Only want of memory is raised; what was computed before it stays.
        """
        wanted = {request.prompt_key: request for request in requests}
        missing = [request for key, request in wanted.items() if key not in self]
        failed: dict[bytes, Exception] = {}
        passes = self._backend.passes([len(request.token_ids) for request in missing])
        while passes:
            together = [missing[place] for place in passes.pop(0)]
            try:
                stored, logits = self._backend.prefill(
                    [r.token_ids for r in together], [r.alone for r in together]
                )
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                if len(together) == 1:
                    failed[together[0].prompt_key] = error
                else:  # each alone, so that only those fail that have to
                    passes = [[missing.index(request)] for request in together] + passes
                continue
            for request, prompt, last in zip(together, stored, logits, strict=True):
                self._stored[request.prompt_key] = Stored(prompt, last)
                request.stats.prefill_tokens += len(request.token_ids)
        return failed

    def outdate(self) -> None:
        """Compute what is stored anew for groups that begin from now on: weights may have
        changed."""
        self._outdated += self._stored.values()
        self._stored.clear()

    def tidy(self, ahead: bytes | None) -> None:
        """Let go of prompts that no row answers.

        Args:
            ahead: Key of the prompt of the group that comes next, which stays.
        """
        for key, stored in list(self._stored.items()):
            if stored.prompt.users == 0 and key != ahead:
                del self._stored[key]
                self._backend.release(stored.prompt)
        for stored in [old for old in self._outdated if old.prompt.users == 0]:
            self._outdated.remove(stored)
            self._backend.release(stored.prompt)

    def clear(self) -> None:
        """Let go of all prompts, and of all rows."""
        self._stored.clear()
        self._outdated.clear()
        self._backend.clear()
