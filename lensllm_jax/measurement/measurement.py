r"""Measurement: what is paid for one candidate on one task.

Three quantities: the loss before any fine-tuning, the loss after fine-tuning on the first D
examples, and the kernel at the pretrained weights on the first n of them.  All use the same
nested order of examples, so that every smaller subset is a prefix of every larger one.

Example:
    >>> import lensllm_jax as lens
    >>> from lensllm_jax.data.task import Example, build_task
    >>> texts = [Example("", f"the {i} kings of the land") for i in range(12)]
    >>> task = build_task("kings", "a toy", train=texts[:8], validation=texts[8:10],
    ...                   test=texts[10:])
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> config = MeasurementConfig(max_length=16, batch_size=4, max_epochs=1, num_kernel_examples=3)
    >>> measurement = Measurement(c, task, config=config)
    >>> measurement.kernel().theta.shape
    (3, 3)
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.data.encoding import encode_causal, encode_seq2seq
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.data.task import Example, Task
from lensllm_jax.finetune.compute import ComputeConfig, loop_for
from lensllm_jax.finetune.fine_tune import (
    FineTuneConfig,
    FineTuned,
    Progress,
    Splits,
    evaluation_batches,
    fine_tune,
)
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.ntk.candidate import CandidateNtk, candidate_ntk
from lensllm_jax.ntk.loss import ntk_spectrum
from lensllm_jax.typing import Batch


@dataclasses.dataclass(frozen=True)
class MeasurementConfig:
    """Settings of fine-tunes and kernels, the same for every candidate of a run.

    Attributes:
        learning_rate: of AdamW, after warm-up.
        weight_decay: of matrices.
        batch_size: examples a step.
        max_length: tokens of an example, prompt and target; longer prompts are cut.  Of an
            encoder-decoder, tokens of either.
        max_epochs: passes over a subset at most.
        patience: evaluations without a new best after which a fine-tune stops.
        num_validation_examples: how many decide when to stop.
        num_kernel_examples: n of the kernel.
        readout: which output of the model the kernel is of.
        method: how the kernel is computed.
        kernel_block_size: examples of a side in memory at once.
        seed: of the nested order and of the order within passes.
        warmup_steps: steps over which the learning rate rises.
        decay_steps: where its cosine decay ends, in steps, or "all" of a fine-tune; None: no decay.
        clip_norm: largest global gradient norm.
        buckets: lengths to which training batches are cut (tokens).
        compute: how a step is computed.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 32
    max_length: int = 64
    max_epochs: int = 5
    patience: int = 2
    num_validation_examples: int = 256
    num_kernel_examples: int = 64
    readout: str = "target_logprob"
    method: str = "jacobian_contraction"
    kernel_block_size: int = 32
    seed: int = 0
    warmup_steps: int = 10
    decay_steps: int | str | None = None
    clip_norm: float = 1.0
    buckets: tuple[int, ...] = ()
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)

    def __post_init__(self):
        for name in ("max_length", "num_kernel_examples", "num_validation_examples"):
            checks.positive(name, getattr(self, name))
        self.fine_tuning(), self.optimizer()  # their own checks
        if self.batch_size % self.compute.num_micro_batches:
            raise checks.UserError(
                f"`num_micro_batches` must divide the batch size {self.batch_size}, got "
                f"{self.compute.num_micro_batches}"
            )

    def fine_tuning(self) -> FineTuneConfig:
        """When a fine-tune looks and stops."""
        return FineTuneConfig(
            batch_size=self.batch_size, max_epochs=self.max_epochs, patience=self.patience,
            seed=self.seed, buckets=self.buckets,
        )  # fmt: skip

    def optimizer(self) -> OptimizerConfig:
        """The optimiser of a fine-tune."""
        return OptimizerConfig(
            learning_rate=self.learning_rate, weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps, decay_steps=self.decay_steps, clip_norm=self.clip_norm,
        )  # fmt: skip


