"""F as the tables give it, against dense matrix exponentials."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from experiments.common.first_tokens import common_first_tokens
from experiments.common.kernel_tables import Form, Rate, read_pool
from lensllm_jax import checks
from tests.experiments import pools
from tests.experiments.pools import NUM_CANDIDATES, NUM_EXAMPLES, SCALED_TIMES, SIZES, kernel
from tests.tolerances import assert_close

LOSSES = 40.0 / (20.0 + SIZES**0.5) + np.linspace(1.0, 2.0, NUM_CANDIDATES)[:, None]
RESULTS = Path(__file__).parents[2] / "experiments" / "results"
KEY = ("target_logprob", NUM_EXAMPLES)


@dataclasses.dataclass(frozen=True)
class DenseKernel:
    """What ``quantities`` reads of a CandidateNtk."""

    theta: np.ndarray
    residual: np.ndarray

    @property
    def num_examples(self):
        return len(self.residual)


def test_every_form_of_f_is_what_its_name_says(tmp_path):
    pool = pools.toy_pool(tmp_path, LOSSES, read_pool)
    theta, residual = kernel(0)
    stored = pool.kernels[KEY][0]
    time = np.array([0.0, 0.01, 0.1])
    matrix = [np.sum((scipy.linalg.expm(-t * theta) @ residual) ** 2) for t in time]
    assert_close(stored.loss(Form.MATRIX, time), np.array(matrix))
    scalar = np.exp(-2 * theta.mean() * time) * np.sum(residual**2)
    assert_close(stored.loss(Form.SCALAR, time), scalar)
    tabulated = SCALED_TIMES[[4, 10, 15]] / stored.largest
    elementwise = [np.sum((np.exp(-t * theta) @ residual) ** 2) for t in tabulated]
    assert_close(stored.loss(Form.ELEMENTWISE, tabulated), np.array(elementwise))
    # an exponential of entries is no matrix exponential, at t = 0 either
    assert stored.loss(Form.ELEMENTWISE, np.zeros(1)) > 2 * stored.loss(Form.MATRIX, np.zeros(1))
    assert_close(stored.loss(Form.TEST, np.zeros(1)), np.array([3.0 * NUM_EXAMPLES]))


def test_an_exponential_that_overflows_is_the_largest_f(tmp_path):
    stored = pools.toy_pool(tmp_path, LOSSES, read_pool).kernels[KEY][0]
    wild = dataclasses.replace(stored, elementwise_log_loss=stored.elementwise_log_loss + 1e3)
    assert_close(wild.loss(Form.ELEMENTWISE, np.array([0.0, 0.1])), np.full(2, 1e300))


def test_what_is_kept_of_a_kernel_is_that_of_its_leading_block():
    theta, residual = kernel(3, 9)
    summary = pools.SPECTRA.quantities(DenseKernel(theta, residual), 4, num_train=6)
    block, r = theta[:4, :4], residual[:4]
    assert_close(np.array(summary["eigenvalues"]), np.linalg.eigvalsh(block))
    assert_close(sum(summary["projections"]), np.sum(r**2))
    assert_close(summary["mean_gradient_squared"], block.mean())
    for at in (0, 8, -1):
        time = SCALED_TIMES[at] / np.linalg.eigvalsh(block)[-1]
        learnt = np.linalg.solve(block, (np.eye(4) - scipy.linalg.expm(-time * block)) @ r)
        test = residual[6:] - theta[6:, :4] @ learnt
        assert_close(summary["test_mean_square"][at], np.mean(test**2), rel=1e-8)  # solve vs eigh
    # the loss is minus the log-probability: one F
    other = pools.SPECTRA.quantities(DenseKernel(theta, -residual), 4, num_train=6)
    assert_close(np.array(other["projections"]), np.array(summary["projections"]))
    assert_close(np.array(other["test_mean_square"]), np.array(summary["test_mean_square"]))


def test_steps_beyond_the_budget_are_not_read(tmp_path):
    pool = pools.toy_pool(tmp_path, LOSSES, read_pool)
    steps = pool.known_steps(800)
    assert np.array_equal(steps[:, :4], pool.steps[:, :4])
    assert_close(steps[0, 4:], 40 * SIZES[4:] / 800)
    changed = dataclasses.replace(pool, steps=np.where(SIZES > 800, 7.0, pool.steps))
    f = pool.ntk_loss(Form.MATRIX, KEY, Rate.ADAMW, budget_size=800)
    assert np.array_equal(f, changed.ntk_loss(Form.MATRIX, KEY, Rate.ADAMW, budget_size=800))
    everything = changed.ntk_loss(Form.MATRIX, KEY, Rate.ADAMW, budget_size=6400)
    assert not np.allclose(f, everything)


def test_rates_mean_what_they_say(tmp_path):
    pool = pools.toy_pool(tmp_path, LOSSES, read_pool)
    theta, residual = kernel(2)
    t, largest = pool.steps[2, 1], np.linalg.eigvalsh(theta)[-1]
    eta = {Rate.ADAMW: 0.001 / NUM_EXAMPLES, Rate.RELEASED: 0.01, Rate.FASTEST: 1 / largest}
    for rate, value in eta.items():
        dense = np.sum((scipy.linalg.expm(-value * t * theta) @ residual) ** 2)
        f = pool.ntk_loss(Form.MATRIX, KEY, rate, budget_size=6400)[2, 1]
        assert_close(f, dense, rel=1e-7)  # of what little is left after many steps
    kernels_over_fine_tunes = 1e8 / (1e9 * (200 + 400))
    assert_close(pool.kernel_share(KEY, 400), kernels_over_fine_tunes)
    assert_close(pool.kernel_share(KEY, 400, with_test=True), 3 * kernels_over_fine_tunes)


def test_a_table_that_is_missing_or_lacks_a_row_is_named(tmp_path):
    pools.toy_pool(tmp_path, LOSSES, read_pool)
    spectra = tmp_path / "toy_spectra.csv"
    whole = spectra.read_text()
    spectra.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    with pytest.raises(
        checks.UserError, match="csv must hold a kernel of every candidate, got none of "
    ):
        read_pool(tmp_path, "toy")
    spectra.write_text(whole)
    ledger = tmp_path / "toy_ledger.csv"
    rows = ledger.read_text()
    ledger.write_text("\n".join(rows.splitlines()[:-1]) + "\n")
    with pytest.raises(checks.UserError, match="csv must hold a row for "):
        read_pool(tmp_path, "toy")
    ledger.write_text(rows.replace("0.001", "0.01", 1))
    with pytest.raises(checks.UserError, match="csv must be the same everywhere, got "):
        read_pool(tmp_path, "toy")
    ledger.unlink()
    with pytest.raises(checks.UserError, match="`tables` must hold "):
        read_pool(tmp_path, "toy")


def test_common_first_tokens_read_the_first_target_alone():
    labels = np.array([[3, -100, 5, 9], [-100, 5, 9, 9], [-100, -100, 9, 1], [4, 2, 2, 2]])
    assert common_first_tokens({"labels": labels}, 3, shift=True) == (5, 2, 9)
    assert common_first_tokens({"labels": labels}, 2, shift=False) == (3, 4)


def columns_written():
    """Of each table, as the binary writes it now."""
    theta, residual = kernel(3, 9)
    row = {
        "candidate": "a", "readout": "target_logprob", "num_examples": 4, "flops": 1.0,
        "flops_with_test": 2.0,
        **pools.SPECTRA.quantities(DenseKernel(theta, residual), 4, num_train=6),
    }  # fmt: skip
    rows = {
        "spectra": pools.SPECTRA._spectrum_row(row),
        "flow": next(pools.SPECTRA._flow_rows(row)),
        "kernels": pools.SPECTRA._kernel_row(row),
    }
    return {name: list(one) for name, one in rows.items()}


@pytest.mark.parametrize("task", ["pydoc", "sotu"])
def test_the_committed_kernels_have_the_columns_that_the_binary_writes(task):
    written = columns_written()
    for name, columns in written.items():
        with (RESULTS / f"{task}_{name}.csv").open() as file:
            assert file.readline().rstrip("\n").split(",") == columns
    assert written["spectra"] != written["kernels"]  # tables that differ are distinguished
