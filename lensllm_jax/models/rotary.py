r"""Rotary: positions as rotations of queries and keys (Su et al., 2021).

A head's features are taken in pairs, one from each half, and pair i at position s is turned
by the angle :math:`s\,\omega_i`, with :math:`\omega_i = \theta^{-2i/r}` for :math:`r` turned
features; the rest pass unturned.  A score then depends on the distance of two tokens alone.

Longer contexts slow the turning down: "linear" divides every :math:`\omega` (Chen et al.,
2023); "llama3" divides the slow ones, leaves the fast ones, and blends in between (Llama 3.1).

Example:
    >>> from lensllm_jax.models.rotary import Rotary
    >>> Rotary(base=100.0, width=4).frequencies().tolist()
    [1.0, 0.1]
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.typing import Array

_BLEND = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KEYS = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", *_BLEND}),
}
_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


@dataclasses.dataclass(frozen=True)
class Rotary:
    r"""How fast each pair of features turns.

    Attributes:
        base: :math:`\theta`.
        width: features of a head that turn, an even number.
        factor: by how much turning is slowed down.
        blend: where "llama3" scaling applies, the turns over the original context below which
            a pair is slowed down fully and above which not at all, and that context in tokens;
            ``None`` slows down every pair alike.
    """

    base: float
    width: int
    factor: float = 1.0
    blend: tuple[float, float, int] | None = None

    def __post_init__(self):
        checks.positive("base", self.base)
        checks.positive("width", self.width)
        checks.positive("factor", self.factor)
        if self.width % 2:
            raise checks.UserError(
                f"`width` must be even (features turn in pairs), got {self.width}"
            )

    @classmethod
    def of_config(cls, parameters: Mapping[str, Any], head_dim: int) -> "Rotary":
        """From the ``rope_parameters`` of a Hugging Face config.

        Args:
            parameters: kind of scaling, base, and what the kind needs.
            head_dim: features of a head.

        Returns:
            The rotation.

        Raises:
            UserError: if the kind or one of its settings is not implemented.
        """
        kind = checks.one_of("rope_type", parameters.get("rope_type", "default"), _KEYS)
        if unknown := sorted(set(parameters) - _KEYS[kind] - _COMMON):
            raise checks.UserError(
                f"`rope_parameters` of rope_type {kind!r} must hold only supported settings, got "
                + "; ".join(f"{name}={parameters[name]!r}" for name in unknown)
            )
        if missing := sorted(_KEYS[kind] - set(parameters)):
            raise checks.UserError(
                f"`rope_parameters` of rope_type {kind!r} must hold {', '.join(missing)}, got none"
            )
        return cls(
            base=float(parameters["rope_theta"]),
            width=int(head_dim * parameters.get("partial_rotary_factor", 1.0)),
            factor=float(parameters.get("factor", 1.0)),
            blend=tuple(parameters[name] for name in _BLEND) if kind == "llama3" else None,
        )

    def frequencies(self) -> Float[np.ndarray, " half"]:
        """Angle per position of each pair, in radians per token.

        Returns:
            Fastest first.
        """
        omega = self.base ** -(np.arange(0, self.width, 2) / self.width)
        if self.blend is None:
            return omega / self.factor
        low, high, context = self.blend
        turns = context * omega / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return omega * (kept + (1 - kept) / self.factor)


@functools.lru_cache(maxsize=32)
def rotary_table(
    rotaries: tuple[Rotary, ...], num_positions: int
) -> tuple[Float[np.ndarray, "kinds s half"], Float[np.ndarray, "kinds s half"]]:
    """Cosine and sine of every pair's angle at every position.

    Float64, and outside the compiled program: the angles of late positions lose digits in
    float32.

    Args:
        rotaries: the kinds of rotation, of one width.
        num_positions: how many positions.

    Returns:
        Cosines and sines, one table a kind.
    """
    positions = np.arange(num_positions)
    angles = np.stack([np.outer(positions, rotary.frequencies()) for rotary in rotaries])
    return np.cos(angles), np.sin(angles)


def rotate(
    x: Float[Array, "s h d"], cosine: Float[Array, "s half"], sine: Float[Array, "s half"]
) -> Float[Array, "s h d"]:
    """Turns the pairs of features of each head by the angle of their position.

    Args:
        x: queries or keys of one example.
        cosine: of each position's and pair's angle.
        sine: of the same.

    Returns:
        The same, turned; features beyond the last pair are left as they are.
    """
    half = cosine.shape[-1]
    cosine, sine = cosine[:, None].astype(x.dtype), sine[:, None].astype(x.dtype)
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate([*turned, rest], axis=-1)
