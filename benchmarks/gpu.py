"""Benchmark: one device against the CPU's values, its own product rate, and PyTorch.

Command (at most --seconds on one NVIDIA GPU; benchmarks/gpu.sh sets up):

    benchmarks/gpu.sh                                one table, in Markdown
    JAX_PLATFORMS=cpu benchmarks/gpu.sh --small      rows of one shape at toy size, on any machine
    JAX_PLATFORMS=cpu python -m benchmarks.gpu --write_reference     benchmarks/gpu_reference.npz

* parity: logits, gradients and kernels of bundled candidates against those that a CPU computed and
  that are committed, products in full float32 (no TF32);
* products: rate of a square matrix product in float32 and bfloat16;
* kernel: seconds of the exact kernel of GPT-2 (124 M) and SmolLM2 (135 M) shapes with random
  weights, the share of the float32 product rate that its least arithmetic is, and peak bytes;
  neural-tangents on the smallest;
* fine-tune: tokens per second of the project's loop in float32 and bfloat16, of PyTorch's bare
  step where it is installed; peak bytes against the plan's (lensllm_jax.finetune.memory).

A row that would start after --seconds says that it was skipped.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import lensllm_jax as lens
from benchmarks.shapes import SMOLLM2
from lensllm_jax.checkpoints.config import parse_config
from lensllm_jax.finetune.compute import ComputeConfig, config_apply_fn
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.memory import step_memory
from lensllm_jax.models.family import ModelConfig
from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.readout import Readout, ReadoutFn
from lensllm_jax.typing import Batch, Params

_SMALL = flags.DEFINE_bool("small", False, "Toy sizes.")
_SECONDS = flags.DEFINE_float("seconds", 480.0, "No row starts later.")
_WRITE = flags.DEFINE_bool("write_reference", False, "Write what a CPU computes, and nothing else.")

REFERENCE = Path(__file__).parent / "gpu_reference.npz"
PARITY = ("zoo/gpt2-xs", "zoo/llama-xs", "zoo/t5-xs")
PARITY_LIMIT = 1e-4  # relative, of float32 summed in another order over two blocks
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "gpt2-124m": {"model_type": "gpt2"},
    "smollm2-135m": SMOLLM2,
}
TOYS = {
    "gpt2-124m": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64, "bos_token_id": 1,
                  "eos_token_id": 1},
    "smollm2-135m": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 64},
}  # fmt: skip


class Row(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    of: str = ""  # what it is compared with


class Sizes(NamedTuple):
    """How large each part is."""

    kernels: tuple[int, ...]  # examples
    num_tokens: int  # of an example
    batch_size: int  # of a step
    product: int  # side of the matrices
    repeats: int


FULL, TOY = Sizes((64, 256, 1024), 64, 16, 8192, 5), Sizes((4,), 8, 4, 128, 1)


def main(argv: list[str]) -> None:
    """Prints the table as it grows."""
    del argv
    jax.config.update("jax_default_matmul_precision", "highest")
    if _WRITE.value:
        np.savez_compressed(REFERENCE, **computed())
        return
    started = time.monotonic()
    device = jax.devices()[0]
    print(f"device: {device.device_kind} ({device.platform}), jax {jax.__version__}\n")
    print("| what | found | of |\n|---|---|---|", flush=True)
    rates: dict[str, float] = {}
    for part in (parity_rows, product_rows, kernel_rows, tuning_rows):
        for row in part(TOY if _SMALL.value else FULL, rates):
            print(f"| {row.what} | {row.found} | {row.of} |", flush=True)
            if time.monotonic() - started > _SECONDS.value:
                print(f"| the rest | skipped after {_SECONDS.value:.0f} s | |")
                return


def computed(names: Sequence[str] = PARITY) -> dict[str, np.ndarray]:
    """Logits, gradients and kernels of the bundled candidates on fixed examples."""
    found = {}
    for name in names:
        candidate = lens.load_candidate(name)
        batch = _tokens(candidate.config, 8, 12, vocab_size=candidate.config.vocab_size)
        f = _readout(candidate.apply_fn, candidate.config)
        found[f"logits {name}"] = np.asarray(candidate.apply_fn(candidate.params, batch))[:2, ::4]
        gradient = jax.grad(lambda p, f=f, batch=batch: jnp.sum(f(p, batch)))(candidate.params)
        norms = [jnp.linalg.norm(leaf.ravel()) for leaf in jax.tree.leaves(gradient)]
        found[f"gradients {name}"] = np.asarray(jnp.stack(norms))
        found[f"kernel {name}"] = np.asarray(empirical_ntk(f, candidate.params, batch))
    return found


def parity_rows(sizes: Sizes, rates: dict[str, float]) -> Iterator[Row]:
    """Largest relative difference from the committed values."""
    del sizes, rates
    reference = np.load(REFERENCE)
    for name, values in computed(PARITY[:1] if _SMALL.value else PARITY).items():
        expected = reference[name]
        difference = np.max(np.abs(values - expected)) / np.max(np.abs(expected))
        verdict = "ok" if difference < PARITY_LIMIT else "TOO LARGE"
        yield Row(f"parity: {name}", f"{difference:.1e}", f"{PARITY_LIMIT:.0e}: {verdict}")


def product_rows(sizes: Sizes, rates: dict[str, float]) -> Iterator[Row]:
    """Rate of a square product, which the rows of kernels are compared with."""
    for dtype in ("float32", "bfloat16"):
        a = jnp.ones((sizes.product, sizes.product), dtype)
        precision = "highest" if dtype == "float32" else "default"
        product = jax.jit(lambda a, precision=precision: jnp.dot(a, a, precision=precision))
        seconds = _seconds(lambda product=product, a=a: product(a), sizes.repeats)
        rates[dtype] = 2 * sizes.product**3 / seconds
        yield Row(f"product {dtype}, {sizes.product}", f"{rates[dtype] / 1e12:.3f} TFLOP/s")


def kernel_rows(sizes: Sizes, rates: dict[str, float]) -> Iterator[Row]:
    """Seconds and bytes of kernels with random weights."""
    from lensllm_jax.ntk.cost import least_flops

    for shape in _shapes():
        config, params = _model(shape)
        f = _readout(config_apply_fn(config, ComputeConfig()), config)
        for n in sizes.kernels:
            batch = _tokens(config, n, sizes.num_tokens, vocab_size=config.vocab_size)
            methods = ["structured"]
            methods += ["jacobian_contraction"] if n == sizes.kernels[0] else []
            for method in methods:
                run = functools.partial(empirical_ntk, f, params, batch, method=method)
                try:
                    seconds = _seconds(run, 1 if n == sizes.kernels[-1] else sizes.repeats)
                except jax.errors.JaxRuntimeError as error:  # out of memory
                    yield Row(f"kernel {shape}, n={n}, {method}", str(error).splitlines()[0][:60])
                    continue
                share = ""
                if method == "structured":
                    least = least_flops(f, params, batch) / seconds
                    share = f"{least / rates['float32']:.0%} of the product rate"
                yield Row(f"kernel {shape}, n={n}, {method}", f"{seconds:.2f} s{_peak()}", share)


def tuning_rows(sizes: Sizes, rates: dict[str, float]) -> Iterator[Row]:
    """Tokens per second of a fine-tune."""
    del rates
    num_tokens = sizes.batch_size * sizes.num_tokens
    for shape in _shapes():
        config, params = _model(shape)
        torch_rate = _torch_rate(shape, sizes)
        for dtype in (None, "bfloat16"):
            compute = ComputeConfig(dtype=dtype)
            loop = Loop(config_apply_fn(config, compute), OptimizerConfig(1e-4), shift=True)
            batch = _tokens(config, sizes.batch_size, sizes.num_tokens,
                            vocab_size=config.vocab_size)  # fmt: skip
            calls = {name: np.stack([values] * 4) for name, values in batch.items()}
            state = [loop.start(params)]

            def step(loop=loop, calls=calls, state=state):
                state[0], losses = loop.train(state[0], calls)
                return losses

            seconds = _seconds(step, sizes.repeats) / 4
            planned = step_memory(config, compute, batch_size=sizes.batch_size,
                                  num_tokens=sizes.num_tokens).step  # fmt: skip
            against = f"PyTorch {torch_rate:,.0f} tokens/s" if torch_rate else "no PyTorch"
            yield Row(
                f"fine-tune {shape}, {dtype or 'float32'}",
                f"{num_tokens / seconds:,.0f} tokens/s{_peak()}",
                f"{against}; plan {planned / 1e9:.2f} GB",
            )


def _shapes() -> list[str]:
    return list(SHAPES)[: 1 if _SMALL.value else None]


def _model(shape: str) -> tuple[ModelConfig, Params]:
    attributes = SHAPES[shape] | (TOYS[shape] if _SMALL.value else {})
    config = parse_config(attributes).config
    batch = _tokens(config, 1, 4, vocab_size=config.vocab_size)
    init = jax.jit(lambda key: config.module().init(key, *config.arguments(batch))["params"])
    return config, init(jax.random.key(0))


def _readout(apply_fn: Any, config: ModelConfig) -> ReadoutFn:
    return ReadoutFn(apply_fn, Readout.TARGET_LOGPROB, not config.is_encoder_decoder, ())


def _tokens(config: ModelConfig, rows: int, num_tokens: int, *, vocab_size: int) -> Batch:
    ids = np.random.default_rng(0).integers(3, vocab_size, (rows, num_tokens)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = np.roll(ids, 1, axis=1)
    return batch


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median of the runs after one that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _peak() -> str:
    """Largest bytes in use on the device so far, where it counts them."""
    found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return "" if found is None else f", peak so far {found / 1e9:.2f} GB"


def _torch_rate(shape: str, sizes: Sizes) -> float | None:
    """Tokens per second of PyTorch's bare step in float32 on its GPU; None without one."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch
    import transformers

    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    attributes = dict(SHAPES[shape])
    config = transformers.AutoConfig.for_model(attributes.pop("model_type"), **attributes)
    model = transformers.AutoModelForCausalLM.from_config(config).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(3, config.vocab_size, (sizes.batch_size, sizes.num_tokens), device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()

    return sizes.batch_size * sizes.num_tokens / _seconds(step, sizes.repeats)


if __name__ == "__main__":
    app.run(main)
