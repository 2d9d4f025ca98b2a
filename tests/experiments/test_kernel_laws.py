"""Eq 10 with F measured: distinguishable from the rectified law where they differ, only there."""

import numpy as np

from tests.experiments.pools import NUM_CANDIDATES, NUM_EXAMPLES, SIZES, toy_pool
from tests.messages.binaries import load

laws = load("kernel_laws").module
Form, Rate, Variant = laws.Form, laws.Rate, laws.Variant

KEY = ("target_logprob", NUM_EXAMPLES)
FLOOR = np.linspace(1.0, 2.0, NUM_CANDIDATES)[:, None]
TRUE = Variant(Form.MATRIX, KEY, Rate.ADAMW, free_scale=True)
WRONG = Variant(Form.MATRIX, KEY, Rate.RELEASED, free_scale=True)


def errors(pool, budget):
    by_variant = {
        job[0]: laws.errors_of(pool, fits, f, budget)
        for job, fits, f in laws.fit_variants(pool, [(TRUE, budget), (WRONG, budget)])
    }
    largest = int(SIZES[-1])
    rectified = laws.control_fits(pool, "rectified", largest // budget)
    return by_variant[TRUE], by_variant[WRONG], laws.errors_of(pool, rectified, None, budget)


def test_losses_made_with_a_measured_f_are_found_out(tmp_path):
    placeholder = np.ones((NUM_CANDIDATES, len(SIZES)))
    pool = toy_pool(tmp_path, placeholder, laws.read_pool)
    f = pool.ntk_loss(Form.MATRIX, KEY, Rate.ADAMW, budget_size=int(SIZES[-1]))
    pool = toy_pool(tmp_path, 60.0 / (0.8 * f + SIZES**0.45) + FLOOR, laws.read_pool)
    for budget in (1, 2):
        true, wrong, rectified = errors(pool, budget)
        assert true.max() < 1e-5 < 1e-4 < min(wrong.min(), rectified.min())


def test_losses_of_the_rectified_law_need_no_kernel(tmp_path):
    pool = toy_pool(tmp_path, 60.0 / (9.0 + SIZES**0.45) + FLOOR, laws.read_pool)
    true, _, rectified = errors(pool, 2)
    assert rectified.max() < 1e-5 < true.min()
    with_f = {"law": "lensllm", "form": "matrix", "readout": KEY[0], "num_examples": KEY[1]}
    results = [
        laws.Result({"law": "rectified", "readout": "", "num_examples": ""}, 2, rectified),
        laws.Result(with_f, 2, true),
    ]
    control, row = laws.difference_rows(pool, results)
    assert float(control["less_rectified"]) == 0.0
    assert float(row["low"]) > 0.0 == float(row["better"])
    assert row["p_value"] == f"{2 / 2**NUM_CANDIDATES:.3g}"  # worse for all of them


def test_a_prediction_without_sense_counts_as_the_largest_loss_fitted(tmp_path):
    pool = toy_pool(tmp_path, 60.0 / (9.0 + SIZES**0.45) + FLOOR, laws.read_pool)
    job = (Variant(Form.MATRIX, KEY, Rate.ADAMW, free_scale=True), 2)
    _, fits, f = next(laws.fit_variants(pool, [job]))
    vanishing = np.where(SIZES > 3200, 1e-300, f)
    worst = np.abs(pool.table.losses[:, 0] - pool.table.losses[:, -1])
    error = laws.errors_of(pool, fits, vanishing, 2)
    assert np.all(error <= worst * (1 + 1e-9))
