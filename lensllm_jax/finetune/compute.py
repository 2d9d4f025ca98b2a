"""Compute: how the passes of a candidate are computed, where the default does not fit.

``bfloat16`` computes products, states and logits in half the memory; the weights, their moments
and the sums of gradients stay in float32 (Micikevicius et al., 2018), since an update smaller
than :math:`2^{-8}` of a weight would vanish in bfloat16.

``remat`` recomputes each block in the backward pass (Chen et al., 2016).  With
``num_micro_batches`` one step is several smaller passes, whose gradients add up to that of the
whole batch: each is divided by the targets of all.
"""

import dataclasses
import os
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp

from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.models.family import ModelConfig
from lensllm_jax.typing import ApplyFn, Batch, Params

_DTYPES = ("bfloat16", "float32", "float64")
# JAX's settings: where compiled programs are cached, and that all are, however small
CACHE_FOLDER = "jax_compilation_cache_dir"
CACHE_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; by default as the candidate computes.

    Attributes:
        dtype: of products, states and logits (default: that of the weights).
        remat: recompute each block in the backward pass: less memory, a third more time.
        unroll_layers: write the blocks out instead of scanning them: slower to compile.
        num_micro_batches: passes whose gradients make one step; divides the batch size.
    """

    dtype: str | None = None
    remat: bool = False
    unroll_layers: bool = False
    num_micro_batches: int = 1

    def __post_init__(self):
        checks.positive("num_micro_batches", self.num_micro_batches)
        if self.dtype is not None:
            checks.one_of("dtype", self.dtype, _DTYPES)


def config_apply_fn(config: ModelConfig, compute: ComputeConfig) -> ApplyFn:
    """``(params, batch) -> logits``; float32 parameters stay float32 in every dtype."""
    module = config.module(
        dtype=None if compute.dtype is None else jnp.dtype(compute.dtype),
        remat=compute.remat,
        unroll_layers=compute.unroll_layers,
    )

    def apply_fn(params: Params, batch: Batch) -> jax.Array:
        logits = module.apply({"params": params}, *config.arguments(batch))
        return cast(jax.Array, logits)

    return apply_fn


def loop_for(
    candidate: Candidate, optimizer: OptimizerConfig, *, compute: ComputeConfig | None = None
) -> Loop:
    """The candidate's compiled steps, computed as configured."""
    compute = compute or ComputeConfig()
    return Loop(
        config_apply_fn(candidate.config, compute),
        optimizer,
        shift=not candidate.is_encoder_decoder,
        num_micro_batches=compute.num_micro_batches,
    )


def keep_compiled(folder: str | Path) -> None:
    """Caches what JAX compiles in a folder that several processes may share; made if absent.

    Call it before the first compilation.  Child processes inherit it by their environment.
    """
    for name, value in {CACHE_FOLDER: str(Path(folder).resolve()), **CACHE_SETTINGS}.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
