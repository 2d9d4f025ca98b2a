r"""A table of measured test losses: one row per candidate, one column per training-set size.

The file is CSV (comma, semicolon or tab): a header ``config name,0,200,400,...,size,family``, then
one row per candidate.  Columns headed by whole numbers are training-set sizes in examples (0 is
zero-shot); ``size`` is the number of parameters, ``family`` a name.  ``size`` and ``family`` may be
missing.  Losses are nats per byte of target text, as this package measures them, or any other
positive quantity that falls with data and has one unit for all candidates.  An empty
cell or N/A is a loss not measured yet; anything else that is not a positive finite number is
refused, with its row and column.  Counts may be written ``1,600``, ``0.2k`` or ``1.3B``, losses
with a decimal comma or all in percent (:mod:`lensllm_jax.selection.numbers`).

Accuracies rise with data, and would rank upside down: :func:`read_loss_table` refuses a table most
of whose rows end above where they begin, unless ``higher_is_better`` is said.

Example:
    >>> import io
    >>> text = "config name,0,200,400,size\ngpt2,4.0,3.1,2.9,124\n"
    >>> table = parse_loss_table(io.StringIO(text))
    >>> table.names, table.sizes.tolist(), table.losses.tolist(), table.num_params.tolist()
    (('gpt2',), [0, 200, 400], [[4.0, 3.1, 2.9]], [124.0])
    >>> text = "config name,0,200\nopt,20%,75%\n"
    >>> parse_loss_table(io.StringIO(text), higher_is_better=True).losses.tolist()
    [[0.8, 0.25]]
"""

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks, durable
from lensllm_jax.delimited import as_written, encoding_of, neutral, plain, read_delimited
from lensllm_jax.selection.numbers import read_cells, whole_number

_NAME, _PARAMS, _FAMILY = "config name", "size", "family"
_LONGEST_SHOWN = 40  # characters of a cell in a message
_DIVERGED = 0.1  # share by which a last loss exceeds the lowest before it
_GIVEN_UP = 0.25  # of the fall from the first loss to the lowest, which it gives up


