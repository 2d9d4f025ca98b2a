"""Length of a task's inputs, and the part of a task whose inputs have a given mean length.

Appendix C.2 of the LensLLM paper compares mean input lengths of 18, 20 and 22 tokens and does
not say how such a corpus was made.  Here the longest inputs are dropped until the mean is no
more than the requested one (or the shortest, until it is no less); nothing is re-weighted.

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
from lensllm_jax.data.task import Example, Task, fingerprint
from lensllm_jax.data.tokens import Tokenizer


def input_lengths(examples: Sequence[Example], tokenizer: Tokenizer) -> Int[np.ndarray, " n"]:
    """Tokens of each record's prompt, or target where it has none; special tokens excluded."""
    texts = [example.prompt or example.target for example in examples]
    return np.array(
        [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    )


def longest_kept_for_mean(lengths: Int[np.ndarray, " n"], *, mean: float) -> Bool[np.ndarray, " n"]:
    """Mask of the records to keep so that their mean length reaches ``mean`` (tokens).

    The longest records are dropped while the mean is above, or the shortest while it is below; of
    equal lengths the later records first.

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
    """``task`` with inputs of a given mean length, in each of its splits.

    Args:
        task: any task.
        tokenizer: counts the tokens; the same one for all candidates that are compared.
        mean: mean input length (tokens); 18, 20 and 22 in the paper's Appendix C.2.

    Returns:
        The task with a new fingerprint; ``removed`` counts ``<split>_mean_length``.

    Raises:
        UserError: if a split cannot have this mean.
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
