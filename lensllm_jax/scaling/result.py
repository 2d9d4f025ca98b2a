"""What a fit hands back: parameters with units, predictions, a status with a human message.

A failed fit is a status and NaN parameters, never a stand-in number.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.scaling.fit import fit_law
    >>> sizes = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
    >>> fit = fit_law("power", sizes, 2.0 * sizes**-0.5 + 1.0)
    >>> fit.status, fit.units["B"]
    (<FitStatus.CONVERGED: 'the fit converged'>, 'L D^beta')
    >>> fit.predict(np.array([400.0])).round(6)
    array([1.1])
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling import solve
from lensllm_jax.scaling.laws import UNITS, Law

FREE_PARAMETERS = {Law.POWER: 3, Law.VANILLA: 4, Law.RECTIFIED: 4, Law.LENSLLM: 4}


class FitStatus(enum.Enum):
    """How a fit ended; the value is the message."""

    CONVERGED = "the fit converged"
    MAX_STEPS = "the fit stopped at its step limit; its parameters may move with more steps"
    UNDERDETERMINED = "fewer sizes than free parameters; measure more sizes or fix a parameter"
    FAILED = "no finite objective was found; look at the losses for a misprint"

    @property
    def usable(self) -> bool:
        """Whether parameters and predictions mean something."""
        return self in (FitStatus.CONVERGED, FitStatus.MAX_STEPS)


class NtkSource(enum.Enum):
    """Where F of Eq 10 came from."""

    ABSENT = "the law has no F"
    MEASURED = "F measured at each size's own t (phase fitting)"
    SCALED = "F measured at each size's own t, up to one fitted factor"
    SPECTRUM = "F(t) of a measured kernel, one free t (the rectified law, D_l <= |f0 - y|^2)"
    PROFILED = "no kernel given: F a free number under a bound (the rectified law, bounded)"


@dataclasses.dataclass(frozen=True)
class LawFits:
    """Fits of one law to ``num_curves`` curves; ``fits[i]`` is one :class:`LawFit`."""

    law: Law  # what was fitted
    ntk_source: NtkSource  # where F came from
    sizes: Float[np.ndarray, " num_sizes"]  # training examples
    losses: Float[np.ndarray, "num_curves num_sizes"]  # nats per token
    weights: Float[np.ndarray, "num_curves num_sizes"]  # of squared log residuals; 0 = unused
    theta: Float[np.ndarray, "num_curves 5"]  # solver's parameters; NaN where no fit
    objective: Float[np.ndarray, " num_curves"]  # weighted sum of rho(log residual)
    statuses: tuple[FitStatus, ...]  # one a curve
    huber_delta: float  # infinite for squares
    ntk_loss: Float[np.ndarray, "num_curves num_sizes"] | None = None  # measured F
    spectra: Sequence[NtkSpectrum] | None = None  # kernels, when t was free
    max_ntk_loss: Float[np.ndarray, " num_curves"] | None = None  # bound of a free F
    zero_floor: Bool[np.ndarray, " num_curves"] | None = None  # where E was held at 0
    zero_size: float = 0.0  # what D = 0 counts as

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: int) -> "LawFit":
        return LawFit(self, range(len(self))[index])

    @property
    def usable(self) -> Bool[np.ndarray, " num_curves"]:
        """Which curves have parameters."""
        return np.array([status.usable for status in self.statuses], bool)

    @property
    def reference(self) -> Float[np.ndarray, " num_curves"]:
        """Largest size that each curve was fitted on."""
        return np.max(np.where(self.weights > 0, self.sizes[None], 0.0), axis=1)

    @property
    def log_rmse(self) -> Float[np.ndarray, " num_curves"]:
        """Root mean squared log residual over the sizes used (weighted)."""
        residuals = np.where(self.weights > 0, self.fitted_log_losses() - self._log_losses(), 0.0)
        return np.sqrt((self.weights * residuals**2).sum(1) / self.weights.sum(1))

    @property
    def params(self) -> dict[str, Float[np.ndarray, " num_curves"]]:
        """Parameters by name, in the units of ``laws.UNITS``."""
        a, delta, beta, E, alpha = self.theta.T
        log_reference = np.log(self.reference)
        offset = 0.0 if self.ntk_loss is None else np.log(self._ntk_loss_reference())
        # alpha acts outside, so B is that of the bracket
        with np.errstate(invalid="ignore"):  # NaN: no fit
            scale = np.exp(a + np.logaddexp(delta + offset, beta * log_reference))
        named = {"B": scale, "beta": beta, "E": E}
        if self.law is Law.VANILLA:
            named["alpha"] = alpha
        if self.law is Law.RECTIFIED:
            named["D_l"] = np.exp(delta)
        if self.ntk_source in (NtkSource.PROFILED, NtkSource.SPECTRUM):
            named["F"] = np.exp(delta)
        if self.ntk_source is NtkSource.SCALED:
            named["scale"] = np.exp(delta)
        if self.spectra is not None:
            named["t"] = np.array(
                [
                    spectrum.steps(f) if np.isfinite(f) else np.nan
                    for spectrum, f in zip(self.spectra, named["F"], strict=True)
                ]
            )
        return named

    def predict(
        self,
        sizes: Float[np.ndarray, " num_targets"],
        *,
        ntk_loss: Float[np.ndarray, "num_curves num_targets"] | None = None,
    ) -> Float[np.ndarray, "num_curves num_targets"]:
        """Predicted losses, nats per token; NaN where there is no usable fit.

        Args:
            sizes: training examples.
            ntk_loss: F at ``sizes``, needed when F was measured at each size.

        Returns:
            One row a curve.

        Raises:
            UserError: if F is needed and missing, or given and meaningless.
        """
        if (self.ntk_loss is None) != (ntk_loss is None):
            need = "be given: F was measured at each size" if ntk_loss is None else "be absent"
            raise checks.UserError(
                f"`ntk_loss` must {need}, got {'none' if ntk_loss is None else 'an array'}; "
                "to predict where no kernel was measured, fit with `spectrum` (t free)"
            )
        with np.errstate(invalid="ignore"):
            return np.exp(self._log_predict(np.asarray(sizes, np.float64), ntk_loss))

    def fitted_log_losses(self) -> Float[np.ndarray, "num_curves num_sizes"]:
        """Log losses of the fits at the sizes that they were fitted on."""
        return self._log_predict(self.sizes, self.ntk_loss)

    def _log_predict(self, sizes, ntk_loss):
        reference = None if self.ntk_loss is None else self._ntk_loss_reference()
        sizes = np.where(sizes == 0, self.zero_size, sizes)
        return solve.predict_log_losses(
            self.theta, sizes, self.reference, ntk_loss=ntk_loss, ntk_loss_reference=reference
        )

    def _ntk_loss_reference(self):
        assert self.ntk_loss is not None
        column = np.argmax(self.sizes[None] == self.reference[:, None], axis=1)
        return self.ntk_loss[np.arange(len(self)), column]

    def _log_losses(self):
        return np.log(np.where(self.weights > 0, self.losses, 1.0))


@dataclasses.dataclass(frozen=True)
class LawFit:
    """The fit of one curve: a view of row ``index`` of ``fits``."""

    fits: LawFits  # the batch it was fitted in
    index: int  # which row

    @property
    def law(self) -> Law:
        """Which law."""
        return self.fits.law

    @property
    def ntk_source(self) -> NtkSource:
        """Where F came from."""
        return self.fits.ntk_source

    @property
    def params(self) -> dict[str, float]:
        """Parameters by name; NaN if the fit is not usable."""
        return {name: float(values[self.index]) for name, values in self.fits.params.items()}

    @property
    def units(self) -> dict[str, str]:
        """Unit of each parameter; L in nats per token, D in examples."""
        return {name: UNITS[name] for name in self.fits.params}

    @property
    def status(self) -> FitStatus:
        """How the fit ended."""
        return self.fits.statuses[self.index]

    @property
    def message(self) -> str:
        """One sentence: how the fit ended, where F came from, what the data do not identify."""
        parts = [self.status.value]
        if self.ntk_source is not NtkSource.ABSENT:
            parts.append(self.ntk_source.value)
        return "; ".join([*parts, *self.warnings])

    @property
    def log_rmse(self) -> float:
        """Root mean squared log residual over the sizes used."""
        return float(self.fits.log_rmse[self.index])

    @property
    def objective(self) -> float:
        """Weighted sum of rho(log residual)."""
        return float(self.fits.objective[self.index])

    def predict(
        self,
        sizes: Float[np.ndarray, " num_targets"],
        *,
        ntk_loss: Float[np.ndarray, " num_targets"] | None = None,
    ) -> Float[np.ndarray, " num_targets"]:
        """Predicted losses at ``sizes``, nats per token; see :meth:`LawFits.predict`."""
        one = self.alone()
        return one.predict(sizes, ntk_loss=None if ntk_loss is None else ntk_loss[None])[0]

    def alone(self) -> LawFits:
        """This fit as a batch of one curve."""
        row = slice(self.index, self.index + 1)

        def cut(array):
            return None if array is None else array[row]

        return dataclasses.replace(
            self.fits,
            losses=self.fits.losses[row],
            weights=self.fits.weights[row],
            theta=self.fits.theta[row],
            objective=self.fits.objective[row],
            statuses=self.fits.statuses[row],
            ntk_loss=cut(self.fits.ntk_loss),
            spectra=cut(self.fits.spectra),
            max_ntk_loss=cut(self.fits.max_ntk_loss),
            zero_floor=cut(self.fits.zero_floor),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the measured sizes do not identify, one sentence each."""
        from lensllm_jax.scaling.identifiability import unidentified

        return unidentified(self) if self.status.usable else ()

    def interval(
        self,
        sizes: Float[np.ndarray, " num_targets"],
        *,
        level: float = 0.9,
        method: str = "profile",
        num_resamples: int = 200,
        seed: int = 0,
    ) -> tuple[Float[np.ndarray, " num_targets"], Float[np.ndarray, " num_targets"]]:
        """Lower and upper end of the predicted loss; see :func:`intervals.interval`."""
        from lensllm_jax.scaling.intervals import interval

        return interval(
            self, sizes, level=level, method=method, num_resamples=num_resamples, seed=seed
        )

    def held_out_log_rmse(self, *, horizon: int = 1) -> float:
        """Root mean squared log error of each size predicted from the smaller ones alone.

        Args:
            horizon: how many measured sizes ahead to predict.

        Returns:
            The error over all origins; see :func:`intervals.rolling_origin`.

        Raises:
            UserError: if F was measured at each size, or too few sizes leave no origin.
        """
        from lensllm_jax.scaling.intervals import rolling_origin

        if self.ntk_source in (NtkSource.MEASURED, NtkSource.SCALED):
            raise checks.UserError(
                "`fit` must not have F measured at each size, got one: no F is known where it "
                "predicts; fit with `spectrum` (t free)"
            )
        fits = self.alone()
        used = fits.weights[0] > 0
        found = rolling_origin(
            fits.law, fits.sizes[used], fits.losses[:, used], horizon=horizon, spectra=fits.spectra
        )
        return float(found.log_rmse[0])
