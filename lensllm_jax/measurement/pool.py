"""Pool: candidates to be compared on one task, checked before anything is measured.

Example:
    >>> pool = describe_pool(["zoo/gpt2-xs"], max_length=64)
    >>> pool["zoo/gpt2-xs"].num_params
    239360
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary, describe_candidate
from lensllm_jax.checkpoints.tokenizer import check_texts
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.data.encoding import num_truncated
from lensllm_jax.data.prefixes import with_prompts
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import LORA, ComputeConfig
from lensllm_jax.finetune.lora import check_rank
from lensllm_jax.finetune.sharding import shards_over
from lensllm_jax.language_modelling import LOSS_UNIT
from lensllm_jax.selection.loss_table import LossTable

_MOST_COUNTED = 5000  # records whose tokens are counted for every candidate


def describe_pool(names: Sequence[str], *, max_length: int) -> dict[str, CandidateSummary]:
    """The candidates by name, in their order; no weights are read.

    Args:
        names: as ``load_candidate`` takes them.
        max_length: tokens of an example.

    Raises:
        UserError: if one does not load, has no tokenizer, or cannot read texts of that length.
    """
    pool = {name: describe_candidate(name) for name in names}
    for name, summary in pool.items():
        positions = summary.config.max_positions
        if positions is not None and max_length > positions:
            raise checks.UserError(
                f"`max_length` must be at most {positions} (the positions of {name}), got "
                f"{max_length}"
            )
        smallest = 3 if summary.config.is_encoder_decoder else 2  # one of context and one target
        if max_length < smallest:
            raise checks.UserError(
                f"`max_length` must be at least {smallest} (tokens that {name} needs for a "
                f"target), got {max_length}"
            )
    return pool


def check_tuning(pool: Mapping[str, CandidateSummary], compute: ComputeConfig) -> None:
    """Refuses settings that a candidate of the pool, or this machine, cannot follow.

    Raises:
        UserError: if there are fewer devices, or LoRA's rank is none of a lower rank.
    """
    shards_over(compute.devices)
    if compute.tune == LORA:
        for name, summary in pool.items():
            check_rank(name, parameter_shapes(summary.config), compute.lora_rank)


def shared_task(task: Task, pool: Mapping[str, CandidateSummary]) -> Task:
    """``task`` as all of the pool can read it: with prompts if one is an encoder-decoder.

    Raises:
        UserError: if a text holds a token for which a candidate's embedding has no row.
    """
    for name, summary in pool.items():
        examples = (*task.train, *task.validation, *task.test)
        texts = (text for example in examples for text in (example.prompt, example.target))
        check_texts(name, texts, summary.tokenizer, vocab_size=summary.config.vocab_size)
    needs_prompts = any(summary.config.is_encoder_decoder for summary in pool.values())
    return with_prompts(task) if needs_prompts else task


def truncated_targets(
    task: Task, pool: Mapping[str, CandidateSummary], *, max_length: int
) -> tuple[dict[str, int], int]:
    """Candidate -> how many targets lose their end, and of how many (at most 5,000, test first)."""
    examples = (*task.test, *task.validation, *task.train)[:_MOST_COUNTED]
    counts = {
        name: num_truncated(examples, summary.tokenizer, max_length=max_length)
        for name, summary in pool.items()
    }
    return counts, len(examples)


def check_kernel_examples(task: Task, num_kernel_examples: int) -> None:
    """Refuses a kernel of more examples than the task has.

    Raises:
        UserError: if it is one.
    """
    if num_kernel_examples > len(task.train):
        raise checks.UserError(
            f"`num_kernel_examples` must be at most {len(task.train)} (the training examples of "
            f"{task.name}), got {num_kernel_examples}"
        )


def loss_table(
    pool: Mapping[str, CandidateSummary], losses: Mapping[str, Mapping[int, float]], task: Task
) -> LossTable:
    """Losses by candidate and size (nats per byte) as a table, NaN where not measured."""
    sizes = sorted({size for row in losses.values() for size in row})
    return LossTable(
        names=tuple(pool),
        sizes=np.array(sizes),
        losses=np.array([[losses[name].get(size, np.nan) for size in sizes] for name in pool]),
        num_params=np.array([float(summary.num_params) for summary in pool.values()]),
        family=tuple(summary.family for summary in pool.values()),
        task=task.name,
        unit=LOSS_UNIT,
    )
