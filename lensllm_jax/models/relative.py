r"""Relative position: attention scores that depend on how far apart two tokens stand.

Raffel et al. (2020), section 2.1: to the score of head h for a query at q and a key at k is
added :math:`W_{\beta(k - q),\, h}`, where the table W has a row for each bucket of distances.
Half of the buckets of a direction hold one distance each, the other half grow with the
logarithm of the distance :math:`r`,

.. math:: \beta = \lfloor c + (u - c) \log(r / c) / \log(r_{\max} / c) \rfloor, \quad c = u/2

for u buckets per direction, and the last one holds all distances from :math:`r_{\max}` on.
An encoder splits its buckets between the two directions; a decoder, which sees no future,
uses them all for the past.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.models.relative import Buckets
    >>> encoder = Buckets(num_buckets=32, max_distance=128, bidirectional=True)
    >>> encoder.bucket(np.array([-200, -20, -8, -1, 0, 1, 8])).tolist()
    [15, 10, 8, 1, 0, 17, 24]
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.models.layers import embedding
from lensllm_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Which distances share a row of the table.

    Attributes:
        num_buckets: rows, both directions together.
        max_distance: tokens; all distances from here on share a bucket.
        bidirectional: whether the future has buckets of its own (else it is never seen).
    """

    num_buckets: int
    max_distance: int
    bidirectional: bool

    def __post_init__(self):
        if self.num_buckets < 4 or self.num_buckets % 2:
            raise checks.UserError(
                f"`num_buckets` must be even and at least 4, got {self.num_buckets}"
            )
        checks.positive("max_distance", self.max_distance - self._num_exact)

    @property
    def _per_direction(self) -> int:
        return self.num_buckets // 2 if self.bidirectional else self.num_buckets

    @property
    def _num_exact(self) -> int:
        return self._per_direction // 2

    def bucket(self, distances: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Row of the table for each distance: key position minus query position, tokens."""
        distance = np.abs(distances) if self.bidirectional else np.maximum(-distances, 0)
        # in float32, as T5's own: at powers of two the floor falls on a rounded logarithm
        ratio = np.maximum(distance, self._num_exact).astype(np.float32) / self._num_exact
        octaves = np.log(ratio) / np.float32(math.log(self.max_distance / self._num_exact))
        num_logarithmic = self._per_direction - self._num_exact
        logarithmic = self._num_exact + (octaves * np.float32(num_logarithmic)).astype(int)
        bucket = np.where(distance < self._num_exact, distance, logarithmic)
        bucket = np.minimum(bucket, self._per_direction - 1)
        return bucket + self._per_direction * (self.bidirectional & (distances > 0))


class RelativeBias(nn.Module):
    """What relative position adds to attention scores; the table has a column per head."""

    buckets: Buckets
    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, num_positions: int) -> Float[Array, "h s s"]:
        """The bias of each head for every query (row) and key (column)."""
        # one lookup per distance, not per pair: 2s - 1 instead of s^2 uses of the table
        distances = np.arange(-num_positions + 1, num_positions)
        table = embedding(
            self.buckets.num_buckets, self.num_heads, dtype=self.dtype, name="table"
        )  # fmt: skip
        by_distance = table(jnp.asarray(self.buckets.bucket(distances)))
        position = np.arange(num_positions)
        pairs = position[None, :] - position[:, None] + num_positions - 1
        return by_distance[pairs].transpose(2, 0, 1)
