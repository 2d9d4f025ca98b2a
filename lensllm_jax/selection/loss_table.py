r"""A table of measured test losses: one row per candidate, one column per training-set size.

The file is CSV: a header ``config name,0,200,400,...,size,family``, then one row per candidate.
Columns headed by whole numbers are training-set sizes in examples (0 is zero-shot); ``size`` is
the number of parameters, ``family`` a name.  ``size`` and ``family`` may be missing.  Losses are
nats per token.  An empty cell is a loss not measured yet; anything that is not a positive finite
number is refused, with its row and column.

Example:
    >>> import io
    >>> text = "config name,0,200,400,size\ngpt2,4.0,3.1,2.9,124\n"
    >>> table = parse_loss_table(io.StringIO(text))
    >>> table.names, table.sizes.tolist(), table.losses.tolist(), table.num_params.tolist()
    (('gpt2',), [0, 200, 400], [[4.0, 3.1, 2.9]], [124.0])
"""

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks, durable

_NAME, _PARAMS, _FAMILY = "config name", "size", "family"


@dataclasses.dataclass(frozen=True)
class LossTable:
    """Test losses of candidates on one task."""

    names: tuple[str, ...]  # candidates, unique
    sizes: Int[np.ndarray, " num_sizes"]  # training examples, ascending
    losses: Float[np.ndarray, "num_candidates num_sizes"]  # nats per token, NaN = not measured
    num_params: Float[np.ndarray, " num_candidates"]  # parameters, NaN = not given
    family: tuple[str, ...]  # "" = not given
    task: str = "task"  # its name in tables and figures

    def __post_init__(self):
        if not self.names:
            raise checks.UserError("`names` must hold one or more candidates, got none")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise checks.UserError(
                f"`{_NAME}` must be unique, got {repeated[0]!r} more than once; "
                "rename or remove one row"
            )
        if len(self.sizes) == 0 or self.sizes[0] < 0 or np.any(np.diff(self.sizes) <= 0):
            raise checks.UserError(f"`sizes` must ascend from 0 or more, got {self.sizes.tolist()}")
        checks.shape("losses", self.losses, (len(self.names), len(self.sizes)))
        checks.shape("num_params", self.num_params, (len(self.names),))
        given = ~np.isnan(self.losses)
        bad = np.argwhere(given & ~((self.losses > 0) & np.isfinite(self.losses)))
        if len(bad):
            row, column = map(int, bad[0])
            raise checks.UserError(
                f"loss of {self.names[row]!r} at size {self.sizes[column]} must be positive and "
                f"finite, got {self.losses[row, column]}"
            )
        if np.any(self.num_params <= 0):
            raise checks.UserError("`num_params` must be positive, got zero or less")

    def column(self, size: int) -> Float[np.ndarray, " num_candidates"]:
        """Losses at ``size``; every candidate must have one.

        Raises:
            UserError: if the size or a candidate's loss there is missing.
        """
        where = np.flatnonzero(self.sizes == size)
        if not len(where):
            raise checks.UserError(
                f"`size` must be one of {self.sizes.tolist()}, got {size}; "
                "measure that size or choose another"
            )
        values = self.losses[:, int(where[0])]
        missing = [name for name, value in zip(self.names, values, strict=True) if np.isnan(value)]
        if missing:
            raise checks.UserError(
                f"every candidate must have a loss at size {size}, got none for {missing[0]!r}; "
                "measure it or drop that candidate"
            )
        return values

    def by_name(self, size: int) -> dict[str, float]:
        """Candidate -> loss at ``size``; errors as ``column``."""
        return dict(zip(self.names, self.column(size).tolist(), strict=True))

    def up_to(self, budget_size: int) -> "LossTable":
        """The part of the table within a budget: sizes up to ``budget_size``."""
        within = self.sizes <= budget_size
        if not within.any():
            raise checks.UserError(
                f"`budget_size` must be at least the smallest size {self.sizes[0]}, "
                f"got {budget_size}"
            )
        return dataclasses.replace(self, sizes=self.sizes[within], losses=self.losses[:, within])

    def select(self, names: Sequence[str]) -> "LossTable":
        """The rows called ``names``, in that order."""
        rows = [self.names.index(checks.one_of("names", name, self.names)) for name in names]
        return dataclasses.replace(
            self,
            names=tuple(self.names[i] for i in rows),
            losses=self.losses[rows],
            num_params=self.num_params[rows],
            family=tuple(self.family[i] for i in rows),
        )

    @property
    def non_monotone(self) -> tuple[str, ...]:
        """Candidates whose loss rises with data somewhere; fits take them as noise."""
        rises = []
        for name, row in zip(self.names, self.losses, strict=True):
            measured = row[~np.isnan(row)]
            if np.any(np.diff(measured) > 0):
                rises.append(name)
        return tuple(rises)


