r"""Features of a frozen model: its state where it is about to write the target's first token.

`logme` asks how well a linear model of such features predicts the labels.  A generated text has no
label, and candidates do not share their tokens, so a label here is the target's first *word*: one
of the most common, or none of them.  The feature of an example is the state :math:`h` that the
head reads, :math:`z = W_{\mathrm{head}} h`, at the position whose logits predict the first target
token; it takes one forward pass and no gradient.

Example:
    >>> import lensllm_jax as lens
    >>> from lensllm_jax.data.encoding import encode_causal
    >>> from lensllm_jax.data.task import Example
    >>> texts = [Example("Two and two?", "four in all"), Example("Two by two?", "four again")]
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> batch = encode_causal(texts, c.tokenizer).batch(np.arange(2))
    >>> first_target_states(c, batch).shape
    (2, 64)
    >>> first_word_classes(texts, num_words=1).tolist()
    [0, 0]
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lensllm_jax import checks, padding
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.data.task import Example
from lensllm_jax.typing import IGNORE, Batch, Params

BLOCK = 64  # examples per forward pass


def _head_inputs(candidate: Candidate, params: Params, batch: Batch) -> Float[Array, "b u d"]:
    """The states that the head, tied or not, turns into logits, one per position of those."""
    states: list[Array] = []

    def interceptor(call: Any, arguments: tuple, keywords: dict, context: Any) -> Any:
        tied = context.method_name == "attend"
        if tied or (context.module.name == "head" and context.method_name == "__call__"):
            states.append(arguments[0])
        return call(*arguments, **keywords)

    with nn.intercept_methods(interceptor):
        b, u = candidate.apply_fn(params, batch).shape[:2]
    assert len(states) == 1, "every model has one head, and calls it once"
    return states[0].reshape(b, u, -1)


def first_target_states(
    candidate: Candidate, batch: Batch, *, block_size: int = BLOCK
) -> Float[np.ndarray, "n d"]:
    """The head's input where each example's first target token is predicted.

    Args:
        candidate: the model, at its own weights.
        batch: of n examples, each with a label.
        block_size: examples per forward pass; one compilation serves all.

    Raises:
        UserError: if there is no example.
        FloatingPointError: if a state is not finite.
    """
    count = len(batch["labels"])
    checks.positive("count", count)
    checks.positive("block_size", block_size)

    @jax.jit
    def states(params: Params, rows: Batch) -> Float[Array, "b d"]:
        position = jnp.argmax(rows["labels"] != IGNORE, axis=1)  # argmax gives the first True
        if not candidate.is_encoder_decoder:
            position = position - 1  # logits predict the next label
        hidden = _head_inputs(candidate, params, rows)
        return jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]

    examples = {key: np.asarray(values) for key, values in batch.items()}
    features = padding.map_blocks(lambda x: states(candidate.params, x), examples, block_size)
    if not np.all(np.isfinite(features)):
        raise FloatingPointError(f"{candidate.name}: a state before the head is not finite")
    return features


def first_word_classes(examples: Sequence[Example], *, num_words: int) -> Int[np.ndarray, " n"]:
    """Which of the ``num_words`` most common first words each target begins with.

    Returns:
        0 for the most common word, and so on, ties by the alphabet; ``num_words`` for all others.
    """
    checks.positive("num_words", num_words)
    words = [(example.target.split() or [""])[0].lower() for example in examples]
    counts = Counter(words)
    common = sorted(counts, key=lambda word: (-counts[word], word))[:num_words]
    class_of = {word: i for i, word in enumerate(common)}
    return np.array([class_of.get(word, num_words) for word in words])
