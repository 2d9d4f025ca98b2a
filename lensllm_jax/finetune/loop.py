r"""Loop: optax AdamW (Loshchilov and Hutter, 2019) on token-weighted minibatches.

One compiled call makes several steps, or one pass of a step that has several.  Its shapes are those
of a minibatch, so a candidate compiles once for every subset.  A step descends the mean over all
target tokens of its batch,

.. math:: \frac{1}{\sum_j c_j} \sum_j \ell_j,

with :math:`\ell_j` the summed nats and :math:`c_j` the targets of pass j.  The divisor is counted
from the labels of the whole batch first, so that the sum of the gradients does not depend on how
the batch is split.

Example:
    >>> import lensllm_jax as lens, numpy as np
    >>> from lensllm_jax.finetune.loop import Loop, OptimizerConfig
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> loop = Loop(c.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    >>> ids = np.arange(10, dtype=np.int32)[None, None]  # (steps, b, s)
    >>> batches = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    >>> state, losses = loop.train(loop.start(c.params), batches)
    >>> losses.shape
    (1,)
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.finetune import lora
from lensllm_jax.finetune.evaluation import Evaluation, EvaluationBatches
from lensllm_jax.finetune.moments import with_bfloat16_state
from lensllm_jax.finetune.num_logits import enough, target_counts
from lensllm_jax.finetune.objective import (
    NatsAndCount,
    RecordNats,
    batch_nats_and_count,
    batch_record_nats,
    num_targets,
)
from lensllm_jax.finetune.passes import passes_of
from lensllm_jax.finetune.sharding import Shards
from lensllm_jax.typing import ApplyFn, Array, Batch, Params

_DECAYED = ("kernel", "embedding", lora.A, lora.B)  # matrices; biases and norms never are
MOMENTS_DTYPES = ("float32", "bfloat16")
_POLL_SECONDS = 1e-3
ALL_STEPS = "all"  # the decay ends at the last step that a fine-tune may make


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW.

    Attributes:
        learning_rate: after warm-up.
        weight_decay: of matrices, decoupled.
        warmup_steps: steps of linear rise from 0; without any the first has the whole rate.
        decay_steps: where the cosine decay ends, in steps; "all": at the last step that a
            fine-tune may make; None keeps the rate constant, as early stopping without a known
            end needs.
        clip_norm: largest global gradient norm.
        b2: decay of the second moment.
        moments_dtype: in which both moments are kept between steps.
    """

    learning_rate: float
    weight_decay: float = 0.01
    warmup_steps: int = 10
    decay_steps: int | str | None = None
    clip_norm: float = 1.0
    b2: float = 0.999
    moments_dtype: str = "float32"

    def __post_init__(self):
        checks.one_of("moments_dtype", self.moments_dtype, MOMENTS_DTYPES)
        checks.positive("learning_rate", self.learning_rate)
        checks.positive("clip_norm", self.clip_norm)
        checks.not_negative("weight_decay", self.weight_decay)
        checks.not_negative("warmup_steps", self.warmup_steps)
        if isinstance(self.decay_steps, str):
            checks.one_of("decay_steps", self.decay_steps, (ALL_STEPS,))
        elif self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise checks.UserError(
                f"`decay_steps` must be above `warmup_steps` {self.warmup_steps}, got "
                f"{self.decay_steps}"
            )

    def schedule(self, learning_rate: Any = None, *, last_step: Any = None) -> optax.Schedule:
        """The learning rate as a function of the step.

        Args:
            learning_rate: after warm-up (default: the configured one); may be traced.
            last_step: where a decay over all steps ends; may be traced.

        Raises:
            UserError: if the decay is over all steps and ``last_step`` is not given.
        """
        if learning_rate is not None:
            one = dataclasses.replace(self, learning_rate=1.0)
            fraction = one.schedule(last_step=last_step)
            return lambda step: learning_rate * fraction(step)
        # optax takes no rise over 0 steps
        first = 0.0 if self.warmup_steps else self.learning_rate
        rise = optax.linear_schedule(first, self.learning_rate, max(self.warmup_steps, 1))
        if self.decay_steps is None:
            return rise
        if isinstance(self.decay_steps, int):
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, self.warmup_steps, self.decay_steps
            )
        if last_step is None:
            raise checks.UserError(
                f"`last_step` must be given where `decay_steps` is {ALL_STEPS!r}, got None"
            )
        # over the share of the steps behind the warm-up, for optax wants no traced number of them
        fall = optax.cosine_decay_schedule(1.0, 1)
        steps = jnp.maximum(last_step - self.warmup_steps, 1)
        return lambda step: rise(step) * fall(jnp.maximum(step - self.warmup_steps, 0) / steps)

    def optimizer(
        self, learning_rate: Any = None, *, last_step: Any = None
    ) -> optax.GradientTransformation:
        """Clipping, then AdamW; arguments as those of ``schedule``."""

        def decayed(params: Params) -> Params:
            flat = traverse_util.flatten_dict(params)
            return traverse_util.unflatten_dict({path: path[-1] in _DECAYED for path in flat})

        chain = optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                self.schedule(learning_rate, last_step=last_step),
                b2=self.b2,
                weight_decay=self.weight_decay,
                mask=decayed,
            ),
        )
        return chain if self.moments_dtype == "float32" else with_bfloat16_state(chain)


