r"""The kernel of a candidate: a language model, a read-out, and batches of text.

.. math:: \Theta_{ij} = \nabla_\theta f(x_i; \theta)^\top \nabla_\theta f(x_j; \theta),
          \qquad f = \text{read-out of the logits}

Example:
    >>> import dataclasses, jax.numpy as jnp, numpy as np
    >>> from lensllm_jax.ntk.candidate import candidate_ntk
    >>> @dataclasses.dataclass(frozen=True)
    ... class Bigram:  # any object with these three attributes is a candidate
    ...     params: object
    ...     is_encoder_decoder: bool = False
    ...     def apply_fn(self, params, batch):
    ...         return params[batch["input_ids"]]
    >>> ids = np.array([[1, 2, 0], [1, 0, 2]])
    >>> batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    >>> k = candidate_ntk(Bigram(jnp.zeros((3, 3))), batch)
    >>> k.theta.shape, k.outputs.round(3).tolist(), k.targets.tolist()
    ((2, 2), [[-1.099], [-1.099]], [[0.0], [0.0]])
"""

import dataclasses
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lensllm_jax import checks, padding
from lensllm_jax.ntk import cost
from lensllm_jax.ntk import readout as readouts
from lensllm_jax.ntk.gram import empirical_ntk, num_examples
from lensllm_jax.ntk.method import NtkMethod, OutputReduction
from lensllm_jax.ntk.readout import Projection, Readout
from lensllm_jax.typing import IGNORE, ApplyFn, Array, Batch, Params

# Logits held at once while f_0 is read: enough for products at full speed, little beside a kernel.
LOGITS_BYTES = 32e6


@runtime_checkable
class LanguageModel(Protocol):
    """What a candidate must offer."""

    @property
    def params(self) -> Params:
        """Its parameter tree."""
        ...

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether logits at a position predict that position's label (else the next one's)."""
        ...

    def apply_fn(self, params: Params, batch: Batch, /) -> Any:
        """Logits (b, s, v)."""
        ...


@dataclasses.dataclass(frozen=True)
class CandidateNtk:
    """A candidate's kernel with all that the NTK loss needs; rows are ``batch``."""

    theta: np.ndarray  # (n, m), or (n, m, k, k) where k > 1 outputs are not reduced
    outputs: np.ndarray  # f_0 of the rows (n, k)
    targets: np.ndarray  # y of the rows (n, k)
    readout: Readout  # what f is
    label_tokens: tuple[int, ...]  # of label_logits, else empty
    projection: Projection | None  # of projected_logits, else None
    method: NtkMethod  # how theta was computed
    output_reduction: OutputReduction  # what became of the k x k outputs of a pair
    num_examples: int  # n, rows
    num_columns: int  # m
    seconds: float  # wall time, compilation included
    peak_bytes: int  # largest resident memory of the process so far

    @property
    def residual(self) -> np.ndarray:
        """f_0 - y, (n,) for one output and (n, k) for more."""
        difference = self.outputs - self.targets
        return difference[:, 0] if difference.shape[1] == 1 else difference


@dataclasses.dataclass(frozen=True)
class ReadoutFn:
    """``f(params, batch) -> (n,) | (n, k)``: a read-out after a model.

    Two of them are equal where their fields are, so that a program compiled for one serves
    the other.
    """

    apply_fn: ApplyFn  # params, batch -> logits
    readout: Readout
    shift: bool  # logits at position i predict label i + 1
    label_tokens: tuple[int, ...] = ()  # of label_logits
    projection: Projection | None = None  # of projected_logits, which has one by default

    def __post_init__(self):
        if self.readout is Readout.PROJECTED_LOGITS and self.projection is None:
            object.__setattr__(self, "projection", Projection())  # the way of frozen dataclasses

    def __call__(self, params: Params, batch: Batch) -> Array:
        """The outputs of each example of ``batch``."""
        logits = self.apply_fn(params, batch)
        return jax.vmap(self.of_one)(logits, batch["labels"])

    def of_one(self, logits: Array, labels: Array) -> Array:
        """The outputs of one example from its logits (s, v) and labels (s,)."""
        if self.readout is Readout.LABEL_LOGITS:
            tokens = jnp.asarray(self.label_tokens)
            return readouts.label_logits(logits, labels, tokens, shift=self.shift)
        if self.projection is not None:
            return readouts.projected_logits(logits, labels, self.projection, shift=self.shift)
        scalar = {Readout.LOSS: readouts.loss, Readout.TARGET_LOGPROB: readouts.target_logprob}
        return scalar[self.readout](logits, labels, shift=self.shift)

    def targets(self, batch: Batch, vocabulary: int, dtype: np.dtype) -> Float[np.ndarray, "n k"]:
        """The y of each example; ``vocabulary`` counts the logits of a position."""
        labels = np.asarray(batch["labels"])
        if self.projection is not None:
            projected = readouts.projected_targets(
                labels, vocabulary, self.projection, shift=self.shift
            )
            return projected.astype(dtype)
        if self.readout is Readout.LABEL_LOGITS:
            tokens = np.asarray(self.label_tokens)
            return readouts.one_hot_targets(labels, tokens, shift=self.shift).astype(dtype)
        return np.zeros((num_examples("batch", batch), 1), dtype)


