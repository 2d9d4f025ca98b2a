"""Operations and tokens of a step are those that it makes."""

import jax
import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax.finetune.compute import (
    ComputeConfig,
    config_apply_fn,
    parameter_counts,
    start_of,
)
from lensllm_jax.finetune.loop import joined
from lensllm_jax.finetune.objective import batch_nats_and_count, num_tokens
from lensllm_jax.selection.flops import training_flops

FULL = ComputeConfig(unroll_layers=True)  # XLA counts a loop's body once


def counted_and_stated(candidate, data, compute=FULL):
    """Of one gradient: operations as XLA counts them, by parameters and tokens, and if all trained.

    The last as if every parameter of the tree were trained by full steps.
    """
    start = start_of(candidate, compute, seed=0)
    apply_fn = config_apply_fn(candidate.config, compute)
    shift = not candidate.is_encoder_decoder

    def nats(params, frozen):
        return batch_nats_and_count(apply_fn, joined(params, frozen), data, shift=shift).nats

    lowered = jax.jit(jax.grad(nats)).lower(start.params, start.frozen)
    trained, frozen = parameter_counts(candidate.config, candidate.num_params, compute)
    if shift:  # each token meets every parameter
        assert trained == sum(leaf.size for leaf in jax.tree.leaves(start.params))
        assert frozen == sum(leaf.size for leaf in jax.tree.leaves(start.frozen))
    count = float(num_tokens(data))
    stated = training_flops(trained, count, num_frozen=frozen)
    return lowered.cost_analysis()["flops"], stated, training_flops(trained + frozen, count)


def decoder_batch(length):
    ids = np.ones((16, length), np.int32)
    return {"input_ids": ids, "attention_mask": ids, "labels": ids}


def pair_batch(read, predicted):
    labels = np.ones((16, predicted), np.int32)
    return {**decoder_batch(read), "labels": labels, "decoder_input_ids": labels}


@pytest.mark.parametrize("rank", [None, 4, 16])
def test_operations_of_a_step_are_those_that_xla_counts(rank):
    """Products within attention, which are not stated, are 2 %."""
    compute, candidate = FULL, lens.load_candidate("zoo/gpt2-xs")
    if rank is not None:
        compute = ComputeConfig(tune="lora", lora_rank=rank, unroll_layers=True)
    counted, stated, as_if_full = counted_and_stated(candidate, decoder_batch(16), compute)
    assert counted == pytest.approx(stated, rel=0.03)
    assert (as_if_full > 1.3 * counted) == (rank is not None)  # control: what LoRA saves is seen


@pytest.mark.parametrize("name", ["zoo/t5-s", "zoo/bart-s"])
@pytest.mark.parametrize(
    ("read", "predicted", "rel"),
    # a decoder with its head is the larger side: the half of all is little for long targets
    [(16, 16, 0.05), (8, 24, 0.15)],
)
def test_a_token_meets_one_side_of_an_encoder_decoder(name, read, predicted, rel):
    data = pair_batch(read, predicted)
    counted, stated, _ = counted_and_stated(lens.load_candidate(name), data)
    assert counted == pytest.approx(stated, rel=rel)
    assert 2 * stated > 1.7 * counted  # control: all parameters for each token


def test_tokens_are_those_of_both_sides_without_padding():
    data = pair_batch(read=8, predicted=4)
    data["attention_mask"] = data["attention_mask"] * (np.arange(8) < 5)
    data["labels"] = np.where(np.arange(4) < 3, data["labels"], -100)
    assert num_tokens(data) == 16 * (5 + 3)
    del data["decoder_input_ids"]
    assert num_tokens(data) == 16 * 5
