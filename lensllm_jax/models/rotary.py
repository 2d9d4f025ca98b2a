r"""Rotary: positions as rotations of queries and keys (Su et al., 2021).

A head's features are taken in pairs, one from each half, and pair i at position s is rotated
by the angle :math:`s\,\omega_i`, with :math:`\omega_i = \theta^{-2i/r}` for :math:`r` rotated
features; the rest pass as they are.  A score then depends on the distance of two tokens alone.

Longer contexts lower the frequencies: "linear" divides every :math:`\omega` (Chen et al.,
2023); "llama3" divides the low ones, keeps the high ones, and interpolates between (Llama 3.1).

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

_INTERPOLATION = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KEYS = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", *_INTERPOLATION}),
}
_WIDEST = 2**16  # features of a head: tables of them are made before any weight is seen
_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


@dataclasses.dataclass(frozen=True)
class Rotary:
    r"""How fast each pair of features rotates.

    Attributes:
        base: :math:`\theta`.
        width: features of a head that are rotated, an even number.
        factor: divisor of the frequencies.
        interpolation: of "llama3" scaling, the rotations over the original context below which
            a frequency is divided and above which it is kept, and that context in tokens;
            ``None`` divides all of them.
        is_still: whether nothing is rotated (layers without positions).
    """

    base: float
    width: int
    factor: float = 1.0
    interpolation: tuple[float, float, int] | None = None
    is_still: bool = False

    def __post_init__(self):
        checks.positive("base", self.base)
        checks.positive("width", self.width)
        checks.positive("factor", self.factor)
        if self.width % 2 or self.width > _WIDEST:
            raise checks.UserError(
                f"`width` must be even (features rotate in pairs) and at most {_WIDEST}, got "
                f"{self.width}"
            )

    @classmethod
    def of_config(cls, parameters: Mapping[str, Any], head_dim: int) -> "Rotary":
        """From the ``rope_parameters`` of a Hugging Face config.

        Raises:
            UserError: if the kind of scaling or one of its settings is not implemented.
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
            interpolation=tuple(parameters[name] for name in _INTERPOLATION)
            if kind == "llama3"
            else None,
        )

    def frequencies(self) -> Float[np.ndarray, " half"]:
        """Angle of each pair, in radians per token, the fastest first."""
        omega = self.base ** -(np.arange(0, self.width, 2) / self.width)
        if self.is_still:
            return 0 * omega
        if self.interpolation is None:
            return omega / self.factor
        low, high, context = self.interpolation
        rotations = context * omega / (2 * np.pi)
        weight = np.clip((rotations - low) / (high - low), 0.0, 1.0)
        return omega * (weight + (1 - weight) / self.factor)


@functools.lru_cache(maxsize=32)
def rotary_table(
    rotaries: tuple[Rotary, ...], num_positions: int
) -> tuple[Float[np.ndarray, "kinds s half"], Float[np.ndarray, "kinds s half"]]:
    """Cosine and sine of every pair's angle at every position.

    Float64, and outside the compiled program: the angles of late positions lose digits in
    float32.  One table per kind of rotation; all kinds have one width.
    """
    positions = np.arange(num_positions)
    angles = np.stack([np.outer(positions, rotary.frequencies()) for rotary in rotaries])
    return np.cos(angles), np.sin(angles)


def rotate(
    x: Float[Array, "s h d"], cosine: Float[Array, "s half"], sine: Float[Array, "s half"]
) -> Float[Array, "s h d"]:
    """Queries or keys of one example, each pair of features rotated by its position's angle.

    Features beyond the last pair are left as they are.
    """
    half = cosine.shape[-1]
    cosine, sine = cosine[:, None].astype(x.dtype), sine[:, None].astype(x.dtype)
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate([*rotated, rest], axis=-1)
