"""Types and shape letters that every room shares.

The letters name the axes of every array in signatures, docstrings and einsum strings:

====== ====================================== ====== ===============================
``n``  examples (rows of a kernel)            ``m``  examples (columns of a kernel)
``k``  outputs of one example (label tokens)  ``p``  parameters
``b``  batch                                  ``s``  sequence (tokens)
``v``  vocabulary                             ``d``  width of the hidden state
``h``  attention heads                        ``l``  layers
====== ====================================== ====== ===============================

``t`` and ``step`` mean training time and nothing else.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
Params: TypeAlias = Any  # a pytree of arrays
Batch: TypeAlias = Mapping[str, Array]  # input_ids, attention_mask, labels, ... each (b, s)

# The label of a position that is no target, as in PyTorch and transformers.
IGNORE = -100


@runtime_checkable
class ApplyFn(Protocol):
    """A pure function ``f(params, inputs) -> outputs``; the leading axis counts examples."""

    def __call__(self, params: Params, inputs: Any, /) -> Any:
        """Outputs of the model with ``params`` on ``inputs``."""
        ...
