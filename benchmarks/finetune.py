"""Benchmark: tokens per second of fine-tuning, compared with Hugging Face in PyTorch.

Command (some 11 minutes on 2 quiet cores, by the rates of single calls; `make torch-parity` makes
.venv-torch):

    python -m benchmarks.finetune

Same shapes, batch, float32 and optimiser (AdamW with decay 0.01, clipped at norm 1, no dropout) on
both sides, random weights and tokens, each side in a process of its own.  Of a decoder's example
the first ``--prompt`` tokens are no target, as those of a task's prompt.  The two take turns: one
call of PyTorch, one of each kind of ours, and again; the table has medians of ``--repeats`` turns.
Tokens are those of one side, batch x length, also for an encoder-decoder, which reads and writes
as many each.  Kinds of ours:

* step: one call of ``--steps`` steps, as PyTorch's;
* loop: one pass over ``--examples`` examples as a fine-tune makes it, with validation on a
  eighth of them (64 at least) twice, and copies of the first and of the best weights;
* floor: 6 N T operations at the rate of a product of square matrices (2,048).

The first step is timed from a built model to its end, tracing and compilation included, as a call
of one step: in a process whose compilation cache is empty, and in one that finds it filled.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import app, flags

from benchmarks.shapes import SMOLLM2

_FAMILIES = flags.DEFINE_list("families", "smollm2,t5,bart", "which shapes: these, gpt2, opt")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed calls of each kind", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 4, "steps of a call", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 400, "of a loop's pass", lower_bound=1)
_PROMPT = flags.DEFINE_integer("prompt", 32, "tokens without a target", lower_bound=0)
_TORCH = flags.DEFINE_string("torch_python", ".venv-torch/bin/python", "interpreter with PyTorch")
_COMPUTE = flags.DEFINE_string("compute", "{}", "settings of ComputeConfig, as JSON")
_SERVE = flags.DEFINE_string("serve", None, "internal: times one side of one family, as JSON")

D_MODEL, HEADS, VOCAB = 256, 8, 8000
LENGTH = 64  # tokens of an example
BATCH = {"smollm2": 16}  # examples per step, of the others:
BATCH_OF_SMALL = 32
PRODUCT_SIDE = 2048
ENCODER_DECODERS = ("t5", "bart")
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.01, 1.0
_BART = {
    f"{stack}_{name}": value
    for stack in ("encoder", "decoder")
    for name, value in (("layers", 3), ("attention_heads", HEADS), ("ffn_dim", 4 * D_MODEL))
}
# 6.8 M parameters for the decoders; the encoder-decoders have three blocks on either side.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "smollm2": SMOLLM2,
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


def batch_size(family: str) -> int:
    """Examples per step."""
    return BATCH.get(family, BATCH_OF_SMALL)


def config_of(family: str) -> dict[str, Any]:
    """As a config.json says it."""
    return {"model_type": family, **CONFIGS[family]}


def tokens(family: str, count: int) -> Any:
    """Random token ids, (count, s)."""
    import numpy as np

    return np.random.default_rng(0).integers(5, CONFIGS[family]["vocab_size"], (count, LENGTH))


def labels_of(family: str, ids: Any) -> Any:
    """Targets of token ids (n, s): those of a decoder's prompt are none."""
    labels = ids.copy()
    if family not in ENCODER_DECODERS:
        labels[:, : _PROMPT.value] = -100
    return labels


