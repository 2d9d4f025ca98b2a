"""A downstream task: prompts with the targets that a model should continue them with.

The loss of a task is the negative log-likelihood of the *target* text, in nats per byte of it;
prompts are context and are never scored.  Language modelling is the case
``prompt == ""``.

A task is split once, in text: ``train`` may be reduced to nested subsets
(:mod:`lensllm_jax.data.subsets`), ``validation`` chooses the stopping step, ``test`` gives the
loss that the scaling law is fitted to.  A text in two splits would lower the test loss for a
reason that no law describes, so :func:`build_task` keeps the copy nearest to ``test`` and counts
the others.  A record is a repeat if prompt and target are both those of another, after Unicode
normal form C and with runs of white space as one space (:func:`exact_key`): records that differ
in case, operators, emoji or combining marks are different.

Records without a split of their own are shuffled with a fixed seed: a tenth (at most 1,000)
become test, a twentieth (at most 500) validation, the rest train.

Example:
    >>> task = build_task("greetings", "says hello", validation=[Example("", "Hi.")],
    ...                   train=[Example("", "Good day."), Example("", "Hello! ")],
    ...                   test=[Example("", "Hello!")])
    >>> task.train, dict(task.removed)
    ((Example(prompt='', target='Good day.'),), {'train_repeats_test': 1})
    >>> task
    <Task 'greetings': 1 train, 1 validation, 1 test, 1 left out>
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from lensllm_jax import checks
from lensllm_jax.checks import UserError
from lensllm_jax.data.records import rows_of, text_pairs
from lensllm_jax.data.subsets import subset_order

_NOT_A_WORD = re.compile(r"[\W_]+")
_TEST_SHARE, _VALIDATION_SHARE = 0.1, 0.05
_MOST_TEST, _MOST_VALIDATION = 1000, 500
_FEWEST = 20  # records: below it a test loss says nothing
_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a task; the loss is on ``target`` alone."""

    prompt: str  # context, "" for language modelling
    target: str  # what the model is scored on, never empty in a Task

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of both."""
        return len(self.prompt.encode()) + len(self.target.encode())


@dataclass(frozen=True, repr=False)
class Task:
    """A named, split and de-duplicated set of examples.

    Made by :func:`lensllm_jax.load_task`, :meth:`from_records` or :func:`build_task`.
    """

    name: str  # what load_task was given
    description: str  # where the text comes from and what is asked of the model
    train: tuple[Example, ...]  # in a fixed shuffled order
    validation: tuple[Example, ...]  # decide when a fine-tune stops
    test: tuple[Example, ...]  # whose loss is reported
    removed: Mapping[str, int]  # reason -> number of records left out
    fingerprint: str  # sha256 (hex) over the three splits in order
    max_bytes: int | None = None  # that records were cut to, None where they are whole
    cut: Mapping[str, int] = field(default_factory=dict)  # split and part -> records that lost some
    num_divided: int = 0  # records whose first words became their prompt

    @property
    def examples(self) -> tuple[Example, ...]:
        """Those of all splits."""
        return (*self.train, *self.validation, *self.test)

    @classmethod
    def from_records(
        cls,
        records: Any,
        *,
        name: str = "records",
        prompt_field: str | None = "prompt",
        target_field: str = "target",
    ) -> "Task":
        """The task in a list of dicts, a DataFrame, or one split of a datasets.Dataset.

        Args:
            records: rows with two columns of text, or with chat ``messages`` that end with the
                assistant's (:mod:`lensllm_jax.data.records`).
            name: of the task.
            prompt_field: column of the prompts; "" for language modelling on the targets.
            target_field: column of the targets.

        Raises:
            UserError: if a record lacks a field or its text, or there are fewer than 20 records.
        """
        pairs = text_pairs(
            rows_of(records), source=name, prompt_field=prompt_field, target_field=target_field
        )
        return split_task(name, f"the records of {name}, split at random", pairs)

    def with_test_examples(self, count: int) -> "Task":
        """The task with its first ``count`` test records; ``removed`` counts the others.

        Raises:
            UserError: if ``count`` is not positive.
        """
        kept = self.test[: checks.positive("num_test_examples", count)]
        removed = Counter(self.removed)
        removed["test_not_evaluated"] += len(self.test) - len(kept)
        return replace(
            self,
            test=kept,
            removed=counts(removed),
            fingerprint=fingerprint(self.train, self.validation, kept),
        )

    def notes(self) -> list[str]:
        """How many records were left out, and why; how many were cut or divided.

        Example:
            >>> left_out, cut = {"empty": 2, "train_repeats_test": 1}, {"test_prompts": 8}
            >>> for line in Task("sums", "", (), (), (), left_out, "", 160, cut, 20).notes():
            ...     print(line)
            3 records left out (2 empty, 1 train repeats test)
            texts cut to 160 bytes (--max_bytes): the beginning of 8 test prompts
            20 records have no prompt, or lost it to the cut: encoders read their first words
        """
        lines, ends = [], {"prompts": "beginning", "targets": "end"}
        if self.removed:
            reasons = [f"{n:,} {reason.replace('_', ' ')}" for reason, n in self.removed.items()]
            total = sum(self.removed.values())
            lines.append(f"{total:,} records left out ({', '.join(reasons)})")
        if self.cut:
            parts = [(count, *place.rpartition("_")[::2]) for place, count in self.cut.items()]
            lost = [f"the {ends[part]} of {count:,} {split} {part}" for count, split, part in parts]
            lines.append(f"texts cut to {self.max_bytes:,} bytes (--max_bytes): {', '.join(lost)}")
        if self.num_divided:
            lines.append(
                f"{self.num_divided:,} records have no prompt, or lost it to the cut: encoders "
                "read their first words"
            )
        return lines

    def __repr__(self) -> str:
        splits = ("train", "validation", "test")
        counts = ", ".join(f"{len(getattr(self, split))} {split}" for split in splits)
        return f"<Task {self.name!r}: {counts}, {sum(self.removed.values())} left out>"


def split_task(name: str, description: str, pairs: Iterable[tuple[str, str]]) -> Task:
    """(prompt, target) pairs as a task, split at random with a fixed seed.

    Raises:
        UserError: if there are fewer than 20.
    """
    examples = [Example(*pair) for pair in pairs]
    if len(examples) < _FEWEST:
        raise UserError(
            f"task {name!r} must hold at least {_FEWEST} records to be split, got {len(examples)}"
        )
    shuffled = [examples[i] for i in subset_order(len(examples), seed=_SPLIT_SEED)]
    num_test = min(round(_TEST_SHARE * len(examples)), _MOST_TEST)
    held_out = num_test + min(round(_VALIDATION_SHARE * len(examples)), _MOST_VALIDATION)
    return build_task(
        name,
        description,
        test=shuffled[:num_test],
        validation=shuffled[num_test:held_out],
        train=shuffled[held_out:],
    )


def normalised(text: str) -> str:
    """``text`` with words only, in lower case, with single spaces."""
    return _NOT_A_WORD.sub(" ", text).strip().lower()


def exact_key(example: Example) -> Iterator[str]:
    """What must not repeat in most tasks: prompt and target together.

    Targets may repeat under different prompts, as class labels do, and prompts before different
    targets, as instructions do.
    """
    folded = (
        " ".join(unicodedata.normalize("NFC", text).split())
        for text in (example.prompt, example.target)
    )
    yield "\n".join(folded)


def loose_keys(example: Example) -> Iterator[str]:
    """What must not repeat in a task mined from running text, where near copies are common.

    The words of the prompt, or of the target where there is no prompt, whatever stands between
    them.  ``pydoc`` would have 694 more training records by :func:`exact_key`, ``sotu`` 65.
    """
    yield normalised(example.prompt) or "target " + _words_of_target(example)


def loose_keys_of_both(example: Example) -> Iterator[str]:
    """As :func:`loose_keys`, where every target is a text of its own: prompt and target alike."""
    if prompt := normalised(example.prompt):
        yield "prompt " + prompt
    yield "target " + _words_of_target(example)


def build_task(
    name: str,
    description: str,
    *,
    train: Iterable[Example],
    validation: Iterable[Example],
    test: Iterable[Example],
    keys: Callable[[Example], Iterator[str]] = exact_key,
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
        test: records that the reported loss is on; a run may take the first ones alone, so that
            they should be in random order.
        keys: the texts of a record that must not repeat.
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
        removed=counts(removed),
        fingerprint=fingerprint(kept["train"], kept["validation"], kept["test"]),
        train=kept["train"],
        validation=kept["validation"],
        test=kept["test"],
    )


def counts(found: Mapping[str, int]) -> Mapping[str, int]:
    """What was found at all, by name, not to be changed."""
    return MappingProxyType({name: n for name, n in sorted(found.items()) if n})


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


def _words_of_target(example: Example) -> str:
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
