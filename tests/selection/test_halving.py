"""Algorithm 1: where the search stops, and what it refuses."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection.halving import Halving


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": 1}, "`gamma` must be 2 or more"), ({"tau": 0.0}, "`tau` must be positive")],
)
def test_bad_settings_of_the_search_are_refused(settings, message):
    with pytest.raises(checks.UserError, match=message):
        Halving(**settings)


def test_search_stops_at_the_kink_and_counts_what_it_spent():
    sizes = np.array([0, 200, 400, 800, 1600, 3200, 6400])
    losses = 9.0 * np.maximum(sizes, 1.0) ** -0.3 * np.array([1, 1.5, 1, 1.001, 1, 0.999, 1])
    search = Halving(gamma=3, tau=5.0).observe_row(sizes, losses)
    assert search.stopped
    assert search.accepted_sizes == (6400, 3200, 1600, 800, 400)
    assert search.sizes_spent == (6400, 3200, 1600, 800, 400, 200)
    assert not Halving(gamma=3, tau=1e6).observe_row(sizes, losses).stopped


def test_an_exact_line_does_not_stop_the_search():
    sizes = 200 * 2 ** np.arange(8)
    assert not Halving().observe_row(sizes, 9.0 * sizes**-0.3).stopped


def test_search_refuses_sizes_that_do_not_descend():
    search = Halving().observe(400, 1.0)
    with pytest.raises(checks.UserError, match="must be below the last one"):
        search.observe(400, 1.0)
