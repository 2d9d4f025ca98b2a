"""Weights: a family's table carried out, from checkpoint tensors to parameters and back.

Loading is suspicious in both directions: every tensor fills a parameter or is listed as
ignored, every parameter is filled, every shape is that of the config, every value is
finite; all problems are reported at once.

Example:
    >>> from lensllm_jax.checkpoints.weights import parameter_shapes
    >>> from lensllm_jax.models.decoder import DecoderConfig
    >>> config = DecoderConfig(vocab_size=11, max_positions=8, d_model=8, num_layers=2,
    ...                        num_heads=2, d_ff=16)
    >>> parameter_shapes(config)["blocks/attention/query/kernel"]
    (2, 8, 8)
"""

import re
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lensllm_jax import checks
from lensllm_jax.checkpoints.tensors import TensorFiles
from lensllm_jax.models.decoder import Decoder, DecoderConfig
from lensllm_jax.models.family import Family, Weight
from lensllm_jax.typing import Params


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, without making one.

    Args:
        config: the decoder.

    Returns:
        Slash-joined path -> shape.
    """
    ids = jnp.zeros((1, 1), jnp.int32)
    tree = jax.eval_shape(Decoder(config).init, jax.random.key(0), ids, ids)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def load_params(
    files: TensorFiles, family: Family, config: DecoderConfig, *, dtype: np.dtype
) -> Params:
    """The parameter tree of a checkpoint.

    Args:
        files: its weight files; read one tensor at a time.
        family: the tables to follow.
        config: the decoder to fill.
        dtype: type of the parameters.

    Returns:
        A tree of numpy arrays; block parameters carry a leading axis ``l``.

    Raises:
        UserError: listing every tensor that is missing, unexpected, of another shape or
            not finite.
    """
    shapes = parameter_shapes(config)
    sources = _sources(files, family, config)
    problems = [f"missing {name}" for name in sources if name not in files.file_of]
    problems += [f"unexpected {name}" for name in _unused(files, family, config, set(sources))]
    params = {path: np.empty(shape, dtype) for path, shape in shapes.items()}
    for name, values in files.read_all(set(sources) & set(files.file_of)):
        weight, layer = sources[name]
        problems += _fill(params, weight, layer, name, values)
    if problems:
        shown = "; ".join(sorted(problems)[:20])
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise checks.UserError(
            f"`{files.folder}` must hold the tensors that its config.json describes, "
            f"got: {shown}{more}"
        )
    return traverse_util.unflatten_dict(params, sep="/")


def checkpoint_tensors(
    params: Params, family: Family, config: DecoderConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint, from a parameter tree: the inverse of loading.

    Args:
        params: the tree.
        family: the tables to follow.
        config: the decoder that the tree fills.

    Yields:
        Name in the checkpoint, and values.
    """
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    for weight in family.weights(config):
        for layer in range(config.num_layers) if weight.stacked else (0,):
            parts = [flat[path][layer] if weight.stacked else flat[path] for path in weight.targets]
            whole = np.concatenate(parts, axis=-1)
            yield (
                _with_prefix(weight.source(layer), family.prefixes[0]),
                np.ascontiguousarray(whole.T if weight.transpose else whole),
            )


def _with_prefix(name: str, prefix: str) -> str:
    # the head sits beside the body, not inside it
    return name if name.startswith("lm_head.") else prefix + name


def _prefix(files: TensorFiles, family: Family) -> str:
    return next(p for p in family.prefixes if any(n.startswith(p) for n in files.file_of))


def _sources(
    files: TensorFiles, family: Family, config: DecoderConfig
) -> dict[str, tuple[Weight, int]]:
    """Every tensor that the config asks for, with its table entry and block number."""
    prefix = _prefix(files, family) if files.file_of else family.prefixes[0]
    return {
        _with_prefix(weight.source(layer), prefix): (weight, layer)
        for weight in family.weights(config)
        for layer in (range(config.num_layers) if weight.stacked else (0,))
    }


def _unused(
    files: TensorFiles, family: Family, config: DecoderConfig, used: set[str]
) -> Iterator[str]:
    prefix = _prefix(files, family) if files.file_of else ""
    ignored = [re.compile(pattern) for pattern in family.ignored]
    if config.tied_head:
        ignored.append(re.compile(r"lm_head\.weight"))  # a copy of the embedding
    for name in set(files.file_of) - used:
        if not any(pattern.fullmatch(name.removeprefix(prefix)) for pattern in ignored):
            yield name


def _fill(
    params: Mapping[str, np.ndarray], weight: Weight, layer: int, name: str, values: np.ndarray
) -> Iterator[str]:
    """Writes one tensor into its parameter(s); yields what is wrong with it."""
    slots = [params[path][layer] if weight.stacked else params[path] for path in weight.targets]
    expected = (*slots[0].shape[:-1], sum(slot.shape[-1] for slot in slots))
    stored = expected[::-1] if weight.transpose else expected
    if values.shape != stored:
        yield f"{name} of shape {values.shape} (the config asks for {stored})"
        return
    if not np.isfinite(values.astype(np.float32) if values.dtype.kind == "V" else values).all():
        yield f"{name} holds values that are not finite"
        return
    start = 0
    ours = values.T if weight.transpose else values
    for slot in slots:
        slot[...] = ours[..., start : start + slot.shape[-1]]
        start += slot.shape[-1]
