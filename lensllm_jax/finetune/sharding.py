"""Sharding: one fine-tune over several devices, each holding a part of every array (FSDP).

Parameters, gradients and moments are cut along their longest axis that the devices divide, never
along the axis of stacked blocks, of which a pass reads one at a time; an array with no such axis is
on every device.  Each device computes on its part of the batch and fetches one block's weights when
it needs them (Rajbhandari et al., 2020; the collectives are XLA's).

Example:
    >>> shards_over(1) is None  # nothing to cut
    True
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lensllm_jax import checks
from lensllm_jax.typing import Array, Batch

_AXIS = "data"  # of the mesh


@dataclasses.dataclass(frozen=True)
class Shards:
    """Where the parts of arrays are.

    Attributes:
        mesh: the devices, along one axis.
    """

    mesh: Mesh

    def place(self, tree: Any) -> Any:
        """The arrays of a pytree, copied to the devices part by part."""
        return jax.tree.map_with_path(
            lambda path, leaf: jax.device_put(np.array(leaf), self._of_leaf(path, leaf)), tree
        )

    def constrain(self, tree: Any) -> Any:
        """The same within a compiled function."""
        return jax.tree.map_with_path(
            lambda path, leaf: jax.lax.with_sharding_constraint(leaf, self._of_leaf(path, leaf)),
            tree,
        )

    def place_batch(self, batch: Batch, *, axis: int) -> Batch:
        """Arrays whose ``axis`` counts examples, an equal part of them on each device.

        Where the devices do not divide the examples, all are on every device.
        """
        return {
            name: jax.device_put(array, self._cut(array.shape, axis))
            for name, array in batch.items()
        }

    def _of_leaf(self, path: Sequence[Any], leaf: Array) -> NamedSharding:
        stacked = any(getattr(entry, "key", None) == "blocks" for entry in path)
        return self._cut(leaf.shape, longest_divisible(leaf.shape, self.mesh.size, stacked=stacked))

    def _cut(self, shape: tuple[int, ...], axis: int | None) -> NamedSharding:
        if axis is None or shape[axis] % self.mesh.size:
            return NamedSharding(self.mesh, PartitionSpec())
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, _AXIS))


def longest_divisible(shape: tuple[int, ...], num_devices: int, *, stacked: bool) -> int | None:
    """The longest axis that the devices divide; None if there is none.

    ``stacked``: whether the first axis counts blocks, and is not to be cut.

    Example:
        >>> longest_divisible((8, 12, 16), 4, stacked=True)
        2
    """
    axes = [axis for axis in range(int(stacked), len(shape)) if shape[axis] % num_devices == 0]
    return max(axes, key=lambda axis: shape[axis], default=None)


def shards_over(num_devices: int) -> Shards | None:
    """Shards over the first devices of this process; None where there is one.

    Raises:
        UserError: if there are fewer.
    """
    available = len(jax.devices())
    if not 1 <= num_devices <= available:
        raise checks.UserError(
            f"`devices` must be from 1 to {available} (the {jax.default_backend()} devices that "
            f"JAX sees), got {num_devices}"
        )
    return None if num_devices == 1 else Shards(Mesh(np.array(jax.devices()[:num_devices]), _AXIS))


def on_host() -> contextlib.AbstractContextManager:
    """Within it, new arrays are in the memory of the host, where JAX has a CPU backend at all."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def per_device(shapes: Mapping[str, tuple[int, ...]], num_devices: int) -> int:
    """Largest number of entries of these arrays, by slash-joined path, that one device holds."""
    total = 0
    for path, shape in shapes.items():
        axis = longest_divisible(shape, num_devices, stacked="blocks" in path.split("/"))
        total += int(np.prod(shape)) // (1 if axis is None else num_devices)
    return total
