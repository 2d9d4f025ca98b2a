"""The tasks that can be named, and files of one's own.

Example:
    >>> list_tasks()
    ('pydoc', 'sotu')
"""

from collections.abc import Callable
from pathlib import Path

from lensllm_jax.checks import UserError
from lensllm_jax.data.files import read_task_file
from lensllm_jax.data.pydoc import load_pydoc
from lensllm_jax.data.sotu import load_sotu
from lensllm_jax.data.task import Task

_LOADERS: dict[str, Callable[[], Task]] = {"pydoc": load_pydoc, "sotu": load_sotu}


def list_tasks() -> tuple[str, ...]:
    """The names that :func:`load_task` knows.

    Returns:
        Names in alphabetical order.
    """
    return tuple(sorted(_LOADERS))


def load_task(
    name: str | Path, *, prompt_field: str = "prompt", target_field: str = "target"
) -> Task:
    """A task by name, or from a local file.

    Args:
        name: one of :func:`list_tasks`, or the path of a .jsonl, .csv, .parquet or .txt file.
        prompt_field: column of a file's prompts; a .txt file has none.
        target_field: column of a file's targets.

    Returns:
        The task, split and de-duplicated.

    Raises:
        UserError: if the name is unknown, a file is unreadable, or a field is missing.

    Example:
        >>> load_task("glue")
        Traceback (most recent call last):
        ...
        lensllm_jax.checks.UserError: `name` must be one of pydoc, sotu, or the path of a
        .csv, .jsonl, .parquet or .txt file, got 'glue'
    """
    if str(name) in _LOADERS:
        return _LOADERS[str(name)]()
    if Path(name).is_file():
        return read_task_file(Path(name), prompt_field=prompt_field, target_field=target_field)
    raise UserError(
        f"`name` must be one of {', '.join(list_tasks())}, or the path of a "
        f".csv, .jsonl, .parquet or .txt file, got {str(name)!r}"
    )
