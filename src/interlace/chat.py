"""Chat messages to the text that a model reads, by the template that came with its tokenizer.

A template is a program of whoever published the model: it may loop for ever, or ask for ten
gigabytes of one letter. So it runs in a child of `verifier_pool`, bounded in processor time, memory
and length, without files or network.

Messages that end in a turn of the assistant are a beginning that the model goes on with: that turn
is left open, and no other is begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interlace.errors import GenerationError, WorkerError
from interlace.verifier_child import Answer
from interlace.verifier_pool import Refusal, verifier_pool

CPU_SECONDS = 4.0
MAX_CHARACTERS = 20_000_000


def chat_ids(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[int]:
    """The token ids of a chat, ready for the assistant's turn or in the midst of it.

    Args:
        messages: Messages, each with a role and a content. A last one of the assistant is gone on
            with; an empty one is a turn that is yet to begin.
        tokenizer: Tokenizer with a chat template.

    Raises:
        GenerationError: for messages that the template does not take, or a template that meets a
            bound.
    """
    chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
    goes_on = bool(chat) and chat[-1].get("role") == "assistant"
    if goes_on and not chat[-1].get("content"):
        chat, goes_on = chat[:-1], False
    turn = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    if not _is_huggingfaces(tokenizer):
        try:
            return list(tokenizer.apply_chat_template(chat, return_dict=True, **turn)["input_ids"])
        except Exception as error:  # templates raise what they like
            raise GenerationError(f"{error}"[:500]) from error
    tokens = {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()}
    try:
        outcome = verifier_pool().ask(
            "interlace.chat:rendered",
            cpu_seconds=CPU_SECONDS,
            template=tokenizer.get_chat_template(),
            messages=chat,
            turn=turn,
            tokens=tokens,
        )
    except (TypeError, ValueError, RecursionError, WorkerError) as error:
        raise GenerationError(f"messages are JSON values: {error}"[:500]) from error
    if isinstance(outcome, Refusal):
        raise GenerationError(f"it came to no text ({outcome.reason})")
    if outcome["refused"]:
        raise GenerationError(outcome["refused"])
    return list(tokenizer(outcome["text"], add_special_tokens=False)["input_ids"])


def rendered(
    template: str, messages: list[dict[str, Any]], turn: dict[str, bool], tokens: dict[str, Any]
) -> Answer:
    """The text of a chat, in a child; with what the template raised, if it did."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def answer() -> dict[str, str]:
        try:
            texts, _ = render_jinja_template(
                conversations=[messages], chat_template=template, **turn, **tokens
            )
        except MemoryError:
            raise
        except Exception as error:  # templates raise what they like
            return {"text": "", "refused": (str(error) or type(error).__name__)[:500]}
        if len(texts[0]) > MAX_CHARACTERS:
            return {"text": "", "refused": f"its text has more than {MAX_CHARACTERS} characters"}
        return {"text": texts[0], "refused": ""}

    return answer


def _is_huggingfaces(tokenizer: Any) -> bool:
    """Whether a tokenizer has Hugging Face's way with templates and not one of its own."""
    from transformers import PreTrainedTokenizerBase

    theirs = PreTrainedTokenizerBase.apply_chat_template
    return getattr(type(tokenizer), "apply_chat_template", None) is theirs


def _plain(token: Any) -> Any:
    return list(map(str, token)) if isinstance(token, list | tuple) else str(token)