class TorchSide:
    """PyTorch's step."""

    def __init__(self, family: str):
        import torch
        import transformers

        settings = config_of(family)
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        auto = transformers.AutoModelForCausalLM
        if config.is_encoder_decoder:
            auto = transformers.AutoModelForSeq2SeqLM
        torch.manual_seed(0)
        self.model = auto.from_config(config).train()
        self.clip = torch.nn.utils.clip_grad_norm_
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        chosen = tokens(family, batch_size(family))
        ids, labels = torch.from_numpy(chosen), torch.from_numpy(labels_of(family, chosen))
        self.batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        self.num_params = sum(p.numel() for p in self.model.parameters())

    def step(self) -> float:
        """Units of work: tokens."""
        for _ in range(_STEPS.value):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.model(**self.batch).loss
            loss.backward()
            self.clip(self.model.parameters(), CLIP_NORM)
            self.optimizer.step()
            float(loss.detach())
        return _STEPS.value * self.batch["input_ids"].numel()


class JaxSide:
    """The steps and the loop of this project; each method returns the units of work it did."""

    def __init__(self, family: str):
        import jax
        import numpy as np

        from lensllm_jax.checkpoints.config import parse_config
        from lensllm_jax.finetune.compute import ComputeConfig, config_apply_fn
        from lensllm_jax.finetune.fine_tune import FineTuneConfig, with_few_logits
        from lensllm_jax.finetune.loop import Loop, OptimizerConfig

        config = parse_config(config_of(family)).config
        settings = ComputeConfig(**json.loads(_COMPUTE.value))
        self.batch_size = batch_size(family)
        ids = tokens(family, max(self.batch_size, _EXAMPLES.value)).astype(np.int32)
        self.data = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        self.data["labels"] = labels_of(family, ids)
        if config.is_encoder_decoder:
            self.data["decoder_input_ids"] = np.roll(ids, 1, axis=1)
        model, few = config.module(), self._first(2)
        init = jax.jit(lambda key: model.init(key, *config.arguments(few))["params"])
        self.params = jax.block_until_ready(init(jax.random.key(0)))
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        loop = Loop(
            config_apply_fn(config, settings),
            OptimizerConfig(
                LEARNING_RATE, weight_decay=WEIGHT_DECAY, warmup_steps=0, clip_norm=CLIP_NORM
            ),
            shift=not config.is_encoder_decoder,
            micro_batches=settings.passes,
        )
        one = FineTuneConfig(batch_size=self.batch_size)
        self.loop_ = with_few_logits(loop, self.data, one)  # as a fine-tune computes them
        self.state: Any = None
        sides = np.random.default_rng(0).standard_normal((2, PRODUCT_SIDE, PRODUCT_SIDE))
        self.sides = jax.device_put(sides.astype(np.float32))
        self.multiply = jax.jit(lambda sides: sides[0] @ sides[1])

    def _first(self, count: int) -> dict[str, Any]:
        return {name: values[:count] for name, values in self.data.items()}

    def first(self) -> float:
        """One step."""
        return self._call(1)

    def step(self) -> float:
        """Tokens of one call."""
        return self._call(_STEPS.value)

    def _call(self, steps: int) -> float:
        import numpy as np

        if self.state is None:
            self.state = self.loop_.start(self.params)
        batch = self._first(self.batch_size)
        batches = {name: np.stack([values] * steps) for name, values in batch.items()}
        self.state, _ = self.loop_.train(self.state, batches)
        return steps * self.batch_size * LENGTH

    def loop(self) -> float:
        """Tokens that one pass trains on."""
        return self._pass(_EXAMPLES.value)

    def short_loop(self) -> float:
        """Those of one call of the loop, which has all its programs."""
        return self._pass(8 * self.batch_size)

    def _pass(self, size: int) -> float:
        import numpy as np

        from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, trained
        from lensllm_jax.measurement.measurement import MeasurementConfig

        self.state = None  # a fine-tune has the memory to itself
        config = FineTuneConfig(batch_size=self.batch_size, max_epochs=1)
        records = self._first(MeasurementConfig().validation_size(size))
        count = len(records["labels"])
        records["is_end"] = np.zeros(records["labels"].shape, bool)
        records["num_target_bytes"] = np.full(count, 4 * LENGTH)
        splits = Splits(self._first(size), records, records)
        return trained(self.loop_, self.params, splits, config=config).num_tokens

    def floor(self) -> float:
        """Tokens whose 6 N operations are those of a few products."""
        count = 8
        for _ in range(count):
            self.multiply(self.sides).block_until_ready()
        return count * 2 * PRODUCT_SIDE**3 / (6 * self.num_params)


