"""How far every family is from Hugging Face's PyTorch models: the table of docs/families.md.

    JAX_ENABLE_X64=1 .venv-torch/bin/python -m benchmarks.parity --output=docs/families.md

    JAX_ENABLE_X64=1 .venv-torch/bin/python -m benchmarks.parity --rounding=gemma2,phi3

The second prints, for these variants, how far ours and PyTorch's float32 are from PyTorch's
float64: which side's rounding a difference is.

Tiny models with random weights, padded left and right; logits and gradients of the loss, each
difference relative to the largest magnitude of its kind.  About 15 to 30 s per variant on two
busy cores; each row is written as it is measured.
"""

import os
import tempfile
from pathlib import Path

from absl import app, flags

OUTPUT = flags.DEFINE_string("output", "", "Document whose table to make (default: print alone).")
TYPES = flags.DEFINE_list("model_types", [], "Rows to make anew (default: of all types).")
ROUNDING = flags.DEFINE_list("rounding", [], "Variants whose rounding to print, and nothing else.")

START, END = "<!-- made by benchmarks.parity -->", "<!-- end -->"
COLUMNS = [
    f"{what}, {dtype}" for dtype in ("float32", "float64") for what in ("logits", "gradient")
]
HEADER = f"| family | variant | {' | '.join(COLUMNS)} |\n|{'---|' * (2 + len(COLUMNS))}\n"


def row(variant, attributes, data):
    """One line of the table."""
    from tests.models.torch_oracle import difference

    cells = []
    for dtype in ("float32", "float64"):
        with tempfile.TemporaryDirectory() as folder:
            distance = difference(attributes, dtype, folder, data)
        cells += [f"{distance.logits:.1e}", f"{distance.gradient:.1e}"]
    return f"| {attributes['model_type']} | {variant} | {' | '.join(cells)} |\n"


def print_rounding(variants):
    """A table of both float32s' distances from float64."""
    from tests.goldens.generate import ALL_VARIANTS, golden_batch
    from tests.models.torch_oracle import rounding

    columns = [f"{what}, {side}" for what in ("logits", "gradient") for side in ("ours", "PyTorch")]
    print(f"| variant | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = rounding(ALL_VARIANTS[variant], folder, golden_batch(variant))
        cells = (ours.logits, theirs.logits, ours.gradient, theirs.gradient)
        print(f"| {variant} | {' | '.join(f'{cell:.1e}' for cell in cells)} |", flush=True)


def main(_):
    from tests.goldens.generate import ALL_VARIANTS, golden_batch

    if ROUNDING.value:
        print_rounding(ROUNDING.value)
        return
    path = Path(OUTPUT.value or os.devnull)
    before, rest = path.read_text().split(START) if OUTPUT.value else ("", END)
    table, after = rest.split(END)
    rows = {line.split("|")[2].strip(): line + "\n" for line in table.splitlines()[3:]}
    for variant, attributes in ALL_VARIANTS.items():
        if TYPES.value and attributes["model_type"] not in TYPES.value:
            continue
        rows[variant] = row(variant, attributes, golden_batch(variant))
        print(rows[variant], end="", flush=True)
        # after each row, so that an interrupted run keeps what it measured
        table = HEADER + "".join(rows[v] for v in ALL_VARIANTS if v in rows)
        path.write_text(f"{before}{START}\n{table}{END}{after}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    app.run(main)
