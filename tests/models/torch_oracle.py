"""Hugging Face's PyTorch models with random weights, and how far ours are from them."""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.weights import checkpoint_tensors
from tests.models.variants import batch, weight
from tests.tolerances import relative_difference

torch = pytest.importorskip("torch", reason="PyTorch is the parity oracle")
transformers = pytest.importorskip("transformers")


class Float64Throughout(torch.overrides.TorchFunctionMode):
    """Lets no operation of a float64 model fall back to float32.

    Hugging Face computes norms, softmax and rotations in float32 whatever the model's type;
    an oracle to 1e-10 must not.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        widened = [torch.float64 if a is torch.float32 else a for a in args]
        settings = {
            k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()
        }
        return function(*widened, **settings)


@contextlib.contextmanager
def computing_in(dtype):
    """Everything that PyTorch makes or computes inside has ``dtype``, a name."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with Float64Throughout() if dtype == "float64" else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


def auto_class(config):
    """Hugging Face's class of models with a language modelling head."""
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def random_model(attributes, dtype="float32"):
    """A PyTorch model of a tiny config; its weights are the same in every type."""
    attributes = dict(attributes)
    config = transformers.AutoConfig.for_model(attributes.pop("model_type"), **attributes)
    model = auto_class(config).from_config(config, dtype=getattr(torch, dtype)).eval()
    separate_untied_head(model, attributes)
    with torch.no_grad():
        for name, parameter in (*model.named_parameters(), *constants(model)):
            # biases and norms would start at 0 and 1, where errors hide
            centre = parameter.mean().item() if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.tensor(weight(name, tuple(parameter.shape), centre)))
    return model


def separate_untied_head(model, attributes):
    """Gives an untied encoder-decoder a head of its own, and both stacks one table.

    Hugging Face ties the head of a new T5 whatever its config says (a loaded one keeps the
    head of its checkpoint), and gives the stacks of an untied BART a table each, which no
    published checkpoint has.  A UMT5 scales the states before any head while its config says
    tied, which its class always does, and no checkpoint with a head of its own was trained so.
    """
    if not model.config.is_encoder_decoder or attributes.get("tie_word_embeddings", True):
        return
    model.config.tie_word_embeddings = False
    body = getattr(model, "model", model)
    for stack in (body.encoder, body.decoder):
        stack.embed_tokens.weight = body.shared.weight
    model.lm_head.weight = torch.nn.Parameter(body.shared.weight.detach().clone())


def constants(model):
    """The tensors of a checkpoint that are not trained."""
    return [(name, b) for name, b in model.named_buffers() if name == "final_logits_bias"]


def logits_and_loss(model, data):
    """The model's logits, and the mean cross entropy over target tokens."""
    tensors = {name: torch.tensor(np.asarray(values)).long() for name, values in data.items()}
    # an encoder-decoder makes the decoder's input of the labels
    labels = tensors["labels"] if model.config.is_encoder_decoder else tensors.pop("labels")
    logits = model(**tensors).logits
    # PyTorch's own loss of these models is float32 whatever the model is
    predicting = logits if model.config.is_encoder_decoder else logits[:, :-1]
    labels = labels if model.config.is_encoder_decoder else labels[:, 1:]
    return logits, torch.nn.functional.cross_entropy(predicting.flatten(0, 1), labels.flatten())


