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

import numpy as np

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example, Task, counts, exact_key, fingerprint

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
    sizes = [example.num_bytes for example in task.examples]
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

    A record of which only white space would be left is left out (``<split>_cut_blank``), and so is
    one that repeats another because of the cut (``<split>_cut_repeats_<split>``).

    Raises:
        UserError: if ``max_bytes`` is below 8, or leaves a split without a record.
    """
    if max_bytes < _FEWEST_BYTES:
        raise UserError(f"`max_bytes` must be at least {_FEWEST_BYTES}, got {max_bytes}")
    removed, lost = Counter(task.removed), Counter(task.cut)
    seen: dict[str, tuple[str, bool]] = {}  # text -> its split, and whether it was cut
    splits: dict[str, tuple[Example, ...]] = {}
    for split in ("test", "validation", "train"):  # what is tested stays
        kept = []
        for whole in getattr(task, split):
            cut = cut_example(whole, max_bytes=max_bytes)
            (key,) = exact_key(cut)
            is_cut = cut != whole
            reason = _reason_against(cut, is_cut=is_cut, other=seen.get(key))
            if reason:
                removed[f"{split}_{reason}"] += 1
                continue
            seen.setdefault(key, (split, is_cut))
            lost[f"{split}_targets"] += cut.target != whole.target
            lost[f"{split}_prompts"] += cut.prompt != whole.prompt
            kept.append(cut)
        if not kept:
            raise UserError(
                f"`max_bytes` must leave text in the {split} split of {task.name}, got {max_bytes}"
            )
        splits[split] = tuple(kept)
    return dataclasses.replace(
        task,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        removed=counts(removed),
        cut=counts(lost),
        max_bytes=max_bytes,
        fingerprint=fingerprint(splits["train"], splits["validation"], splits["test"]),
    )


def _reason_against(cut: Example, *, is_cut: bool, other: tuple[str, bool] | None) -> str:
    """Why a record is left out, or an empty string; ``other``: one with its text that stays."""
    if not cut.target.strip():
        return "cut_blank"
    if other is None:
        return ""
    split, other_is_cut = other
    return f"cut_repeats_{split}" if is_cut or other_is_cut else ""
