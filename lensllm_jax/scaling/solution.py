"""A solved problem: parameters with units, predictions, and how each curve's fit ended.

A failed fit is a status and NaN parameters, never a stand-in number.

Example:
    >>> import numpy as np
    >>> sizes = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
    >>> solution = solve(FitProblem.checked("power", sizes, (2.0 * sizes**-0.5 + 1.0)[None]))
    >>> solution.statuses[0], solution.params["B"].round(6)
    (<FitStatus.CONVERGED: 'the fit converged'>, array([2.]))
    >>> solution.predict(np.array([400.0])).round(6)
    array([[1.1]])
"""

import dataclasses
import enum
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.scaling._solve import solve_curves
from lensllm_jax.scaling._theta import Theta, log_losses
from lensllm_jax.scaling.kernel import Measured, Spectrum
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.problem import FitProblem

_Fits = TypeVar("_Fits", bound="Solution")


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


@dataclasses.dataclass(frozen=True)
class Solution:
    """Fits of one law to ``num_curves`` curves."""

    problem: FitProblem  # what was fitted
    theta: Float[np.ndarray, "num_curves 5"]  # solver's parameters; NaN where no fit
    objective: Float[np.ndarray, " num_curves"]  # weighted sum of rho(log residual)
    statuses: tuple[FitStatus, ...]  # one per curve

    def __len__(self) -> int:
        return len(self.theta)

    def take(self: _Fits, rows: slice | Int[np.ndarray, " num_rows"]) -> _Fits:
        """The fits of some curves."""
        index = np.arange(len(self))[rows]
        return dataclasses.replace(
            self,
            problem=self.problem.take(index),
            theta=self.theta[index],
            objective=self.objective[index],
            statuses=tuple(self.statuses[i] for i in index),
        )

    @property
    def law(self) -> Law:
        """Which law."""
        return self.problem.law

    @property
    def usable(self) -> Bool[np.ndarray, " num_curves"]:
        """Which curves have parameters."""
        return np.array([status.usable for status in self.statuses], bool)

    @property
    def log_rmse(self) -> Float[np.ndarray, " num_curves"]:
        """Root mean squared log residual over the sizes used (weighted)."""
        weights = self.problem.weights
        log_measured = np.log(np.where(weights > 0, self.problem.losses, 1.0))
        residuals = np.where(weights > 0, self.fitted_log_losses() - log_measured, 0.0)
        return np.sqrt((weights * residuals**2).sum(1) / weights.sum(1))

    @property
    def params(self) -> dict[str, Float[np.ndarray, " num_curves"]]:
        """Parameters by name, in the units of ``laws.UNITS``."""
        theta, ntk = Theta(*self.theta.T), self.problem.ntk
        log_reference = np.log(self.problem.reference)
        offset = np.log(self.ntk_loss_reference) if isinstance(ntk, Measured) else 0.0
        # alpha acts outside, so B is that of the bracket
        with np.errstate(invalid="ignore"):  # NaN: no fit
            scale = np.exp(theta.a + np.logaddexp(theta.delta + offset, theta.beta * log_reference))
        named = {"B": scale, "beta": theta.beta, "E": theta.E}
        if self.law is Law.VANILLA:
            named["alpha"] = theta.alpha
        if self.law is Law.RECTIFIED:
            named["D_l"] = np.exp(theta.delta)
        if isinstance(ntk, Measured):
            return {**named, "scale": np.exp(theta.delta)} if ntk.free_scale else named
        if self.law is Law.LENSLLM:
            named["F"] = np.exp(theta.delta)
        if isinstance(ntk, Spectrum):
            times = zip(ntk.each, named["F"], strict=True)
            named["t"] = np.array(
                [spectrum.steps(f) if np.isfinite(f) else np.nan for spectrum, f in times]
            )
        return named

    def predict(
        self,
        sizes: Float[np.ndarray, " num_targets"],
        *,
        ntk_loss: Float[np.ndarray, "num_curves num_targets"] | None = None,
    ) -> Float[np.ndarray, "num_curves num_targets"]:
        """Predicted losses, nats per byte; NaN where there is no usable fit.

        Args:
            sizes: training examples.
            ntk_loss: F at ``sizes``, needed when F was measured at each size.

        Raises:
            UserError: if F is needed and missing, or given and meaningless.
        """
        if isinstance(self.problem.ntk, Measured) != (ntk_loss is not None):
            need = "be given: F was measured at each size" if ntk_loss is None else "be absent"
            raise checks.UserError(
                f"`ntk_loss` must {need}, got {'none' if ntk_loss is None else 'an array'}; "
                "to predict where no kernel was measured, fit with `Spectrum` (t free)"
            )
        with np.errstate(invalid="ignore"):
            return np.exp(self._log_losses(np.asarray(sizes, np.float64), ntk_loss))

    def fitted_log_losses(self) -> Float[np.ndarray, "num_curves num_sizes"]:
        """Log losses of the fits at the sizes that they were fitted on."""
        ntk = self.problem.ntk
        return self._log_losses(self.problem.sizes, ntk.loss if isinstance(ntk, Measured) else None)

    def _log_losses(self, sizes, ntk_loss):
        return log_losses(
            self.theta,
            sizes,
            self.problem.reference,
            ntk_loss=ntk_loss,
            ntk_loss_reference=None if ntk_loss is None else self.ntk_loss_reference,
        )

    @property
    def ntk_loss_reference(self) -> Float[np.ndarray, " num_curves"]:
        """A measured F at each curve's largest size used."""
        assert isinstance(self.problem.ntk, Measured)
        column = np.argmax(self.problem.sizes[None] == self.problem.reference[:, None], axis=1)
        return self.problem.ntk.loss[np.arange(len(self)), column]


def solve(problem: FitProblem, start: Float[np.ndarray, "num_curves 5"] | None = None) -> Solution:
    """Fits the law to every curve; ``start`` is one more start per curve."""
    theta, objective, converged = solve_curves(problem, start)
    statuses = tuple(
        _status(*row)
        for row in zip(
            problem.degrees_of_freedom.tolist(),
            objective.tolist(),
            converged.tolist(),
            strict=True,
        )
    )
    usable = np.array([status.usable for status in statuses])
    return Solution(
        problem=problem,
        theta=np.where(usable[:, None], theta, np.nan),
        objective=np.where(usable, objective, np.nan),
        statuses=statuses,
    )


def _status(degrees_of_freedom: int, objective: float, converged: bool) -> FitStatus:
    if degrees_of_freedom < 0:
        return FitStatus.UNDERDETERMINED
    if not np.isfinite(objective):
        return FitStatus.FAILED
    return FitStatus.CONVERGED if converged else FitStatus.MAX_STEPS
