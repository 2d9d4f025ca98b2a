"""Chat: a record as a conversation, by the template of a model's own tokenizer.

The prompt is the user's turn, the target the assistant's.  transformers renders the template, in
a sandbox that reaches neither files nor Python, once, with marks in place of both, within seconds
and a few GiB; the date that some templates print stays fixed, so that a loss does not depend on
the day.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lensllm_jax.address_space import growing_by_at_most
from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example

_DATE = "26 Jul 2024"  # what Llama 3's template prints where it knows none
_FIXED = "{% macro strftime_now(format) %}" + _DATE + "{% endmacro %}"
_LONGEST_SECONDS = 20.0  # of a template that loops: others take milliseconds
# of a template that multiplies strings; threads that compute meanwhile may map as much
_MOST_BYTES = 2**32
_PROMPT, _TARGET = "\ue000", "\ue001"  # for private use: in no template


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The text around a user's and an assistant's turn."""

    before: str  # the prompt
    between: str  # prompt and target
    end: str  # of the assistant's turn, up to its first special token
    strips: bool  # white space at both ends of the prompt

    def of(self, example: Example) -> tuple[str, int]:
        """The text of a record, and its number of characters before the target."""
        prompt = example.prompt.strip() if self.strips else example.prompt
        context = self.before + prompt + self.between
        return context + example.target + self.end, len(context)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a tokenizer brings a template of conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def conversation(tokenizer: Any) -> Conversation:
    """The template of a tokenizer, which ends with its end token if it ends with none itself.

    Raises:
        UserError: if the template does not render, or does not show prompt and target once.
    """
    turns = [
        {"role": "user", "content": f" {_PROMPT} "},
        {"role": "assistant", "content": _TARGET},
    ]
    try:
        with _at_most(_LONGEST_SECONDS), growing_by_at_most(_MOST_BYTES):
            text = tokenizer.apply_chat_template(
                turns, chat_template=_FIXED + tokenizer.get_chat_template(), tokenize=False,
                date_string=_DATE,
            )  # fmt: skip
    except MemoryError as error:
        raise _refused(f"one that takes more than {_MOST_BYTES / 2**30:g} GiB") from error
    except Exception as error:  # whatever a stranger's template raises
        raise _refused((str(error).splitlines() or [type(error).__name__])[0]) from error
    if text.count(_PROMPT) != 1 or text.count(_TARGET) != 1:
        raise _refused(repr(text))
    context, _, after = text.partition(_TARGET)
    strips = f" {_PROMPT} " not in context
    before, _, between = context.partition(_PROMPT if strips else f" {_PROMPT} ")
    space = after[: len(after) - len(after.lstrip())]
    ends = (token.content for token in tokenizer.added_tokens_decoder.values())
    end = next((space + end for end in ends if after.startswith(space + end)), tokenizer.eos_token)
    return Conversation(before, between, end, strips)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError from the Python code in it that runs longer, in any thread."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"one that does not end in {seconds:g} s")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _refused(reason: str) -> UserError:
    return UserError(
        f"`chat_template` must show a user's and then an assistant's turn, got {reason}: pass "
        "--chat_template=none"
    )
