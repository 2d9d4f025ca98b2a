"""Prefix: the first words of a text without a prompt, given to the model as its prompt.

An encoder-decoder needs something to read.  A pool that holds one is compared on a task with
prompts for every candidate, so that all losses are over the same text.

Example:
    >>> split_prefix(Example("", "one two three four five six"))
    Example(prompt='one two', target='three four five six')
"""

import dataclasses
import re
from types import MappingProxyType
from typing import Any

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example, Task, fingerprint

_SHARE = 1 / 3  # of the words


def split_prefix(example: Example, *, share: float = _SHARE) -> Example:
    """``example`` with the first words of its target as its prompt.

    No character is lost: a single space between the two is the one that joins them
    (:func:`lensllm_jax.data.tokens.joined`), other white space begins the target.

    Args:
        example: a record without a prompt, with at least two words.
        share: of the words, rounded, but at least one word stays on either side.

    Raises:
        UserError: if the record has a prompt, or its target is a single word.
    """
    words = [*re.finditer(r"\S+", example.target)]
    if example.prompt or len(words) < 2:
        raise UserError(
            f"`example` must have no prompt and a target of two words or more to be divided, "
            f"got {example!r}"
        )
    cut = min(max(round(share * len(words)), 1), len(words) - 1)
    end, start = words[cut - 1].end(), words[cut].start()
    joins = example.target[end:start] == " "
    return Example(example.target[:end], example.target[start if joins else end :])


def with_prompts(task: Task) -> Task:
    """``task`` with every record that has no prompt divided by :func:`split_prefix`.

    A record of one word cannot be divided and is left out; ``removed`` counts it as
    ``<split>_one_word``.  A task whose records all have prompts stays as it is.

    Raises:
        UserError: if a split holds records of one word alone.
    """
    splits = {name: getattr(task, name) for name in ("train", "validation", "test")}
    if all(example.prompt for examples in splits.values() for example in examples):
        return task
    removed = dict(task.removed)
    divided: dict[str, Any] = {}
    num_divided = task.num_divided
    for name, examples in splits.items():
        kept = [e for e in examples if e.prompt or len(e.target.split()) > 1]
        if not kept:
            cut = "" if task.max_bytes is None else f" in {task.max_bytes} bytes (`max_bytes`)"
            raise UserError(
                f"`{name}` of task {task.name!r} must hold a record with a prompt or of two "
                f"words, got {len(examples)} of one word{cut}: give them prompts, or rank a pool "
                "of decoders alone"
            )
        if left_out := len(examples) - len(kept):
            removed[f"{name}_one_word"] = left_out
        divided[name] = tuple(e if e.prompt else split_prefix(e) for e in kept)
        num_divided += sum(not e.prompt for e in kept)
    return dataclasses.replace(
        task,
        **divided,
        num_divided=num_divided,
        removed=MappingProxyType(removed),
        fingerprint=fingerprint(*divided.values()),
    )
