"""Candidates of the tiny configs, without PyTorch: its weights, drawn here again."""

import json

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.config import CONFIG, parse_config
from lensllm_jax.checkpoints.tensors import SINGLE
from lensllm_jax.checkpoints.weights import checkpoint_tensors, parameter_shapes
from tests.models.variants import weight


def tiny_candidate(attributes, folder, dtype="float32"):
    """The candidate whose PyTorch twin ``torch_oracle.random_model`` makes, kept in a folder."""
    family, _, config = parse_config(attributes)
    # a tree of ones and zeros, where norms and biases start, tells names, shapes and centres
    start = {
        path: np.full(shape, 1.0 if path.endswith("scale") else 0.0)
        for path, shape in parameter_shapes(config).items()
    }
    tree = traverse_util.unflatten_dict(start, sep="/")
    tensors = {
        name: weight(name, values.shape, values.mean() if values.ndim == 1 else 0.0)
        for name, values in checkpoint_tensors(tree, family, config)
    }
    save_file(tensors, folder / SINGLE)
    (folder / CONFIG).write_text(json.dumps(attributes))
    return load_folder(folder, dtype=dtype)
