"""Compute: how the passes of a candidate are computed, where the default does not fit.

``bfloat16`` computes products, states and logits in half the memory; the weights, their moments
and the sums of gradients stay in float32 (Micikevicius et al., 2018), since an update smaller
than :math:`2^{-8}` of a weight would vanish in bfloat16.

``remat`` recomputes each block in the backward pass (Chen et al., 2016).  With
``micro_batches`` one step is several smaller passes, whose gradients add up to that of the
whole batch: each is divided by the targets of all.

``tune="lora"`` trains low-rank updates alone (:mod:`lensllm_jax.finetune.lora`), beside weights
that may be kept in bfloat16; ``devices`` cuts all arrays between several
(:mod:`lensllm_jax.finetune.sharding`); ``moments_dtype`` halves the optimiser's state
(:mod:`lensllm_jax.finetune.moments`).
"""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax import checks, durable
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.finetune import lora
from lensllm_jax.finetune.loop import MOMENTS_DTYPES, Loop, OptimizerConfig
from lensllm_jax.finetune.sharding import on_host, shards_over
from lensllm_jax.models.family import ModelConfig
from lensllm_jax.models.products import is_bfloat16_on_cpu
from lensllm_jax.typing import ApplyFn, Batch, Params

_DTYPES = ("bfloat16", "float32", "float64")
FULL, LORA = TUNES = ("full", "lora")
# JAX's settings: where compiled programs are cached, and that all are, however small
CACHE_FOLDER = "jax_compilation_cache_dir"
CACHE_BYTES = "jax_compilation_cache_max_size"
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
        unroll_layers: write the blocks out instead of scanning them: slower to compile.  In
            bfloat16 on a CPU they always are.
        micro_batches: passes whose gradients make one step; divides the batch size.  None: one,
            or in a run as many as a candidate needs to fit into memory.
        tune: what is trained: "full", all weights; "lora", low-rank updates of the matrices of
            attention and feed-forward layers.
        lora_rank: of those updates.
        frozen_dtype: in which the weights beside them are kept (default: as loaded).
        moments_dtype: in which AdamW's moments are kept.
        devices: between which arrays and batches are cut; divides the batch size.
    """

    dtype: str | None = None
    remat: bool = False
    unroll_layers: bool = False
    micro_batches: int | None = None
    tune: str = FULL
    lora_rank: int = 16
    frozen_dtype: str | None = None
    moments_dtype: str = "float32"
    devices: int = 1

    def __post_init__(self):
        for name in ("lora_rank", "devices"):
            checks.positive(name, getattr(self, name))
        if self.micro_batches is not None:
            checks.positive("micro_batches", self.micro_batches)
        checks.one_of("tune", self.tune, TUNES)
        checks.one_of("moments_dtype", self.moments_dtype, MOMENTS_DTYPES)
        for name in ("dtype", "frozen_dtype"):
            if getattr(self, name) is not None:
                checks.one_of(name, getattr(self, name), _DTYPES)
        if self.frozen_dtype is not None and self.tune != LORA:
            raise checks.UserError(
                f"`frozen_dtype` must go with `tune` {LORA}, for full tuning freezes no weight, "
                f"got {self.frozen_dtype}"
            )

    @property
    def passes(self) -> int:
        """Whose gradients make one step."""
        return self.micro_batches or 1

    @property
    def computing_dtype(self) -> str | None:
        """Of products; frozen weights in another type must not lower it."""
        return self.dtype or (self.frozen_dtype and "float32")

    @property
    def loads_on_host(self) -> bool:
        """Whether no device should hold all weights as they were loaded."""
        return self.tune == LORA or self.devices > 1

    def check_batch(self, batch_size: int) -> None:
        """Raises UserError unless passes and devices divide a batch evenly."""
        if batch_size % self.passes:
            raise checks.UserError(
                f"`micro_batches` must divide the batch size {batch_size}, got {self.passes}"
            )
        if (part := batch_size // self.passes) % self.devices:
            raise checks.UserError(
                f"`devices` must divide the {part} examples of a pass, got {self.devices}: change "
                "`batch_size` or `micro_batches`"
            )


def config_apply_fn(config: ModelConfig, compute: ComputeConfig) -> ApplyFn:
    """``(params, batch) -> logits``; float32 parameters stay float32 in every dtype."""
    # A loop stacks what it keeps for the backward pass; on a CPU XLA converts bfloat16 there number
    # by number, which takes longer than the products.
    dtype = None if compute.computing_dtype is None else jnp.dtype(compute.computing_dtype)
    module = config.module(
        dtype=dtype,
        remat=compute.remat,
        unroll_layers=compute.unroll_layers or is_bfloat16_on_cpu(dtype),
    )

    def apply_fn(params: Params, batch: Batch) -> jax.Array:
        with lora.adapting() if compute.tune == LORA else contextlib.nullcontext():
            logits = module.apply({"params": params}, *config.arguments(batch))
        return cast(jax.Array, logits)

    return apply_fn


def loop_for(
    candidate: Candidate, optimizer: OptimizerConfig, compute: ComputeConfig | None = None
) -> Loop:
    """The candidate's compiled steps, computed as configured."""
    compute = compute or ComputeConfig()
    return Loop(
        config_apply_fn(candidate.config, compute),
        optimizer,
        shift=not candidate.is_encoder_decoder,
        micro_batches=compute.passes,
        shards=shards_over(compute.devices),
    )


