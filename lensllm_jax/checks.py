"""Boundary checks: each returns the value that it validated, or says what must change.

Every message has one form: "`x` must ..., got ...".  Public entry points check; code inside a
room trusts its callers.

Example:
    >>> from lensllm_jax import checks
    >>> checks.positive("learning_rate", -1.0)
    Traceback (most recent call last):
    ...
    lensllm_jax.checks.UserError: `learning_rate` must be positive and finite, got -1.0
"""

import math
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Number = TypeVar("Number", int, float)


class UserError(ValueError):
    """Bad input that the user can correct; binaries print it as one line and exit with 2."""

    def __init__(self, message: str):
        # what a file calls its tensors may hold line breaks and the codes of terminals
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


def positive(name: str, value: Number) -> Number:
    """``value``, if it is finite and above zero, else ``UserError``."""
    return _finite_number(name, value, "positive", lambda number: number > 0)


def not_negative(name: str, value: Number) -> Number:
    """``value``, if it is finite and zero or more, else ``UserError``."""
    return _finite_number(name, value, "zero or positive", lambda number: number >= 0)


def _finite_number(
    name: str, value: Number, wanted: str, satisfied: Callable[[Number], bool]
) -> Number:
    try:
        fits = math.isfinite(value) and bool(satisfied(value))
    except (TypeError, ValueError):  # no number, or several
        fits = False
    if not fits:
        raise UserError(f"`{name}` must be {wanted} and finite, got {value!r}")
    return value


def path(name: str, value: T, *, hint: str = "") -> T:
    """``value``, if it can name a file or a folder, else ``UserError`` that ends with ``hint``."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"`{name}` must be text or a path, got {type(value).__name__}{hint}")
    return value


def one_of(name: str, value: T, options: Collection[T]) -> T:
    """``value``, if it is among ``options``, else a ``UserError`` that lists them."""
    if value not in options:
        listed = ", ".join(sorted(map(str, options)))
        raise UserError(f"`{name}` must be one of {listed}, got {value!r}")
    return value


def real(name: str, value: Any) -> np.ndarray:
    """``value`` as an array, floating, if it holds real numbers, else ``UserError``."""
    try:
        array = np.asarray(value)
        held = str(array.dtype)
    except (TypeError, ValueError):  # ragged, or traced by jax.jit
        array, held = np.empty(0, object), type(value).__name__
    if not (array.dtype.kind == "f" or np.can_cast(array.dtype, np.float64)):
        raise UserError(f"`{name}` must hold real numbers, got {held}")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def shape(name: str, array: np.ndarray, expected: Sequence[int | None]) -> np.ndarray:
    """``array``, if it has the expected shape (``None``: any length), else ``UserError``."""
    got = tuple(array.shape)
    if len(got) != len(expected) or any(
        e not in (None, g) for g, e in zip(got, expected, strict=True)
    ):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        wanted = f"({wanted},)" if len(expected) == 1 else f"({wanted})"
        raise UserError(f"`{name}` must have shape {wanted}, got {got}")
    return array


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """``array``, if all of it is finite, else a ``UserError`` with its first entry that is not."""
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise UserError(f"`{name}` must be finite, got {np.asarray(array)[where]} at index {where}")
    return array
