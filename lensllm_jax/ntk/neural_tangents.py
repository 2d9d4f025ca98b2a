"""The bridge to neural-tangents 0.6.5 (Novak et al. 2022, arXiv 2206.08720).

neural-tangents was written for JAX 0.4 and fails to import on JAX 0.6 and newer, because names
that it only passes around were removed from the public namespace.  ``load`` lends it those names
for the length of its import and takes them back: the user's ``jax`` is the same before and
after.  Its one subpackage that needs TensorFlow (``neural_tangents.experimental``) is kept out.
This is the only module of the project that may touch names which JAX does not promise to keep.

Which names are lent was found by importing on JAX 0.10.2 and 0.12.0.1:

* ``jax.core``: ``Jaxpr``, ``JaxprEqn``, ``Literal``, ``Primitive``, ``Var`` (alive in
  ``jax.extend.core``), and ``ShapedArray``, ``AbstractValue``, ``Value`` should they vanish;
* ``jax.util``: ``safe_map``, ``safe_zip``;
* ``jax.interpreters.ad``: ``zeros_like_p``, a key of a rule table that the two methods
  offered here never read.

Example:
    >>> import jax
    >>> from lensllm_jax.ntk import neural_tangents
    >>> nt = neural_tangents.load()
    >>> nt.__version__
    '0.6.5'
    >>> hasattr(jax, "util")
    False
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

from lensllm_jax import checks
from lensllm_jax.typing import ApplyFn, Array, Params

_PACKAGE = "neural_tangents"
_TENSORFLOW_ONLY = f"{_PACKAGE}.experimental"
_LOCK = threading.RLock()


def load() -> Any:
    """The module ``neural_tangents``, importable on a JAX that is newer than it.

    Returns:
        The module; imported on the first call only.

    Raises:
        ImportError: if neural-tangents (or frozendict, which it needs) is not installed.
    """
    with _LOCK:
        if _PACKAGE in sys.modules:
            return sys.modules[_PACKAGE]
        _require_installed()
        # Its own deprecation warnings say nothing that a user of this project can act on.
        with warnings.catch_warnings(), _lent_names():
            warnings.simplefilter("ignore")
            try:
                return importlib.import_module(_PACKAGE)
            except BaseException:
                _forget(_PACKAGE)  # a half-imported package would hide the cause next time
                raise


def ntk_fn(f: ApplyFn, *, implementation: str, trace_axes: tuple[int, ...]) -> Callable[..., Array]:
    """The kernel function of neural-tangents for an ``f`` that treats examples independently.

    Args:
        f: ``f(params, x)``, outputs with the examples in the leading axis.
        implementation: name of a member of ``neural_tangents.NtkImplementation``.
        trace_axes: output axes to contract; neural-tangents then returns the *mean* over them.

    Returns:
        A function of ``(x1, x2, params)``; ``x2=None`` stands for ``x1``.

    Raises:
        ImportError: if neural-tangents is not installed.
    """
    nt = load()
    kernel = nt.empirical_ntk_fn(
        f,
        trace_axes=trace_axes,
        diagonal_axes=(),
        vmap_axes=0,
        implementation=nt.NtkImplementation[implementation],
    )

    def quiet(x1: Any, x2: Any, params: Params) -> Array:
        # JAX 0.12 warns of the `jnp.size(ShapeDtypeStruct)` that neural-tangents calls in tracing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return kernel(x1, x2, params)

    return quiet


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def tile(
    f: ApplyFn, implementation: str, trace_axes: tuple[int, ...], x1: Any, x2: Any, params: Params
) -> Array:
    """One rectangle of the kernel; compiled once for an ``f``.

    Args:
        f: as for ``ntk_fn``.
        implementation: as for ``ntk_fn``.
        trace_axes: as for ``ntk_fn``.
        x1: examples of the rows.
        x2: examples of the columns; ``None`` stands for ``x1``.
        params: the parameters.

    Returns:
        (n, m, k, k) or, traced or without an axis of outputs, (n, m).

    Raises:
        ImportError: if neural-tangents is not installed.
    """
    return ntk_fn(f, implementation=implementation, trace_axes=trace_axes)(x1, x2, params)


def scratch_bytes(f: ApplyFn, implementation: str, params: Params, x: Any) -> int:
    """What the compiled program of a symmetric tile holds while it runs, by XLA's own account.

    The program is compiled for the shapes, and nothing is computed.

    Args:
        f: as for ``ntk_fn``.
        implementation: as for ``ntk_fn``.
        params: the parameters, or their shapes.
        x: the examples, or their shapes.

    Returns:
        Bytes beside arguments and result.

    Raises:
        UserError: if XLA's backend gives no account.
        ImportError: if neural-tangents is not installed.
    """
    compiled = tile.lower(f, implementation, (), x, None, params).compile()
    account = compiled.memory_analysis()
    if account is None:  # JAX lets a backend have none
        raise checks.UserError(
            f'`method` must be "structured" for a cost on {jax.default_backend()}, got '
            f"{implementation.lower()!r}: the compiler says nothing of its memory there"
        )
    return account.temp_size_in_bytes


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
def _lent_names() -> Iterator[None]:
    """Supplies what neural-tangents misses in ``jax`` and takes it back on leaving."""
    with contextlib.ExitStack() as returned:
        for module, names in _missing_names():
            for name, value in names.items():
                if not hasattr(module, name):
                    setattr(module, name, value)
                    returned.callback(delattr, module, name)
        for name, module in (("jax.util", _jax_util()), (_TENSORFLOW_ONLY, _empty_module())):
            if name not in sys.modules and not _is_importable(name):
                sys.modules[name] = module
                returned.callback(sys.modules.pop, name, None)
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