class Start(NamedTuple):
    """Where a fine-tune of a candidate starts."""

    params: Params  # those that are trained
    frozen: Params  # those that are not


def start_of(candidate: Candidate, compute: ComputeConfig, *, seed: int) -> Start:
    """The parameters that are trained, and those beside them; ``seed`` is of LoRA's factors."""
    if compute.tune == FULL:
        return Start(candidate.params, {})
    factors = lora.init_factors(candidate.params, rank=compute.lora_rank, seed=seed)
    return Start(factors, _frozen(candidate, compute))


def _frozen(candidate: Candidate, compute: ComputeConfig) -> Params:
    if compute.frozen_dtype is None:
        return candidate.params
    dtype = jnp.dtype(compute.frozen_dtype)  # on the host: no device need hold them twice
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), candidate.params)


def whole_params(candidate: Candidate, compute: ComputeConfig, params: Params) -> Params:
    """All parameters of a fine-tuned candidate, from those that were trained."""
    return params if compute.tune == FULL else lora.merged(_frozen(candidate, compute), params)


class ParameterCounts(NamedTuple):
    """How many parameters each token of a step meets (Brown et al. 2020, appendix D)."""

    trained: float
    frozen: float


def parameter_counts(
    config: ModelConfig, num_params: int, compute: ComputeConfig
) -> ParameterCounts:
    """Of a candidate of ``num_params`` parameters, fine-tuned so."""
    met = share_met(config)
    if compute.tune == FULL:
        return ParameterCounts(met * num_params, 0.0)
    factors = lora.num_factors(parameter_shapes(config), compute.lora_rank)
    return ParameterCounts(met * factors, met * num_params)


def share_met(config: ModelConfig) -> float:
    """Of the parameters, those that a token meets: a side of an encoder-decoder is half of it."""
    return 0.5 if config.is_encoder_decoder else 1.0


def loading(compute: ComputeConfig) -> contextlib.AbstractContextManager:
    """Where a candidate is loaded: on the host if one device should not hold all its weights."""
    return on_host() if compute.loads_on_host else contextlib.nullcontext()


def keep_compiled(folder: str | Path | None = None) -> None:
    """Caches what JAX compiles in a folder that several processes may share; made if absent.

    Call it before the first compilation.  Child processes inherit it by their environment.

    Args:
        folder: by default the one that JAX was given, or else the user's cache, which keeps what
            was used last (4 GiB); nothing is cached where that cannot be written.
    """
    settings: dict[str, str | float] = dict(CACHE_SETTINGS)
    if folder is None:
        if getattr(jax.config, CACHE_FOLDER):
            return
        folder = durable.user_cache("compiled")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        settings[CACHE_BYTES] = 4 * 2**30
    for name, value in {CACHE_FOLDER: str(Path(folder).resolve()), **settings}.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
