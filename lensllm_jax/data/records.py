"""Records: rows of a table as pairs of prompt and target, whatever held them.

A row has a column for the prompt and one for the target, or is a conversation: ``messages`` of
``role`` and ``content``, or ``conversations`` of ``from`` and ``value``.  The target of a
conversation is its last message, which must be the assistant's; its prompt is the text of the
messages before, each behind its role where the assistant spoke before.

Example:
    >>> list(text_pairs([{" Prompt": "1 + 1 =", "target": "2"}], source="sums"))
    [('1 + 1 =', '2')]
    >>> chat = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    >>> list(text_pairs([{"messages": chat}], source="chats"))
    [('Hello.', 'Hi.')]
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lensllm_jax.checks import UserError
from lensllm_jax.delimited import plain

_CHATS = (("messages", "role", "content"), ("conversations", "from", "value"))
_ASSISTANT = ("assistant", "gpt", "model")
_ROLES = {"human": "User", "gpt": "Assistant", "model": "Assistant"}
_LONGEST_SHOWN = 60  # characters of a value in a message


def rows_of(records: Any) -> Iterable[Any]:
    """The rows of a list of dicts, a DataFrame, a pyarrow.Table or a datasets.Dataset.

    Raises:
        UserError: if it is none of these.
    """
    for name in ("to_pylist", "to_dicts"):  # Arrow, Polars
        if hasattr(records, name):
            return getattr(records, name)()
    if hasattr(records, "to_dict") and hasattr(records, "columns"):  # pandas
        return records.to_dict("records")
    if isinstance(records, Mapping | str | bytes) or not isinstance(records, Iterable):
        inside = f" of {', '.join(map(str, records))}" if isinstance(records, Mapping) else ""
        raise UserError(
            f"`records` must be a list of dicts, a DataFrame or a datasets.Dataset, got "
            f"{type(records).__name__}{inside[:_LONGEST_SHOWN]}, pass one split, as rows"
        )
    return records


def text_pairs(
    rows: Iterable[Any],
    *,
    source: str,
    prompt_field: str | None = "prompt",
    target_field: str = "target",
) -> Iterator[tuple[str, str]]:
    """(prompt, target) of each row.

    A column is found by its name, else by its name without regard to case and to white space
    around it.

    Args:
        rows: mappings from column to value.
        source: what a message calls them.
        prompt_field: column of the prompts; "" or None for language modelling on the targets.
        target_field: column of the targets.

    Raises:
        UserError: naming the record, if it is no mapping, or lacks a field, or its text is none;
            or if a field is not named by text.
    """
    for argument, field in (("prompt_field", prompt_field or ""), ("target_field", target_field)):
        if not isinstance(field, str):
            raise UserError(f"`{argument}` must name a column as text, got {field!r}")
    for number, row in enumerate(rows, start=1):
        place = _Place(source, number, row)
        if not isinstance(row, Mapping):
            raise UserError(f"`{source}` must hold dicts, got {type(row).__name__} in {place}")
        values = _values(row, prompt_field, target_field, place)
        prompt, target = (_text(value, field, place) for field, value in values)
        yield prompt, target


def _values(
    row: Mapping[Any, Any], prompt_field: str | None, target_field: str, place: "_Place"
) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """Prompt and target of a row, unchecked, each behind the field that it was read from."""
    names = tuple(row)
    target = _column(names, target_field)
    chat = next((keys for keys in _CHATS if keys[0] in row), None)
    if chat and target is None and target_field == "target":
        values = _chat_values(row[chat[0]], *chat[1:], place)
        return ("prompt", values[0] if prompt_field else ""), ("target", values[1])
    prompt = row.get(_column(names, prompt_field)) if prompt_field else ""
    return (prompt_field or "prompt", prompt), (target_field, row.get(target))


class _Place(NamedTuple):
    """Where a row stands, for messages."""

    source: str
    number: int
    row: Any

    def __str__(self) -> str:
        return f"record {self.number}"


@functools.lru_cache(maxsize=64)
def _column(names: tuple[Any, ...], field: str) -> Any:
    """The name of the column that is meant; None if there is none."""
    if field in names:
        return field
    alike = [name for name in names if isinstance(name, str) and plain(name) == plain(field)]
    if len(alike) > 1:
        raise UserError(
            f"field {field!r} must name one column, got {', '.join(map(repr, alike))}, "
            "write it as the column is"
        )
    return alike[0] if alike else None


def _text(value: Any, field: str, place: _Place) -> str:
    """The value, if it is text of whole characters."""
    if not isinstance(value, str):
        remedy = "name the columns with prompt_field and target_field"
        if field == "prompt":
            remedy += ', or pass prompt_field="" for language modelling on the targets'
        names = ", ".join(map(str, place.row))
        raise UserError(
            f"`{place.source}` must have text in field {field!r} of every record, got "
            f"{_shown(value)} in {place} (its fields: {names[:_LONGEST_SHOWN]}), {remedy}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"`{place.source}` must have whole characters in field {field!r}, got half of a "
            f"surrogate pair, {value[error.start]!r}, in {place}, write the character itself"
        ) from None
    return str(value)


def _chat_values(messages: Any, role: str, content: str, place: _Place) -> tuple[Any, Any]:
    """Prompt and target of a conversation."""
    if not isinstance(messages, list | tuple) or not all(
        isinstance(m, Mapping) and isinstance(m.get(role), str) for m in messages
    ):
        raise UserError(
            f"`{place.source}` must have messages with {role!r} and {content!r} in every "
            f"conversation, got {_shown(messages)} in {place}"
        )
    turns = [(message[role], _content(message.get(content))) for message in messages]
    if not turns or turns[-1][0] not in _ASSISTANT:
        last = f"{turns[-1][0]!r}" if turns else "no message"
        raise UserError(
            f"`{place.source}` must end every conversation with a message of the assistant, got "
            f"{last[:_LONGEST_SHOWN]} in {place}, leave out what follows it"
        )
    *before, (_, target) = turns
    texts: list[str] = []
    for _, text in before:
        if not isinstance(text, str):
            return text, target  # the caller refuses it
        texts.append(text)
    if any(speaker in _ASSISTANT for speaker, _ in before):
        texts = [f"{_ROLES.get(speaker, speaker.capitalize())}: {text}" for speaker, text in before]
        texts.append("Assistant:")
    return "\n\n".join(texts), target


def _content(content: Any) -> Any:
    """The text of a message, its parts joined; anything else as it is."""
    if isinstance(content, list | tuple) and content:
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    return content


def _shown(value: Any) -> str:
    """The beginning of a value, on one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deep list
        text = type(value).__name__
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
