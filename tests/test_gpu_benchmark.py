"""benchmarks/gpu.sh runs unchanged on a CPU, and notices a device that computes something else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_small_table_has_every_row_on_a_cpu():
    environment = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", "--small"], env=environment, capture_output=True,
        text=True, check=True, timeout=500,
    )  # fmt: skip
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    for what in ("parity", "product", "kernel", "fine-tune"):
        assert any(row.startswith(f"| {what}") for row in rows), what
    assert not any("TOO LARGE" in row or "skipped" in row for row in rows)


def test_a_device_that_computes_something_else_is_named(monkeypatch):
    reference = dict(np.load(gpu.REFERENCE))
    name = "kernel zoo/gpt2-xs"
    wrong = {key: values * (1.01 if key == name else 1) for key, values in reference.items()}
    monkeypatch.setattr(gpu, "computed", lambda names: wrong)
    monkeypatch.setattr(gpu, "_SMALL", type("Flag", (), {"value": False}))
    rows = {row.what: row.of for row in gpu.parity_rows(gpu.TOY, {})}
    assert [what for what, of in rows.items() if "TOO LARGE" in of] == [f"parity: {name}"]
