"""Public loss tables that come with the package, each with its source and licence beside it.

``lin2024/flan`` and ``lin2024/gigaword``: 30 models fine-tuned on up to 1.6 million examples, of
Lin et al. 2024 (``NOTICE`` in their folder).

Example:
    >>> list_loss_tables()
    ('lin2024/flan', 'lin2024/gigaword')
    >>> table = load_loss_table("lin2024/flan")
    >>> len(table.names), int(table.sizes[-1]), table.unit
    (30, 1638400, 'nats per token')
"""

import dataclasses
from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable, read_loss_table

_FOLDER = Path(__file__).parent.parent / "tables"
_UNIT = "nats per token"  # of all of them


def list_loss_tables() -> tuple[str, ...]:
    """Names of the bundled tables, in alphabetical order."""
    return tuple(f"{path.parent.name}/{path.stem}" for path in sorted(_FOLDER.glob("*/*.csv")))


def loss_table_file(name: str | Path) -> Path:
    """The file of a bundled table, or the path itself.

    Raises:
        UserError: if it is no name, or begins as one of a bundled table and is none.
    """
    checks.path("table", name)
    bundled = list_loss_tables()
    if name in bundled:
        return _FOLDER / f"{name}.csv"
    if isinstance(name, str) and not Path(name).exists():
        folder = name.split("/")[0]
        if any(one.startswith(f"{folder}/") for one in bundled):
            checks.one_of("table", name, bundled)
    return Path(name)


def load_loss_table(name: str | Path, *, higher_is_better: bool | None = None) -> LossTable:
    """A bundled table by its name, or one by its path.

    Args:
        name: an entry of :func:`list_loss_tables`, or the path of a CSV file.
        higher_is_better: as of :func:`~lensllm_jax.selection.loss_table.read_loss_table`.

    Raises:
        UserError: if there is no such table, or its file is none.
    """
    file = loss_table_file(name)
    table = read_loss_table(file, higher_is_better=higher_is_better)
    return dataclasses.replace(table, unit=_UNIT) if file.is_relative_to(_FOLDER) else table
