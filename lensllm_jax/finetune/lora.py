r"""LoRA: low-rank updates that are trained beside frozen matrices (Hu et al., 2022).

A dense layer of an attention or a feed-forward network becomes

.. math:: y = x W + s\, (x A) B, \qquad A \in R^{d_{in} \times r}, \; B \in R^{r \times d_{out}},

with :math:`s = 2`, A uniform on :math:`\pm d_{in}^{-1/2}` and B zero at the start, so that the
first loss is the pretrained model's.  The factors are two leaves beside the kernel W in the tree of
parameters, with the leading axis l of stacked blocks; x A B is computed without a matrix of the
size of W.

Example:
    >>> import jax, lensllm_jax as lens
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> factors = init_factors(c.params, rank=2, seed=0)
    >>> jax.tree.map(lambda leaf: leaf.shape, factors["blocks"]["attention"]["query"])
    {'lora_a': (2, 64, 2), 'lora_b': (2, 2, 64)}
"""

import contextlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.dtypes import promote_dtype

from lensllm_jax import checks
from lensllm_jax.checkpoints.adapters import Factors, write_adapter
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.typing import Params

SCALE = 2.0
A, B = "lora_a", "lora_b"
_ADAPTED = {"attention", "cross_attention", "feed_forward"}


def adapted_kernels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Those of the slash-joined paths that are matrices of attention or feed-forward layers."""
    return {
        path: shape
        for path, shape in shapes.items()
        if path.endswith("/kernel") and _ADAPTED & set(path.split("/"))
    }


def num_factors(shapes: Mapping[str, tuple[int, ...]], rank: int) -> int:
    """Entries of the factors of every adapted kernel: r (d_in + d_out) each."""
    kernels = adapted_kernels(shapes).values()
    return sum(math.prod(layers) * rank * (d_in + d_out) for *layers, d_in, d_out in kernels)


def check_rank(name: str, shapes: Mapping[str, tuple[int, ...]], rank: int) -> None:
    """Raises UserError unless the candidate has matrices of which ``rank`` is a lower rank.

    Args:
        name: of the candidate.
        shapes: of its parameters, by slash-joined path.
        rank: of the updates.
    """
    kernels = adapted_kernels(shapes)
    if not kernels:
        raise checks.UserError(
            f"`tune` must be full for {name}, which has no attention or feed-forward matrix, got "
            "lora"
        )
    path = min(kernels, key=lambda path: min(kernels[path][-2:]))
    smallest = min(kernels[path][-2:])
    if not 1 <= rank < smallest:
        raise checks.UserError(
            f"`lora_rank` must be from 1 to {smallest - 1} (below the smaller side of {path} of "
            f"{name}), got {rank}"
        )


def init_factors(params: Params, *, rank: int, seed: int) -> Params:
    """The factors of every adapted kernel at the start, in float32 at least.

    Args:
        params: of the candidate, arrays or their shapes.
        rank: r.
        seed: of A.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    kernels = adapted_kernels({path: leaf.shape for path, leaf in flat.items()})
    factors = {}
    for path, (*layers, d_in, d_out) in kernels.items():
        layer = path.removesuffix("/kernel")
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(layer.encode()))
        dtype = jnp.promote_types(flat[path].dtype, jnp.float32)
        a = jax.random.uniform(key, (*layers, d_in, rank), dtype, minval=-1.0, maxval=1.0)
        factors[f"{layer}/{A}"] = a * d_in**-0.5
        factors[f"{layer}/{B}"] = jnp.zeros((*layers, rank, d_out), dtype)
    return traverse_util.unflatten_dict(factors, sep="/")


def adapting() -> contextlib.AbstractContextManager:
    """Within it, a dense layer that has factors beside its kernel adds their product."""
    return nn.intercept_methods(_with_product)


def _with_product(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    outputs, layer = call(*args, **kwargs), context.module
    if context.method_name != "__call__" or not layer.has_variable("params", A):
        return outputs
    x, a, b = promote_dtype(
        args[0], layer.get_variable("params", A), layer.get_variable("params", B), dtype=layer.dtype
    )
    return outputs + SCALE * ((x @ a) @ b)


def merged(params: Params, factors: Params) -> Params:
    r"""The parameters with :math:`W + s A B` in place of each adapted W, in float32 at least."""
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    parts = traverse_util.flatten_dict(factors, sep="/")
    for path, a in parts.items():
        if path.endswith(f"/{A}"):
            layer = path.removesuffix(f"/{A}")
            kernel = flat[f"{layer}/kernel"]
            wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
            flat[f"{layer}/kernel"] = wide + SCALE * (a @ parts[f"{layer}/{B}"])
    return traverse_util.unflatten_dict(flat, sep="/")


def save_adapter(candidate: Candidate, factors: Params, folder: str | Path) -> None:
    """Writes the factors as PEFT does; ``lens.load_candidate`` reads the folder too.

    Args:
        candidate: the base; the folder calls it by its name, or by the whole path of its folder.
        factors: a tree as that of ``init_factors``.
        folder: where to; made if absent.
    """
    parts = {
        path: np.asarray(leaf)
        for path, leaf in traverse_util.flatten_dict(factors, sep="/").items()
    }
    layers = [path.removesuffix(f"/{A}") for path in parts if path.endswith(f"/{A}")]
    path = Path(candidate.name).expanduser().resolve()
    base = str(path) if path == candidate.folder.resolve() else candidate.name
    write_adapter(
        Path(folder),
        {f"{layer}/kernel": Factors(parts[f"{layer}/{A}"], parts[f"{layer}/{B}"])
         for layer in layers},
        candidate.family, candidate.config, base=base, scale=SCALE,
    )  # fmt: skip
