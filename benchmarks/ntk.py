"""Benchmark: what a kernel costs, every method in the same run, against the arithmetic floor.

Command (minutes on 2 cores: 3 for the default rows, 14 with --rows=all):

    python -m benchmarks.ntk --output=out/ntk.csv

and, of the published weights that ``experiments.published`` brought into the cache, 4 minutes of
``--rows=published --methods=structured``, which ``--rows=all`` is without.

Each measurement runs in a process of its own: ``ntk_cost`` estimates (the columns ``said_seconds``
and ``said_gb``), the kernel is computed once to compile, then ``--repeats`` times or until all took
``MOST_SECONDS``; the table gives the median of the seconds (those of the first where it took as
long alone: compiling is a small part of it) and the largest resident memory of the process above
that of the bare process (Python, JAX, the weights and the batch).

The floor of a row is the least arithmetic that the exact kernel needs by the structured method
(``lensllm_jax.ntk.cost.least_flops``: a forward pass, a backward pass to the states only, and for
each matrix the cheaper contraction of half a symmetric kernel), over the median rate of a 2048 x
2048 float32 matrix product, just before and just after (``gflops_matmul``; the best of those calls
is ``gflops_best``).
"""

import csv
import ctypes
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks.shapes import SMOLLM2

_ROWS = flags.DEFINE_string("rows", "reference", "which rows: a name of ROWS, or all but published")
_METHODS = flags.DEFINE_list(
    "methods", "structured,jacobian_contraction,ntk_vector_products", "methods to run"
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "timed runs of each measurement, at most", lower_bound=1
)
_OUTPUT = flags.DEFINE_string("output", None, "CSV file to write as well")
_MEASURE = flags.DEFINE_string("measure", None, "internal: one measurement, as JSON")


class Shape(NamedTuple):
    """A model and what its kernel is taken on."""

    d_model: int
    num_layers: int  # of an encoder-decoder: of either stack
    num_heads: int
    vocab_size: int
    s: int  # tokens of an example
    n: int  # examples
    readout: str = "target_logprob"
    k: int = 1  # outputs
    family: str = "gpt2"


SMALL = Shape(256, 6, 8, 8000, s=32, n=128)  # 6.8 M parameters
GPT2 = Shape(768, 12, 12, 50257, s=32, n=64)  # the published 124 M configuration
ROWS: dict[str, list[Shape]] = {
    "reference": [SMALL._replace(n=n) for n in (16, 64, 128)],
    "families": [SMALL._replace(family=family, num_layers=3, n=64) for family in ("t5", "bart")],
    "growth in n": [SMALL._replace(n=n) for n in (64, 128, 256, 512, 1024)],
    "growth in s": [SMALL._replace(s=s, n=64) for s in (16, 32, 64, 128, 256)],
    "label logits": [SMALL._replace(readout="label_logits", k=8, n=n) for n in (16, 32)],
    "gpt2": [GPT2],
    "smollm2": [
        Shape(
            SMOLLM2["hidden_size"],
            SMOLLM2["num_hidden_layers"],
            SMOLLM2["num_attention_heads"],
            SMOLLM2["vocab_size"],
            s=64,
            n=64,
            family="smollm2",
        )
    ],
    "published": [
        Shape(576, 30, 9, 49152, s=64, n=32, family="published/smollm2-135m"),
        Shape(640, 18, 4, 262144, s=64, n=32, family="published/gemma-3-270m"),
        Shape(896, 24, 14, 151936, s=64, n=16, family="published/qwen2.5-coder-0.5b"),
    ],
}
# A Jacobian of more bytes than this is skipped: the peak would not fit.
MOST_JACOBIAN_BYTES = 5e9
# Runs of one kernel, the first one included, end after so many seconds.
MOST_SECONDS = 30.0
# So are more products with a vector, one per pair of outputs: they would take minutes each.
MOST_PAIRS = 32**2


class Measurement(NamedTuple):
    """One kernel, estimated and computed."""

    seconds: list[float]
    first_seconds: float  # the first run, which compiles what the probes did not
    peak_bytes: int  # of the process, above the bare process
    bare_bytes: int
    estimated_seconds: float
    estimated_bytes: int
    theta_sum: float


