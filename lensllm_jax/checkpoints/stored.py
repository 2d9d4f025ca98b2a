"""Weights as they are stored: every tensor of a file or a folder, without a model around it.

Example:
    >>> import numpy as np, tempfile
    >>> from safetensors.numpy import save_file
    >>> path = f"{tempfile.mkdtemp()}/model.safetensors"
    >>> save_file({"w": np.eye(2)}, path)
    >>> [(name, tensor.shape) for name, tensor in stored_weights(path)]
    [('w', (2, 2))]
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lensllm_jax.checkpoints.formats import open_tensors
from lensllm_jax.checkpoints.tensors import TensorFiles


def stored_weights(source: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every tensor, one in memory at a time.

    Args:
        source: a weight file, or a checkpoint folder.

    Raises:
        UserError: if a file is absent or does not read.
    """
    source = Path(source)
    if source.is_file():
        for name, tensor in sorted(open_tensors(source).items()):
            yield name, tensor.whole()
        return
    files = TensorFiles.of_folder(source)
    for name, tensor in files.open(set(files.file_of)):
        yield name, tensor.whole()