def serve(side: str, family: str, cache: str | None) -> None:
    """Times the methods of a side that standard input names, one a line, until it ends."""
    if cache is not None:
        from lensllm_jax.finetune.compute import keep_compiled

        keep_compiled(cache)
    timed = {"torch": TorchSide, "jax": JaxSide}[side](family)
    print(json.dumps({"num_params": timed.num_params}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        work = getattr(timed, line.strip())()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "per_second": work / seconds}), flush=True)


@contextlib.contextmanager
def in_process(
    side: str, family: str, cache: str | None = None
) -> Iterator[Callable[[str | None], dict]]:
    """One side ("torch" or "jax") in a process of its own, which times what it is asked for."""
    python = _TORCH.value if side == "torch" else sys.executable
    command = [
        python, "-m", "benchmarks.finetune", f"--steps={_STEPS.value}",
        f"--examples={_EXAMPLES.value}", f"--compute={_COMPUTE.value}", f"--prompt={_PROMPT.value}",
        f"--serve={json.dumps([side, family, cache])}",
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:  # fmt: skip

        def ask(what: str | None) -> dict:
            if what is not None:
                print(what, file=process.stdin, flush=True)
            while line := process.stdout.readline():
                if line.startswith("{"):  # else a library speaks
                    return json.loads(line)
            errors.seek(0)
            return sys.exit(f"error: {' '.join(command)} failed:\n{errors.read()}")

        yield ask
        process.stdin.close()


def row(family: str) -> str:
    """One line of the table, in Markdown."""
    kinds = {name: [] for name in ("torch", "step", "loop", "floor")}
    with tempfile.TemporaryDirectory() as cache:
        with in_process("torch", family) as torch, in_process("jax", family, cache) as jax:
            torch(None)
            num_params = jax(None)["num_params"]
            first = jax("first")["seconds"]
            torch("step")  # these compile, or fill caches
            for kind in ("step", "short_loop", "floor"):
                jax(kind)
            for _ in range(_REPEATS.value):
                for kind, rates in kinds.items():
                    done = torch("step") if kind == "torch" else jax(kind)
                    rates.append(done["per_second"])
        with in_process("jax", family, cache) as jax:
            jax(None)
            second = jax("first")["seconds"]
    bare, step, loop, floor = (statistics.median(rates) for rates in kinds.values())
    return (
        f"| {family} | {num_params / 1e6:.1f} M | {batch_size(family)} x {LENGTH} | {bare:,.0f} "
        f"| {step:,.0f} | {loop:,.0f} | {step / bare:.2f} | {loop / bare:.2f} | {floor:,.0f} "
        f"| {floor / step:.2f} | {first:.1f} | {second:.1f} |"
    )


def main(argv: list[str]) -> None:
    """Prints the table, or times one side for the parent process."""
    del argv
    if _SERVE.value is not None:
        serve(*json.loads(_SERVE.value))
        return
    if not os.path.exists(_TORCH.value):
        sys.exit(f"error: `torch_python` must exist, got {_TORCH.value}: run `make torch-parity`")
    if unknown := set(_FAMILIES.value) - set(CONFIGS):
        sys.exit(f"error: `families` must be among {', '.join(CONFIGS)}, got {unknown.pop()}")
    columns = (
        "shape", "parameters", "batch", "PyTorch step, tokens/s", "step", "loop", "step / PyTorch",
        "loop / PyTorch", "floor", "floor / step", "first step, s", "cached",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for family in _FAMILIES.value:
        print(row(family), flush=True)


if __name__ == "__main__":
    app.run(main)
