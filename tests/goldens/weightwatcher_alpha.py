"""Makes weightwatcher_alpha.json: PL alpha of the bundled candidates' layers, by weightwatcher.

    python tests/goldens/weightwatcher_alpha.py

Needs torch and weightwatcher 0.7.7, in an environment of their own: weightwatcher brings torch.
Each layer's matrix becomes a torch ``Linear`` without bias, and ``WeightWatcher.analyze`` runs
with its defaults.  The weights are those in the repository, so only the results are stored.
"""

import importlib.metadata
import json
from pathlib import Path

from safetensors.numpy import load_file

HERE = Path(__file__).parent
ZOO = HERE.parents[1] / "lensllm_jax" / "zoo"
CANDIDATES = ("gpt2-xs", "opt-xs")
LAYER = ("attn", "mlp", "fc", "proj")  # names of matrices between embeddings and head


def alphas(path: Path) -> dict[str, float]:
    """Tensor name -> alpha."""
    # here, so that test collection, which imports this file, needs neither
    import torch
    import weightwatcher

    tensors = {
        name: tensor
        for name, tensor in load_file(path).items()
        if tensor.ndim == 2 and "embed" not in name and any(part in name for part in LAYER)
    }
    model = torch.nn.Sequential()
    for i, tensor in enumerate(tensors.values()):
        layer = torch.nn.Linear(*tensor.shape[::-1], bias=False)
        layer.weight.data = torch.from_numpy(tensor)
        model.add_module(f"tensor{i}", layer)
    watcher = weightwatcher.WeightWatcher(model=model, log_level="ERROR")
    details = watcher.analyze()
    names = list(tensors)
    return {
        names[int(row.longname.removeprefix("tensor"))]: float(row.alpha)
        for row in details.itertuples()
    }


def main() -> None:
    """Writes the golden next to this file."""
    golden = {
        "weightwatcher": importlib.metadata.version("weightwatcher"),
        "alpha": {name: alphas(ZOO / name / "model.safetensors") for name in CANDIDATES},
    }
    text = json.dumps(golden, indent=1, sort_keys=True)
    (HERE / "weightwatcher_alpha.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
