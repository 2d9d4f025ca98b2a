r"""Plan: how the examples of a kernel are dealt out to devices and to passes.

A stage of the program runs for a chunk of c examples of each device at once, as many as memory
near the caches holds; the chunks follow one another.  All chunks are full: the last example is
repeated, and what it adds is cut off from the kernel.

.. math:: n \le q\,b\,c, \qquad c = \lceil \lceil n / q \rceil / b \rceil

for q devices and b chunks each.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.ntk.structured.chunks import Plan, in_chunks
    >>> in_chunks(lambda w, x: w * x, 2.0, jnp.arange(4.0), Plan(size=4, chunk_size=2, mesh=None))
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

from lensllm_jax.ntk.structured.stages import Schedule
from lensllm_jax.typing import Array

# What the stages of one chunk of examples may hold: enough for large matrix products, little
# enough to stay near the caches.
CHUNK_BYTES = 2**27


class Plan(NamedTuple):
    """How the examples of one side are dealt out."""

    size: int  # examples, the last one repeated until chunks and devices are full
    chunk_size: int  # examples of a device that pass through a stage at once
    mesh: Mesh | None


def make_plan(n: int, schedule: Schedule, mesh: Mesh | None) -> Plan:
    """Equal chunks for every device.

    Args:
        n: examples.
        schedule: the stages that they pass.
        mesh: the devices; ``None`` for the default one.

    Returns:
        The plan.
    """
    num_devices = 1 if mesh is None else mesh.size
    share = math.ceil(n / num_devices)
    hungriest = max(call.stage.num_bytes for call in schedule.calls)
    num_chunks = math.ceil(share / max(1, CHUNK_BYTES // max(hungriest, 1)))
    chunk_size = math.ceil(share / num_chunks)
    return Plan(num_devices * num_chunks * chunk_size, chunk_size, mesh)


def in_chunks(f: Callable[[Any, Any], Any], fixed: Any, arguments: Any, plan: Plan) -> Any:
    """``f(fixed, arguments)``, a few examples of each device at a time.

    Args:
        f: of what all examples share and of what each has, (c, ...) in and out.
        fixed: what all share.
        arguments: pytree with a leading axis of ``plan.size`` examples.
        plan: how they are dealt out.

    Returns:
        The results of all examples.
    """

    def of_device(fixed: Any, arguments: Any) -> Any:
        n = jax.tree.leaves(arguments)[0].shape[0]
        if n == plan.chunk_size:
            return f(fixed, arguments)

        def of_chunk(start: Array | int) -> Any:
            part = functools.partial(
                lax.dynamic_slice_in_dim, start_index=start, slice_size=plan.chunk_size
            )
            return f(fixed, jax.tree.map(part, arguments))

        # each chunk is written where it belongs: chunks that are stacked first, and put together
        # after, stand in memory twice
        def step(i: Array, found: Any) -> Any:
            start = i * plan.chunk_size
            put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
            return jax.tree.map(put, found, of_chunk(start))

        shapes = jax.eval_shape(of_chunk, 0)
        whole = jax.tree.map(lambda s: jnp.zeros((n, *s.shape[1:]), s.dtype), shapes)
        return lax.fori_loop(0, n // plan.chunk_size, step, whole)

    if plan.mesh is None:
        return of_device(fixed, arguments)
    examples = PartitionSpec(*plan.mesh.axis_names)
    return on_devices(
        of_device, plan.mesh, in_specs=(PartitionSpec(), examples), out_specs=examples
    )(fixed, arguments)


def on_devices(f: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Callable:
    """A function that every device runs on its share.

    Args:
        f: the function of a share.
        mesh: the devices.
        in_specs: along which axes the arguments are shared.
        out_specs: along which the results are.

    Returns:
        The function of the whole.
    """
    # check_vma: the loops over chunks and rows start from zeros, which JAX takes for replicated
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
