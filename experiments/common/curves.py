"""Loss tables that --curves names, the budgets that divide them, the selectors that read them."""

from collections.abc import Iterable, Sequence

import numpy as np

from experiments.common import cli
from lensllm_jax import checks
from lensllm_jax.runs.run_folder import sha256_of
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.public_tables import load_loss_table, loss_table_file
from lensllm_jax.selection.selectors import NEEDS, SELECTORS

DEFAULT_BUDGETS = (8, 16, 32, 64, 128, 256, 512)  # divisors of the largest size
TABLE_SELECTORS = tuple(name for name in SELECTORS if name not in NEEDS)  # need losses alone


def read_curves(paths: Sequence[str], *, higher_is_better: bool | None = None) -> list[LossTable]:
    """The tables, each named after its file; ``higher_is_better`` as of ``read_loss_table``.

    Raises:
        UserError: if one is no loss table, or two have the same name.
    """
    tables = [load_loss_table(path, higher_is_better=higher_is_better) for path in paths]
    tasks = [table.task for table in tables]
    if len(set(tasks)) < len(tasks):
        raise checks.UserError(f"`curves` must have different file names, got {tasks}")
    return tables


def divisors_of(texts: Sequence[str]) -> list[int]:
    """The entries of --budgets."""
    return [cli.divisor("budgets", text) for text in texts]


def budgets_of(table: LossTable, texts: Sequence[str] | None) -> list[int]:
    """The entries of --budgets; without it those of 8 to 512 that the table has, or else all.

    Raises:
        UserError: if the table has no loss of a candidate at one of them, or none is left.
    """
    if texts is not None:
        divisors = divisors_of(texts)
        check_budgets(table, divisors)
        return divisors
    check_budgets(table, ())
    target = int(table.sizes[-1])
    whole = ~np.isnan(table.losses).any(0) & (table.sizes > 0)
    there = [target // int(size) for size in table.sizes[whole][-2::-1] if target % size == 0]
    if not there:
        raise checks.UserError(
            f"`budgets` must be divisors of {target}, the largest size of {table.task}, at which "
            f"all candidates are measured, got none in {table.sizes.tolist()}"
        )
    usual = [divisor for divisor in there if divisor in DEFAULT_BUDGETS]
    return usual if len(usual) > 2 else there


def check_budgets(table: LossTable, divisors: Iterable[int]) -> None:
    """Refuses a table that lacks a loss at its largest size, or at a budget's."""
    target = int(table.sizes[-1])
    for divisor in (1, *divisors):
        table.column(target // divisor)


def selectors_of(names: Sequence[str]) -> list[str]:
    """The entries of --selectors; ``all`` are those that need nothing but a loss table."""
    if list(names) == ["all"]:
        return list(TABLE_SELECTORS)
    return [checks.one_of("selectors", name, TABLE_SELECTORS) for name in names]


def digests(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file, for the settings of a run that reads it."""
    return {path: sha256_of(loss_table_file(path)) for path in paths}