def model_config(shape: Shape) -> Any:
    """The config of a row's decoder or encoder-decoder."""
    from lensllm_jax.checkpoints.config import parse_config
    from lensllm_jax.models.decoder import DecoderConfig
    from lensllm_jax.models.families import bart, t5

    d, num_heads = shape.d_model, shape.num_heads
    if shape.family == "gpt2":
        return DecoderConfig(
            vocab_size=shape.vocab_size, max_positions=max(shape.s, 32), d_model=d,
            num_layers=shape.num_layers, num_heads=num_heads, d_ff=4 * d,
        )  # fmt: skip
    if shape.family == "smollm2":
        return parse_config(SMOLLM2).config
    if shape.family == "bart":
        sizes = {
            f"{stack}_{name}": value
            for stack in ("encoder", "decoder")
            for name, value in (
                ("layers", shape.num_layers), ("attention_heads", num_heads), ("ffn_dim", 4 * d)
            )
        }  # fmt: skip
        return bart.config({
            **sizes, "vocab_size": shape.vocab_size, "d_model": d, "scale_embedding": False,
            "max_position_embeddings": max(shape.s, 32), "activation_function": "gelu",
            "tie_word_embeddings": True, "decoder_start_token_id": 2, "pad_token_id": 1,
        })  # fmt: skip
    return t5.config({
        "vocab_size": shape.vocab_size, "d_model": d, "d_kv": d // num_heads, "d_ff": 4 * d,
        "num_layers": shape.num_layers, "num_decoder_layers": shape.num_layers,
        "num_heads": num_heads, "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False,
        "scale_decoder_outputs": True, "decoder_start_token_id": 0, "pad_token_id": 0,
    })  # fmt: skip


def problem(shape: Shape) -> tuple[Any, Any, dict]:
    """The read-out of a model, its weights, random if not published, a batch of random tokens."""
    import jax
    import numpy as np

    from lensllm_jax.checkpoints.zoo import load_candidate
    from lensllm_jax.ntk.readout import Readout, ReadoutFn

    is_published = shape.family.startswith("published/")
    candidate = load_candidate(shape.family) if is_published else None
    config = candidate.config if candidate else model_config(shape)
    model = config.module()
    ids = np.random.default_rng(0).integers(3, shape.vocab_size, (shape.n, shape.s))
    ids = ids.astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = np.roll(ids, 1, axis=1)

    def apply_fn(params: Any, batch: Any) -> Any:
        return model.apply({"params": params}, *config.arguments(batch))

    few = {name: array[:1] for name, array in batch.items()}
    init = jax.jit(lambda key: model.init(key, *config.arguments(few))["params"])
    readout = Readout(shape.readout)
    label_tokens = tuple(range(shape.k)) if readout is Readout.LABEL_LOGITS else ()
    f = ReadoutFn(apply_fn, readout, not config.is_encoder_decoder, label_tokens)
    return f, candidate.params if candidate else init(jax.random.key(0)), batch


def measure(shape: Shape, method: str, repeats: int) -> Measurement:
    """Times one kernel in this process, ``repeats`` times after the first.

    The first one is the peak's: it runs before the estimate, whose probes leave memory behind.
    """
    import jax

    from lensllm_jax.ntk.candidate import peak_bytes
    from lensllm_jax.ntk.cost import ntk_cost
    from lensllm_jax.ntk.gram import empirical_ntk

    f, params, batch = problem(shape)
    jax.block_until_ready(params)
    bare = resident_bytes()
    # the peak so far is that of reading the weights
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    seconds: list[float] = []

    def run() -> Any:
        start = time.perf_counter()
        theta = empirical_ntk(f, params, batch, method=method)
        seconds.append(time.perf_counter() - start)
        return theta

    theta = run()
    peak = peak_bytes()
    cost = ntk_cost(f, params, batch, method=method)
    while len(seconds) <= repeats and sum(seconds) < MOST_SECONDS:
        run()
    return Measurement(
        seconds[1:] or seconds,
        seconds[0],
        peak - bare,
        bare,
        cost.seconds,
        cost.bytes,
        float(theta.sum()),
    )


