"""Which pretrained language model will be best after fine-tuning, known before paying for it.

The public names below are loaded on first use: importing this package starts no backend.

Example:
    >>> import lensllm_jax as lens
    >>> sorted(lens.__all__)[:2]
    ['Candidate', '__version__']
"""

import importlib
from typing import Any

from lensllm_jax._version import __version__

# public name -> module that defines it
_HOME = {
    "Candidate": "lensllm_jax.checkpoints.candidate",
    "list_tasks": "lensllm_jax.data.catalogue",
    "list_zoo": "lensllm_jax.checkpoints.zoo",
    "load_candidate": "lensllm_jax.checkpoints.zoo",
    "load_task": "lensllm_jax.data.catalogue",
    "candidate_ntk": "lensllm_jax.ntk.candidate",
    "empirical_ntk": "lensllm_jax.ntk.gram",
    "estimate_ntk_cost": "lensllm_jax.ntk.candidate",
    "kernel_velocity": "lensllm_jax.ntk.velocity",
    "ntk_loss": "lensllm_jax.ntk.loss",
    "ntk_loss_matrix_free": "lensllm_jax.ntk.operator",
    "ntk_matvec": "lensllm_jax.ntk.operator",
    "ntk_test_residual": "lensllm_jax.ntk.loss",
    "ntk_train_residual": "lensllm_jax.ntk.loss",
    "fit_law": "lensllm_jax.scaling.fit",
    "fit_laws": "lensllm_jax.scaling.fit",
    "read_loss_table": "lensllm_jax.selection.loss_table",
    "rank": "lensllm_jax.selection.rank",
    "parameter_group_ntk": "lensllm_jax.ntk.gram",
    "pearson_correlation": "lensllm_jax.metrics",
    "relative_accuracy": "lensllm_jax.metrics",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lensllm_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
