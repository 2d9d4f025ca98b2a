r"""Chunks: how the examples of a kernel are partitioned over devices and passes.

A stage of the program runs for a chunk of c examples of each device at once, as many as memory
near the caches holds; the chunks follow one another.  All chunks are full (``padding``).

.. math:: n \le q\,b\,c, \qquad c = \lceil \lceil n / q \rceil / b \rceil

for q devices and b chunks each.

Example:
    >>> import jax.numpy as jnp
    >>> map_chunks(lambda w, x: w * x, 2.0, jnp.arange(4.0), Plan(size=4, chunk_size=2, mesh=None))
    Array([0., 2., 4., 6.], dtype=float32)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lensllm_jax.typing import Array

# What the stages of one chunk of examples may hold: enough for large matrix products, little
# enough to stay near the caches.
CHUNK_BYTES = 2**27


class Resources(NamedTuple):
    """What the kernel of a tile may use."""

    mesh: Mesh | None = None  # devices that share the examples of either side, along its one axis
    kept_bytes: float | int = 0.0  # of matrix products kept between the sweeps, of each side


ONE_DEVICE = Resources()


class Plan(NamedTuple):
    """How the examples of one side are partitioned."""

    size: int  # examples, the last one repeated until chunks and devices are full
    chunk_size: int  # examples per device that pass through a stage at once
    mesh: Mesh | None


def make_plan(n: int, peak_stage_bytes: int, mesh: Mesh | None) -> Plan:
    """Equal chunks for every device, for stages that hold so many bytes per example at most."""
    num_devices = 1 if mesh is None else mesh.size
    per_device = math.ceil(n / num_devices)
    num_chunks = math.ceil(per_device / max(1, CHUNK_BYTES // max(peak_stage_bytes, 1)))
    chunk_size = math.ceil(per_device / num_chunks)
    return Plan(num_devices * num_chunks * chunk_size, chunk_size, mesh)


def map_chunks(f: Callable[[Any, Any], Any], fixed: Any, arguments: Any, plan: Plan) -> Any:
    """``f(fixed, arguments)``, a chunk of examples of each device at a time.

    Args:
        f: of what all examples share and of what each has, (c, ...) in and out.
        fixed: the former.
        arguments: the latter, a pytree with a leading axis of ``plan.size`` examples.
        plan: how they are partitioned.

    Returns:
        The results of all examples.
    """

    def per_device(fixed: Any, arguments: Any) -> Any:
        n = jax.tree.leaves(arguments)[0].shape[0]
        if n == plan.chunk_size:
            return f(fixed, arguments)

        def per_chunk(start: Array | int) -> Any:
            part = functools.partial(
                lax.dynamic_slice_in_dim, start_index=start, slice_size=plan.chunk_size
            )
            return f(fixed, jax.tree.map(part, arguments))

        # each chunk is written where it belongs: chunks stacked first and joined afterwards are
        # in memory twice
        def step(i: Array, results: Any) -> Any:
            start = i * plan.chunk_size
            put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
            return jax.tree.map(put, results, per_chunk(start))

        shapes = jax.eval_shape(per_chunk, 0)
        whole = jax.tree.map(lambda s: jnp.zeros((n, *s.shape[1:]), s.dtype), shapes)
        return lax.fori_loop(0, n // plan.chunk_size, step, whole)

    if plan.mesh is None:
        return per_device(fixed, arguments)
    examples = PartitionSpec(*plan.mesh.axis_names)
    sharded = shard(per_device, plan.mesh, in_specs=(PartitionSpec(), examples), out_specs=examples)
    return sharded(fixed, arguments)


def shard(f: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Callable:
    """The function of the whole from the function of one device's shard."""
    # check_vma: the loops over chunks and rows start from zeros, which JAX takes for replicated
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
