"""Flags that several binaries take, each defined here once.

A binary takes one by defining it when it is imported, ``OUTPUT_DIR = define_output_dir()``.  Those
of binaries that measure candidates stand in ``experiments.common.measurement_flags``.
"""

import functools
from typing import Any, NamedTuple

from absl import flags

from lensllm_jax.selection.orders import DropRule

flags.disclaim_key_flags()  # each counts as the binary's own: its --help shows it


def define_output_dir(*, required: bool = True) -> flags.FlagHolder:
    """--output_dir."""
    return flags.DEFINE_string("output_dir", None, "Where the results go.", required=required)


def define_quiet(help: str = "Show no progress.") -> flags.FlagHolder[bool]:
    """--quiet."""
    return flags.DEFINE_bool("quiet", False, help)


def define_curves(help: str = "Loss tables (CSV), one per task.") -> flags.FlagHolder[list[str]]:
    """--curves, one or more tables."""
    return flags.DEFINE_list("curves", None, help, required=True)


def define_higher_is_better() -> flags.FlagHolder[bool | None]:
    """--higher_is_better; None refuses tables most of whose rows rise with data."""
    return flags.DEFINE_bool(
        "higher_is_better", None, "The tables hold accuracies, read as errors (no: losses)."
    )


def define_curve(help: str = "Loss table (CSV) of the pool.") -> flags.FlagHolder[str]:
    """--curves, one table."""
    return flags.DEFINE_string("curves", None, help, required=True)


def define_tables(
    help: str = "Folder of the tables.", *, default: str | None = None
) -> flags.FlagHolder[str]:
    """--tables."""
    if default is None:
        return flags.DEFINE_string("tables", None, help, required=True)
    return flags.DEFINE_string("tables", default, help)


def define_task_prefix() -> flags.FlagHolder[str]:
    """--task of binaries that read tables."""
    return flags.DEFINE_string(
        "task", None, "Task: what the names of the tables begin with.", required=True
    )


def define_budgets(*divisors: int) -> flags.FlagHolder[list[str]]:
    """--budgets; the divisors are the default."""
    return flags.DEFINE_list(
        "budgets", [*map(str, divisors)], "Budgets: 8 means sizes up to 1/8 of the largest."
    )


def define_budgets_there() -> flags.FlagHolder[list[str] | None]:
    """--budgets, by default those that a table has."""
    help = (
        "Budgets: 8 means sizes up to 1/8 of the largest. Default: those of 8 to 512 that it has."
    )
    return flags.DEFINE_list("budgets", None, help)


def define_selectors(
    *default: str, help: str = "Selectors, comma-separated; all: those that the tables allow."
) -> flags.FlagHolder[list[str]]:
    """--selectors; all without a default."""
    return flags.DEFINE_list("selectors", [*default] or ["all"], help)


def define_gamma() -> flags.FlagHolder[int]:
    """--gamma."""
    return flags.DEFINE_integer("gamma", 3, "Algorithm 1: accepted losses before it may stop.")


def define_tau() -> flags.FlagHolder[float]:
    """--tau."""
    return flags.DEFINE_float(
        "tau", 5.0, "Algorithm 1: standard deviations of the residuals at which it stops."
    )


def define_confidence() -> flags.FlagHolder[float]:
    """--confidence."""
    return flags.DEFINE_float(
        "confidence",
        0.95,
        "A race stops once its leader is the best with this probability; 1: never.",
    )


def define_keep() -> flags.FlagHolder[float]:
    """--keep."""
    return flags.DEFINE_float(
        "keep",
        DropRule.keep,
        "Successive halving: share of the candidates that reach the next size.",
    )


class ExecutorFlags(NamedTuple):
    """--executor and what belongs to it."""

    executor: flags.FlagHolder[str]
    ray_address: flags.FlagHolder[str]
    ray_threads: flags.FlagHolder[int]
    processes: flags.FlagHolder[int] | None = None

    def values(self) -> dict[str, Any]:
        """As settings of a run."""
        return {name: flag.value for name, flag in self._asdict().items() if flag is not None}


@functools.cache  # two binaries in one process share them
def define_executor(kinds: tuple[str, ...], *, processes: bool = True) -> ExecutorFlags:
    """--executor of these kinds, --ray_address, --ray_threads, and --processes."""
    places = {
        "serial": "in this process",
        "local": "in --processes here",
        "ray": "on a Ray cluster",
    }
    help = f"Where work runs: {'; '.join(f'{kind}: {places[kind]}' for kind in kinds)}."
    count = None
    if processes:
        count = flags.DEFINE_integer(
            "processes",
            1,
            "Processes at a time: of --executor=local, where they share the cores, or of a race on "
            "Ray.",
        )
    return ExecutorFlags(
        flags.DEFINE_enum("executor", "serial", kinds, help),
        flags.DEFINE_string(
            "ray_address", "127.0.0.1:6379", "host:port of the Ray cluster's head."
        ),
        flags.DEFINE_integer("ray_threads", 1, "Cores per job of --executor=ray."),
        count,
    )


@functools.cache  # two binaries in one process share them
def define_save_winner() -> flags.FlagHolder[str | None]:
    """--save_winner."""
    return flags.DEFINE_string(
        "save_winner",
        None,
        "Folder for the fine-tuned weights of the best candidate, as Hugging Face loads them.",
    )


@functools.cache  # two binaries in one process share them
def define_save_adapter() -> flags.FlagHolder[bool]:
    """--save_adapter."""
    return flags.DEFINE_bool(
        "save_adapter", False, "With --tune=lora: save the winner as an adapter in PEFT's format."
    )


def define_tokens_per_example(help: str) -> flags.FlagHolder[float]:
    """--tokens_per_example."""
    return flags.DEFINE_float("tokens_per_example", 512.0, help)


def define_candidates(default: str | None, help: str) -> flags.FlagHolder:
    """--candidates, required without a default."""
    return flags.DEFINE_string("candidates", default, help, required=default is None)


def define_num_examples(default: int, help: str) -> flags.FlagHolder[int]:
    """--num_examples."""
    return flags.DEFINE_integer("num_examples", default, help)


def define_num_labels() -> flags.FlagHolder[int]:
    """--num_labels."""
    return flags.DEFINE_integer("num_labels", 4, "Tokens whose logits are read.")


def define_tasks() -> flags.FlagHolder[list[str]]:
    """--tasks."""
    help = "Tasks, comma-separated: what the names of the tables begin with."
    return flags.DEFINE_list("tasks", None, help, required=True)


def define_devices(default: str, help: str) -> flags.FlagHolder[str]:
    """--devices, numbers of them."""
    return flags.DEFINE_string("devices", default, help)


def define_lora_rank() -> flags.FlagHolder[int]:
    """--lora_rank."""
    return flags.DEFINE_integer("lora_rank", 16, "Rank of the updates of --tune=lora.")


def define_compute_dtype() -> flags.FlagHolder[str | None]:
    """--compute_dtype."""
    return flags.DEFINE_enum(
        "compute_dtype", None, ["bfloat16", "float32"],
        "Type of products and logits; weights stay float32.",
    )  # fmt: skip
