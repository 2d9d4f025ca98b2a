"""Changes to a checkpoint's folder."""

import json

from safetensors.numpy import load_file, save_file

from lensllm_jax.checkpoints.config import CONFIG
from lensllm_jax.checkpoints.folder import SINGLE

SMALLEST = "gpt2-xs"  # of the bundled candidates


def change_config(folder, **attributes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **attributes}))


def change_tensors(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)
