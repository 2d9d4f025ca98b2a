"""Terms of one parameter, and the groups that they are brought to."""

import jax.numpy as jnp
import numpy as np

from lensllm_jax.ntk.structured import contractions, gradients
from lensllm_jax.ntk.structured.gradients import Group, Lookup
from lensllm_jax.ntk.structured.sweeps import gradient_groups
from tests import oracles
from tests.ntk.structured.programs import PROGRAMS
from tests.tolerances import assert_close, relative_difference


def test_term_of_a_lookup_counts_repeated_ids_and_leaves_out_negative_ones():
    lookup = Lookup(jnp.array([[1, 1, -1, 0]]), jnp.array([[[[1.0], [10.0], [100.0], [1000.0]]]]))
    assert gradients.materialize(lookup, 3)[0, 0, :, 0].tolist() == [1000.0, 11.0, 0.0]


def test_dropping_a_cross_term_of_a_tied_table_fails(x64):
    f, make_params, make_x = PROGRAMS["lookup and head of one table"]
    params, x = make_params(), make_x()
    groups = [group for _, group in gradient_groups(f, params, x)]
    (tied,) = [g for g in groups if len(g.terms) == 2]
    exact = oracles.dense_kernel(f, params, x)

    def kernel(groups):
        return sum(np.asarray(contractions.gram(group, None, trace=False)) for group in groups)

    assert_close(kernel(groups), exact)
    separate = [Group((term,), tied.num_rows, tied.num_columns) for term in tied.terms]
    without = kernel([*(g for g in groups if g is not tied), *separate])
    assert relative_difference(without, exact) > 1e-3