def resident_bytes() -> int:
    """Bytes that this process needs now, by Linux's account.

    Freed memory goes back first: making the weights leaves a heap that a kernel would use unseen.
    """
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure_in_subprocess(shape: Shape, method: str, repeats: int) -> Measurement:
    """``measure`` in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.ntk", f"--repeats={repeats}",
        f"--measure={json.dumps([method, shape])}",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[Shape], methods: list[str], repeats: int) -> list[dict]:
    """All measurements, printed as they come: one record per measurement."""
    import jax

    from lensllm_jax.ntk.cost import least_flops
    from lensllm_jax.ntk.timing import matmul_rates

    records = []
    for shape in rows:
        f, params, batch = problem(shape)
        least = least_flops(f, params, batch)
        num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
        for method in methods:
            if reason := reason_to_skip(shape, method, num_params):
                print(f"{method} skipped: {reason}")
                continue
            rates = matmul_rates(2048)
            measured = measure_in_subprocess(shape, method, repeats)
            rates += matmul_rates(2048)
            records.append(record(shape, method, measured, least, rates))
            print(line(shape, method, num_params, measured, records[-1]), flush=True)
    return records


def reason_to_skip(shape: Shape, method: str, num_params: int) -> str | None:
    """Why a row is out of reach of a method; None if it is not."""
    jacobian_bytes = 4 * shape.n * shape.k * num_params
    if method == "jacobian_contraction" and jacobian_bytes > MOST_JACOBIAN_BYTES:
        return f"its Jacobian alone is {jacobian_bytes / 1e9:.0f} GB"
    pairs = (shape.n * shape.k) ** 2
    if method == "ntk_vector_products" and pairs > MOST_PAIRS:
        return f"{pairs} pairs of outputs, a product each"
    return None


def record(
    shape: Shape, method: str, measured: Measurement, least: float, rates: list[float]
) -> dict:
    """One row of the table."""
    seconds, rate = statistics.median(measured.seconds), statistics.median(rates)
    floor = least / rate
    return {
        **shape._asdict(), "method": method, "seconds": round(seconds, 3),
        "first_seconds": round(measured.first_seconds, 2),
        "peak_gb": round(measured.peak_bytes / 1e9, 3),
        "bare_gb": round(measured.bare_bytes / 1e9, 3),
        "said_seconds": round(measured.estimated_seconds, 3),
        "said_gb": round(measured.estimated_bytes / 1e9, 3),
        "floor_seconds": round(floor, 3), "times_floor": round(seconds / floor, 2),
        "gflops_matmul": round(rate / 1e9), "gflops_best": round(max(rates) / 1e9),
        "theta_sum": measured.theta_sum,
    }  # fmt: skip


def line(shape: Shape, method: str, num_params: int, measured: Measurement, row: dict) -> str:
    """The same for a reader."""
    return (
        f"{shape.family:<4} {num_params / 1e6:5.1f} M s={shape.s:<3} "
        f"n={shape.n:<4} k={shape.k} {method:<21} {row['seconds']:8.2f} s "
        f"({row['times_floor']:5.2f} x floor) {row['peak_gb']:7.2f} GB "
        f"(estimated {measured.estimated_seconds:.2f} s {measured.estimated_bytes / 1e9:.2f} GB) "
        f"first {measured.first_seconds:.1f} s"
    )


def main(argv: list[str]) -> None:
    """Prints the table, or one measurement as JSON for the parent process."""
    del argv
    if _MEASURE.value is not None:
        method, shape = json.loads(_MEASURE.value)
        print(json.dumps(measure(Shape(*shape), method, _REPEATS.value)._asdict()))
        return
    names = [_ROWS.value]
    if names == ["all"]:
        names = [name for name in ROWS if name != "published"]
    if unknown := set(names) - set(ROWS):
        sys.exit(f"error: `rows` must be one of {', '.join(ROWS)} or all, got {unknown.pop()}")
    rows = list(dict.fromkeys(shape for name in names for shape in ROWS[name]))
    records = table(rows, _METHODS.value, _REPEATS.value)
    if _OUTPUT.value:
        path = pathlib.Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)


if __name__ == "__main__":
    app.run(main)
