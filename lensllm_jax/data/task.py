"""A downstream task: prompts with the targets that a model should continue them with.

The loss of a task is the mean negative log-likelihood of the *target* tokens, in nats per
token; prompt tokens are context and are never scored.  Language modelling is the case
``prompt == ""``.

A task is split once, in text: ``train`` may be reduced to nested subsets
(:mod:`lensllm_jax.data.subsets`), ``validation`` chooses the stopping step, ``test`` gives the
loss that the scaling law is fitted to.  A text in two splits would lower the test loss for a
reason that no law describes, so :func:`build_task` keeps the copy nearest to ``test`` and counts
the others.

Example:
    >>> task = build_task("greetings", "says hello", validation=[Example("", "Hi.")],
    ...                   train=[Example("", "Good day."), Example("", "Hello!")],
    ...                   test=[Example("", "hello")])
    >>> task.train, dict(task.removed)
    ((Example(prompt='', target='Good day.'),), {'train_repeats_test': 1})
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lensllm_jax.checks import UserError

_NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a task; the loss is on ``target`` alone."""

    prompt: str  # context, "" for language modelling
    target: str  # what the model is scored on, never empty in a Task


@dataclass(frozen=True)
class Task:
    """A named, split and de-duplicated set of examples; make one with :func:`build_task`."""

    name: str  # what load_task was given
    description: str  # where the text comes from and what is asked of the model
    train: tuple[Example, ...]  # in a fixed shuffled order
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    removed: Mapping[str, int]  # reason -> number of records left out
    fingerprint: str  # sha256 (hex) over the three splits in order


def normalised(text: str) -> str:
    """``text`` as it is compared with others: lower case, words only, single spaces."""
    return _NOT_A_WORD.sub(" ", text).strip().lower()


def key_of_context(example: Example) -> Iterator[str]:
    """What must not repeat in most tasks: the prompt, or the target where there is no prompt.

    Targets may then repeat under different prompts, as class labels do.
    """
    yield normalised(example.prompt) or "target " + _target_key(example)


def keys_of_both(example: Example) -> Iterator[str]:
    """What must not repeat where every target is a text of its own: prompt and target alike."""
    if prompt := normalised(example.prompt):
        yield "prompt " + prompt
    yield "target " + _target_key(example)


def build_task(
    name: str,
    description: str,
    *,
    train: Iterable[Example],
    validation: Iterable[Example],
    test: Iterable[Example],
    keys: Callable[[Example], Iterator[str]] = key_of_context,
    sizes: Mapping[str, int] | None = None,
) -> Task:
    """The task, without empty targets and without text that one split shares with another.

    Splits are filled in the order test, validation, train; a record is dropped when one of
    its keys was seen before.

    Args:
        name: of the task.
        description: where its text comes from and what the model must write.
        train: records to train on, in the order that ``Task.train`` will have.
        validation: records that choose the stopping step.
        test: records that the reported loss is on.
        keys: the normalised texts of a record that must not repeat.
        sizes: split -> largest number of records kept, the first ones; all when absent.

    Returns:
        The task; ``removed`` counts ``empty``, ``<split>_repeats_<split>`` and
        ``<split>_over_size``.

    Raises:
        UserError: if a split has no record left.
    """
    seen: dict[str, str] = {}
    removed: Counter[str] = Counter()
    kept: dict[str, tuple[Example, ...]] = {}
    for split, examples in (("test", test), ("validation", validation), ("train", train)):
        distinct = [e for e in examples if _is_new(e, split, keys, seen, removed)]
        if not distinct:
            raise UserError(
                f"`{split}` must hold at least one record with a target that no other split "
                f"has, got none in task {name!r} (left out: {dict(removed) or 'nothing'})"
            )
        kept[split] = tuple(distinct[: (sizes or {}).get(split)])
        if over := len(distinct) - len(kept[split]):
            removed[f"{split}_over_size"] = over
    return Task(
        name=name,
        description=description,
        removed=MappingProxyType(dict(sorted(removed.items()))),
        fingerprint=fingerprint(kept["train"], kept["validation"], kept["test"]),
        **kept,
    )


def fingerprint(*splits: Iterable[Example]) -> str:
    """SHA-256 (64 hexadecimal digits) of the splits; texts, order and boundaries count."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(b"split")
        for example in split:
            for text in (example.prompt, example.target):
                data = text.encode()
                # The length stands first, so that no two different lists give the same bytes.
                digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _target_key(example: Example) -> str:
    # A target may hold no word ("42%" does, "+" does not); it is then its own key.
    return normalised(example.target) or example.target.strip()


def _is_new(
    example: Example,
    split: str,
    keys: Callable[[Example], Iterator[str]],
    seen: dict[str, str],
    removed: Counter[str],
) -> bool:
    """Whether to keep ``example``; records it in ``seen``, or the reason in ``removed``."""
    if not example.target.strip():
        removed["empty"] += 1
        return False
    found = list(keys(example))
    for key in found:
        if key in seen:
            removed[f"{split}_repeats_{seen[key]}"] += 1
            return False
    seen.update(dict.fromkeys(found, split))
    return True