def read_loss_table(path: str | os.PathLike[str], *, task: str | None = None) -> LossTable:
    """Reads a loss table from a CSV file.

    Args:
        path: of the file.
        task: name of the task; default the file's stem.

    Returns:
        The table.

    Raises:
        UserError: with file, row and column, if it is not a loss table.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return parse_loss_table(file, task=task or path.stem)
    except FileNotFoundError:
        raise checks.UserError(f"`path` must be a CSV file, got {path}: no such file") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise checks.UserError(f"`path` must be a readable CSV file, got {path}: {error}") from None
    except checks.UserError as error:
        raise checks.UserError(f"{path}: {error}") from None


def parse_loss_table(file: Iterable[str], *, task: str = "task") -> LossTable:
    """Reads a loss table from lines of CSV; see :func:`read_loss_table`."""
    try:
        rows = [row for row in csv.reader(file, strict=True) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise checks.UserError(f"the file must be CSV, got a broken line: {error}") from None
    if len(rows) < 2:
        raise checks.UserError(
            f"the file must hold a header and one or more candidates, got {len(rows)} lines"
        )
    header, *body = [[cell.strip() for cell in row] for row in rows]
    column_of = _size_columns(header)
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise checks.UserError(
                f"row {number} must have {len(header)} cells like the header, got {len(row)}"
            )
    candidates = [dict(zip(header, row, strict=True)) for row in body]
    names = tuple(candidate[_NAME] for candidate in candidates)
    if "" in names:
        raise checks.UserError(f"row {names.index('') + 2} must have a name, got an empty one")
    sizes = sorted(column_of)
    return LossTable(
        names,
        np.array(sizes, np.int64),
        np.array([[_number(c, column_of[size]) for size in sizes] for c in candidates]),
        np.array([_number(c, _PARAMS) for c in candidates]),
        tuple(candidate.get(_FAMILY, "") for candidate in candidates),
        task,
    )


def _size_columns(header: list[str]) -> dict[int, str]:
    """Training-set size -> its heading."""
    if _NAME not in header:
        raise checks.UserError(f"the header must hold a column {_NAME!r}, got {header[:4]}")
    columns: dict[int, str] = {}
    for cell in header:
        if header.count(cell) > 1:
            raise checks.UserError(f"the header must name each column once, got {cell!r} twice")
        if cell in (_NAME, _PARAMS, _FAMILY):
            continue
        # isascii: int() would also read other scripts' digits, and "1_000"
        if not (cell.isascii() and cell.isdigit() and len(cell) <= 15):
            raise checks.UserError(
                f"the header must hold {_NAME!r}, training-set sizes, {_PARAMS!r} and "
                f"{_FAMILY!r}, got {cell!r}"
            )
        if int(cell) in columns:
            raise checks.UserError(f"the header must name each size once, got {int(cell)} twice")
        columns[int(cell)] = cell
    if not columns:
        raise checks.UserError("the header must hold training-set sizes such as 200, got none")
    return columns


def _number(candidate: dict[str, str], column: str) -> float:
    """A positive number, or NaN where the cell is empty or there is no such column."""
    cell = candidate.get(column, "")
    if not cell:
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not (np.isfinite(value) and value > 0):
        raise checks.UserError(
            f"column {column!r} of {candidate[_NAME]!r} must be a positive number or empty, "
            f"got {cell!r}"
        )
    return value


def write_loss_table(table: LossTable, path: str | os.PathLike[str]) -> None:
    """Writes ``table`` as :func:`read_loss_table` reads it; NaN becomes an empty cell.

    The file appears whole or not at all; one that exists is replaced.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_NAME, *table.sizes.tolist(), _PARAMS, _FAMILY])
    for i, name in enumerate(table.names):
        losses = ["" if np.isnan(x) else repr(float(x)) for x in table.losses[i]]
        params = table.num_params[i]
        writer.writerow(
            [name, *losses, "" if np.isnan(params) else f"{params:.0f}", table.family[i]]
        )
    durable.replace(Path(path), text.getvalue().encode())
