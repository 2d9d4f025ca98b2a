"""What is fitted: one law, curves of losses, and where F comes from.

Example:
    >>> import numpy as np
    >>> sizes = np.array([0.0, 100.0, 400.0, 1600.0, 6400.0])
    >>> problem = FitProblem.checked("rectified", sizes, np.ones((2, 5)))
    >>> problem.degrees_of_freedom, problem.reference
    (array([1, 1]), array([6400., 6400.]))
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.scaling import _theta as theta
from lensllm_jax.scaling._theta import Box, Theta
from lensllm_jax.scaling.kernel import Bounded, KernelLoss, check_positive
from lensllm_jax.scaling.laws import Law

WITHOUT_ZERO = (Law.POWER, Law.VANILLA)  # infinite at D = 0


@dataclasses.dataclass(frozen=True)
class FitProblem:
    """One law and the curves that it is fitted to, each on its own."""

    law: Law
    sizes: Float[np.ndarray, " num_sizes"]  # training examples, shared by all curves
    losses: Float[np.ndarray, "num_curves num_sizes"]  # nats per byte; 1 where not used
    weights: Float[np.ndarray, "num_curves num_sizes"]  # of squared log residuals; 0 = not used
    zero_floor: Bool[np.ndarray, " num_curves"]  # where E is fixed at 0
    ntk: KernelLoss | None = None  # None for the laws without F
    huber_delta: float = np.inf  # where the loss of a log residual turns linear

    @classmethod
    def checked(
        cls,
        law: str | Law,
        sizes: Float[np.ndarray, " num_sizes"] | Int[np.ndarray, " num_sizes"],
        losses: Float[np.ndarray, "num_curves num_sizes"],
        *,
        ntk: KernelLoss | None = None,
        weights: Float[np.ndarray, "num_curves num_sizes"] | None = None,
        huber_delta: float | None = None,
        zero_floor: Bool[np.ndarray, " num_curves"] | None = None,
    ) -> "FitProblem":
        """The problem, if its numbers make sense; arguments as :func:`fit.fit_laws`."""
        if not isinstance(law, Law):
            law = Law(checks.one_of("law", law, [x.value for x in Law]))
        sizes = _checked_sizes(sizes)
        losses = checks.shape("losses", np.asarray(losses, np.float64), (None, len(sizes)))
        weights = np.ones_like(losses) if weights is None else np.asarray(weights, np.float64)
        weights = checks.shape("weights", weights, losses.shape)
        if law in WITHOUT_ZERO:
            weights = np.where(sizes[None] == 0, 0.0, weights)
        losses = np.where(weights > 0, losses, 1.0)
        check_positive("losses", losses)
        huber_delta = np.inf if huber_delta is None else checks.positive("huber_delta", huber_delta)
        if ntk is not None and law is not Law.LENSLLM:
            raise checks.UserError(
                f"`ntk` must be absent for law {law.value}, got {type(ntk).__name__}; "
                "use law lensllm"
            )
        if ntk is None and law is Law.LENSLLM:
            ntk = Bounded(float(sizes[-1]))
        return cls(
            law=law,
            sizes=sizes,
            losses=losses,
            weights=weights,
            zero_floor=np.zeros(len(losses), bool) if zero_floor is None else zero_floor,
            ntk=ntk and ntk.checked(weights),
            huber_delta=huber_delta,
        )

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def used(self) -> Bool[np.ndarray, "num_curves num_sizes"]:
        """Which sizes each curve is fitted on."""
        return self.weights > 0

    @property
    def reference(self) -> Float[np.ndarray, " num_curves"]:
        """The largest size that each curve is fitted on."""
        return np.max(np.where(self.used, self.sizes[None], 0.0), axis=1)

    @property
    def box(self) -> Box:
        """Where theta may move."""
        one = np.ones(len(self))
        low_f, high_f = self.f_bounds
        with np.errstate(divide="ignore"):
            log_f = [np.log(np.maximum(bound, 1e-300)) for bound in (low_f, high_f)]
        delta = [np.clip(bound, theta.MIN_LOG_F, theta.MAX_LOG_F) for bound in log_f]
        if self.law in WITHOUT_ZERO:
            delta = [theta.NO_F * one] * 2
        alpha = theta.ALPHA_BOUNDS if self.law is Law.VANILLA else (1.0, 1.0)
        largest_loss = 10.0 * np.max(self.losses) + 1.0
        floor = 0.0 * one, np.where(self.zero_floor, 0.0, largest_loss)
        sides = (
            Theta(
                a=theta.LOG_SCALE_BOUNDS[side] * one,
                delta=delta[side],
                beta=theta.BETA_BOUNDS[side] * one,
                E=floor[side],
                alpha=alpha[side] * one,
            )
            for side in (0, 1)
        )
        return Box(*sides)

    @property
    def f_bounds(self) -> tuple[Float[np.ndarray, " num_curves"], Float[np.ndarray, " num_curves"]]:
        """Bounds of exp(delta)."""
        if self.ntk is not None:
            return self.ntk.bounds(len(self))
        return np.zeros(len(self)), np.full(len(self), np.inf)

    @property
    def degrees_of_freedom(self) -> Int[np.ndarray, " num_curves"]:
        """Sizes used minus free parameters; negative where the sizes are too few."""
        return self.used.sum(1) - np.sum(self.box.free, axis=0)

    def take(self, rows: slice | Int[np.ndarray, " num_rows"]) -> "FitProblem":
        """The problem of some curves, a row of ``rows`` each."""
        index = np.arange(len(self))[rows]
        return dataclasses.replace(
            self,
            losses=self.losses[index],
            weights=self.weights[index],
            zero_floor=self.zero_floor[index],
            ntk=self.ntk and self.ntk.take(index),
        )


def _checked_sizes(sizes) -> np.ndarray:
    array = checks.shape("sizes", np.asarray(sizes, np.float64), (None,))
    checks.finite("sizes", array)
    if len(array) == 0 or array[0] < 0 or array[-1] == 0 or np.any(np.diff(array) <= 0):
        raise checks.UserError(
            f"`sizes` must be ascending from 0 or more, the last above 0, got {array.tolist()}"
        )
    return array