@dataclasses.dataclass(frozen=True, repr=False)
class LossTable:
    """Test losses of candidates on one task."""

    names: tuple[str, ...]  # candidates, unique
    sizes: Int[np.ndarray, " num_sizes"]  # training examples, ascending
    losses: Float[np.ndarray, "num_candidates num_sizes"]  # in ``unit``, NaN = not measured
    num_params: Float[np.ndarray, " num_candidates"]  # parameters, NaN = not given
    family: tuple[str, ...]  # "" = not given
    task: str = "task"  # its name in tables and figures
    unit: str = ""  # of the losses; "" = not given, as in a file

    def __post_init__(self):
        if not self.names:
            raise checks.UserError("`names` must hold one or more candidates, got none")
        if repeated := _repeated(self.names):
            raise checks.UserError(
                f"`{_NAME}` must be unique, got {repeated!r} more than once; "
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

    def __repr__(self) -> str:
        count, sizes = len(self.names), ", ".join(f"{size:,}" for size in self.sizes)
        return (
            self.in_unit(f"<LossTable {self.task!r}: {count} candidates at {sizes} examples") + ">"
        )

    def in_unit(self, what: str) -> str:
        """``what``, with the unit of the losses where it is known."""
        return f"{what} ({self.unit})" if self.unit else what

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
        row_of = {name: row for row, name in enumerate(self.names)}
        rows = [row_of[checks.one_of("names", name, row_of)] for name in names]
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

    @cached_property
    def is_diverged(self) -> Bool[np.ndarray, " num_candidates"]:
        """Candidates whose last loss is a tenth above the lowest, and a quarter of the way back.

        The way is that from their first loss after fine-tuning.  Of the bundled tables' losses, in
        nats, none is .4 % above; errors of a few percent vary by a tenth for no reason.
        """
        tuned = np.where(self.sizes > 0, self.losses, np.nan)
        measured = ~np.isnan(tuned)
        rows = np.arange(len(tuned))
        first, last = tuned[rows, measured.argmax(1)], tuned[rows, last_measured(measured)]
        lowest = np.nanmin(tuned, axis=1, initial=np.inf, where=measured)
        is_far = last > (1.0 + _DIVERGED) * lowest
        return is_far & (last - lowest > _GIVEN_UP * (first - lowest))


def read_loss_table(
    path: str | os.PathLike[str],
    *,
    task: str | None = None,
    higher_is_better: bool | None = None,
    perplexity: bool = False,
) -> LossTable:
    """Reads a loss table from a CSV file.

    Args:
        path: of the file.
        task: name of the task; default the file's stem.
        higher_is_better: True reads accuracies (shares up to 1, or percent) as errors, 1 - share;
            False accepts losses most of which rise with data; by default such a table is refused.
        perplexity: the cells are exponentials, and the losses their logarithms (nats).

    Returns:
        The table.

    Raises:
        UserError: with file, row and column, if it is not a loss table.
    """
    path = Path(checks.path("path", path))
    try:
        with path.open(encoding=encoding_of(path), newline="") as file:
            return parse_loss_table(
                file,
                task=task or path.stem,
                higher_is_better=higher_is_better,
                perplexity=perplexity,
            )
    except FileNotFoundError:
        raise checks.UserError(f"`path` must be a CSV file, got {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise checks.UserError(f"`path` must be a readable CSV file, got {path}: {error}") from None
    except checks.UserError as error:
        raise checks.UserError(f"{path}: {error}") from None


def parse_loss_table(
    file: Iterable[str],
    *,
    task: str = "task",
    higher_is_better: bool | None = None,
    perplexity: bool = False,
) -> LossTable:
    """Reads a loss table from lines of CSV; see :func:`read_loss_table`."""
    header, rows = read_delimited(file, headings=(_NAME, ""))
    if not rows:
        raise checks.UserError("the file must hold one or more candidates, got a header alone")
    columns = _columns(header, rows)
    names = tuple(map(as_written, columns.pop(_NAME)))
    if "" in names:
        raise checks.UserError(f"row {names.index('') + 2} must have a name, got an empty one")
    not_given = ("",) * len(names)
    counts = columns.pop(_PARAMS, not_given)
    num_params = [_count(cell) for cell in counts]
    _check_cells(num_params, {_PARAMS: counts}, names)
    family = tuple(map(as_written, columns.pop(_FAMILY, not_given)))
    heading_of = _sizes(columns)
    sizes = sorted(heading_of)
    by_size = {heading_of[size]: columns[heading_of[size]] for size in sizes}
    values = read_cells([cell for cells in by_size.values() for cell in cells])
    _check_cells(
        values, by_size, names, smallest="zero or positive" if higher_is_better else "positive"
    )
    losses = np.array(values, np.float64).reshape(len(sizes), len(names)).T
    return LossTable(
        names,
        np.array(sizes, np.int64),
        _as_losses(losses, higher_is_better, perplexity),
        np.array(num_params, np.float64),
        family,
        task,
    )


def _columns(header: list[str], rows: list[list[str]]) -> dict[str, tuple[str, ...]]:
    """Heading -> cells.  The index that pandas writes first is the names, or row numbers."""
    ours = {plain(name): name for name in (_NAME, _PARAMS, _FAMILY)}
    headings = [ours.get(plain(heading), heading) for heading in header]
    cells = [tuple(cell.strip() for cell in column) for column in zip(*rows, strict=True)]
    if plain(headings[0]) in ("", "unnamed: 0"):
        numbered = all(whole_number(cell) is not None for cell in cells[0])
        if numbered and (_NAME in headings or cells[0] == tuple(map(str, range(len(rows))))):
            headings, cells = headings[1:], cells[1:]
        elif _NAME not in headings:
            headings[0] = _NAME
    columns = [(h, c) for h, c in zip(headings, cells, strict=True) if h or any(c)]
    if repeated := _repeated([heading for heading, _ in columns]):
        raise checks.UserError(f"the header must name each column once, got {repeated!r} twice")
    if _NAME not in headings:
        raise checks.UserError(f"the header must hold a column {_NAME!r}, got {header[:4]}")
    return dict(columns)


def _count(cell: str) -> float | None:
    """A number of parameters; None where it is not given, NaN where it is no number."""
    count = whole_number(cell)
    return read_cells([cell])[0] if count is None else float(count)


def _check_cells(
    values: Sequence[float | None],
    columns: Mapping[str, Sequence[str]],
    names: Sequence[str],
    *,
    smallest: str = "positive",
) -> None:
    """Refuses the first of the values, column by column, that is no number above zero."""
    for index, value in enumerate(values):
        if value is None or value > 0 or (value == 0 and smallest != "positive"):
            continue
        column, row = divmod(index, len(names))
        heading = list(columns)[column]
        raise checks.UserError(
            f"column {heading!r} of {names[row]!r} must be a {smallest} number or empty, "
            f"got {columns[heading][row][:_LONGEST_SHOWN]!r}"
        )


def _as_losses(
    values: Float[np.ndarray, "num_candidates num_sizes"],
    higher_is_better: bool | None,
    perplexity: bool,
) -> Float[np.ndarray, "num_candidates num_sizes"]:
    """Accuracies as errors, perplexities as their logarithms; anything else must mostly fall."""
    if perplexity:
        if higher_is_better or (lowest := np.nanmin(values, initial=np.inf)) <= 1:
            found = "higher_is_better=True" if higher_is_better else f"{lowest:g}"
            raise checks.UserError(f"perplexities must be above 1 and fall, got {found}")
        values = np.log(values)
    if higher_is_better:
        best = np.nanmax(values, initial=0.0)
        ceiling = 1.0 if best <= 1 else 100.0
        if best >= ceiling:
            raise checks.UserError(
                "accuracies must be shares below 1 or percent below 100 with "
                f"higher_is_better=True, got {best:g}"
            )
        falling, rows = _num_rising(-values)
        if 2 * falling > rows > 1:
            raise checks.UserError(
                f"accuracies must rise with data, got {falling} of {rows} rows that end below "
                "where they begin; leave higher_is_better out (--higher_is_better) for losses"
            )
        return 1 - values / ceiling
    rising, rows = _num_rising(values)
    if higher_is_better is None and 2 * rising > rows:
        raise checks.UserError(
            f"losses must fall with data, got {rising} of {rows} rows that end above where they "
            "begin; pass higher_is_better=True (--higher_is_better) if these are accuracies, "
            "False (--nohigher_is_better) if they are losses"
        )
    return values


def last_measured(
    is_measured: Bool[np.ndarray, "num_candidates num_sizes"],
) -> Int[np.ndarray, " num_candidates"]:
    """Column of each row's last True; the last column where there is none."""
    return is_measured.shape[1] - 1 - is_measured[:, ::-1].argmax(1)


def cost_shares(num_params: Float[np.ndarray, " num_candidates"]) -> list[float]:
    """Each candidate's part of what one example costs the pool: its share of all parameters.

    Where a size is unknown (NaN) the shares are equal.

    Example:
        >>> cost_shares(np.array([1e6, 3e6])), cost_shares(np.array([1e6, np.nan]))
        ([0.25, 0.75], [0.5, 0.5])
    """
    if not np.isfinite(num_params).all():
        num_params = np.ones(len(num_params))
    return (num_params / num_params.sum()).tolist()


def _num_rising(values: Float[np.ndarray, "num_candidates num_sizes"]) -> tuple[int, int]:
    """Rows whose last value is above their first, of the rows that have two or more."""
    measured = ~np.isnan(values)
    rows = np.arange(len(values))
    first = measured.argmax(1)
    last = last_measured(measured)
    rising = values[rows, last] > values[rows, first]
    return int(rising.sum()), int((measured.sum(1) > 1).sum())


def _repeated(names: Sequence[str]) -> str | None:
    """The first name, in alphabetical order, that is there more than once."""
    return min((name for name, count in Counter(names).items() if count > 1), default=None)


def _sizes(headings: Iterable[str]) -> dict[int, str]:
    """Training-set size -> its heading."""
    heading_of: dict[int, str] = {}
    for heading in headings:
        size = whole_number(heading)
        if size is None:
            raise checks.UserError(
                f"the header must hold {_NAME!r}, training-set sizes, {_PARAMS!r} and "
                f"{_FAMILY!r}, got {heading!r}"
            )
        if size in heading_of:
            raise checks.UserError(f"the header must name each size once, got {size} twice")
        heading_of[size] = heading
    if not heading_of:
        raise checks.UserError("the header must hold training-set sizes such as 200, got none")
    return heading_of


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
            [
                neutral(name),
                *losses,
                "" if np.isnan(params) else f"{params:.0f}",
                neutral(table.family[i]),
            ]
        )
    durable.replace(Path(path), text.getvalue().encode())
