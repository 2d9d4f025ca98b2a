"""Published weights: logits, loss, kernel and tokens are those that PyTorch and arithmetic give.

The smallest file is checked; PUBLISHED=all checks every one.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import lensllm_jax as lens
from lensllm_jax.checkpoints.published import fetch
from lensllm_jax.data.encoding import encode_causal
from lensllm_jax.data.task import Example
from lensllm_jax.data.tokens import joined
from lensllm_jax.finetune import evaluation
from lensllm_jax.finetune.evaluation import EvaluationBatches
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.ntk.readout import target_logprob
from lensllm_jax.typing import IGNORE
from tests.published.weights import KNOWN
from tests.tolerances import relative_difference

pytestmark = [pytest.mark.published, pytest.mark.filterwarnings("ignore")]

NAMES = list(KNOWN) if os.environ.get("PUBLISHED") == "all" else list(KNOWN)[:1]
PROMPT = "The capital of France is"


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def candidate(name):
    fetch(name)
    return lens.load_candidate(name)


@pytest.fixture(scope="module")
def pytorch(name):
    import torch
    import transformers

    path = fetch(name)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def texts(candidate):
    """64 real texts as a batch."""
    return encoded(candidate, 64)


def encoded(candidate, count):
    examples = lens.load_task("pydoc", max_bytes=160).test[:count]
    return encode_causal(examples, candidate.tokenizer).scored_batch(np.arange(count))


def inputs(batch):
    return {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}


def torch_logits(model, batch):
    import torch

    with torch.no_grad():
        return model(
            torch.tensor(batch["input_ids"], dtype=torch.long),
            attention_mask=torch.tensor(batch["attention_mask"], dtype=torch.long),
        ).logits.numpy()


def test_it_says_what_it_is(name, candidate):
    assert candidate.num_params == KNOWN[name].num_params
    assert candidate.dequantized_from == KNOWN[name].types


def test_logits_equal_those_of_pytorch(candidate, pytorch, texts):
    batch = {key: array[:4] for key, array in inputs(texts).items()}
    real = batch["attention_mask"] == 1
    ours = np.asarray(candidate.apply_fn(candidate.params, batch))[real]
    assert relative_difference(ours, torch_logits(pytorch, batch)[real]) < 1e-5


def test_the_greedy_continuation_is_known_and_that_of_pytorch(name, candidate, pytorch):
    tokenizer = candidate.tokenizer
    bos = [tokenizer.bos_token_id] if name.startswith("published/gemma") else []
    ids = [*bos, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    theirs = list(ids)
    apply = jax.jit(candidate.apply_fn)
    length = len(ids) + 6
    while len(ids) < length:
        row = np.array([ids + [0] * (length - len(ids))], np.int32)
        mask = (np.arange(length) < len(ids))[None].astype(np.int32)
        logits = apply(candidate.params, {"input_ids": row, "attention_mask": mask})
        ids.append(int(np.argmax(logits[0, len(ids) - 1])))
    while len(theirs) < length:
        batch = {"input_ids": np.array([theirs]), "attention_mask": np.ones((1, len(theirs)))}
        theirs.append(int(np.argmax(torch_logits(pytorch, batch)[0, -1])))
    assert ids == theirs
    text = tokenizer.decode(ids[len(bos) :])
    assert text.startswith(PROMPT + KNOWN[name].continuation), text


def test_the_loss_on_real_texts_is_that_of_pytorch(name, candidate, pytorch, texts, monkeypatch):
    loop = Loop(candidate.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    # eight at a time: logits over the largest vocabulary take a megabyte per token
    monkeypatch.setattr(evaluation, "ROWS", 8)
    found = loop.evaluate(candidate.params, EvaluationBatches.of(texts))
    text_nats = end_nats = 0.0
    for start in range(0, 64, 8):
        batch = {key: array[start : start + 8] for key, array in texts.items()}
        logits, labels = torch_logits(pytorch, batch)[:, :-1], batch["labels"][:, 1:]
        scored, is_end = labels != IGNORE, batch["is_end"][:, 1:]
        logits = logits[scored].astype(np.float64)
        largest = logits.max(-1)
        norm = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
        nats = norm - np.take_along_axis(logits, labels[scored][:, None], 1)[:, 0]
        text_nats += float(nats[~is_end[scored]].sum())
        end_nats += float(nats[is_end[scored]].sum())
    num_bytes = int(texts["num_target_bytes"].sum())
    assert num_bytes == 3839  # for every candidate alike
    assert found.loss == pytest.approx(text_nats / num_bytes, rel=1e-5)
    assert found.end_loss == pytest.approx(end_nats / 64, rel=1e-5)
    assert found.loss == pytest.approx(KNOWN[name].loss, abs=1e-4)


def test_the_exact_kernel_is_the_product_of_dense_gradients(candidate, tmp_path):
    batch = inputs(encoded(candidate, 4))
    kernel = lens.candidate_ntk(candidate, batch)

    @jax.jit
    def gradient(params, row):
        def output(params):
            one = {key: array[None] for key, array in row.items()}
            logits = candidate.apply_fn(params, one)[0]
            return target_logprob(logits, row["labels"], shift=True)

        return jax.grad(output)(params)

    # on the disk: four gradients of the largest model are 10 GB
    rows = np.lib.format.open_memmap(
        tmp_path / "rows.npy", "w+", np.float32, (4, candidate.num_params)
    )
    for i in range(4):
        row = gradient(candidate.params, {k: jnp.asarray(v[i]) for k, v in batch.items()})
        leaves, start = traverse_util.flatten_dict(row), 0
        for path in [path for path in leaves if path[-1] != "constant"]:
            values = np.asarray(leaves.pop(path)).ravel()
            rows[i, start : start + values.size] = values
            start += values.size
    dense = np.zeros((4, 4))
    for start in range(0, candidate.num_params, 2**22):  # in float64, a part at a time
        part = rows[:, start : start + 2**22].astype(np.float64)
        dense += part @ part.T
    assert relative_difference(kernel.theta, dense) < 1e-5
    assert np.linalg.eigvalsh(dense).min() > 0


def test_all_of_a_text_is_read_and_the_bytes_of_its_target_are_scored(name, candidate):
    examples = lens.load_task("pydoc").test
    more = [Example(f"{e.target}\n  ", f"  {e.prompt} 🎉 naïve") for e in examples[:200]]
    encoded = encode_causal([*examples, *more], candidate.tokenizer)
    head = {"published/gemma-3-270m": ["<bos>"]}.get(name, [])  # which it was trained with
    for i, example in enumerate([*examples, *more]):
        row = encoded.input_ids[i][encoded.attention_mask[i] == 1].tolist()
        assert candidate.tokenizer.convert_ids_to_tokens(row[: len(head)]) == head
        assert candidate.tokenizer.decode(row[len(head) : -1]) == joined(example)[0]
        scored = encoded.labels[i][(encoded.labels[i] != IGNORE) & ~encoded.is_end[i]].tolist()
        assert example.target.strip() in candidate.tokenizer.decode(scored)
        assert encoded.num_target_bytes[i] == len(example.target.encode())


def test_it_is_saved_and_loaded_again(candidate, tmp_path):
    candidate.save(tmp_path)
    saved = lens.load_candidate(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, saved.params, candidate.params)
    for example in lens.load_task("pydoc").test[:20]:
        text = f"{example.prompt} {example.target}"
        assert saved.tokenizer(text)["input_ids"] == candidate.tokenizer(text)["input_ids"]
        ids = candidate.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert candidate.tokenizer.decode(ids) == text
