r"""Compute: how the passes of a candidate are carried out, where the default does not fit.

``bfloat16`` computes products, states and logits in half the memory, while the weights that
the optimiser moves, their moments and the sums of gradients stay in float32 (Micikevicius et al.,
2018): an update that is smaller than :math:`2^{-8}` of a weight would vanish in bfloat16.

``remat`` computes each block again in the backward pass instead of keeping what is inside
(Chen et al., 2016); ``num_micro_batches`` makes one step of several smaller passes, whose
gradients add up to that of the whole batch, since each is divided by the targets of all.

Example:
    >>> import lensllm_jax as lens
    >>> from lensllm_jax.finetune.loop import OptimizerConfig
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> loop = loop_for(c, OptimizerConfig(learning_rate=1e-3), compute=ComputeConfig(remat=True))
    >>> loop.shift
    True
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

DTYPES = ("bfloat16", "float32", "float64")
# where JAX keeps compiled programs, and which: all, however small, for there are many
COMPILED_FOLDER = "jax_compilation_cache_dir"
KEPT = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; the defaults are those of the candidate itself.

    Attributes:
        dtype: of products, states and logits (default: that of the weights).
        remat: recompute each block in the backward pass: less memory, a third more time.
        unroll_layers: write the blocks out instead of looping: slower to compile.
        num_micro_batches: passes whose gradients make one step; divides the batch size.
    """

    dtype: str | None = None
    remat: bool = False
    unroll_layers: bool = False
    num_micro_batches: int = 1

    def __post_init__(self):
        checks.positive("num_micro_batches", self.num_micro_batches)
        if self.dtype is not None:
            checks.one_of("dtype", self.dtype, DTYPES)


def config_apply_fn(config: ModelConfig, compute: ComputeConfig) -> ApplyFn:
    """The ``apply_fn`` of a model, computed as configured.

    Args:
        config: of the model.
        compute: how.

    Returns:
        ``(params, batch) -> logits``; float32 params stay float32 whatever the dtype.
    """
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
    """The candidate's compiled steps, computed as configured.

    Args:
        candidate: the model.
        optimizer: settings of the optimiser.
        compute: how (default: as the candidate itself computes).

    Returns:
        The loop.
    """
    compute = compute or ComputeConfig()
    return Loop(
        config_apply_fn(candidate.config, compute),
        optimizer,
        shift=not candidate.is_encoder_decoder,
        num_micro_batches=compute.num_micro_batches,
    )


def keep_compiled(folder: str | Path) -> None:
    """Keeps what JAX compiles in a folder, where later processes find it.

    It must be called before the first compilation of a process.  Processes that are started from
    here keep theirs there too: they find it in their environment.

    Args:
        folder: made if absent; several processes may share it.
    """
    for name, value in {COMPILED_FOLDER: str(Path(folder).resolve()), **KEPT}.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
