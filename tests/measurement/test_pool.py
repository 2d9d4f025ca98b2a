"""A pool is refused before anything is measured, and all of it reads the same text."""

import dataclasses
import re

import numpy as np
import pytest
from tokenizers import normalizers

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example, Task, build_task, fingerprint
from lensllm_jax.data.tokens import joined
from lensllm_jax.measurement.pool import (
    altered_targets,
    check_kernel_examples,
    describe_pool,
    loss_table,
    shared_task,
)
from lensllm_jax.measurement.rows import encode_rows, row_lengths

TEXTS = [Example("", f"the {n} kings of the land") for n in range(10)]
TASK = build_task("kings", "a toy", train=TEXTS[:6], validation=TEXTS[6:8], test=TEXTS[8:])


def task_of(*examples):
    """A task with these training examples."""
    validation, test = (Example("what is it?", "a king"),), (Example("what is it?", "a land"),)
    return Task("t", "", examples, validation, test, {}, fingerprint(examples, validation, test))


def test_a_record_that_a_candidate_has_no_positions_for_is_refused_with_the_way_out():
    dense = task_of(
        Example("what is it?", "é\u0301" * 50), *TEXTS
    )  # a token per byte, in the zoo's pieces
    pool = describe_pool(["zoo/gpt2-xs", "zoo/opt-xs"])
    with pytest.raises(UserError, match=r"`max_bytes` .*128 positions of zoo/gpt2-xs") as refused:
        shared_task(dense, pool, max_bytes=200)
    (advised,) = re.findall(r"--max_bytes=(\d+)", str(refused.value))
    assert shared_task(dense, pool, max_bytes=int(advised)).max_bytes == int(advised)
    # T5 has no positions to run out of
    assert shared_task(dense, describe_pool(["zoo/t5-xs"]), max_bytes=200).max_bytes == 200


def test_one_encoder_decoder_gives_all_of_the_pool_prompts():
    decoders = describe_pool(["zoo/gpt2-xs"])
    assert shared_task(TASK, decoders).train == TASK.train
    shared = shared_task(TASK, {**decoders, **describe_pool(["zoo/t5-xs"])})
    assert all(example.prompt for example in shared.train)
    assert shared.fingerprint != TASK.fingerprint


def test_long_records_keep_a_prompt_for_the_encoder():
    task = task_of(*[Example("", f"the {n} kings " * 40) for n in range(9)])
    shared = shared_task(task, describe_pool(["zoo/t5-xs"]), max_bytes=90)
    assert all(example.prompt for example in shared.train)
    assert all(80 < example.num_bytes <= 90 for example in shared.train)
    whole = shared_task(task, describe_pool(["zoo/gpt2-xs"]), max_bytes=90)
    assert [joined(example)[0] for example in shared.train] == [
        example.target for example in whole.train
    ]


def test_all_of_a_pool_read_the_same_cut_text_by_default():
    pool = describe_pool(["zoo/gpt2-xs", "zoo/t5-xs"])
    task = task_of(*[Example("the king of the land " * 20, f"the {n} kings") for n in range(9)])
    shared = shared_task(task, pool)
    assert shared.max_bytes == 160  # of 128 positions
    assert shared.cut == {"train_prompts": 9}
    lengths = {name: row_lengths(shared, one) for name, one in pool.items()}
    assert lengths["zoo/gpt2-xs"].target == 0 < lengths["zoo/t5-xs"].target
    assert all(length.source % 8 == 0 for length in lengths.values())
    encoded = {n: encode_rows(shared.train, one, lengths[n]) for n, one in pool.items()}
    sizes = [len(example.target.encode()) for example in shared.train]
    for arrays in encoded.values():
        assert arrays.num_target_bytes.tolist() == sizes


def test_a_candidate_whose_tokenizer_alters_targets_is_named():
    pool = describe_pool(["zoo/gpt2-xs", "zoo/opt-xs"])
    assert altered_targets(TASK, pool) == {}
    pool["zoo/opt-xs"].tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    task = dataclasses.replace(TASK, test=(Example("what?", "The kings"),))
    assert altered_targets(task, pool) == {"zoo/opt-xs": 1}


def test_a_kernel_of_more_examples_than_there_are_is_refused():
    check_kernel_examples(TASK, 6)
    with pytest.raises(UserError, match="`num_kernel_examples` must be at most 6"):
        check_kernel_examples(TASK, 7)


def test_what_was_not_measured_is_not_a_number():
    pool = describe_pool(["zoo/opt-xs", "zoo/gpt2-xs"])
    table = loss_table(pool, {"zoo/gpt2-xs": {0: 5.0}, "zoo/opt-xs": {0: 6.0, 8: 4.0}}, TASK)
    assert table.names == ("zoo/opt-xs", "zoo/gpt2-xs")
    assert table.family == ("opt", "gpt2")
    np.testing.assert_array_equal(table.losses, [[6.0, 4.0], [5.0, np.nan]])
    assert table.num_params.tolist() == [float(one.num_params) for one in pool.values()]
