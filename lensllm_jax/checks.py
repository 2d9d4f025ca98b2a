"""Boundary checks: each returns the value that it validated, or says what must change.

The message has one form everywhere: "`x` must ..., got ...".  Checks stand at public
entry points; code inside a room trusts what passed them.

Example:
    >>> from lensllm_jax import checks
    >>> checks.positive("learning_rate", 1e-3)
    0.001
    >>> checks.positive("learning_rate", -1.0)
    Traceback (most recent call last):
    ...
    lensllm_jax.checks.UserError: `learning_rate` must be positive and finite, got -1.0
"""

import math
from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Number = TypeVar("Number", int, float)


class UserError(ValueError):
    """Bad input that its giver can mend; binaries print it as one line and exit with 2."""


def positive(name: str, value: Number) -> Number:
    """``value``, if it is a finite number above zero.

    Args:
        name: what the caller calls it.
        value: the number to check.

    Returns:
        ``value`` unchanged.

    Raises:
        UserError: if it is zero, negative, infinite or NaN.
    """
    return _finite_number(name, value, "positive", value > 0)


def not_negative(name: str, value: Number) -> Number:
    """As :func:`positive`, with zero allowed."""
    return _finite_number(name, value, "zero or positive", value >= 0)


def _finite_number(name: str, value: Number, wanted: str, satisfied: bool) -> Number:
    if not (math.isfinite(value) and satisfied):
        raise UserError(f"`{name}` must be {wanted} and finite, got {value!r}")
    return value


def one_of(name: str, value: T, options: Collection[T]) -> T:
    """``value``, if it is among ``options``.

    Args:
        name: what the caller calls it.
        value: the choice to check.
        options: what may be chosen.

    Returns:
        ``value`` unchanged.

    Raises:
        UserError: if it is not an option; the message lists them.
    """
    if value not in options:
        listed = ", ".join(sorted(map(str, options)))
        raise UserError(f"`{name}` must be one of {listed}, got {value!r}")
    return value


def shape(name: str, array: np.ndarray, expected: Sequence[int | None]) -> np.ndarray:
    """``array``, if its shape is ``expected`` (``None`` matches any length).

    Args:
        name: what the caller calls it.
        array: anything with a ``shape``.
        expected: one entry an axis.

    Returns:
        ``array`` unchanged.

    Raises:
        UserError: if rank or a length differs.
    """
    got = tuple(array.shape)
    if len(got) != len(expected) or any(
        e not in (None, g) for g, e in zip(got, expected, strict=True)
    ):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        wanted = f"({wanted},)" if len(expected) == 1 else f"({wanted})"
        raise UserError(f"`{name}` must have shape {wanted}, got {got}")
    return array


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """``array``, if every entry is a finite number.

    Args:
        name: what the caller calls it.
        array: a numpy or JAX array.

    Returns:
        ``array`` unchanged.

    Raises:
        UserError: naming the first entry that is infinite or NaN.
    """
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise UserError(f"`{name}` must be finite, got {np.asarray(array)[where]} at index {where}")
    return array
