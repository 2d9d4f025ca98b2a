"""A pool is refused before anything is measured, and all of it reads the same text."""

import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example, build_task
from lensllm_jax.measurement.pool import (
    check_kernel_examples,
    describe_pool,
    loss_table,
    shared_task,
    truncated_targets,
)

TEXTS = [Example("", f"the {n} kings of the land") for n in range(10)]
TASK = build_task("kings", "a toy", train=TEXTS[:6], validation=TEXTS[6:8], test=TEXTS[8:])


@pytest.mark.parametrize(
    ("name", "shortest", "longest"),
    [("zoo/gpt2-xs", 2, 128), ("zoo/t5-xs", 3, 10**6)],  # T5 has no positions to run out of
)
def test_a_length_that_a_candidate_cannot_read_is_refused(name, shortest, longest):
    for length in (shortest, longest):
        assert list(describe_pool([name], max_length=length)) == [name]
    with pytest.raises(UserError, match=f"`max_length` must be at least {shortest} .*{name}"):
        describe_pool([name], max_length=shortest - 1)
    if name == "zoo/gpt2-xs":
        with pytest.raises(UserError, match="`max_length` must be at most 128"):
            describe_pool([name], max_length=129)


def test_one_encoder_decoder_gives_all_of_the_pool_prompts():
    decoders = describe_pool(["zoo/gpt2-xs"], max_length=16)
    assert shared_task(TASK, decoders) is TASK
    shared = shared_task(TASK, {**decoders, **describe_pool(["zoo/t5-xs"], max_length=16)})
    assert all(example.prompt for example in shared.train)
    assert shared.fingerprint != TASK.fingerprint


def test_targets_that_do_not_fit_are_counted_for_every_candidate():
    long = [Example("", "the king of the land " * n) for n in (1, 20, 30)]
    task = build_task("kings", "a toy", train=[*TEXTS[:5], *long], validation=TEXTS[5:7],
                      test=TEXTS[7:])  # fmt: skip
    pool = describe_pool(["zoo/gpt2-xs", "zoo/opt-xs"], max_length=64)
    assert truncated_targets(task, pool, max_length=64) == (dict.fromkeys(pool, 2), 13)
    assert truncated_targets(TASK, pool, max_length=64) == (dict.fromkeys(pool, 0), 10)


def test_a_kernel_of_more_examples_than_there_are_is_refused():
    check_kernel_examples(TASK, 6)
    with pytest.raises(UserError, match="`num_kernel_examples` must be at most 6"):
        check_kernel_examples(TASK, 7)


def test_what_was_not_measured_is_not_a_number():
    pool = describe_pool(["zoo/opt-xs", "zoo/gpt2-xs"], max_length=16)
    table = loss_table(pool, {"zoo/gpt2-xs": {0: 5.0}, "zoo/opt-xs": {0: 6.0, 8: 4.0}}, TASK)
    assert table.names == ("zoo/opt-xs", "zoo/gpt2-xs")
    assert table.family == ("opt", "gpt2")
    np.testing.assert_array_equal(table.losses, [[6.0, 4.0], [5.0, np.nan]])
    assert table.num_params.tolist() == [float(one.num_params) for one in pool.values()]
