"""Value: what was given for a setting, as its field declares it.

Example:
    >>> as_declared("sizes", [200, 400], tuple[int, ...]), as_declared("worth", 1, float)
    ((200, 400), 1.0)
    >>> as_declared("sizes", 200, tuple[int, ...])
    Traceback (most recent call last):
    lensllm_jax.checks.UserError: `sizes` must be a list of whole numbers, got 200
"""

import numbers
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lensllm_jax import checks


class _Kind(NamedTuple):
    """A type of settings."""

    accepted: tuple[type, ...]
    read: Callable[[Any], Any]
    one: str
    several: str


_KINDS = {
    bool: _Kind((bool, np.bool_), bool, "True or False", "True or False each"),
    int: _Kind((numbers.Integral,), int, "a whole number", "whole numbers"),
    float: _Kind((numbers.Real,), float, "a number", "numbers"),
    str: _Kind((str,), str, "text", "texts"),
}


def as_declared(name: str, value: Any, declared: Any) -> Any:
    """``value`` as one of the declared types, where all are numbers, text or tuples of them.

    Args:
        name: of the setting.
        value: what was given.
        declared: a type, or several and None.

    Raises:
        UserError: if it is of none of them.
    """
    is_union = typing.get_origin(declared) in (types.UnionType, typing.Union)
    options = typing.get_args(declared) if is_union else (declared,)
    if value is None and types.NoneType in options:
        return value
    kinds = [_kind_of(option) for option in options if option is not types.NoneType]
    if None in kinds:
        return value  # what it stands for is checked where it is used
    given = value
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # an array, or a scalar of one
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        value = tuple(value)
        given = value if isinstance(given, Iterator) else given  # which shows no number
    wanted = []
    for kind, is_list in filter(None, kinds):
        if is_list and isinstance(value, tuple) and all(_fits(kind, one) for one in value):
            return tuple(map(kind.read, value))
        if not is_list and _fits(kind, value):
            return kind.read(value)
        wanted.append(f"a list of {kind.several}" if is_list else kind.one)
    raise checks.UserError(f"`{name}` must be {' or '.join(wanted)}, got {given!r}")


def _kind_of(declared: Any) -> tuple[_Kind, bool] | None:
    """The kind of a type, and whether it is a tuple of such; None of other types."""
    is_list = typing.get_origin(declared) is tuple
    kind = _KINDS.get(typing.get_args(declared)[0] if is_list else declared)
    return None if kind is None else (kind, is_list)


def _fits(kind: _Kind, value: Any) -> bool:
    """Truth is no number; no number is beyond float64."""
    is_truth = isinstance(value, bool | np.bool_)
    if not isinstance(value, kind.accepted) or (is_truth and kind is not _KINDS[bool]):
        return False
    try:
        kind.read(value)
    except OverflowError:
        return False
    return True
