r"""Memory: what one step of a fine-tune holds on each device, from shapes alone.

.. math:: \text{bytes} = W_0 + F + 3\,T + M + A + H + G

of which the weights as loaded :math:`W_0` (where the device has them, too), the frozen ones F, the
trained ones T three times - as they are, as they were at the best step, and their gradient - both
moments M, the activations A that the forward pass of one micro-batch keeps for the backward pass,
logits included, the gradient H of the logits, and, between several devices, the gathered weights G
of one block and of the embedding.  A is what the differentiated program itself says: no
weight is made, nothing is compiled.

Example:
    >>> from lensllm_jax.models.decoder import DecoderConfig
    >>> config = DecoderConfig(vocab_size=11, max_positions=8, d_model=8, num_layers=2,
    ...                        num_heads=2, d_ff=16)
    >>> full = step_memory(config, ComputeConfig(), batch_size=4, num_tokens=8)
    >>> full.moments == 2 * full.gradients == full.trained
    True
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.extend.core import Literal

from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.finetune import lora
from lensllm_jax.finetune.compute import LORA, ComputeConfig, config_apply_fn
from lensllm_jax.finetune.loop import joined
from lensllm_jax.finetune.objective import batch_nats_and_count
from lensllm_jax.finetune.sharding import per_device
from lensllm_jax.models.family import ModelConfig
from lensllm_jax.typing import Params

_FLOAT32 = 4  # bytes


class StepMemory(NamedTuple):
    """Bytes on one device."""

    loaded: int  # weights as loaded
    frozen: int  # weights that are not trained
    trained: int  # as they are, and at the best step
    gradients: int  # summed ones and those of a pass, where a step has several passes
    moments: int
    activations: int  # kept by the forward pass of one micro-batch
    logits: int  # gradient of those of one micro-batch
    gathered: int  # weights of a block and of the embedding, where devices share them

    @property
    def total(self) -> int:
        """The sum of all."""
        return sum(self)

    @property
    def step(self) -> int:
        """Without what a step does not touch: the weights as loaded, and those at the best step."""
        return self.total - self.loaded - self.trained // 2


def step_memory(
    config: ModelConfig, compute: ComputeConfig, *, batch_size: int, num_tokens: int,
    num_logits: int | None = None,
) -> StepMemory:  # fmt: skip
    """What one step holds on each device.

    Args:
        config: of the candidate.
        compute: how the step is computed.
        batch_size: examples of a step.
        num_tokens: of an example; of either side of an encoder-decoder.
        num_logits: that a pass computes; by default at every position.
    """
    shapes = parameter_shapes(config)
    trained, frozen = shapes, {}
    if compute.tune == LORA:
        tree = jax.eval_shape(
            lambda: lora.init_factors(_arrays(shapes, jnp.float32), rank=compute.lora_rank, seed=0)
        )
        flat = traverse_util.flatten_dict(tree, sep="/")
        trained, frozen = {path: leaf.shape for path, leaf in flat.items()}, shapes
    frozen_dtype = jnp.dtype(compute.frozen_dtype or "float32")
    rows = max(batch_size // compute.passes // compute.devices, 1)
    batch = _batch(config, rows, num_tokens)
    apply_fn = config_apply_fn(config, compute)
    parameters = (_arrays(trained, jnp.float32), _arrays(frozen, frozen_dtype))
    logits = jax.eval_shape(lambda p, f, b: apply_fn(joined(p, f), b), *parameters, batch)
    held = per_device(trained, compute.devices)
    return StepMemory(
        loaded=0 if compute.loads_on_host else _FLOAT32 * _count(shapes),
        frozen=frozen_dtype.itemsize * per_device(frozen, compute.devices) if frozen else 0,
        trained=2 * _FLOAT32 * held,
        gradients=_FLOAT32 * held * (1 + (compute.passes > 1)),
        moments=2 * jnp.dtype(compute.moments_dtype).itemsize * held,
        activations=_residual_bytes(config, compute, *parameters, batch, num_logits),
        logits=logits.dtype.itemsize * logits.shape[-1] * (num_logits or rows * num_tokens),
        gathered=_FLOAT32 * _gathered(shapes) if compute.devices > 1 else 0,
    )


def _gathered(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Entries of the blocks' weights, divided by their number, and of the embedding."""
    blocks = {path: shape for path, shape in shapes.items() if "blocks" in path.split("/")}
    return sum(math.prod(shape[1:]) for shape in blocks.values()) + max(
        (math.prod(shape) for path, shape in shapes.items() if path not in blocks), default=0
    )


def _residual_bytes(
    config: ModelConfig,
    compute: ComputeConfig,
    params: Params,
    frozen: Params,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    num_logits: int | None,
) -> int:
    """Bytes of what the forward pass keeps, parameters and inputs left out."""
    apply_fn = config_apply_fn(config, compute)

    def kept(params, frozen, batch):
        def nats(params):
            weights, shift = joined(params, frozen), not config.is_encoder_decoder
            return batch_nats_and_count(
                apply_fn, weights, batch, shift=shift, num_logits=num_logits
            ).nats

        return jax.tree.leaves(jax.vjp(nats, params)[1])

    jaxpr = jax.make_jaxpr(kept)(params, frozen, batch).jaxpr
    known = {id(variable) for variable in (*jaxpr.invars, *jaxpr.constvars)}
    kept_arrays = [v for v in jaxpr.outvars if not isinstance(v, Literal)]
    outputs = {id(v): v.aval for v in kept_arrays if id(v) not in known}
    return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in outputs.values())


def _batch(config: ModelConfig, rows: int, num_tokens: int) -> dict[str, jax.ShapeDtypeStruct]:
    names = ["input_ids", "attention_mask", "labels"]
    names += ["decoder_input_ids"] if config.is_encoder_decoder else []
    return {name: jax.ShapeDtypeStruct((rows, num_tokens), jnp.int32) for name in names}


def _arrays(shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> Params:
    flat = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))
