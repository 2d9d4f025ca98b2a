"""Candidates of the tiny configs, without PyTorch: its weights, drawn here again."""

import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.config import CONFIG, parse_config
from lensllm_jax.checkpoints.folder import SINGLE
from lensllm_jax.checkpoints.weights import checkpoint_tensors, parameter_shapes
from tests.models.variants import weight


def write_tiny_checkpoint(attributes, folder):
    """A folder with the checkpoint of ``torch_oracle.random_model``."""
    described = parse_config(attributes)
    family, config = described.family, described.config
    # a tree of ones and zeros, where norms and biases start, gives names, shapes and centres
    start = {
        path: np.full(shape, 1.0 if path.endswith("scale") else 0.0)
        for path, shape in parameter_shapes(config).items()
    }
    tree = traverse_util.unflatten_dict(start, sep="/")
    tensors = {
        name: weight(name, values.shape, values.mean() if values.ndim == 1 else 0.0)
        for name, values in checkpoint_tensors(tree, family, config)
    }
    folder = Path(folder)
    save_file(tensors, folder / SINGLE)
    (folder / CONFIG).write_text(json.dumps(attributes))
    return folder


def tiny_candidate(attributes, dtype=None):
    """That candidate, in whatever float type JAX is set to."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(attributes, folder)
        return load_folder(folder, dtype=str(np.dtype(dtype or jnp.result_type(float))))
