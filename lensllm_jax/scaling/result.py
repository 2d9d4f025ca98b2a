"""The result of a fit: a law's parameters, predictions, intervals and warnings.

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

import numpy as np
from jaxtyping import Float

from lensllm_jax.scaling import intervals
from lensllm_jax.scaling.identifiability import unidentified
from lensllm_jax.scaling.kernel import KernelLoss
from lensllm_jax.scaling.laws import UNITS, Law
from lensllm_jax.scaling.solution import FitStatus, Solution


class LawFits(Solution):
    """Fits of one law to ``num_curves`` curves; ``fits[i]`` is one :class:`LawFit`."""

    def __getitem__(self, index: int) -> "LawFit":
        row = range(len(self))[index]
        return LawFit(self.take(slice(row, row + 1)))


@dataclasses.dataclass(frozen=True)
class LawFit:
    """The fit of one curve."""

    solution: Solution  # of one curve

    @property
    def law(self) -> Law:
        """Which law."""
        return self.solution.law

    @property
    def ntk(self) -> KernelLoss | None:
        """Where F came from."""
        return self.solution.problem.ntk

    @property
    def params(self) -> dict[str, float]:
        """Parameters by name; NaN if the fit is not usable."""
        return {name: float(values[0]) for name, values in self.solution.params.items()}

    @property
    def units(self) -> dict[str, str]:
        """Unit of each parameter; L is that of the losses, D examples."""
        return {name: UNITS[name] for name in self.solution.params}

    @property
    def status(self) -> FitStatus:
        """How the fit ended."""
        return self.solution.statuses[0]

    @property
    def message(self) -> str:
        """One sentence: how the fit ended, where F came from, what the data do not identify."""
        source = [self.ntk.message] if self.ntk is not None else []
        return "; ".join([self.status.value, *source, *self.warnings])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the measured sizes do not identify, one sentence each."""
        return unidentified(self.solution) if self.status.usable else ()

    @property
    def log_rmse(self) -> float:
        """Root mean squared log residual over the sizes used."""
        return float(self.solution.log_rmse[0])

    @property
    def objective(self) -> float:
        """Weighted sum of rho(log residual)."""
        return float(self.solution.objective[0])

    @property
    def degrees_of_freedom(self) -> int:
        """Sizes used minus free parameters."""
        return int(self.solution.problem.degrees_of_freedom[0])

    def predict(
        self,
        sizes: Float[np.ndarray, " num_targets"],
        *,
        ntk_loss: Float[np.ndarray, " num_targets"] | None = None,
    ) -> Float[np.ndarray, " num_targets"]:
        """Predicted losses at ``sizes``, nats per byte; see :meth:`Solution.predict`."""
        return self.solution.predict(sizes, ntk_loss=None if ntk_loss is None else ntk_loss[None])[
            0
        ]

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
        return intervals.interval(
            self.solution,
            sizes,
            level=level,
            method=method,
            num_resamples=num_resamples,
            seed=seed,
        )

    def held_out_log_rmse(self, *, horizon: int = 1) -> float:
        """Root mean squared log error of each size predicted from the smaller ones alone.

        Args:
            horizon: how many measured sizes ahead to predict.

        Raises:
            UserError: if F was measured at each size, or too few sizes leave no origin.
        """
        return intervals.held_out_log_rmse(self.solution, horizon=horizon)
