"""The ledger counts by hand."""

from lensllm_jax.selection.flops import (
    FlopsLedger,
    TrainingCost,
    kernel_flops,
    training_flops,
)
from lensllm_jax.selection.problem import Evidence
from lensllm_jax.selection.rank import rank
from tests.selection.fakes import small_table


def test_ledger_counts_six_n_tokens_epochs_and_rounds():
    cost = TrainingCost(tokens_per_example=10.0, epochs=2.0, search_rounds=3.0)
    r = rank(small_table(1), budget_size=800, target_size=1600, selector="subtuning", cost=cost)
    assert r.flops == 6 * 1e6 * 800 * 10 * 2 * 3
    kernels = {"m0": 5.0}
    table = small_table(1)
    with_kernel, without = (
        rank(
            table,
            budget_size=6400,
            target_size=51200,
            selector="lensllm",
            evidence=Evidence(kernel_flops=k),
        )
        for k in (kernels, None)
    )
    assert with_kernel.flops == without.flops + 5.0


def test_what_was_really_spent_takes_the_place_of_the_estimate():
    spent = FlopsLedger().train("m0", num_params=1e6, num_examples=800, num_tokens=1e3)
    r = rank(
        small_table(1),
        budget_size=800,
        target_size=1600,
        selector="ats",
        evidence=Evidence(ledger=spent),
    )
    assert r.ledger is spent
    assert r.flops == training_flops(1e6, 1e3) == 6e9


def test_frozen_parameters_cost_no_gradients_of_their_own():
    assert training_flops(10.0, 3.0, num_frozen=100.0) == (6 * 10 + 4 * 100) * 3
    ledger = FlopsLedger().train(
        "a", num_params=10.0, num_frozen=100.0, num_examples=1, num_tokens=3.0
    )
    assert ledger.total == training_flops(10.0, 3.0, num_frozen=100.0)


def test_a_kernel_costs_its_gradients_and_their_products():
    # 3 gradients of 5 tokens each, 6 pairs of 10 multiplications and 10 additions
    assert kernel_flops(10.0, num_examples=3, num_tokens=15.0) == 6 * 10 * 15 + 6 * 20
