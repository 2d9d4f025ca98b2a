"""Losses by formula: a small table, and a count of what an order measures."""

import numpy as np

from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.orders import (
    DropRule,
    measure_downwards,
    measure_upwards,
)

SIZES = (200, 400, 800, 1600, 3200)
NUM_PARAMS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
SLOPES = {"a": 0.30, "b": 0.25, "c": 0.20, "d": 0.10}  # of four lines with one start: a is best
# log losses off a line by 1e-3: a residual that sigma can be measured from
WIGGLE = {3200: 1.000, 1600: 1.001, 800: 0.999, 400: 1.000, 200: 1.001}
RULE = DropRule(target_size=6400, keep=0.5)


class Fake:
    """Measures by formula and remembers its calls."""

    def __init__(self, perturbed=()):
        self.perturbed, self.calls = set(perturbed), []

    def __call__(self, name, size):
        self.calls.append((name, size))
        off = 1.5 if (name, size) in self.perturbed else 1.0
        return 9.0 * off * WIGGLE[size] * size ** -SLOPES[name]

    def downwards(self, name, **settings):
        return measure_downwards(SIZES, lambda size: self(name, size), Halving(**settings))

    def losses(self):
        """What was measured so far, as a replay takes it."""
        rows = {name: {} for name in NUM_PARAMS}
        for name, size in list(self.calls):
            rows[name][size] = Fake(self.perturbed)(name, size)
        return rows


def dropped_of(fake, rule=RULE, sizes=SIZES):
    return measure_upwards(tuple(NUM_PARAMS), sizes, fake, rule)


def small_table(num_candidates=4, num_sizes=9, *, zero=True):
    """Candidates that differ in level and slope, and whose slopes steepen together."""
    sizes = 200 * 2 ** np.arange(num_sizes)
    x = np.log2(sizes / 200.0)
    rows = np.arange(num_candidates, dtype=float)
    slopes = 0.02 + 0.01 * rows
    losses = np.exp(0.9 + 0.06 * rows[:, None] - slopes[:, None] * np.expm1(0.08 * x) / 0.08)
    if zero:
        sizes, losses = np.append(0, sizes), np.column_stack([1.3 * losses[:, 0], losses])
    names = tuple(f"m{i}" for i in range(num_candidates))
    return LossTable(names, sizes, losses, 1e6 * (1 + rows), ("",) * num_candidates, "toy")
