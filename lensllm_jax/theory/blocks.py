r"""Weight blocks, and how far fine-tuning moved each: :math:`v_i = \mathrm{vec}(W_i - W_i^{(s)})`.

A block is one weight tensor of one layer: the unit of the Hessian's block diagonal.  Where layers
are stacked (a leading axis of length l, as ``scan`` over layers has it), each layer is a block.

Example:
    >>> params = {"blocks": {"kernel": np.zeros((2, 3, 4))}, "embed": np.zeros((5, 3))}
    >>> blocks = weight_blocks(params, stacked=("blocks",))
    >>> [(block.name, block.take(params).shape) for block in blocks]
    [('blocks/kernel[0]', (3, 4)), ('blocks/kernel[1]', (3, 4)), ('embed', (5, 3))]
"""

import dataclasses
import functools
import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.typing import Array, Params


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layer"], meta_fields=["name", "leaf"]
)
@dataclasses.dataclass(frozen=True)
class Block:
    """One weight tensor of one layer; a pytree of its layer."""

    name: str  # path in the tree, with the layer in brackets
    leaf: int  # which leaf of the tree
    layer: Any  # index of the leading axis, whole or traced; None where layers are not stacked

    @property
    def unnamed(self) -> "Block":
        """Without its name: where the layer is traced, one program serves all layers."""
        return dataclasses.replace(self, name="")

    def take(self, params: Params) -> Array:
        """The block's weights."""
        leaf = jax.tree.leaves(params)[self.leaf]
        return leaf if self.layer is None else leaf[self.layer]

    def put(self, params: Params, weights: Array) -> Params:
        """``params`` with the block's weights replaced."""
        leaves, tree = jax.tree.flatten(params)
        old = leaves[self.leaf]
        leaves[self.leaf] = weights if self.layer is None else old.at[self.layer].set(weights)
        return jax.tree.unflatten(tree, leaves)


def weight_blocks(
    params: Params, *, stacked: Collection[str] = (), only: str = ""
) -> tuple[Block, ...]:
    """The blocks of a tree, one or more, in the order of its leaves.

    Args:
        params: the weights.
        stacked: subtrees whose leaves have a leading layer axis.
        only: regular expression searched in a block's name, for example "kernel".

    Raises:
        UserError: if ``only`` is no regular expression, or matches no name.
    """
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise checks.UserError(
            f"`only` must be a regular expression, got {only!r}: {error}"
        ) from None
    blocks = []
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        parts = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        name = "/".join(parts)
        if not pattern.search(name):
            continue
        if set(parts) & set(stacked):
            blocks += [Block(f"{name}[{i}]", index, i) for i in range(leaf.shape[0])]
        else:
            blocks.append(Block(name, index, None))
    if not blocks:
        raise checks.UserError(f"`only` must be part of a weight's name, got {only!r}")
    return tuple(blocks)


def displacement(fine_tuned: Params, pretrained: Params) -> Params:
    """How far fine-tuning moved every weight: v, as a tree.

    Raises:
        UserError: if the trees or a shape differ, naming the first weight that does.
    """
    first, second = (dict(_named(tree)) for tree in (fine_tuned, pretrained))
    for name in sorted(first.keys() ^ second.keys()):
        where = "fine_tuned" if name in first else "pretrained"
        raise checks.UserError(
            f"`fine_tuned` and `pretrained` must hold the same weights, got {name} in {where} only"
        )
    for name, weights in first.items():
        if np.shape(weights) != np.shape(second[name]):
            raise checks.UserError(
                f"`fine_tuned` and `pretrained` must have equal shapes, got "
                f"{np.shape(weights)} and {np.shape(second[name])} at {name}"
            )
    return jax.tree.map(lambda a, b: jnp.asarray(a) - jnp.asarray(b), fine_tuned, pretrained)


def _named(tree: Params) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def squared_norms(moved: Params, blocks: Collection[Block]) -> Float[np.ndarray, " num_blocks"]:
    """Squared length of each block's displacement."""
    parts = (np.asarray(block.take(moved), np.float64) for block in blocks)
    return np.array([float(np.sum(part**2)) for part in parts])
