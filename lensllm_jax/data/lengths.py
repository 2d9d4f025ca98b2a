"""Length of a task's inputs, and the part of a task whose inputs have a given average length.

Appendix C.2 of the LensLLM paper compares average input lengths of 18, 20 and 22 tokens and
does not say how a corpus of that average was made.  Here the longest inputs are left out until
the average is no more than asked (or the shortest, until it is no less): one cut, nothing
re-weighted.

Example:
    >>> import numpy as np
    >>> longest_kept_for_mean(np.array([10, 20, 30, 60]), mean=20.0).tolist()
    [True, True, True, False]
"""

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lensllm_jax import checks
from lensllm_jax.checks import UserError
from lensllm_jax.data.encoding import Tokenizer
from lensllm_jax.data.task import Example, Task, fingerprint


def input_lengths(examples: Sequence[Example], tokenizer: Tokenizer) -> Int[np.ndarray, " n"]:
    """Tokens of each record's input: the prompt, or the target where there is no prompt.

    Args:
        examples: records of a task.
        tokenizer: a fast tokenizer of transformers.

    Returns:
        Lengths without special tokens (tokens).
    """
    texts = [example.prompt or example.target for example in examples]
    return np.array(
        [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    )


def longest_kept_for_mean(lengths: Int[np.ndarray, " n"], *, mean: float) -> Bool[np.ndarray, " n"]:
    """Which records to keep so that the mean length is as near ``mean`` as one cut allows.

    Where the mean of all is above ``mean``, the longest records go, until it is not; where it
    is below, the shortest.  Of equal lengths the later records go first.

    Args:
        lengths: of the records (tokens).
        mean: the average asked for (tokens).

    Returns:
        True for a record that stays; at least one does.

    Raises:
        UserError: if there is no record, or all are longer, or all shorter, than ``mean``.
    """
    checks.positive("mean", mean)
    if not len(lengths) or not lengths.min() <= mean <= lengths.max():
        found = f"lengths {lengths.min()} to {lengths.max()}" if len(lengths) else "no record"
        raise UserError(
            f"`mean` must lie within the lengths of the records, got {mean!r} for {found}"
        )
    sign = 1 if lengths.mean() > mean else -1
    order = np.argsort(sign * lengths, kind="stable")  # what stays longest comes first
    running = np.cumsum(lengths[order]) / np.arange(1, len(lengths) + 1)
    # The running mean is monotone (in the direction of `sign`), so the kept are a prefix.
    num_kept = int(np.sum(sign * running <= sign * mean))
    kept = np.zeros(len(lengths), bool)
    kept[order[:num_kept]] = True
    return kept


def with_mean_length(task: Task, tokenizer: Tokenizer, *, mean: float) -> Task:
    """``task`` with inputs of a given average length, in each of its splits.

    Args:
        task: any task.
        tokenizer: what counts the tokens; a pool must be compared with one and the same.
        mean: the average asked for (tokens); 18, 20 and 22 in the paper's Appendix C.2.

    Returns:
        The task without the records that ``longest_kept_for_mean`` leaves out; ``removed`` counts
        them as ``<split>_mean_length``, and the fingerprint is another.

    Raises:
        UserError: if no cut of a split gives this average.
    """
    removed = dict(task.removed)
    kept: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        examples = getattr(task, split)
        lengths = input_lengths(examples, tokenizer)
        if not lengths.min() <= mean <= lengths.max():
            raise UserError(
                f"`mean_length` must be {lengths.min()} to {lengths.max()} tokens (inputs of the "
                f"{split} split of {task.name}), got {mean!r}"
            )
        stays = longest_kept_for_mean(lengths, mean=mean)
        kept[split] = tuple(e for e, stay in zip(examples, stays, strict=True) if stay)
        if left_out := len(examples) - len(kept[split]):
            removed[f"{split}_mean_length"] = left_out
    return dataclasses.replace(
        task,
        **kept,
        removed=MappingProxyType(dict(sorted(removed.items()))),
        fingerprint=fingerprint(kept["train"], kept["validation"], kept["test"]),
    )
