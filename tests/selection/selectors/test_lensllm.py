"""Eq 10 with measured kernels: both phases, and every candidate has a kernel."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.selection.problem import Evidence
from lensllm_jax.selection.rank import rank
from tests.selection.fakes import small_table


def test_lensllm_with_kernels_reports_both_phases_and_respects_the_bound():
    table = small_table(2)
    spectra = {n: NtkSpectrum(np.array([0.1, 1.0]), np.array([2.0, 3.0]), 0.1) for n in table.names}
    measured = {n: np.linspace(4.0, 1.0, len(table.sizes) - 2) for n in table.names}
    r = rank(
        table,
        budget_size=12800,
        target_size=51200,
        selector="lensllm",
        evidence=Evidence(ntk_spectra=spectra, ntk_losses=measured),
    )
    assert all("phase fitting log-RMSE" in m and "one free t" in m for m in r.messages.values())
    partial = Evidence(ntk_spectra={"m0": spectra["m0"]})
    with pytest.raises(checks.UserError, match="got none for 'm1'"):
        rank(table, budget_size=12800, target_size=51200, selector="lensllm", evidence=partial)
