r"""The paper's three corpora, read from the Hugging Face hub or from a copy of its repositories.

======== =============================== ======================== ===========================
task     repository                      prompt                   target
======== =============================== ======================== ===========================
flan     ``Muennighoff/flan``            ``inputs``               ``targets``
wikitext ``Salesforce/wikitext``, config none                     ``text``, a paragraph
         ``wikitext-103-raw-v1``
gigaword ``Harvard/gigaword``, revision  ``document`` and         ``summary``, a headline
         ``refs/convert/parquet``        ``"\nSummary:"``
======== =============================== ======================== ===========================

Prompts and targets are the text of the fields as it stands, Wikitext's without the white space
around it; a decoder reads prompt, one space (none behind white space) and target, and is scored
on the target alone.  Each has the splits ``train``, ``validation`` and ``test`` of its
repository, drawn at random with a fixed seed up to ``_SIZES`` records, in JSON lines or Parquet:
no repository's own code is run, which ``datasets`` no longer does.  Revisions are pinned where
the repository has a history to pin.  The paper names FLAN (Wei et al. 2022, arXiv 2109.01652),
Wikitext (Merity et al. 2016, arXiv 1609.07843) and Gigaword (Rush et al. 2015, arXiv
1509.00685); which preparation of them it used it does not say.

Example:
    >>> sorted(HUB_TASKS)
    ['flan', 'gigaword', 'wikitext']
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensllm_jax.checks import UserError
from lensllm_jax.data.pydoc import SEPARATOR
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.data.task import Example, Task, build_task

# Enough for the largest subset of Lin et al. 2024 (1,638,400) and 13 doublings below it.
_SIZES: Mapping[str, int] = {"train": 1_638_400, "validation": 2_048, "test": 4_096}
_ORDER_SEED = 0
_HEADING = re.compile(r"^\s*(=\s*)+.*=\s*$")  # " = Title = " or " = = Section = = "


@dataclass(frozen=True)
class _HubTask:
    """Where a corpus lies and how its rows become examples."""

    repository: str  # owner/name on the hub
    config: str | None  # of the repository, None for its only one
    revision: str  # commit or branch
    fields: tuple[str, ...]  # that every row must have, as text
    example: Callable[[Mapping[str, Any]], Example | None]  # None: the row is no record
    description: str  # for Task.description


def _flan_example(row: Mapping[str, Any]) -> Example:
    return Example(row["inputs"], row["targets"])


def _gigaword_example(row: Mapping[str, Any]) -> Example:
    return Example(row["document"] + SEPARATOR, row["summary"])


def _wikitext_example(row: Mapping[str, Any]) -> Example | None:
    text = row["text"].strip()
    return None if not text or _HEADING.match(text) else Example("", text)


HUB_TASKS: Mapping[str, _HubTask] = {
    "flan": _HubTask(
        "Muennighoff/flan",
        None,
        "049702ca5ffc5b3c62bf226aac67ba1493e8d548",
        ("inputs", "targets"),
        _flan_example,
        "FLAN, 10 instruction templates a data set",
    ),
    "wikitext": _HubTask(
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        ("text",),
        _wikitext_example,
        "language modelling on paragraphs of Wikitext-103, headings left out",
    ),
    "gigaword": _HubTask(
        "Harvard/gigaword",
        None,
        "refs/convert/parquet",
        ("document", "summary"),
        _gigaword_example,
        "headline generation on annotated English Gigaword",
    ),
}


def read_hub_task(
    name: str, *, sizes: Mapping[str, int] = _SIZES, folder: Path | None = None
) -> Task:
    """One of the paper's corpora, split as its repository splits it.

    Args:
        name: "flan", "wikitext" or "gigaword".
        sizes: split -> largest number of records, drawn at random with a fixed seed.
        folder: a local copy of the repository; the hub when None.

    Raises:
        UserError: if the name is unknown, the hub cannot be reached, the copy is incomplete, or
            a row lacks a field.
    """
    if name not in HUB_TASKS:
        raise UserError(f"`name` must be one of {', '.join(sorted(HUB_TASKS))}, got {name!r}")
    source = HUB_TASKS[name]
    splits = _load_splits(name, source, folder)
    return build_task(
        name,
        f"{source.description} ({source.repository}, revision {source.revision})",
        train=_examples(splits["train"], source, sizes["train"]),
        validation=_examples(splits["validation"], source, sizes["validation"]),
        test=_examples(splits["test"], source, sizes["test"]),
        sizes=sizes,
    )


def _load_splits(name: str, source: _HubTask, folder: Path | None) -> Mapping[str, Any]:
    """The repository's splits as ``datasets`` reads them; its errors as ``UserError``."""
    import datasets  # two seconds, and only these tasks need it

    place = source.repository if folder is None else str(folder)
    try:
        splits = datasets.load_dataset(
            place, source.config, revision=None if folder else source.revision
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"task {name!r} must be read from {place}, got {type(error).__name__}: {error}; "
            f"go online, or copy it on a machine that is (`hf download {source.repository} "
            f"--repo-type dataset --revision {source.revision} --local-dir DIR`) and pass "
            f"folder=DIR (--task_folder=DIR), or choose a task that needs no hub: pydoc, sotu"
        ) from error
    if missing := {"train", "validation", "test"} - set(splits):
        raise UserError(
            f"task {name!r} must have train, validation and test, got no "
            f"{', '.join(sorted(missing))} in {place}"
        )
    return splits


def _examples(rows: Any, source: _HubTask, size: int) -> Iterator[Example]:
    """Records of one split in a fixed random order: a tenth more than ``size``.

    The repositories are sorted by source (FLAN: a file a data set), so a prefix would not be a
    sample; the tenth is for the repeats that :func:`build_task` will drop.
    """
    wanted = size + size // 10
    for index in subset_order(max(len(rows), 1), seed=_ORDER_SEED)[: len(rows)]:
        row = rows[int(index)]
        for field in source.fields:
            if not isinstance(row.get(field), str):
                raise UserError(
                    f"`{source.repository}` must have text in field {field!r} of every row, "
                    f"got {row.get(field)!r} (its fields: {', '.join(row)})"
                )
        if (example := source.example(row)) is not None:
            yield example
            wanted -= 1
        if wanted <= 0:
            return