def candidate_ntk(
    c: LanguageModel,
    batch: Batch,
    batch2: Batch | None = None,
    *,
    readout: Readout | str = Readout.TARGET_LOGPROB,
    label_tokens: tuple[int, ...] | list[int] = (),
    projection: Projection | None = None,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    output_reduction: OutputReduction | str = OutputReduction.NONE,
    block_size: int | None = None,
    memory_budget: float | int | None = None,
    devices: Sequence[jax.Device] | None = None,
    store: str | os.PathLike | None = None,
    params: Params | None = None,
) -> CandidateNtk:
    r"""The exact kernel of a language model's read-out on batches of text.

    Args:
        c: the model.
        batch: int arrays (n, s): ``input_ids``, ``attention_mask``, ``labels`` (-100 = ignore,
            aligned with ``input_ids`` in a causal model: the shift happens here), and
            ``decoder_input_ids`` for an encoder-decoder.
        batch2: the columns' texts; ``None`` stands for ``batch``.
        readout: which outputs the kernel is of.
        label_tokens: for "label_logits", the tokens that name the classes.
        projection: for "projected_logits", how many, and their seed; ``None`` stands for
            ``Projection()``.
        method: the algorithm.
        output_reduction: what becomes of the k x k outputs of a pair of examples.
        block_size: examples in memory at once, a side; ``None`` takes all.
        memory_budget: bytes from which the block size follows instead (``empirical_ntk``).
        devices: for "structured", devices that share the examples (``empirical_ntk``).
        store: folder that keeps each finished tile (``empirical_ntk``).
        params: another state of the model, such as a step of its training (default: ``c.params``).

    Returns:
        The kernel with f_0, y and what it cost.

    Raises:
        UserError: if a batch lacks a key, has unequal shapes, a label outside the vocabulary
            or an example without target; if ``label_tokens`` or ``projection`` do not fit
            the read-out; or if the kernel is not finite.
    """
    start = time.perf_counter()
    readout = Readout(checks.one_of("readout", readout, list(Readout)))
    params = c.params if params is None else params
    f = ReadoutFn(
        c.apply_fn, readout, not c.is_encoder_decoder, tuple(map(int, label_tokens)), projection
    )
    for name, texts in (("batch", batch), ("batch2", batch2)):
        if texts is not None:
            _check_batch(name, texts, c.is_encoder_decoder)
            _check_labels(name, texts, f, params)
    batch = dict(batch)
    theta = empirical_ntk(
        f,
        params,
        batch,
        None if batch2 is None else dict(batch2),
        method=method,
        output_reduction=output_reduction,
        block_size=block_size,
        memory_budget=memory_budget,
        devices=devices,
        store=store,
    )
    outputs = _outputs(f, params, batch, block_size)
    return CandidateNtk(
        theta=theta,
        outputs=outputs,
        targets=f.targets(batch, _vocabulary(f, params, batch), outputs.dtype),
        readout=readout,
        label_tokens=f.label_tokens,
        projection=f.projection,
        method=NtkMethod(method),
        output_reduction=OutputReduction(output_reduction),
        num_examples=theta.shape[0],
        num_columns=theta.shape[1],
        seconds=time.perf_counter() - start,
        peak_bytes=peak_bytes(),
    )


