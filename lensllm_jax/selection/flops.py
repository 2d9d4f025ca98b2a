r"""One ledger of what a selection costs, in floating-point operations.

Training N parameters on D examples costs :math:`6 N \cdot` tokens :math:`\cdot` epochs
:math:`\cdot` search rounds (Kaplan et al. 2020, arXiv 2001.08361: two operations per parameter and
token forward, four backward; products within attention are left out).  Two of the four are the
parameters' own gradients, which frozen ones have none of: LoRA's A factors beside N weights cost
:math:`6 A + 4 N` per token.  Where tokens of a fine-tune were counted, N is of the parameters that
a token meets, half of an encoder-decoder's (Brown et al. 2020, arXiv 2005.14165, appendix D); where
only sizes are known, :class:`TrainingCost` estimates the tokens.  A zero-shot evaluation is no
training and is not counted, for any selector.  Kernels enter with their own FLOPs.

Example:
    >>> cost = TrainingCost(tokens_per_example=100.0, epochs=2.0, search_rounds=3.0)
    >>> tokens = cost.tokens(50)
    >>> ledger = FlopsLedger().train("gpt2", num_params=1e6, num_examples=50, num_tokens=tokens)
    >>> ledger = ledger.kernel("gpt2", flops=5e9)
    >>> ledger.total, ledger.by_candidate()
    (185000000000.0, {'gpt2': 185000000000.0})
"""

import dataclasses

from lensllm_jax import checks


def training_flops(num_params: float, num_tokens: float, *, num_frozen: float = 0.0) -> float:
    """6 per trained and 4 per frozen parameter and token, every pass counted."""
    return (6.0 * num_params + 4.0 * num_frozen) * num_tokens


def kernel_flops(num_params: float, *, num_examples: int, num_tokens: float) -> float:
    """One gradient per example, and the n (n + 1) / 2 products of gradients of length N.

    ``num_tokens`` is that of all examples together, padding counted.
    """
    products = num_params * num_examples * (num_examples + 1)  # two operations per term
    return training_flops(num_params, num_tokens) + products


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """Factors of one fine-tune; the defaults are assumptions, state them next to totals."""

    tokens_per_example: float = 512.0  # tokens, input and target together, padding counted
    epochs: float = 1.0  # passes over the subset
    search_rounds: float = 1.0  # fine-tunes per subset, e.g. of a learning-rate search

    def __post_init__(self):
        checks.positive("tokens_per_example", self.tokens_per_example)
        checks.positive("epochs", self.epochs)
        checks.positive("search_rounds", self.search_rounds)

    def tokens(self, num_examples: int) -> float:
        """Tokens trained on: examples x tokens x epochs x search rounds."""
        return self.tokens_per_example * num_examples * self.epochs * self.search_rounds

    def flops(self, num_params: float, num_examples: int) -> float:
        """6 N x tokens x epochs x search rounds."""
        return training_flops(num_params, self.tokens(num_examples))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    candidate: str
    kind: str  # "train" or "kernel"
    num_examples: int  # trained on; 0 for a kernel
    flops: float  # NaN if the number of parameters is unknown


@dataclasses.dataclass(frozen=True)
class FlopsLedger:
    """Every FLOP that a selection spent.  Immutable: each entry returns the longer ledger."""

    entries: tuple[Entry, ...] = ()  # in the order of spending

    def train(
        self, candidate: str, *, num_params: float, num_examples: int, num_tokens: float,
        num_frozen: float = 0.0,
    ) -> "FlopsLedger":  # fmt: skip
        """The ledger with one more fine-tune: ``num_tokens`` of ``num_examples`` examples."""
        flops = training_flops(num_params, num_tokens, num_frozen=num_frozen)
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
