r"""The kernel of a candidate: a language model, a read-out, and batches of text.

.. math:: \Theta_{ij} = \nabla_\theta f(x_i; \theta)^\top \nabla_\theta f(x_j; \theta),
          \qquad f = \text{read-out of the logits}

Example:
    >>> import dataclasses, jax.numpy as jnp, numpy as np
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
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Unpack, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax import checks, padding
from lensllm_jax.ntk import cost
from lensllm_jax.ntk.function import TracedFn, function_of
from lensllm_jax.ntk.gram import KernelOptions, empirical_ntk
from lensllm_jax.ntk.method import NtkMethod, OutputReduction
from lensllm_jax.ntk.readout import Projection, Readout, ReadoutFn
from lensllm_jax.typing import IGNORE, Array, Batch, Params

# Logits in memory at once while f_0 is computed: enough for products at full speed.
LOGITS_BYTES = 32e6


@runtime_checkable
class LanguageModel(Protocol):
    """The attributes of a candidate."""

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
    """A candidate's kernel with what the NTK loss needs; rows are ``batch``."""

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


def candidate_ntk(
    c: LanguageModel,
    batch: Batch,
    batch2: Batch | None = None,
    *,
    readout: Readout | str = Readout.TARGET_LOGPROB,
    label_tokens: Sequence[int] = (),
    projection: Projection | None = None,
    params: Params | None = None,
    **options: Unpack[KernelOptions],
) -> CandidateNtk:
    """The exact kernel of a language model's read-out on batches of text.

    Args:
        c: the model.
        batch: int arrays (n, s): ``input_ids``, ``attention_mask``, ``labels`` (-100 = ignore,
            aligned with ``input_ids`` in a causal model: the shift happens here), and
            ``decoder_input_ids`` for an encoder-decoder.
        batch2: the columns' texts; ``None`` stands for ``batch``.
        readout: which outputs the kernel is of.
        label_tokens: for "label_logits", the tokens that name the classes.
        projection: for "projected_logits"; ``None`` stands for ``Projection()``.
        params: another state of the model, such as a step of its training.
        **options: ``method``, ``output_reduction``, ``parameters`` and the members of
            ``Execution`` as for ``empirical_ntk``.

    Returns:
        The kernel with f_0, y and what it cost.

    Raises:
        UserError: if a batch lacks a key, has unequal shapes, an id or label outside the vocabulary
            or an example without target; if ``label_tokens`` or ``projection`` do not fit
            the read-out; or if the kernel is not finite.
    """
    start = time.perf_counter()
    readout = Readout(checks.one_of("readout", readout, list(Readout)))
    params = c.params if params is None else params
    f = ReadoutFn(
        c.apply_fn, readout, not c.is_encoder_decoder, tuple(map(int, label_tokens)), projection
    )
    _check_readout(f)
    for name, texts in (("batch", batch), ("batch2", batch2)):
        if texts is not None:
            _check_batch(name, texts, c.is_encoder_decoder)
            _check_ids(name, texts, f, params)
            _check_labels(name, texts, f, params)
    batch = dict(batch)
    sides = (batch,) if batch2 is None else (batch, dict(batch2))
    traced = TracedFn.of(f, params, *sides)
    theta = empirical_ntk(traced, params, *sides, **options)
    outputs = _outputs(traced, params, batch, options.get("block_size"))
    return CandidateNtk(
        theta=theta,
        outputs=outputs,
        targets=f.targets(batch, _vocabulary(f, params, batch), outputs.dtype),
        readout=readout,
        label_tokens=f.label_tokens,
        projection=f.projection,
        method=NtkMethod(options.get("method", NtkMethod.STRUCTURED)),
        output_reduction=OutputReduction(options.get("output_reduction", OutputReduction.NONE)),
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
    parameters: str | None = None,
    block_size: int | None = None,
    timed: bool = True,
) -> cost.NtkCost:
    """What ``candidate_ntk`` of a batch will cost.

    Args:
        c: the model.
        batch_shape: (n, s), examples and tokens of each.
        method: the algorithm.
        readout: which outputs the kernel is of.
        label_tokens: for "label_logits".
        parameters: of which the kernel is; ``None`` takes all.
        block_size: side of a tile in examples; ``None`` takes one tile.
        timed: estimate seconds; parts of the kernel are compiled and run for it, which takes about
            5 processor seconds for 135 M parameters.

    Returns:
        Bytes, operations and, if ``timed``, seconds; docs/kernel.md compares them with measured
        ones.

    Raises:
        UserError: if a setting makes no sense, or, if ``timed``, a value is not finite.
    """
    n, s = (int(checks.positive("batch_shape", length)) for length in batch_shape)
    ids = np.ones((n, s), np.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": ids}
    if c.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    wanted = Readout(checks.one_of("readout", readout, list(Readout)))
    f = ReadoutFn(c.apply_fn, wanted, not c.is_encoder_decoder, tuple(map(int, label_tokens)))
    _check_readout(f)
    of_some = function_of(f, c.params, parameters)
    return cost.ntk_cost(
        of_some,
        c.params,
        batch,
        method=method,
        block_size=block_size,
        forward_passes=1,
        timed=timed,
    )


def peak_bytes() -> int:
    """Largest resident memory of this process since it started, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage(2) would count the memory of the parent process before the exec
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _outputs(f: TracedFn, params: Params, batch: Batch, block_size: int | None) -> np.ndarray:
    """f_0 (n, k), block by block, so that a kernel within its memory stays there."""
    n = len(batch["labels"])
    logits = jax.eval_shape(cast(ReadoutFn, f.f).apply_fn, params, batch)
    example_bytes = math.prod(logits.shape[1:]) * logits.dtype.itemsize
    block = min(n, max(1, int(LOGITS_BYTES / example_bytes)), block_size or n)
    outputs = padding.map_blocks(lambda x: _jitted(f, params, x), batch, block)
    return checks.finite("outputs", outputs.reshape(n, -1))


def _call(f: TracedFn, params: Params, batch: Batch) -> Array:
    return f(params, batch)


_jitted = jax.jit(_call, static_argnums=0)


def _check_readout(f: ReadoutFn) -> None:
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


def _check_batch(name: str, batch: Mapping, is_encoder_decoder: bool) -> None:
    wanted = {"input_ids", "attention_mask", "labels"}
    wanted |= {"decoder_input_ids"} if is_encoder_decoder else set()
    if missing := sorted(wanted - set(batch)):
        raise checks.UserError(
            f"`{name}` must have the keys {', '.join(sorted(wanted))}, got none named "
            f"{', '.join(missing)}"
        )
    for key in sorted(wanted):
        shape = np.shape(batch[key])
        dtype = getattr(batch[key], "dtype", type(batch[key]))  # a list has none
        if len(shape) != 2 or 0 in shape or not np.issubdtype(dtype, np.integer):
            raise checks.UserError(
                f"`{name}[{key!r}]` must be integers (b, s), at least one, got {dtype} {shape}"
            )
    for key in sorted(set(batch) - wanted):  # such as the texts beside their tokens
        dtype = np.asarray(batch[key]).dtype
        if not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"):
            raise checks.UserError(
                f"`{name}[{key!r}]` must be numbers, got {dtype}: leave it out of the batch"
            )
    for key, like in (("attention_mask", "input_ids"), ("labels", _labels_like(wanted))):
        checks.shape(f"{name}[{key!r}]", batch[key], np.shape(batch[like]))


def _vocabulary(f: ReadoutFn, params: Params, batch: Batch) -> int:
    return jax.eval_shape(f.apply_fn, params, dict(batch)).shape[-1]


def _labels_like(keys: set[str]) -> str:
    return "decoder_input_ids" if "decoder_input_ids" in keys else "input_ids"


def _check_ids(name: str, batch: Batch, f: ReadoutFn, params: Params) -> None:
    vocabulary = _vocabulary(f, params, batch)
    for key in ("input_ids", "decoder_input_ids"):
        ids = np.asarray(batch.get(key, 0))
        if outside := np.argwhere((ids < 0) | (ids >= vocabulary)).tolist():
            raise checks.UserError(
                f"`{name}[{key!r}]` must be tokens from 0 to {vocabulary - 1} (the vocabulary), "
                f"got {ids[tuple(outside[0])]} at {tuple(outside[0])} (example, position)"
            )


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
    without = np.flatnonzero(np.all(labels[:, int(f.shift) :] == IGNORE, axis=1))
    if len(without):
        raise checks.UserError(
            f"`{name}['labels']` must hold a target token in every example, got none in example "
            f"{without[0]}: drop it, or truncate the input less"
        )