def estimate_ntk_cost(
    c: LanguageModel,
    batch_shape: tuple[int, int],
    *,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    readout: Readout | str = Readout.TARGET_LOGPROB,
    label_tokens: Sequence[int] = (),
    timed: bool = True,
) -> cost.NtkCost:
    """What ``candidate_ntk`` of a batch will cost.

    Args:
        c: the model.
        batch_shape: (n, s), examples and tokens of each.
        method: the algorithm.
        readout: which outputs the kernel is of.
        label_tokens: for "label_logits".
        timed: foretell seconds; parts of the kernel are compiled and run for it, which takes about
            10 seconds for 7 M parameters and 25 for 124 M on 2 cores.

    Returns:
        Bytes, operations and, if ``timed``, seconds; how far they were off is in docs/kernel.md.

    Raises:
        UserError: if a setting makes no sense, or, if ``timed``, a value is not finite.

    Example:
        >>> import lensllm_jax as lens
        >>> c = lens.load_candidate("zoo/gpt2-xs")
        >>> small, large = (lens.estimate_ntk_cost(c, (n, 16), timed=False) for n in (8, 64))
        >>> small.bytes < large.bytes and small.flops < large.flops
        True
    """
    n, s = (int(checks.positive("batch_shape", length)) for length in batch_shape)
    ids = np.ones((n, s), np.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": ids}
    if c.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    wanted = Readout(checks.one_of("readout", readout, list(Readout)))
    f = ReadoutFn(c.apply_fn, wanted, not c.is_encoder_decoder, tuple(map(int, label_tokens)))
    return cost.ntk_cost(f, c.params, batch, method=method, timed=timed)


def peak_bytes() -> int:
    """Largest resident memory of this process since it started, in bytes.

    Returns:
        The operating system's own figure.
    """
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage(2) would count what the process that started this one held before the exec
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _outputs(f: ReadoutFn, params: Params, batch: Batch, block_size: int | None) -> np.ndarray:
    """f_0 (n, k), block by block, so that a kernel within its memory stays there."""
    n = num_examples("batch", batch)
    logits = jax.eval_shape(f.apply_fn, params, batch)
    of_one = math.prod(logits.shape[1:]) * logits.dtype.itemsize
    block = min(n, max(1, int(LOGITS_BYTES / of_one)), block_size or n)
    outputs = padding.map_blocks(lambda x: _jitted(f, params, x), batch, block)
    return checks.finite("outputs", outputs.reshape(n, -1))


def _call(f: ReadoutFn, params: Params, batch: Batch) -> Array:
    return f(params, batch)


_jitted = jax.jit(_call, static_argnums=0)


def _check_batch(name: str, batch: Mapping, is_encoder_decoder: bool) -> None:
    wanted = {"input_ids", "attention_mask", "labels"}
    wanted |= {"decoder_input_ids"} if is_encoder_decoder else set()
    if missing := sorted(wanted - set(batch)):
        raise checks.UserError(
            f"`{name}` must have the keys {', '.join(sorted(wanted))}, got none named "
            f"{', '.join(missing)}"
        )
    for key in wanted:
        if np.ndim(batch[key]) != 2 or not np.issubdtype(batch[key].dtype, np.integer):
            raise checks.UserError(
                f"`{name}[{key!r}]` must be integers (b, s), got {batch[key].dtype} "
                f"{np.shape(batch[key])}"
            )
    for key, like in (("attention_mask", "input_ids"), ("labels", _labels_like(wanted))):
        checks.shape(f"{name}[{key!r}]", batch[key], np.shape(batch[like]))


def _vocabulary(f: ReadoutFn, params: Params, batch: Batch) -> int:
    return jax.eval_shape(f.apply_fn, params, dict(batch)).shape[-1]


def _labels_like(keys: set[str]) -> str:
    return "decoder_input_ids" if "decoder_input_ids" in keys else "input_ids"


def _check_labels(name: str, batch: Batch, f: ReadoutFn, params: Params) -> None:
    labels = np.asarray(batch["labels"])
    vocabulary = _vocabulary(f, params, batch)
    for what, tokens in (
        (f"{name}['labels']", labels[labels != IGNORE]),
        ("label_tokens", np.asarray(f.label_tokens, int)),
    ):
        if outside := tokens[(tokens < 0) | (tokens >= vocabulary)].tolist():
            raise checks.UserError(
                f"`{what}` must be tokens below {vocabulary} (the vocabulary) or {IGNORE}, got "
                f"{outside[0]}"
            )
    if (f.readout is Readout.LABEL_LOGITS) != bool(f.label_tokens):
        raise checks.UserError(
            "`label_tokens` must name the classes' tokens for readout 'label_logits' and stay "
            f"empty for the others, got {f.label_tokens} for {f.readout.value!r}"
        )
    if f.projection is not None and f.readout is not Readout.PROJECTED_LOGITS:
        raise checks.UserError(
            "`projection` must stay out of every readout but 'projected_logits', got "
            f"{f.readout.value!r}"
        )
    without = np.flatnonzero(np.all(labels[:, int(f.shift) :] == IGNORE, axis=1))
    if len(without):
        raise checks.UserError(
            f"`{name}['labels']` must hold a target token in every example, got none in example "
            f"{without[0]}: drop it, or truncate the input less"
        )
