"""The public tables that come with the package."""

from lensllm_jax.selection.public_tables import loss_table_file

TABLES = {task: loss_table_file(f"lin2024/{task}") for task in ("flan", "gigaword")}
BUDGET_FRACTIONS = (8, 16, 32, 64, 128, 256, 512)
