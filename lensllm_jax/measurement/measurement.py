r"""Measurement: the losses and the kernel of one candidate on one task.

The loss before fine-tuning, the loss after fine-tuning on the first D examples, and the kernel at
the pretrained weights on the first n of them.  All use one nested order of the training examples:
every smaller subset is a prefix of every larger one.

Example:
    >>> import lensllm_jax as lens
    >>> from lensllm_jax.data.task import Example, build_task
    >>> texts = [Example("", f"the {i} kings of the land") for i in range(12)]
    >>> task = build_task("kings", "a toy", train=texts[:8], validation=texts[8:10],
    ...                   test=texts[10:])
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> config = MeasurementConfig(batch_size=4, max_epochs=1, num_kernel_examples=3)
    >>> measurement = Measurement(c, task, config=config)
    >>> measurement.kernel().theta.shape
    (3, 3)
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.data.buckets import few_lengths, without_padding
from lensllm_jax.data.encoding import EncodedExamples
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.data.task import Example, Task
from lensllm_jax.finetune import lora
from lensllm_jax.finetune.compute import (
    FULL,
    ComputeConfig,
    Start,
    loop_for,
    start_of,
    whole_params,
)
from lensllm_jax.finetune.evaluation import Evaluation, EvaluationBatches
from lensllm_jax.finetune.fine_tune import (
    FineTuneConfig,
    FineTuned,
    Progress,
    Splits,
    evaluated,
    fine_tune,
    trained,
)
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.rates import AUTO, LADDER, LORA_LADDER, Trial, first_rung
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.finetune.search import SearchGrid, SearchProgress, SearchResult, search_rates
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.measurement.rows import RowLengths, encode_rows, row_lengths
from lensllm_jax.ntk.candidate import CandidateNtk, candidate_ntk
from lensllm_jax.ntk.loss import ntk_spectrum
from lensllm_jax.ntk.store import TileMap
from lensllm_jax.typing import Batch, Params

_FEWEST_VALIDATION = 64  # records


@dataclasses.dataclass(frozen=True)
class MeasurementConfig:
    """Settings of fine-tunes and kernels, the same for every candidate of a run."""

    learning_rate: float | str = 1e-3  # of AdamW, per step, after warm-up; "auto": searched
    weight_decay: float = 0.01  # of matrices
    batch_size: int = 32  # examples per step
    chat_template: str = "none"  # or "auto": a decoder that has one reads conversations
    max_epochs: int = 5  # passes over a subset at most, in whole calls of 8 steps
    patience: int = 2  # evaluations without a new best after which a fine-tune stops
    num_validation_examples: int | None = None  # decide when to stop: see validation_size
    num_kernel_examples: int = 64  # n of the kernel
    readout: str = "target_logprob"  # output of the model that the kernel is of
    method: str = "structured"  # by which the kernel is computed
    kernel_parameters: str | None = None  # globs of those that the kernel is of; None: of all
    kernel_block_size: int = 32  # examples of a tile's side
    seed: int = 0  # of the nested order, and of the order within passes
    warmup_steps: int = 10  # over which the learning rate rises
    decay_steps: int | str | None = None  # where its cosine decay ends; "all" of a fine-tune
    clip_norm: float = 1.0  # largest global gradient norm
    buckets: tuple[int, ...] | None = None  # tokens, see FineTuneConfig; None: few_lengths
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)

    def __post_init__(self):
        checks.positive("num_kernel_examples", self.num_kernel_examples)
        if self.num_validation_examples is not None:
            checks.positive("num_validation_examples", self.num_validation_examples)
        checks.one_of("chat_template", self.chat_template, ("none", "auto"))
        if self.learning_rate != AUTO and not isinstance(self.learning_rate, numbers.Real):
            raise checks.UserError(
                f"`learning_rate` must be one rate or {AUTO}, got {self.learning_rate!r}"
            )
        known = self.at(LADDER[0]) if self.learning_rate == AUTO else self
        for part in (known.fine_tuning, known.optimizer):
            part()  # raises UserError here, not in the first fine-tune
        self.compute.check_batch(self.batch_size)

    def validation_size(self, size: int) -> int:
        """Validation records, at most, that decide when a fine-tune on ``size`` examples stops.

        By default an eighth of the subset, 64 at least: a pass over them twice an epoch then costs
        a twelfth of the epoch's steps.
        """
        return self.num_validation_examples or max(size // 8, _FEWEST_VALIDATION)

    @property
    def rates(self) -> tuple[float, ...]:
        """Those that a search chooses from."""
        return LADDER if self.compute.tune == FULL else LORA_LADDER

    def at(self, learning_rate: float) -> "MeasurementConfig":
        """These settings with a rate."""
        return dataclasses.replace(self, learning_rate=learning_rate)

    def fine_tuning(self, lengths: tuple[int, ...] = ()) -> FineTuneConfig:
        """When a fine-tune evaluates and stops; ``lengths`` are the buckets where none are set."""
        return FineTuneConfig(
            batch_size=self.batch_size, max_epochs=self.max_epochs, patience=self.patience,
            seed=self.seed, buckets=lengths if self.buckets is None else self.buckets,
        )  # fmt: skip

    def optimizer(self) -> OptimizerConfig:
        """The optimizer of a fine-tune."""
        return OptimizerConfig(
            learning_rate=cast(float, self.learning_rate), weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps, decay_steps=self.decay_steps, clip_norm=self.clip_norm,
            moments_dtype=self.compute.moments_dtype,
        )  # fmt: skip


class Measurement:
    """One candidate on one task; each part is computed when first needed.

    Attributes:
        candidate: the model.
        task: the text.
        config: the settings.
    """

    def __init__(
        self, candidate: Candidate, task: Task, *, config: MeasurementConfig,
        loop: Loop | None = None,
    ):  # fmt: skip
        if config.learning_rate == AUTO:  # before a search: what the size suggests
            config = config.at(config.rates[first_rung(candidate.num_params)])
        self.candidate, self.task, self.config = candidate, task, config
        self._compiled = loop  # by an earlier measurement

    @functools.cached_property
    def _start(self) -> Start:
        return start_of(self.candidate, self.config.compute, seed=self.config.seed)

    @property
    def learning_rate(self) -> float:
        """Of the settings; where they say "auto", what the number of parameters suggests."""
        return cast(float, self.config.learning_rate)

    @functools.cached_property
    def loop(self) -> Loop:
        """Compiled steps with these settings, beside the weights that they do not train."""
        loop = self._compiled or loop_for(
            self.candidate, self.config.optimizer(), compute=self.config.compute
        )
        loop = loop.at(self.learning_rate)
        return loop.beside(self._start.frozen) if self._start.frozen else loop

    @functools.cached_property
    def lengths(self) -> RowLengths:
        """Of every row, in this candidate's tokens: those that hold the whole task.

        Raises:
            UserError: if it has fewer positions, or cannot read a record.
        """
        return row_lengths(self.task, self.candidate, chat_template=self.config.chat_template)

    def _validation(self, size: int) -> Batch:
        """The first records of the validation split, as many as ``size`` deserves."""
        examples = self.task.validation[: self.config.validation_size(size)]
        return _scored(self._encode(examples))

    @functools.cached_property
    def _test(self) -> Batch:
        return _scored(self._encode(self.task.test))

    @functools.cached_property
    def _fine_tuning(self) -> FineTuneConfig:
        """Buckets by the test records: they are those of every subset, and none compiles anew."""
        return self.config.fine_tuning(few_lengths(self._test))

    @functools.cached_property
    def _order(self) -> np.ndarray:
        return subset_order(len(self.task.train), seed=self.config.seed)

    def subset(self, size: int) -> Batch:
        """Token batches (size, s) of the first training examples of the nested order.

        Raises:
            UserError: if the task has fewer than ``size``.
        """
        if size > len(self.task.train):
            raise checks.UserError(
                f"`size` must be at most {len(self.task.train)} (the training examples of "
                f"{self.task.name}), got {size}"
            )
        encoded = self._encode([self.task.train[i] for i in self._order[:size]])
        return encoded.batch(np.arange(size))

    def kernel_texts(self, size: int) -> Batch:
        """The subset of ``size`` examples without the positions that none of them needs."""
        return without_padding(self.subset(size))

    def splits(self, size: int) -> Splits:
        """The subset of ``size`` examples, validation and test, as token batches."""
        return Splits(self.subset(size), self._validation(size), self._test)

    def zero_shot(self, *, rival: Float[np.ndarray, "2 n"] | None = None) -> Evaluation:
        """The test losses before fine-tuning; ``rival`` as in ``evaluated``."""
        params = self.loop.place(self._start.params)
        return evaluated(self.loop, params, self._test, rival=rival)

    def objective(self, params: Params) -> float:
        """What steps descend, on the test split: nats per target token, the end token included."""
        return self.loop.objective(params, EvaluationBatches.of(self._test).batches)

    def fine_tune(
        self, size: int, *, on_progress: Callable[[Progress], None] | None = None,
        checkpoint: Checkpoint | None = None, rival: Float[np.ndarray, "2 n"] | None = None,
    ) -> FineTuned:  # fmt: skip
        """The point of the learning curve at ``size`` training examples, with its weights."""
        return fine_tune(
            self.loop, self._start.params, self.splits(size), config=self._fine_tuning,
            on_progress=on_progress, checkpoint=checkpoint, rival=rival,
        )  # fmt: skip

    def trial(self, size: int) -> Callable[[float, Callable[[Progress], None]], Trial]:
        """The validation loss of a rate after training on ``size`` examples, which it shows."""
        splits, config = self.splits(size), self._fine_tuning

        def of(rate: float, on_progress: Callable[[Progress], None]) -> Trial:
            try:
                found = trained(
                    self.loop.at(rate), self._start.params, splits, config=config,
                    on_progress=on_progress,
                )  # fmt: skip
            except FloatingPointError:
                return Trial(rate, math.inf, 0)
            return Trial(rate, found.best_loss, found.num_tokens)

        return of

    def search(
        self, size: int, grid: SearchGrid, *,
        on_progress: Callable[[SearchProgress], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> SearchResult:  # fmt: skip
        """Every rate and batch size on ``size`` examples, compared by validation loss."""
        return search_rates(
            self.loop, self._start.params, self.splits(size), grid,
            config=self._fine_tuning, on_progress=on_progress, checkpoint=checkpoint,
        )  # fmt: skip

    def save(self, params: Params, folder: Path, *, adapter: bool = False) -> None:
        """Writes a fine-tune's parameters as a folder that Hugging Face and ``lens`` load.

        Args:
            params: those that were trained.
            folder: where to; made if absent.
            adapter: LoRA's updates alone, as PEFT does; by default they are merged.
        """
        if adapter:
            lora.save_adapter(self.candidate, params, folder)
        else:
            whole = whole_params(self.candidate, self.config.compute, params)
            self.candidate.save(folder, params=whole)

    def kernel(
        self, *, store: str | Path | None = None, map_tiles: TileMap | None = None
    ) -> CandidateNtk:
        """The exact kernel at the pretrained weights on the first examples of the order.

        Args:
            store: folder of finished tiles, from which a killed run resumes.
            map_tiles: where its tiles are computed.
        """
        return candidate_ntk(
            self.candidate,
            self.kernel_texts(self.config.num_kernel_examples),
            readout=self.config.readout,
            method=self.config.method,
            parameters=self.config.kernel_parameters,
            block_size=self.config.kernel_block_size,
            store=store,
            map_tiles=map_tiles,
        )

    def _encode(self, texts: Sequence[Example]) -> EncodedExamples:
        chat_template = self.config.chat_template
        return encode_rows(texts, self.candidate, self.lengths, chat_template=chat_template)


def _scored(encoded: EncodedExamples) -> Batch:
    """All rows, with what a loss per byte needs."""
    return encoded.scored_batch(np.arange(len(encoded)))


def spectrum_for_law(kernel: CandidateNtk, *, learning_rate: float) -> NtkSpectrum:
    """The kernel's spectrum for Eq 9 of a fine-tune at ``learning_rate`` per step.

    Fine-tuning descends the *mean* loss over n examples, which divides the rate by n.
    """
    return ntk_spectrum(
        kernel.theta, kernel.residual, learning_rate=learning_rate / kernel.num_examples
    )
