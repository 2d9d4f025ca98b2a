r"""Algorithm 1: halve the subset until its loss leaves the power phase.

Starting from the largest affordable subset, each step fine-tunes on half of the last.  Once
``gamma`` pairs (D, L) are accepted, a straight line of log L on log D through them predicts the
next smaller size; with :math:`\sigma` the (population) standard deviation of its residuals, the
search stops at the first size where

.. math:: |\log L - f(\log D)| / \sigma > \tau,

because that size lies in the pre-power phase.  LensLLM (arXiv 2505.03793), Algorithm 1, which is
AtS of Lin et al. 2024 (arXiv 2402.02314) up to the final estimator.  The line, not Eq 10, tests:
three pairs determine Eq 10's parameters exactly and leave no residual to compare with.

:math:`\sigma` is at least ``MIN_SIGMA``: losses printed with six digits leave residuals of that
order even on an exact line, and a smaller one would stop the search for no reason.

Example:
    >>> search = Halving(gamma=3, tau=5.0)
    >>> for size, loss in [(3200, 1.0), (1600, 1.1), (800, 1.22), (400, 1.34), (200, 9.0)]:
    ...     search = search.observe(size, loss)
    >>> search.stopped, search.accepted_sizes
    (True, (3200, 1600, 800, 400))
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks, linalg

MIN_SIGMA = 1e-6  # of log losses


def check_gamma(gamma: int) -> None:
    """Two pairs are the fewest that determine a line."""
    if gamma < 2:
        raise checks.UserError(f"`gamma` must be 2 or more, got {gamma}: it fits a line")


def deviation_from_line(
    xs: Float[np.ndarray, " m"], ys: Float[np.ndarray, " m"], x: float, y: float
) -> float:
    """How many residual standard deviations (x, y) lies off the line through the others."""
    slope, intercept = linalg.fit_line(xs, ys)
    sigma = max(float(np.std(ys - slope * xs - intercept)), MIN_SIGMA)
    return abs(y - slope * x - intercept) / sigma


@dataclasses.dataclass(frozen=True)
class Halving:
    """One candidate's search; ``observe`` returns the next state.  Immutable."""

    gamma: int = 3  # pairs before the test begins
    tau: float = 5.0  # residual standard deviations that a pair may be off
    accepted: tuple[tuple[int, float], ...] = ()  # (size, loss), descending sizes
    rejected: tuple[int, float] | None = None  # the pair that ended the search

    def __post_init__(self):
        check_gamma(self.gamma)
        checks.positive("tau", self.tau)

    @property
    def stopped(self) -> bool:
        """Whether the search has reached the pre-power phase."""
        return self.rejected is not None

    @property
    def accepted_sizes(self) -> tuple[int, ...]:
        """Sizes in the power phase, descending."""
        return tuple(size for size, _ in self.accepted)

    @property
    def sizes_spent(self) -> tuple[int, ...]:
        """Sizes that were fine-tuned on, the rejected one included."""
        return self.accepted_sizes + (() if self.rejected is None else (self.rejected[0],))

    def deviation(self, size: int, loss: float) -> float:
        """How many sigma the pair lies off the accepted line; 0 before ``gamma`` pairs."""
        if len(self.accepted) < self.gamma:
            return 0.0
        sizes, losses = (np.log(np.array(x)) for x in zip(*self.accepted, strict=True))
        return deviation_from_line(sizes, losses, float(np.log(size)), float(np.log(loss)))

    def observe(self, size: int, loss: float) -> "Halving":
        """The search after fine-tuning on ``size`` examples gave ``loss`` (nats per byte).

        Raises:
            UserError: if the search has stopped, or the sizes do not descend.
        """
        checks.positive("size", size)
        checks.positive("loss", loss)
        if self.stopped:
            raise checks.UserError(f"`observe` must not be called after a stop, got size {size}")
        if self.accepted and size >= self.accepted[-1][0]:
            raise checks.UserError(
                f"`size` must be below the last one {self.accepted[-1][0]}, got {size}"
            )
        if self.deviation(size, loss) > self.tau:
            return dataclasses.replace(self, rejected=(size, loss))
        return dataclasses.replace(self, accepted=(*self.accepted, (size, loss)))

    def observe_row(
        self, sizes: Int[np.ndarray, " num_sizes"], losses: Float[np.ndarray, " num_sizes"]
    ) -> "Halving":
        """The search run over one row of a loss table, from the largest size down.

        Args:
            sizes: training examples, ascending; 0 is left out.
            losses: nats per byte; NaN (not measured) is left out.
        """
        search = self
        for size, loss in zip(sizes[::-1], losses[::-1], strict=True):
            if size > 0 and not np.isnan(loss) and not search.stopped:
                search = search.observe(int(size), float(loss))
        return search
