"""Cut: a task's records shortened as text, before any tokenizer sees them.

Every candidate then reads the same text, whatever number of tokens that takes.  A record that is
too long loses the beginning of its prompt, and the end of its target only where the target alone
is too long.  Bytes are those of UTF-8; characters stay whole.

Example:
    >>> cut_example(Example("Translate: good morning", "bonjour"), max_bytes=15)
    Example(prompt=' morning', target='bonjour')
"""

import dataclasses
from collections import Counter
from types import MappingProxyType
from typing import Any

import numpy as np

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example, Task, fingerprint

_FEWEST_BYTES = 8  # of a record, so that a target keeps two characters at least
_WHOLE = 0.99  # of the records stay whole by default, where positions allow
# A token of the smallest vocabularies has more bytes than this in nearly every record.
_BYTES_PER_TOKEN = 4 / 3
_SPECIAL_TOKENS = 8  # positions left for what is no text


def default_max_bytes(task: Task, *, fewest_positions: int | None = None) -> int:
    """Bytes that hold 99 % of the records whole, or what the fewest positions of a pool hold.

    Args:
        task: whose records are to be cut.
        fewest_positions: of a candidate of the pool (tokens); None: without limit.
    """
    examples = (*task.train, *task.validation, *task.test)
    sizes = [len(e.prompt.encode()) + len(e.target.encode()) for e in examples]
    whole = int(np.quantile(sizes, _WHOLE, method="inverted_cdf"))
    if fewest_positions is not None:
        whole = min(whole, int(_BYTES_PER_TOKEN * (fewest_positions - _SPECIAL_TOKENS)))
    return max(whole, _FEWEST_BYTES)


def cut_example(example: Example, *, max_bytes: int) -> Example:
    """``example`` with at most ``max_bytes`` bytes of prompt and target."""
    target = example.target.encode()
    if len(target) > max_bytes:
        return Example("", target[:max_bytes].decode(errors="ignore"))
    prompt = example.prompt.encode()
    room = max_bytes - len(target)
    if len(prompt) <= room:
        return example
    return Example(prompt[len(prompt) - room :].decode(errors="ignore"), example.target)


def cut_task(task: Task, *, max_bytes: int) -> Task:
    """``task`` with every record cut to ``max_bytes``; ``cut`` counts what lost a part.

    Records of which only white space would be left are left out, as ``<split>_cut_blank``.

    Raises:
        UserError: if ``max_bytes`` is below 8, or leaves a split without a record.
    """
    if max_bytes < _FEWEST_BYTES:
        raise UserError(f"`max_bytes` must be at least {_FEWEST_BYTES}, got {max_bytes}")
    removed, lost = Counter(task.removed), Counter(task.cut)
    splits: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        pairs = [(e, cut_example(e, max_bytes=max_bytes)) for e in getattr(task, split)]
        kept = [(whole, cut) for whole, cut in pairs if cut.target.strip()]
        if not kept:
            raise UserError(
                f"`max_bytes` must leave text in the {split} split of {task.name}, got {max_bytes}"
            )
        splits[split] = tuple(cut for _, cut in kept)
        removed[f"{split}_cut_blank"] += len(pairs) - len(kept)
        lost[f"{split}_targets"] += sum(cut.target != whole.target for whole, cut in kept)
        lost[f"{split}_prompts"] += sum(cut.prompt != whole.prompt for whole, cut in kept)
    return dataclasses.replace(
        task,
        **splits,
        removed=MappingProxyType({k: n for k, n in sorted(removed.items()) if n}),
        cut=MappingProxyType({k: n for k, n in sorted(lost.items()) if n}),
        max_bytes=max_bytes,
        fingerprint=fingerprint(*splits.values()),
    )
