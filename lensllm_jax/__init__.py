"""Which pretrained language model will be best after fine-tuning, known before paying for it.

The public names below are loaded on first use: importing this package starts no backend.

Example:
    >>> import lensllm_jax as lens
    >>> sorted(lens.__all__)[:2]
    ['Bounded', 'Candidate']
"""

import importlib
from typing import TYPE_CHECKING, Any

from lensllm_jax._version import __version__

if TYPE_CHECKING:
    from lensllm_jax.checkpoints.candidate import Candidate
    from lensllm_jax.checkpoints.zoo import list_zoo, load_candidate
    from lensllm_jax.data.catalogue import list_tasks, load_task
    from lensllm_jax.data.task import Task
    from lensllm_jax.linalg import NtkSpectrum
    from lensllm_jax.metrics import pearson_correlation, relative_accuracy
    from lensllm_jax.ntk.candidate import candidate_ntk, estimate_ntk_cost
    from lensllm_jax.ntk.gram import empirical_ntk, parameter_group_ntk
    from lensllm_jax.ntk.loss import ntk_loss, ntk_test_residual, ntk_train_residual
    from lensllm_jax.ntk.operator import ntk_loss_matrix_free, ntk_matvec
    from lensllm_jax.ntk.velocity import kernel_velocity
    from lensllm_jax.runs.compute_ntk import compute_ntk
    from lensllm_jax.runs.finetune_grid import finetune_grid
    from lensllm_jax.runs.select_model import select_model
    from lensllm_jax.scaling.fit import fit_law, fit_laws
    from lensllm_jax.scaling.kernel import Bounded, Measured, Spectrum
    from lensllm_jax.selection.halving import Halving
    from lensllm_jax.selection.loss_table import LossTable, read_loss_table
    from lensllm_jax.selection.problem import Evidence
    from lensllm_jax.selection.public_tables import list_loss_tables, load_loss_table
    from lensllm_jax.selection.rank import rank

__all__ = [
    "Bounded",
    "Candidate",
    "Evidence",
    "Halving",
    "LossTable",
    "Measured",
    "NtkSpectrum",
    "Spectrum",
    "Task",
    "__version__",
    "candidate_ntk",
    "compute_ntk",
    "empirical_ntk",
    "estimate_ntk_cost",
    "finetune_grid",
    "fit_law",
    "fit_laws",
    "kernel_velocity",
    "list_loss_tables",
    "list_tasks",
    "list_zoo",
    "load_candidate",
    "load_loss_table",
    "load_task",
    "ntk_loss",
    "ntk_loss_matrix_free",
    "ntk_matvec",
    "ntk_test_residual",
    "ntk_train_residual",
    "parameter_group_ntk",
    "pearson_correlation",
    "rank",
    "read_loss_table",
    "relative_accuracy",
    "select_model",
]

# the imports above as they are made when a name is first used: module -> its names
_LAZY = {
    "lensllm_jax.checkpoints.candidate": "Candidate",
    "lensllm_jax.checkpoints.zoo": "list_zoo load_candidate",
    "lensllm_jax.data.catalogue": "list_tasks load_task",
    "lensllm_jax.data.task": "Task",
    "lensllm_jax.metrics": "pearson_correlation relative_accuracy",
    "lensllm_jax.ntk.candidate": "candidate_ntk estimate_ntk_cost",
    "lensllm_jax.ntk.gram": "empirical_ntk parameter_group_ntk",
    "lensllm_jax.ntk.loss": "ntk_loss ntk_test_residual ntk_train_residual",
    "lensllm_jax.ntk.operator": "ntk_loss_matrix_free ntk_matvec",
    "lensllm_jax.ntk.velocity": "kernel_velocity",
    "lensllm_jax.runs.compute_ntk": "compute_ntk",
    "lensllm_jax.runs.finetune_grid": "finetune_grid",
    "lensllm_jax.runs.select_model": "select_model",
    "lensllm_jax.linalg": "NtkSpectrum",
    "lensllm_jax.scaling.fit": "fit_law fit_laws",
    "lensllm_jax.scaling.kernel": "Bounded Measured Spectrum",
    "lensllm_jax.selection.halving": "Halving",
    "lensllm_jax.selection.loss_table": "LossTable read_loss_table",
    "lensllm_jax.selection.problem": "Evidence",
    "lensllm_jax.selection.public_tables": "list_loss_tables load_loss_table",
    "lensllm_jax.selection.rank": "rank",
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lensllm_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