class Measurement:
    """One candidate on one task; each part is computed when first asked for.

    Attributes:
        candidate: the model.
        task: the text.
        config: the settings.
    """

    def __init__(self, candidate: Candidate, task: Task, *, config: MeasurementConfig):
        self.candidate, self.task, self.config = candidate, task, config

    @functools.cached_property
    def loop(self) -> Loop:
        """The candidate's compiled steps."""
        return loop_for(self.candidate, self.config.optimizer(), compute=self.config.compute)

    @functools.cached_property
    def _order(self) -> np.ndarray:
        return subset_order(len(self.task.train), seed=self.config.seed)

    @functools.cached_property
    def _validation(self) -> Batch:
        return self._encode(self.task.validation[: self.config.num_validation_examples])

    @functools.cached_property
    def _test(self) -> Batch:
        return self._encode(self.task.test)

    def subset(self, size: int) -> Batch:
        """The first ``size`` training examples of the nested order, as token batches.

        Args:
            size: how many, at most all.

        Returns:
            Arrays (size, max_length).

        Raises:
            UserError: if there are fewer.
        """
        if size > len(self.task.train):
            raise checks.UserError(
                f"`size` must be at most {len(self.task.train)} (the training examples of "
                f"{self.task.name}), got {size}"
            )
        return self._encode(self.task.train[i] for i in self._order[:size])

    def splits(self, size: int) -> Splits:
        """The subset of ``size`` examples, validation and test, as token arrays."""
        return Splits(self.subset(size), self._validation, self._test)

    def zero_shot(self) -> float:
        """Test loss before fine-tuning, nats per target token."""
        return self.loop.evaluate(self.candidate.params, evaluation_batches(self._test))

    def fine_tune(
        self, size: int, *, on_progress: Callable[[Progress], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> FineTuned:  # fmt: skip
        """The point of the learning curve at ``size``, with its weights.

        Args:
            size: training examples.
            on_progress: called after each evaluation.
            checkpoint: where to keep what is done so far; see ``finetune.fine_tune``.

        Returns:
            Test loss and what it took, and the weights at the best step.
        """
        return fine_tune(
            self.loop,
            self.candidate.params,
            self.splits(size),
            config=self.config.fine_tuning(),
            on_progress=on_progress,
            checkpoint=checkpoint,
        )

    def kernel(self, *, store: str | Path | None = None) -> CandidateNtk:
        """The exact kernel at the pretrained weights on the first examples of the order.

        Args:
            store: folder that keeps each finished tile, so that a killed run goes on.

        Returns:
            The kernel with all that the NTK loss needs.
        """
        return candidate_ntk(
            self.candidate,
            self.subset(self.config.num_kernel_examples),
            readout=self.config.readout,
            method=self.config.method,
            block_size=self.config.kernel_block_size,
            store=store,
        )

    def _encode(self, examples) -> Batch:
        texts: tuple[Example, ...] = tuple(examples)
        tokenizer, max_length = self.candidate.tokenizer, self.config.max_length
        if not self.candidate.is_encoder_decoder:
            encoded = encode_causal(texts, tokenizer, max_length=max_length)
        else:
            encoded = encode_seq2seq(
                texts,
                tokenizer,
                max_length=max_length,
                # a target is cut where a decoder's would be, which needs one token of context
                max_target_length=max_length - (tokenizer.bos_token_id is None),
                decoder_start_token_id=self.candidate.decoder_start_token_id,
            )
        return encoded.batch(np.arange(len(texts)))


def spectrum_for_law(kernel: CandidateNtk, *, learning_rate: float) -> NtkSpectrum:
    r"""The kernel's spectrum as the law wants it.

    Fine-tuning descends the *mean* loss over examples, for which Eq 9 holds with
    :math:`\Theta / n`: the division enters through the learning rate.

    Args:
        kernel: a symmetric kernel with its residual.
        learning_rate: of the fine-tune, per optimiser step.

    Returns:
        Eigenvalues, squared projections of the residual, and the rate.
    """
    return ntk_spectrum(
        kernel.theta, kernel.residual, learning_rate=learning_rate / kernel.num_examples
    )
