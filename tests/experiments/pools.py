"""A small pool of known losses, steps and kernels, as files and as an object."""

import csv

import numpy as np

from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.messages.binaries import load

SPECTRA = load("kernel_spectra").module
SCALED_TIMES = SPECTRA.SCALED_TIMES
SIZES = np.append(0, 200 * 2 ** np.arange(6))
NUM_CANDIDATES, NUM_EXAMPLES = 6, 5


def kernel(seed, n=NUM_EXAMPLES):
    """A positive definite matrix and a residual."""
    random = np.random.default_rng(seed)
    gradients = random.standard_normal((n, 2 * n))
    return gradients @ gradients.T, random.standard_normal(n) + 2.0


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def toy_texts(folder):
    """A task file of forty records."""
    path = folder / "toy.jsonl"
    path.write_text("".join(
        f'{{"prompt": "river {i} of the land", "target": "the king of city {i}"}}\n'
        for i in range(40)
    ))  # fmt: skip
    return str(path)


def toy_pool(folder, losses, read_pool, sample_sizes=(NUM_EXAMPLES,)):
    """The five tables of task toy, and the pool that ``read_pool`` reads."""
    names = tuple(f"m{i}" for i in range(len(losses)))
    table = LossTable(names, SIZES, losses, np.ones(len(names)), ("",) * len(names))
    write_loss_table(table, folder / "toy_losses.csv")
    ledger = [
        {"candidate": name, "size": size, "best_step": size // 20, "learning_rate": 0.001,
         "flops": 1e9 * size}
        for name in names for size in SIZES[1:]
    ]  # fmt: skip
    write(folder / "toy_ledger.csv", ledger)
    spectra, flow, kernels = [], [], []
    for i, name in enumerate(names):
        for n in sample_sizes:
            theta, residual = kernel(i, n)
            values, vectors = np.linalg.eigh(theta)
            key = {"candidate": name, "readout": "target_logprob", "num_examples": n}
            listed = [" ".join(map(repr, map(float, x)))
                      for x in (values, (vectors.T @ residual) ** 2)]  # fmt: skip
            spectra.append({**key, "eigenvalues": listed[0], "projections": listed[1]})
            logs = SPECTRA.elementwise_log_loss(theta / values[-1], residual, SCALED_TIMES)
            flow += [
                {**key, "scaled_time": s, "test_mean_square": 2.0 + np.exp(-s),
                 "elementwise_log_loss": log}
                for s, log in zip(SCALED_TIMES, logs, strict=True)
            ]  # fmt: skip
            kernels.append(
                {**key, "mean_gradient_squared": theta.mean(), "flops": 1e8, "flops_with_test": 3e8}
            )
    write(folder / "toy_spectra.csv", spectra)
    write(folder / "toy_flow.csv", flow)
    write(folder / "toy_kernels.csv", kernels)
    return read_pool(folder, "toy")
