"""The NTK loss of many short examples without the kernel: seconds and memory of one run.

    python -m benchmarks.ntk_matrix_free --num_examples=20000

The examples are the records of a task, cut to --max_bytes bytes each, the
candidate a bundled one; records repeat where the task has fewer.  Memory is the
largest resident set of this process, Python, JAX and the compiler included.  A dense kernel of
20,000 examples would alone be 1.6 GB, and its eigenvectors twice that in float64.
"""

import time

import jax
import numpy as np
from absl import flags

from experiments.common import cli
from lensllm_jax import checks, padding
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.data.encoding import encode_causal
from lensllm_jax.ntk.candidate import peak_bytes
from lensllm_jax.ntk.operator import ntk_loss_matrix_free
from lensllm_jax.ntk.readout import Readout, ReadoutFn

CANDIDATE = flags.DEFINE_string("candidate", "zoo/gpt2-xs", "A bundled name or a folder.")
TASK = flags.DEFINE_string("task", "pydoc", "Where the texts come from.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 2000, "n.")
MAX_BYTES = flags.DEFINE_integer("max_bytes", 40, "Of an example at most.")
NUM_MATVECS = flags.DEFINE_integer("num_matvecs", 50, "Products with the kernel.")
BLOCK_SIZE = flags.DEFINE_integer("block_size", 64, "Examples in memory at once.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Of Eq 9; divided by n here.")
STEPS = flags.DEFINE_list("steps", ["1", "10", "100", "1000"], "Times at which F is printed.")


def outputs_of(f, params, batch) -> np.ndarray:
    compiled = jax.jit(f)
    return padding.map_blocks(lambda block: compiled(params, block), batch, BLOCK_SIZE.value)


def main(_) -> None:
    n = int(checks.positive("num_examples", NUM_EXAMPLES.value))
    candidate = load_candidate(CANDIDATE.value)
    texts = load_task(TASK.value, max_bytes=MAX_BYTES.value).train[:n]
    encoded = encode_causal(texts, candidate.tokenizer)
    batch = encoded.batch(np.arange(n) % len(texts))
    f = ReadoutFn(candidate.apply_fn, Readout.TARGET_LOGPROB, not candidate.is_encoder_decoder)
    residual = outputs_of(f, candidate.params, batch)  # y is 0
    begin, before = time.perf_counter(), peak_bytes()
    found = ntk_loss_matrix_free(
        f,
        candidate.params,
        batch,
        residual,
        learning_rate=LEARNING_RATE.value / n,
        steps=[float(t) for t in STEPS.value],
        num_matvecs=NUM_MATVECS.value,
        block_size=BLOCK_SIZE.value,
    )
    seconds = time.perf_counter() - begin
    print(f"{candidate.name}: {candidate.num_params:,} parameters, n = {n:,} examples of "
          f"{batch['input_ids'].shape[1]} tokens, {found.num_matvecs} products")  # fmt: skip
    print(f"seconds, compilation included  {seconds:.1f} ({seconds / found.num_matvecs:.2f} each)")
    print(f"peak memory of the process     {peak_bytes() / 1e9:.2f} GB ({before / 1e9:.2f} before)")
    for t, loss, error in zip(STEPS.value, found.loss, found.error, strict=True):
        print(f"F({t})".ljust(31) + f"{loss:.6g}, at most {error:.1e} off")


if __name__ == "__main__":
    cli.run(main)
