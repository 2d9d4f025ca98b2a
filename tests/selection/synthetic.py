"""Tasks with known truth: six candidates, eight sizes, and a target 16 times the largest."""

import numpy as np

from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.problem import Problem

SIZES = 200 * 2 ** np.arange(8)
BUDGET, TARGET = int(SIZES[-1]), int(SIZES[-1]) * 16
_ALL = np.append(SIZES, SIZES[-1] * 2 ** np.arange(1, 5))
_OCTAVES = np.log2(_ALL / 200.0)
_POOL = 6
_NOISE = 0.004  # of a measured log loss


def walking(rng):
    """Log slopes with a growth of the task, walks of its own and of each candidate."""
    count = len(_ALL) - 1
    shared = (
        np.log(0.04) + 0.5 * rng.standard_normal() + 0.05 * rng.standard_normal() * np.arange(count)
    )
    shared = shared + np.cumsum(0.08 * rng.standard_normal(count))
    own = 0.5 * rng.standard_normal((_POOL, 1))
    own = own + np.cumsum(0.12 * rng.standard_normal((_POOL, count)), axis=1)
    falls = np.concatenate([np.zeros((_POOL, 1)), np.cumsum(np.exp(shared + own), axis=1)], axis=1)
    return _levels(rng) - falls


def rectified(rng):
    """The rectified law: flat, a power, and a floor."""
    offset = np.exp(rng.normal(6.0, 1.0, (_POOL, 1)))
    power = rng.uniform(0.15, 0.4, (_POOL, 1))
    floor = rng.uniform(0.3, 1.5, (_POOL, 1))
    scale = np.exp(rng.normal(0.9, 0.2, (_POOL, 1))) * offset**power
    return np.log(scale / (offset**power + _ALL**power) + floor)


def straight(rng):
    """Lines on log-log axes."""
    return _levels(rng) - rng.uniform(0.02, 0.1, (_POOL, 1)) * _OCTAVES


def bent(rng):
    """Slopes that steepen together, each by a little more or less."""
    growth = rng.uniform(0.0, 0.12) + 0.02 * rng.standard_normal((_POOL, 1))
    slopes = rng.uniform(0.02, 0.06, (_POOL, 1))
    return _levels(rng) - slopes * np.expm1(growth * _OCTAVES) / growth


def jumping(rng):
    """Lines, and one octave in eight that falls by a few percent more."""
    jumps = (rng.random((_POOL, len(_ALL))) < 0.125) * rng.exponential(0.03, (_POOL, len(_ALL)))
    return straight(rng) - np.cumsum(jumps, axis=1)


def converging(rng):
    """Lines, and distances from their mean that fade, as on every public table."""
    lines = straight(rng)
    mean = lines.mean(0)
    return mean + (lines - mean) * np.exp(-rng.uniform(0.02, 0.1) * _OCTAVES)


GENERATORS = (walking, rectified, straight, bent, jumping, converging)


def _levels(rng):
    return rng.normal(1.0, 0.1, (_POOL, 1))


def task(rng, generator):
    """The problem as measured, with noise, and the true losses at the target."""
    truth = generator(rng)
    truth = truth - truth[:, -1:] + truth[:, -1:].mean() + 0.08 * rng.standard_normal((_POOL, 1))
    known = truth[:, : len(SIZES)] + _NOISE * rng.standard_normal((_POOL, len(SIZES)))
    names = tuple(f"m{i}" for i in range(_POOL))
    table = LossTable(names, SIZES, np.exp(known), np.ones(_POOL), ("",) * _POOL)
    return Problem(table, TARGET), np.exp(truth[:, -1])
