"""Which uses of a parameter are recognised."""

import jax

from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import taps
from lensllm_jax.ntk.structured.gradients import Materialized
from lensllm_jax.ntk.structured.sweeps import gradient_groups
from tests.ntk import cases
from tests.ntk.structured.programs import PROGRAMS
from tests.tolerances import assert_close


def forms(f, params, x):
    """Forms of the terms of all uses in the program of one example."""
    leaves = jax.tree.leaves(params)
    structure = jax.tree.structure(params)
    program = jax.make_jaxpr(lambda w, x: f(jax.tree.unflatten(structure, w), x))(leaves, x)
    recorded = taps.Taps()

    def run(leaves, x):
        refs = [taps.Ref.of(value, leaf) for leaf, value in enumerate(leaves)]
        outputs = taps.evaluate(program.jaxpr, program.consts, [*refs, x], recorded)
        return [recorded.whole(out) for out in outputs]

    jax.eval_shape(run, leaves, x)
    return sorted(tap.form.__name__.lower() for tap in recorded.taps)


def test_cheap_uses_are_recognised():
    for name, expected in {
        "heads as axes of the matrix": ["outer", "outer"],
        "axes merged and parted again": ["outer", "outer"],
        "lookup and head of one table": ["lookup", "outer", "outer"],
        "lookup in the columns": ["lookup", "materialized"],
        "loop over layers, forward and backward": ["outer"] * 6,
        "slices that overlap": ["outer", "outer"],
        "product of two parameters": ["materialized"] * 3,
        "stopped": ["materialized", "materialized"],  # behind the stop there is no gradient
    }.items():
        f, make_params, make_x = PROGRAMS[name]
        assert forms(f, make_params(), make_x()[:1]) == expected, name


def test_jitted_and_remat_functions_are_looked_into():
    f, make_params, make_x = PROGRAMS["lookup and head of one table"]
    for wrapped in (jax.jit(f), jax.checkpoint(f), jax.jit(jax.checkpoint(jax.jit(f)))):
        assert forms(wrapped, make_params(), make_x()[:1]) == ["lookup", "outer", "outer"]


def test_no_large_parameter_of_a_transformer_is_materialized():
    case = cases.make("scanned and rematerialised")
    whole = [
        (name, group)
        for name, group in gradient_groups(case.f, case.params, case.x)
        if any(isinstance(term, Materialized) for term in group.terms)
    ]
    assert max(g.num_rows * g.num_columns for _, g in whole) <= 6 * 8  # position table
    assert not any("kernel" in name or "embedding" in name for name, _ in whole)


def test_a_loop_too_long_to_unroll_is_still_exact(x64, monkeypatch):
    f, make_params, make_x = PROGRAMS["one matrix in every step of a loop"]
    g, make_stacked, make_inputs = PROGRAMS["loop over layers, forward and backward"]
    unrolled = empirical_ntk(f, make_params(), make_x())
    stacked = empirical_ntk(g, make_stacked(), make_inputs())
    monkeypatch.setattr(taps, "MAX_UNROLLED_STEPS", 2)
    assert forms(f, make_params(), make_x()[:1]) == ["materialized"]
    # new function objects: programs are compiled once a function
    assert_close(empirical_ntk(lambda p, x: f(p, x), make_params(), make_x()), unrolled)
    assert_close(empirical_ntk(lambda p, x: g(p, x), make_stacked(), make_inputs()), stacked)