class TrainState(NamedTuple):
    """What a step changes."""

    params: Params  # those that are trained
    optimizer_state: Any


class Loop:
    """Compiled training and evaluation of one candidate.

    Attributes:
        apply_fn: ``(params, batch) -> logits``; may read ``logits_to_keep``, as a candidate does.
        config: settings of the optimiser.
        shift: whether logits predict the next position's label.
        micro_batches: passes whose gradients make one step.
        shards: of every array over several devices; None where there is one.
        frozen: parameters that ``apply_fn`` reads beside those that are trained.
        num_logits: see ``computing``; empty computes all.
        buckets: see ``computing``; without any, passes have all positions of their batch.
    """

    def __init__(
        self, apply_fn: ApplyFn, config: OptimizerConfig, *, shift: bool,
        micro_batches: int = 1, shards: Shards | None = None,
    ):  # fmt: skip
        self.apply_fn, self.config, self.shift = apply_fn, config, shift
        self.shards = shards
        self.frozen: Params = {}
        self.num_logits: dict[tuple[int, int], int] = {}
        self.buckets: tuple[int, ...] = ()
        self.micro_batches = checks.positive("micro_batches", micro_batches)
        # of its state alone, which no schedule changes
        self._optimizer = config.optimizer(last_step=1)
        self._train = jax.jit(self.steps, donate_argnums=0, static_argnums=5)
        self._add = jax.jit(self.add_pass, donate_argnums=1, static_argnums=5)
        self._update = jax.jit(self.update, donate_argnums=(0, 1))
        self._evaluate = jax.jit(self.record_nats, static_argnums=3)
        self._nats = jax.jit(self.nats)

    def beside(self, frozen: Params) -> "Loop":
        """The same compiled steps, which now read ``frozen`` beside what they train."""
        loop = copy.copy(self)
        if self.shards is None:  # once, where a pass would fetch it from the host each time
            loop.frozen = jax.device_put(frozen, jax.devices()[0])
        else:
            loop.frozen = self.shards.place(frozen)
        return loop

    def computing(
        self, num_logits: dict[tuple[int, int], int], buckets: tuple[int, ...] = ()
    ) -> "Loop":
        """The same compiled steps, with fewer logits and positions.

        Args:
            num_logits: of batches of these shapes (b, s).  Several devices compute all: each
                holds its own rows, and how many targets they have is not known.
            buckets: ascending lengths (tokens) to which the passes of a step are cut.
        """
        loop = copy.copy(self)
        loop.num_logits = num_logits if self.shards is None else {}
        loop.buckets = buckets
        return loop

    def at(self, learning_rate: float) -> "Loop":
        """The same compiled steps, at another rate: it is an input of theirs."""
        loop = copy.copy(self)
        loop.config = dataclasses.replace(self.config, learning_rate=learning_rate)
        return loop

    def start(self, params: Params) -> TrainState:
        """The state before the first step; ``params`` are copied, to float32 at least."""
        state = TrainState(params := self._copied(params), self._optimizer.init(params))
        return self.place(state)

    def _copied(self, params: Params) -> Params:
        """Parameters where and in the type in which they are trained."""

        def copied(leaf):
            dtype = jnp.promote_types(leaf.dtype, jnp.float32)
            # where devices share the work, none of them need hold a whole array
            if self.shards is not None:
                return np.asarray(leaf).astype(dtype)
            return jnp.array(leaf, dtype, copy=True)

        return self.place(jax.tree.map(copied, params))

    def place(self, tree: Any) -> Any:
        """Arrays cut between the devices if there are several."""
        return tree if self.shards is None else self.shards.place(tree)

    def place_batch(self, batch: Batch, *, axis: int) -> Batch:
        """Arrays whose ``axis`` counts examples, cut between the devices if there are several."""
        return dict(batch) if self.shards is None else self.shards.place_batch(batch, axis=axis)

    def last_step(self, max_steps: int) -> np.int32 | None:
        """An input of the step, never compiled in; None where no schedule depends on it."""
        return np.int32(max_steps) if self.config.decay_steps == ALL_STEPS else None

    def train(
        self, state: TrainState, batches: Batch, last_step: np.int32 | None = None
    ) -> tuple[TrainState, Float[Array, " t"]]:
        """Several steps in one call.

        Args:
            state: donated.
            batches: arrays (steps, b, s).
            last_step: see ``last_step()``.

        Returns:
            The state after them, and the loss before each (nats per target token).

        Raises:
            FloatingPointError: if a loss is not finite.
            UserError: if the micro-batches do not divide the batch.
        """
        batch_size = batches["labels"].shape[1]
        if batch_size % self.micro_batches:
            raise checks.UserError(
                f"`micro_batches` must divide the batch size {batch_size}, got {self.micro_batches}"
            )
        rate = self.config.learning_rate
        if self.micro_batches == 1:
            num_logits = self.num_logits_of(batches)
            batches = self.place_batch(batches, axis=1)
            state, losses = self._train(state, batches, rate, last_step, self.frozen, num_logits)
        else:
            state, losses = self.in_passes(
                state, batches, self._add,
                lambda state, gradient: self._update(state, gradient, rate, last_step),
            )  # fmt: skip
        losses = awaited(losses)
        if not np.isfinite(losses).all():
            raise FloatingPointError(
                f"training loss must stay finite, got {losses[~np.isfinite(losses)][0]} at step "
                f"{int(np.argmin(np.isfinite(losses)))} of this call: lower `learning_rate` "
                f"({self.config.learning_rate})"
            )
        return state, losses

    def evaluate(self, params: Params, records: EvaluationBatches) -> Evaluation:
        """The losses of ``records``, in nats per byte of target text.

        Raises:
            FloatingPointError: if one is not finite.
        """
        found = [
            self._evaluate(params, batch, self.frozen, number)
            for batch, number in self.placed(records)
        ]
        return records.evaluation(*(np.concatenate(rows) for rows in zip(*found, strict=True)))

    def placed(self, records: EvaluationBatches) -> Iterator[tuple[Batch, int | None]]:
        """Each batch on its devices, and how many of its logits are computed."""
        for batch in records.batches:
            yield self.place_batch(batch, axis=0), self.num_logits_of(batch)

    def num_logits_of(self, batches: Batch) -> int | None:
        """Those of each of batches (b, s), as many as any has targets at least; None: all."""
        labels = np.asarray(batches["labels"])
        number = self.num_logits.get(labels.shape[-2:])
        if number is None:
            return None
        most = target_counts(labels, shift=self.shift).sum(-1).max()
        number = enough(number, int(most))
        return number if number < math.prod(labels.shape[-2:]) else None

    def objective(self, params: Params, batches: Iterable[Batch]) -> float:
        """What steps descend: the mean over every target token of ``batches`` (b, s), in nats."""
        placed = (self.place_batch(batch, axis=0) for batch in batches)
        sums = [self._nats(params, batch, self.frozen) for batch in placed]
        return sum(float(s.nats) for s in sums) / sum(int(s.num_targets) for s in sums)

    def nats(
        self, params: Params, batch: Batch, frozen: Params, num_logits: int | None = None
    ) -> NatsAndCount:
        """Summed loss of one batch (b, s); pure, to be compiled by its caller."""
        return batch_nats_and_count(
            self.apply_fn, joined(params, frozen), batch, shift=self.shift, num_logits=num_logits
        )

    def record_nats(
        self, params: Params, batch: Batch, frozen: Params, num_logits: int | None = None
    ) -> RecordNats:
        """Losses of each record of one batch (b, s); pure, to be compiled by its caller."""
        return batch_record_nats(
            self.apply_fn, joined(params, frozen), batch, shift=self.shift, num_logits=num_logits
        )

    def steps(
        self, state: TrainState, batches: Batch, rate: Any, last_step: Any, frozen: Params,
        num_logits: int | None = None,
    ) -> tuple[TrainState, Float[Array, " t"]]:  # fmt: skip
        """Several steps on ``batches`` (steps, b, s); pure, to be compiled by its caller.

        Returns the state after them, and the loss before each (nats per target token).
        """

        def step(state, batch):
            divisor = jnp.maximum(num_targets(batch["labels"], shift=self.shift), 1)
            loss, gradient = self._share(state.params, batch, divisor, frozen, num_logits)
            return self._updated(state, gradient, rate, last_step), loss

        return jax.lax.scan(step, state, batches)

    def in_passes(
        self, state: TrainState, batches: Batch, add: Callable, update: Callable
    ) -> tuple[TrainState, Float[Array, "t ..."]]:
        """Several steps, each pass in a call of its own, as short as its examples.

        Args:
            state: before them; donated.
            batches: arrays (steps, b, s).
            add: ``add_pass``, compiled, or mapped over r rates as well.
            update: ``update`` of a state and a gradient, likewise.

        Returns:
            The state after them, and the loss before each (nats per target token).
        """
        gradient, losses = jax.tree.map(jnp.zeros_like, state.params), []
        for step in range(len(batches["labels"])):
            batch = {name: np.asarray(array)[step] for name, array in batches.items()}
            targets = target_counts(batch["labels"], shift=self.shift).sum()
            divisor, shares = np.int32(max(targets, 1)), []
            for part in passes_of(batch, self.micro_batches, buckets=self.buckets):
                placed, number = self.place_batch(part, axis=0), self.num_logits_of(part)
                gradient, share = add(state.params, gradient, placed, divisor, self.frozen, number)
                shares.append(share)
            state, gradient = update(state, gradient)
            losses.append(sum(shares))
        return state, jnp.stack(losses)

    def add_pass(
        self, params: Params, gradient: Params, part: Batch, divisor: Any, frozen: Params,
        num_logits: int | None,
    ) -> tuple[Params, Array]:  # fmt: skip
        """The gradient with that of one pass, and the pass's share of the loss; pure."""
        loss, more = self._share(params, part, divisor, frozen, num_logits)
        return jax.tree.map(jnp.add, gradient, more), loss

    def update(
        self, state: TrainState, gradient: Params, rate: Any, last_step: Any
    ) -> tuple[TrainState, Params]:
        """The state after a step, and a gradient of nothing; pure."""
        state = self._updated(state, gradient, rate, last_step)
        return state, jax.tree.map(jnp.zeros_like, gradient)

    def _share(
        self, params: Params, batch: Batch, divisor: Any, frozen: Params, num_logits: int | None
    ) -> tuple[Array, Params]:
        """Of the mean over ``divisor`` target tokens, what those of ``batch`` add; its gradient."""
        return jax.value_and_grad(
            lambda params: self.nats(params, batch, frozen, num_logits).nats / divisor
        )(params)

    def _updated(
        self, state: TrainState, gradient: Params, rate: Any, last_step: Any
    ) -> TrainState:
        optimizer = self.config.optimizer(rate, last_step=last_step)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        state = TrainState(optax.apply_updates(state.params, updates), optimizer_state)
        return state if self.shards is None else self.shards.constrain(state)


def awaited(array: Any) -> np.ndarray:
    """The array on the host, waited for where Python hears signals: a call may take minutes."""
    while not array.is_ready():
        time.sleep(_POLL_SECONDS)
    return np.asarray(array)


def joined(params: Params, frozen: Params) -> Params:
    """One tree of the leaves of two, which share none."""
    if not frozen:
        return params
    flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)
