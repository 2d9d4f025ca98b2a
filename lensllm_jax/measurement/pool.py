"""Pool: candidates to be compared on one task, checked before anything is measured.

Example:
    >>> pool = describe_pool(["zoo/gpt2-xs"])
    >>> pool["zoo/gpt2-xs"].num_params
    239360
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary, describe_candidate
from lensllm_jax.checkpoints.tokenizer import check_texts
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.data.cuts import cut_task, default_max_bytes
from lensllm_jax.data.prefixes import with_prompts
from lensllm_jax.data.task import Task
from lensllm_jax.data.tokens import num_altered
from lensllm_jax.finetune.compute import LORA, ComputeConfig
from lensllm_jax.finetune.lora import check_rank
from lensllm_jax.finetune.sharding import shards_over
from lensllm_jax.language_modelling import LOSS_UNIT
from lensllm_jax.measurement.rows import row_lengths
from lensllm_jax.selection.loss_table import LossTable

NUM_CHECKED = 500  # test records whose text is compared with what a tokenizer makes of it


def describe_pool(names: Sequence[str]) -> dict[str, CandidateSummary]:
    """The candidates by name, in their order; no weights are read.

    Args:
        names: as ``load_candidate`` takes them.

    Raises:
        UserError: if one does not load, or has no tokenizer.
    """
    return {name: describe_candidate(name) for name in names}


def check_tuning(pool: Mapping[str, CandidateSummary], compute: ComputeConfig) -> None:
    """Refuses settings that a candidate of the pool, or this machine, cannot follow.

    Raises:
        UserError: if there are fewer devices, or LoRA's rank is none of a lower rank.
    """
    shards_over(compute.devices)
    if compute.tune == LORA:
        for name, summary in pool.items():
            check_rank(name, parameter_shapes(summary.config), compute.lora_rank)


def shared_task(
    task: Task,
    pool: Mapping[str, CandidateSummary],
    *,
    max_bytes: int | None = None,
    chat_template: str = "none",
) -> Task:
    """``task`` as all of the pool read it, checked before any work.

    Cut to ``max_bytes`` as text, and then divided into prompts and targets if one is an
    encoder-decoder: every candidate reads all that is left, in as many tokens as it needs.

    Args:
        task: whole records.
        pool: the candidates by name.
        max_bytes: of prompt and target; by default those that keep 99 % of the records whole, or
            fewer where positions are few (:func:`lensllm_jax.data.cuts.default_max_bytes`).
        chat_template: "auto" for conversations, by the templates of the decoders that have one.

    Raises:
        UserError: if a text holds a token for which a candidate's embedding has no row, or a
            candidate has too few positions for a record.
    """
    for name, summary in pool.items():
        texts = (text for example in task.examples for text in (example.prompt, example.target))
        check_texts(name, texts, summary.tokenizer, vocab_size=summary.config.vocab_size)
    if max_bytes is None:
        positions = [one.config.max_positions for one in pool.values()]
        fewest = min((n for n in positions if n is not None), default=None)
        max_bytes = default_max_bytes(task, fewest_positions=fewest)
    task = cut_task(task, max_bytes=max_bytes)
    if any(summary.config.is_encoder_decoder for summary in pool.values()):
        task = with_prompts(task)
    for summary in pool.values():
        row_lengths(task, summary, chat_template=chat_template)
    return task


def altered_targets(task: Task, pool: Mapping[str, CandidateSummary]) -> dict[str, int]:
    """Candidate -> test targets, of the first 500, that its tokenizer alters, where it does any."""
    examples = task.test[:NUM_CHECKED]
    counts = {name: num_altered(examples, summary.tokenizer) for name, summary in pool.items()}
    return {name: count for name, count in counts.items() if count}


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
