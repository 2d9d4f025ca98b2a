r"""Where F of Eq 10 comes from: a measurement per size, a kernel with t free, or no kernel.

Only :class:`Measured` makes Eq 10 another law; the other two are the rectified law with a bound of
:math:`D_l`: fit ``"rectified"`` as their control.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.scaling.fit import fit_law
    >>> sizes = np.array([100.0, 400.0, 1600.0, 6400.0, 25600.0])
    >>> losses = 40.0 / (20.0 + sizes**0.5) + 1.0
    >>> fit_law("lensllm", sizes, losses, ntk=Measured(np.full(5, 20.0))).params.keys()
    dict_keys(['B', 'beta', 'E'])
    >>> round(fit_law("lensllm", sizes, losses, ntk=Bounded(4.0)).params["F"], 3)
    4.0
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum

LAST_STEP = 1e12  # F at this time is F's limit for every eigenvalue that matters

Bounds = tuple[Float[np.ndarray, " num_curves"], Float[np.ndarray, " num_curves"]]


class KernelLoss:
    """What the fits need of a source of F; one value holds it for all curves of a batch."""

    parameter = "F"  # the name of exp(delta)

    @property
    def message(self) -> str:
        """What a fit says of it."""
        raise NotImplementedError

    def batched(self) -> "KernelLoss":
        """That of one curve as a batch of one."""
        return self

    def checked(self, weights: Float[np.ndarray, "num_curves num_sizes"]) -> "KernelLoss":
        """In the form that the fits read, for curves of these ``weights``."""
        return self

    def take(self, rows: Int[np.ndarray, " num_rows"]) -> "KernelLoss":
        """That of some curves."""
        return self

    def bounds(self, num_curves: int) -> Bounds:
        """Bounds of exp(delta): of F, or of the factor before a measured F."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Measured(KernelLoss):
    r"""F at each size's own early-stop step (phase fitting).

    Its unit is that of :math:`D^\beta` as it stands or, with ``free_scale``, up to one fitted
    factor per curve, since what a kernel gives has the unit of a squared residual.
    """

    loss: Float[np.ndarray, " num_sizes"] | Float[np.ndarray, "num_curves num_sizes"]
    # F, of one curve or of each
    free_scale: bool = False  # whether F counts up to one fitted factor per curve
    parameter = "scale"

    @property
    def message(self) -> str:
        """What a fit says of it."""
        scaled = ", up to one fitted factor"
        return f"F measured at each size's own t{scaled if self.free_scale else ' (phase fitting)'}"

    def batched(self) -> "Measured":
        """With an axis of one curve."""
        return dataclasses.replace(self, loss=np.asarray(self.loss)[None])

    def checked(self, weights: Float[np.ndarray, "num_curves num_sizes"]) -> "Measured":
        """With 1 where a size is not used; refuses an F that is not positive where it is."""
        loss = checks.shape("ntk.loss", np.asarray(self.loss, np.float64), weights.shape)
        loss = np.where(weights > 0, loss, 1.0)
        check_positive("ntk.loss", loss)
        return dataclasses.replace(self, loss=loss)

    def take(self, rows: Int[np.ndarray, " num_rows"]) -> "Measured":
        """That of some curves."""
        return dataclasses.replace(self, loss=self.loss[rows])

    def bounds(self, num_curves: int) -> Bounds:
        """Of the factor before F."""
        low, high = (0.0, np.inf) if self.free_scale else (1.0, 1.0)
        return np.full(num_curves, low), np.full(num_curves, high)


@dataclasses.dataclass(frozen=True)
class Spectrum(KernelLoss):
    """F(t) of a measured kernel with one free t per curve (prediction)."""

    spectra: NtkSpectrum | Sequence[NtkSpectrum]  # of one curve, or one per curve
    message = "F(t) of a measured kernel, one free t (the rectified law, D_l <= |f0 - y|^2)"
    parameter = "t"

    @property
    def each(self) -> Sequence[NtkSpectrum]:
        """One per curve."""
        return [self.spectra] if isinstance(self.spectra, NtkSpectrum) else self.spectra

    def checked(self, weights: Float[np.ndarray, "num_curves num_sizes"]) -> "Spectrum":
        """Refuses another number of spectra, and a kernel without a residual."""
        if len(self.each) != len(weights):
            raise checks.UserError(
                f"`ntk.spectra` must hold one spectrum per curve, got {len(self.each)} for "
                f"{len(weights)}"
            )
        for spectrum in self.each:
            checks.positive("sum of squared projections", float(spectrum.loss(0.0)))
        return self

    def take(self, rows: Int[np.ndarray, " num_rows"]) -> "Spectrum":
        """That of some curves."""
        return dataclasses.replace(self, spectra=[self.each[row] for row in rows])

    def bounds(self, num_curves: int) -> Bounds:
        """Of the values that F takes over all t."""
        ends = np.array([spectrum.loss([LAST_STEP, 0.0]) for spectrum in self.each])
        return ends[:, 0], ends[:, 1]


@dataclasses.dataclass(frozen=True)
class Bounded(KernelLoss):
    r"""No kernel: F a free number in (0, ``max_loss``], for all curves.

    The default of the fits is the largest size, which is :math:`|f_0 - y|^2` of one unit of squared
    residual per example.
    """

    max_loss: float  # in units of D^beta
    message = "no kernel given: F a free number under a bound (the rectified law, bounded)"

    def checked(self, weights: Float[np.ndarray, "num_curves num_sizes"]) -> "Bounded":
        """Refuses a bound that is not positive."""
        checks.positive("ntk.max_loss", self.max_loss)
        return self

    def bounds(self, num_curves: int) -> Bounds:
        """Of F."""
        return np.zeros(num_curves), np.full(num_curves, float(self.max_loss))


def check_positive(name: str, array: np.ndarray) -> None:
    """Refuses an array that is not positive and finite, naming the entry."""
    bad = np.argwhere(~(np.isfinite(array) & (array > 0)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise checks.UserError(
            f"`{name}` must be positive and finite, got {array[where]} at index {where}; "
            "leave that size out or give it weight 0"
        )
