"""A task of your own: fine-tune as little as tells the candidates apart, and say which is best."""

import tempfile
from pathlib import Path

import lensllm_jax as lens

records = [{"prompt": f"{n} and one is", "target": f"{n + 1}"} for n in range(400)]
task = lens.Task.from_records(records, name="sums")
pool, folder = ["zoo/gpt2-xs", "zoo/opt-xs"], Path(tempfile.mkdtemp())
tiny = {"max_epochs": 1, "num_kernel_examples": 4, "quiet": True}  # seconds, not a good answer

chosen = lens.select_model(
    pool, task, output_dir=folder / "race", target_size=256, budget_size=64, smallest_size=32,
    max_cost=0.9, kernels="none", learning_rate=1e-3, **tiny,
)  # fmt: skip
print(chosen)

grid = lens.finetune_grid(pool[0], task, output_dir=folder / "grid", sizes=(0, 32), **tiny)
print(grid, grid.losses.by_name(32))

print(lens.compute_ntk(pool[0], task, output_dir=folder / "kernel", **tiny))
