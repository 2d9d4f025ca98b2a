"""Run by test_sharding in a process of its own: fine-tunes over eight virtual devices, and one."""

import json
import sys

import jax
import numpy as np

import lensllm_jax as lens
from lensllm_jax.finetune.compute import ComputeConfig, loop_for, start_of
from lensllm_jax.finetune.loop import OptimizerConfig
from tests.finetune import tiny

SETTINGS = {
    "full float32": ("zoo/gpt2-xs", "float32", {}),
    "full float64": ("zoo/gpt2-xs", "float64", {"micro_batches": 2}),
    "seq2seq float64": ("zoo/t5-xs", "float64", {"remat": True}),
    "lora float64": ("zoo/llama-xs", "float64", {"tune": "lora", "lora_rank": 8}),
}


def losses(candidate, compute):
    """Of three steps and of an evaluation, and the trained state with what is frozen beside it."""
    optimizer = OptimizerConfig(1e-2, warmup_steps=0)
    start = start_of(candidate, compute, seed=0)
    loop = loop_for(candidate, optimizer, compute).beside(start.frozen)
    batches = {name: tiny.calls(3, 16, width=8)[name] for name in tiny.MODEL_INPUTS}
    if candidate.is_encoder_decoder:
        batches["decoder_input_ids"] = batches["input_ids"]
    state, found = loop.train(loop.start(start.params), batches)
    batch = {name: array[0] for name, array in batches.items()}
    return [*found.tolist(), loop.objective(state.params, [batch])], (state, loop.frozen)


def on_one_device(tree):
    """Bytes of the arrays on the first device, and of the whole arrays."""
    leaves = jax.tree.leaves(tree)
    parts = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return parts, sum(leaf.nbytes for leaf in leaves)


def main() -> None:
    """Prints for each setting the largest relative difference of a loss, and the share of bytes."""
    found = {}
    for name, (candidate, dtype, settings) in SETTINGS.items():
        loaded = lens.load_candidate(candidate, dtype=dtype)
        one, _ = losses(loaded, ComputeConfig(**settings))
        many, trained = losses(loaded, ComputeConfig(**settings, devices=8))
        part, whole = on_one_device(trained)
        found[name] = [float(np.max(np.abs(np.divide(many, one) - 1))), part / whole]
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
