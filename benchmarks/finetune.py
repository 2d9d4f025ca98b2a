"""Benchmark: tokens per second of a fine-tuning step, compared with Hugging Face in PyTorch.

Command (about 4 minutes on 2 cores; `make torch-parity` once makes .venv-torch):

    python -m benchmarks.finetune

Same shapes, batch, float32 and optimiser (AdamW with decay 0.01, clipped at norm 1, no dropout) on
both sides, random weights and tokens, each side in a process of its own, one after the other.  A
timed run is one call of several steps; the table has the median of ``--repeats``.  Tokens are those
of one side, batch x length, also for an encoder-decoder, which reads and writes as many each.

The first step is timed from a built model to its end, tracing and compilation included, as a call
of one step: in a process whose compilation cache is empty, and in one that finds it filled.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import app, flags

_FAMILIES = flags.DEFINE_list("families", "gpt2,opt,t5,bart", "which shapes")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed calls of each side", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 4, "steps of a call", lower_bound=1)
_TORCH = flags.DEFINE_string("torch_python", ".venv-torch/bin/python", "interpreter with PyTorch")
_COMPUTE = flags.DEFINE_string(
    "compute", '{"unroll_layers": true}', "settings of ComputeConfig, as JSON"
)
_MEASURE = flags.DEFINE_string("measure", None, "internal: one side of one family, as JSON")

D_MODEL, HEADS, VOCAB = 256, 8, 8000
BATCH, LENGTH = 32, 64  # examples per step, tokens of each
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.01, 1.0
_BART = {
    f"{stack}_{name}": value
    for stack in ("encoder", "decoder")
    for name, value in (("layers", 3), ("attention_heads", HEADS), ("ffn_dim", 4 * D_MODEL))
}
# 6.8 M parameters for the decoders; the encoder-decoders have three blocks on either side.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": D_MODEL, "n_layer": 6,
        "n_head": HEADS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "opt": {
        "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "hidden_size": D_MODEL,
        "num_hidden_layers": 6, "num_attention_heads": HEADS, "ffn_dim": 4 * D_MODEL,
        "word_embed_proj_dim": D_MODEL, "dropout": 0.0, "attention_dropout": 0.0,
    },
    "t5": {
        "vocab_size": VOCAB, "d_model": D_MODEL, "d_kv": D_MODEL // HEADS, "d_ff": 4 * D_MODEL,
        "num_layers": 3, "num_heads": HEADS, "dropout_rate": 0.0, "decoder_start_token_id": 0,
    },
    "bart": {
        **_BART, "vocab_size": VOCAB, "d_model": D_MODEL, "max_position_embeddings": LENGTH,
        "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
        "decoder_start_token_id": 2,
    },
}  # fmt: skip


class Measured(NamedTuple):
    """One side of one family."""

    num_params: int
    first_seconds: float  # of the first call, compilation included
    seconds: list[float]  # per step, of each later call
    first_loss: float  # nats per token


def tokens() -> Any:
    """Random token ids, (b, s)."""
    import numpy as np

    return np.random.default_rng(0).integers(5, VOCAB, (BATCH, LENGTH))


def measure_torch(family: str, repeats: int, steps: int) -> Measured:
    """Times PyTorch: a first call, then ``repeats``, of ``steps`` each."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family, **CONFIGS[family])
    auto = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    torch.manual_seed(0)
    model = auto.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    ids = torch.from_numpy(tokens())
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def call() -> float:
        first = None
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            first = float(loss.detach()) if first is None else first
        return first

    return timed(call, sum(p.numel() for p in model.parameters()), repeats, steps)


