"""Random programs: every method's kernel against a dense float64 product of Jacobians.

``make fuzz`` draws 20,000 programs (``random_programs.py``), from ``FUZZ_FIRST`` on if an earlier
run ended; a run of the tests 300, and every one that ever failed.
"""

import math
import os

import jax
import numpy as np
import pytest

from lensllm_jax.ntk.function import function_of
from lensllm_jax.ntk.gram import NtkMethod, empirical_ntk
from lensllm_jax.ntk.operator import ntk_matvec
from tests import oracles
from tests.ntk import interpreter, random_programs
from tests.ntk.random_programs import MOVES, OPERATIONS, Program

BATCH = 50
EVERY = 5  # of so many random programs one in some of its parameters too, and one with a vector
FIRST = int(os.environ.get("FUZZ_FIRST", "0")) // BATCH
BATCHES = range(FIRST, int(os.environ.get("FUZZ_PROGRAMS", "300")) // BATCH)
TOLERANCE = 1e-9  # relative to the largest entry

# each operation alone, and each move alone before the plainest of them
ALONE = [Program(((name, i, ()),), None, None) for i, name in enumerate(OPERATIONS)] + [
    Program((("dense", 0, ((name, i),)),), 2, 2) for i, name in enumerate(MOVES)
]
COMPILED = Program((("layers", 0, ()), ("lookup", 0, ()), ("heads", 1, ())), None, 2)


def _sides(program):
    x2 = program.num_columns and random_programs.columns(program.num_columns)
    return [x for x in (random_programs.rows(), x2) if x is not None]


def difference(program, *, chosen=None, kept_bytes=0.0):
    """Relative to the largest entry of the dense kernel; ``chosen`` are globs of parameters."""
    p = random_programs.parameters()
    problem = (function_of(random_programs.function(program), p, chosen), p, _sides(program))
    exact = interpreter.dense_kernel(*problem)
    difference = interpreter.structured_kernel(*problem, kept_bytes=kept_bytes) - exact
    return np.abs(difference).max() / max(np.abs(exact).max(), 1e-30)


def product_difference(program):
    """That of the kernel times a vector."""
    p, sides = random_programs.parameters(), _sides(program)
    f = random_programs.function(program)
    exact = interpreter.dense_kernel(f, p, sides)
    shape = jax.eval_shape(f, p, sides[-1]).shape
    v = np.cos(np.arange(math.prod(shape))).reshape(1, *shape)
    expected = np.einsum("ijab,jb->ia", exact, v.reshape(exact.shape[1], -1))
    difference = interpreter.product(f, p, sides, v).reshape(expected.shape) - expected
    return np.abs(difference).max() / max(np.abs(expected).max(), 1e-30)


@pytest.mark.parametrize("program", ALONE, ids=lambda program: str(program.steps[0]))
def test_each_operation_alone(x64, program):
    assert difference(program, kept_bytes=np.inf) < TOLERANCE
    assert product_difference(program) < TOLERANCE


@pytest.mark.parametrize("batch", BATCHES)
def test_random_programs(x64, batch):
    for i in range(BATCH):
        program = random_programs.draw(batch, i)
        kept = (0.0, np.inf)[i % 2]
        if not difference(program, kept_bytes=kept) < TOLERANCE:
            pytest.fail(f"{_smallest(program, kept_bytes=kept)}, and so {program}, {kept=}")
        some = ",".join(sorted(random_programs.parameters())[i % 3 :: 2])
        if i % EVERY == 0 and not difference(program, chosen=some, kept_bytes=kept) < TOLERANCE:
            pytest.fail(f"{program} of {some} alone, {kept=}")
        if i % EVERY == 1 and not product_difference(program) < TOLERANCE:
            pytest.fail(f"{program} times a vector")
    jax.clear_caches()  # of traced programs, which would fill gigabytes


def _smallest(program, **settings):
    """A part of a program that still fails."""
    for part in random_programs.smaller(program):
        if not difference(part, **settings) < TOLERANCE:
            return _smallest(part, **settings)
    return program


def test_every_method_compiled(x64):
    f, p = random_programs.function(COMPILED), random_programs.parameters()
    x, x2 = _sides(COMPILED)
    exact = oracles.dense_kernel(f, p, x, x2)[:, :, 0, 0]
    v = np.arange(1.0, len(x2) + 1)
    differences = [
        empirical_ntk(f, p, x, x2, method=method) - exact
        for method in (NtkMethod.STRUCTURED, NtkMethod.JACOBIAN_CONTRACTION)
    ]
    differences += [ntk_matvec(f, p, x, v, x2=x2) - exact @ v]
    # the interpreter's own
    differences += [interpreter.dense_kernel(f, p, [x, x2])[:, :, 0, 0] - exact]
    assert max(np.abs(each).max() for each in differences) < TOLERANCE * np.abs(exact).max()


def test_a_wrong_kernel_is_noticed(x64, monkeypatch):
    exact = interpreter.dense_kernel
    monkeypatch.setattr(interpreter, "dense_kernel", lambda *problem: 1.0001 * exact(*problem))
    assert difference(ALONE[0]) > 1e-5
    assert product_difference(ALONE[0]) > 1e-5


def test_a_program_that_fails_is_made_smaller(x64, monkeypatch):
    monkeypatch.setitem(
        globals(), "difference", lambda program: 1.0 * ("dense" in str(program.steps))
    )
    program = Program((("layers", 1, (("row", 2),)), ("dense", 0, (("part", 3),))), 2, None)
    assert _smallest(program) == Program((("dense", 0, ()),), 2, None)


def test_every_operation_and_every_move_is_drawn():
    programs = [random_programs.draw(batch, i) for batch in range(6) for i in range(BATCH)]
    steps = [step for program in programs for step in program.steps]
    assert {name for name, _, _ in steps} == OPERATIONS.keys()
    assert {name for _, _, moves in steps for name, _ in moves} == MOVES.keys()
