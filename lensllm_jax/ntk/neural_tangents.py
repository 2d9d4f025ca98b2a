"""The bridge to neural-tangents 0.6.5 (Novak et al. 2022, arXiv 2206.08720).

neural-tangents was written for JAX 0.4 and fails to import on JAX 0.6 and newer, because names
that it only passes around were removed from the public namespace.  ``load`` patches ``jax``
temporarily, for the length of the import: the user's ``jax`` is the same before and after.  Its one
subpackage that needs TensorFlow (``neural_tangents.experimental``) is kept out.  This is the only
module of the project that may touch names which JAX does not promise to keep.

The names missing on JAX 0.10.2 and 0.12.0.1:

* ``jax.core``: ``Jaxpr``, ``JaxprEqn``, ``Literal``, ``Primitive``, ``Var`` (alive in
  ``jax.extend.core``), and ``ShapedArray``, ``AbstractValue``, ``Value`` should they vanish;
* ``jax.util``: ``safe_map``, ``safe_zip``;
* ``jax.interpreters.ad``: ``zeros_like_p``, a key of a rule table that the two methods
  offered here never read.

Example:
    >>> load().__version__
    '0.6.5'
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lensllm_jax import checks
from lensllm_jax.typing import ApplyFn, Array, Params

_PACKAGE = "neural_tangents"
_TENSORFLOW_ONLY = f"{_PACKAGE}.experimental"
_LOCK = threading.RLock()


def load() -> Any:
    """The module ``neural_tangents``, also on a JAX that is newer than it.

    Raises:
        ImportError: if neural-tangents (or frozendict, which it needs) is not installed.
    """
    with _LOCK:
        if _PACKAGE in sys.modules:
            return sys.modules[_PACKAGE]
        _require_installed()
        # Its own deprecation warnings say nothing that a user of this project can act on.
        with warnings.catch_warnings(), _patched_jax():
            warnings.simplefilter("ignore")
            try:
                return importlib.import_module(_PACKAGE)
            except BaseException:
                _forget(_PACKAGE)  # a half-imported package would hide the cause next time
                raise


def tile(
    f: ApplyFn,
    params: Params,
    x1: Any,
    x2: Any = None,
    *,
    implementation: str,
    trace_axes: tuple[int, ...] = (),
) -> np.ndarray:
    """One rectangle of the kernel; compiled once for an ``f``.

    Args:
        f: ``f(params, x)``, outputs with the examples in the leading axis, examples independent.
        params: the parameters.
        x1: examples of the rows.
        x2: examples of the columns; ``None`` stands for ``x1``.
        implementation: name of a member of ``neural_tangents.NtkImplementation``.
        trace_axes: output axes to contract; neural-tangents then returns the *mean* over them.

    Returns:
        (n, m, k, k) or, traced or without an axis of outputs, (n, m).

    Raises:
        UserError: if an entry is not finite.
        ImportError: if neural-tangents is not installed.
    """
    theta = np.asarray(_tile(f, params, x1, x2, implementation, trace_axes))
    return checks.finite("theta (the computed kernel)", theta)


def scratch_bytes(f: ApplyFn, implementation: str, params: Params, x: Any) -> int:
    """What the compiled program of a symmetric tile holds while it runs, by XLA's own account.

    In bytes, without arguments and result.  The program is compiled for the shapes of ``params``
    and ``x``, and nothing is computed.

    Raises:
        UserError: if XLA's backend gives no account.
        ImportError: if neural-tangents is not installed.
    """
    account = _tile.lower(f, params, x, None, implementation, ()).compile().memory_analysis()
    if account is None:  # JAX lets a backend have none
        raise checks.UserError(
            f'`method` must be "structured" for a cost on {jax.default_backend()}, got '
            f"{implementation.lower()!r}: the compiler says nothing of its memory there"
        )
    return account.temp_size_in_bytes


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _tile(
    f: ApplyFn, params: Params, x1: Any, x2: Any, implementation: str, trace_axes: tuple[int, ...]
) -> Array:
    kernel = _kernel_fn(f, implementation, trace_axes)
    # JAX 0.12 warns of the `jnp.size(ShapeDtypeStruct)` that neural-tangents calls in tracing.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return kernel(x1, x2, params)


def _kernel_fn(
    f: ApplyFn, implementation: str, trace_axes: tuple[int, ...]
) -> Callable[..., Array]:
    nt = load()
    return nt.empirical_ntk_fn(
        f,
        trace_axes=trace_axes,
        diagonal_axes=(),
        vmap_axes=0,
        implementation=nt.NtkImplementation[implementation],
    )


def _require_installed() -> None:
    for name in (_PACKAGE, "frozendict"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"the methods of neural-tangents need the package {name!r}: install it with "
                "`pip install --no-deps neural-tangents==0.6.5 frozendict` (without --no-deps "
                'pip also installs TensorFlow, which nothing here uses), or use method="structured"'
            )


def _forget(package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        del sys.modules[name]


@contextlib.contextmanager
def _patched_jax() -> Iterator[None]:
    """Adds what neural-tangents misses in ``jax``, and removes it on leaving."""
    with contextlib.ExitStack() as undo:
        for module, names in _missing_names():
            for name, value in names.items():
                if not hasattr(module, name):
                    setattr(module, name, value)
                    undo.callback(delattr, module, name)
        for name, module in (("jax.util", _jax_util()), (_TENSORFLOW_ONLY, _empty_module())):
            if name not in sys.modules and not _is_importable(name):
                sys.modules[name] = module
                undo.callback(sys.modules.pop, name, None)
        yield


def _is_importable(name: str) -> bool:
    # The TensorFlow-only subpackage is found on disk but must not run.
    return name != _TENSORFLOW_ONLY and importlib.util.find_spec(name) is not None


def _missing_names() -> list[tuple[types.ModuleType, dict[str, Any]]]:
    import jax.core
    import jax.extend.core
    import jax.interpreters.ad

    extend = jax.extend.core
    core: dict[str, Any] = {
        name: getattr(extend, name) for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    }
    # Used in annotations and isinstance tests only.
    core["ShapedArray"] = jax.ShapeDtypeStruct
    core["AbstractValue"] = core["Value"] = typing.Any
    return [
        (jax.core, core),
        (jax.interpreters.ad, {"zeros_like_p": extend.Primitive("zeros_like")}),
    ]


def _jax_util() -> types.ModuleType:
    module = types.ModuleType("jax.util")

    def safe_zip(*iterables: Any) -> list[tuple]:
        return list(zip(*map(list, iterables), strict=True))

    def safe_map(f: Callable, *iterables: Any) -> list:
        return [f(*items) for items in safe_zip(*iterables)]

    module.safe_map, module.safe_zip = safe_map, safe_zip  # type: ignore[attr-defined]
    return module


def _empty_module() -> types.ModuleType:
    return types.ModuleType(_TENSORFLOW_ONLY, "Left out: it needs TensorFlow.")