def logits_of_folder(folder, data, attributes=None) -> np.ndarray:
    """PyTorch's logits of the checkpoint in ``folder``, in float64.

    In float32 PyTorch's own rounding of a T5, whose attention is not scaled, is over 1e-5.

    Args:
        folder: the checkpoint.
        data: a batch.
        attributes: of the config, where its class overwrites what it says of the head.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    with computing_in("float64"), torch.no_grad():
        model = auto_class(config).from_pretrained(folder, dtype=torch.float64).eval()
        if attributes is not None and not attributes.get("tie_word_embeddings", True):
            model.config.tie_word_embeddings = False  # UMT5 scales by it
        return logits_and_loss(model, data)[0].numpy()


def our_loss(params, candidate, data):
    """The same loss of one of ours, written out here so as not to share code."""
    shift = 0 if candidate.is_encoder_decoder else 1
    logits = candidate.apply_fn(params, data)
    logits, labels = logits[:, : logits.shape[1] - shift], data["labels"][:, shift:]
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(labels >= 0, picked, 0.0)) / jnp.sum(labels >= 0)


class Answer(NamedTuple):
    """What a model says of a batch."""

    logits: np.ndarray  # at real tokens: those at padding mean nothing
    loss: float
    gradients: dict[str, np.ndarray]  # of the loss, under PyTorch's names


def real_tokens(data, is_encoder_decoder):
    """Where logits mean something."""
    return slice(None) if is_encoder_decoder else np.asarray(data["attention_mask"]) == 1


def torch_answer(attributes, dtype, data, folder=None) -> Answer:
    """PyTorch's, of a tiny config; the checkpoint is kept in ``folder``."""
    with computing_in(dtype):
        model = random_model(attributes, dtype)
        if folder is not None:
            model.save_pretrained(folder)
        logits, loss = logits_and_loss(model, data)
        loss.backward()
    return Answer(
        logits.detach().numpy()[real_tokens(data, model.config.is_encoder_decoder)],
        loss.item(),
        {name: p.grad.numpy() for name, p in model.named_parameters()},
    )


def our_answer(folder, dtype, data) -> Answer:
    """Ours, of the checkpoint in ``folder``."""
    candidate = load_folder(folder, dtype=dtype)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: our_loss(p, candidate, data)))(
        candidate.params
    )
    family, config = candidate.family, candidate.config
    gradients = dict(checkpoint_tensors(gradient, family, config, offset=False))
    for name in [name for name in gradients if name == "final_logits_bias"]:
        assert not gradients.pop(name).any()  # never trained
    logits = np.asarray(jax.jit(candidate.apply_fn)(candidate.params, data))
    real = real_tokens(data, candidate.is_encoder_decoder)
    return Answer(logits[real], float(loss), gradients)


class Difference(NamedTuple):
    """Largest differences between two answers, relative to the largest magnitude."""

    logits: float
    loss: float
    gradient: float  # over all tensors: single ones may have gradients that are rounding alone

    @classmethod
    def between(cls, got: Answer, expected: Answer) -> "Difference":
        assert set(got.gradients) == set(expected.gradients)
        scale = max(np.abs(g).max() for g in expected.gradients.values())
        apart = (np.abs(got.gradients[n] - g).max() for n, g in expected.gradients.items())
        return cls(
            logits=relative_difference(got.logits, expected.logits),
            loss=relative_difference(got.loss, expected.loss),
            gradient=max(apart) / scale,
        )


def difference(attributes, dtype, folder, data=None) -> Difference:
    """How far our model of a tiny config is from PyTorch's, in one type.

    Args:
        attributes: Hugging Face's.
        dtype: "float32" or "float64" (which needs JAX's x64 mode).
        folder: where to keep the checkpoint.
        data: a batch (default: ``batch()``, padded left and right).
    """
    data = batch() if data is None else data
    theirs = torch_answer(attributes, dtype, data, folder)
    return Difference.between(our_answer(folder, dtype, data), theirs)


def rounding(attributes, folder, data) -> tuple[Difference, Difference]:
    """How far ours and PyTorch's, both in float32, are from PyTorch's in float64.

    Both round: between the two float32s stands the sum, which differs with the machine.
    """
    theirs = torch_answer(attributes, "float32", data, folder)
    exact = torch_answer(attributes, "float64", data)
    ours = our_answer(folder, "float32", data)
    return Difference.between(ours, exact), Difference.between(theirs, exact)