def measure_jax(family: str, repeats: int, steps: int, compute: Mapping[str, Any]) -> Measured:
    """Times the loop of this project with ``compute`` as its ``ComputeConfig``."""
    import jax
    import numpy as np

    from lensllm_jax.checkpoints.config import parse_config
    from lensllm_jax.finetune.compute import ComputeConfig, config_apply_fn
    from lensllm_jax.finetune.loop import Loop, OptimizerConfig

    config = parse_config({"model_type": family, **CONFIGS[family]}).config
    settings = ComputeConfig(**compute)
    ids = tokens().astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = np.roll(ids, 1, axis=1)
    model = config.module()
    init = jax.jit(lambda key: model.init(key, *config.arguments(batch))["params"])
    params = jax.block_until_ready(init(jax.random.key(0)))
    loop = Loop(
        config_apply_fn(config, settings),
        OptimizerConfig(
            LEARNING_RATE, weight_decay=WEIGHT_DECAY, warmup_steps=0, clip_norm=CLIP_NORM
        ),
        shift=not config.is_encoder_decoder,
        num_micro_batches=settings.num_micro_batches,
    )
    state = loop.start(params)
    batches = {name: np.stack([values] * steps) for name, values in batch.items()}

    def call() -> float:
        nonlocal state
        state, losses = loop.train(state, batches)
        return float(losses[0])

    return timed(call, sum(leaf.size for leaf in jax.tree.leaves(params)), repeats, steps)


def timed(call: Any, num_params: int, repeats: int, steps: int) -> Measured:
    """Seconds of the first call, and per step of the later ones; a call returns its first loss."""
    seconds, losses = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        losses.append(call())
        seconds.append(time.perf_counter() - start)
    return Measured(num_params, seconds[0], [s / steps for s in seconds[1:]], losses[0])


def in_process(side: str, family: str, *, steps: int, cache: str | None = None) -> Measured:
    """One side ("torch" or "jax") in a process of its own; ``cache``: of what JAX compiles."""
    python = _TORCH.value if side == "torch" else sys.executable
    command = [
        python, "-m", "benchmarks.finetune", f"--repeats={_REPEATS.value}",
        f"--steps={steps}", f"--compute={_COMPUTE.value}",
        f"--measure={json.dumps([side, family, cache])}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # else warnings of libraries stay out of the table
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def row(family: str) -> str:
    """One line of the table, in Markdown."""
    torch, jax = (in_process(side, family, steps=_STEPS.value) for side in ("torch", "jax"))
    with tempfile.TemporaryDirectory() as cache:
        first, second = (in_process("jax", family, steps=1, cache=cache) for _ in range(2))
    rates = [BATCH * LENGTH / statistics.median(side.seconds) for side in (torch, jax)]
    return (
        f"| {family} | {jax.num_params / 1e6:.1f} M | {rates[0]:,.0f} | {rates[1]:,.0f} "
        f"| {rates[1] / rates[0]:.2f} | {first.first_seconds:.1f} | {second.first_seconds:.1f} |"
    )


def main(argv: list[str]) -> None:
    """Prints the table, or one measurement as JSON for the parent process."""
    del argv
    if _MEASURE.value is not None:
        side, family, cache = json.loads(_MEASURE.value)
        if side == "torch":
            measured = measure_torch(family, _REPEATS.value, _STEPS.value)
        else:
            if cache is not None:
                from lensllm_jax.finetune.compute import keep_compiled

                keep_compiled(cache)
            measured = measure_jax(family, _REPEATS.value, _STEPS.value, json.loads(_COMPUTE.value))
        print(json.dumps(measured._asdict()))
        return
    if not os.path.exists(_TORCH.value):
        sys.exit(f"error: `torch_python` must exist, got {_TORCH.value}: run `make torch-parity`")
    if unknown := set(_FAMILIES.value) - set(CONFIGS):
        sys.exit(f"error: `families` must be among {', '.join(CONFIGS)}, got {unknown.pop()}")
    print(
        "| shape | parameters | PyTorch tokens/s | JAX tokens/s | ratio | first step, s | cached |"
    )
    print("|---|---|---|---|---|---|---|")
    for family in _FAMILIES.value:
        print(row(family), flush=True)


if __name__ == "__main__":
    app.run(main)
