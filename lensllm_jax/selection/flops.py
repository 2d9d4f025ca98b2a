r"""One ledger of what a selection costs, in floating-point operations.

Training N parameters on D examples costs :math:`6 N \cdot` tokens :math:`\cdot` epochs
:math:`\cdot` search rounds (Kaplan et al. 2020, arXiv 2001.08361: two operations a parameter and
token forward, four backward; attention's own products are left out).  A zero-shot evaluation is
no training and is not counted, for any selector.  Kernels enter with their own measured or
estimated FLOPs.

Example:
    >>> cost = TrainingCost(tokens_per_example=100.0, epochs=2.0, search_rounds=3.0)
    >>> ledger = FlopsLedger().train("gpt2", num_params=1e6, num_examples=50, cost=cost)
    >>> ledger = ledger.kernel("gpt2", flops=5e9)
    >>> ledger.total, ledger.by_candidate()
    (185000000000.0, {'gpt2': 185000000000.0})
"""

import dataclasses

from lensllm_jax import checks


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """What one fine-tune multiplies to; the defaults are assumptions, state them beside totals."""

    tokens_per_example: float = 512.0  # tokens, input and target together, padding counted
    epochs: float = 1.0  # passes over the subset
    search_rounds: float = 1.0  # fine-tunes a subset, e.g. of a learning-rate search

    def __post_init__(self):
        checks.positive("tokens_per_example", self.tokens_per_example)
        checks.positive("epochs", self.epochs)
        checks.positive("search_rounds", self.search_rounds)

    def flops(self, num_params: float, num_examples: int) -> float:
        """6 N x tokens x epochs x search rounds."""
        tokens = self.tokens_per_example * num_examples
        return 6.0 * num_params * tokens * self.epochs * self.search_rounds


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    candidate: str  # who
    act: str  # "train" or "kernel"
    num_examples: int  # trained on; 0 for a kernel
    flops: float  # NaN if the number of parameters is unknown


@dataclasses.dataclass(frozen=True)
class FlopsLedger:
    """Every FLOP that a selection spent; immutable, each act returns the longer ledger."""

    entries: tuple[Entry, ...] = ()  # in the order of spending

    def train(
        self, candidate: str, *, num_params: float, num_examples: int, cost: TrainingCost
    ) -> "FlopsLedger":
        """The ledger with one more fine-tune on ``num_examples`` examples."""
        flops = cost.flops(num_params, num_examples)
        return FlopsLedger((*self.entries, Entry(candidate, "train", num_examples, flops)))

    def kernel(self, candidate: str, *, flops: float) -> "FlopsLedger":
        """The ledger with one more kernel."""
        return FlopsLedger((*self.entries, Entry(candidate, "kernel", 0, flops)))

    @property
    def total(self) -> float:
        """Sum of all entries; NaN if one is unknown."""
        return sum((entry.flops for entry in self.entries), 0.0)

    def by_candidate(self) -> dict[str, float]:
        """Sum of each candidate's entries."""
        sums: dict[str, float] = {}
        for entry in self.entries:
            sums[entry.candidate] = sums.get(entry.candidate, 0.0) + entry.flops
        return sums
