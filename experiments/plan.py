r"""Which candidates can be fine-tuned on which devices, and how, before any weight is read.

    python -m experiments.plan --candidates=facebook/opt-350m,my/config --device_gb=80 \
        --devices=1,4,8 --batch_size=32 --num_tokens=64

A candidate is anything that select_model takes, or a folder with nothing but a config.json.  For
each number of devices the first of these that fits is named with its flags: full tuning; one
example a pass (--micro_batches), which takes no longer; blocks computed again too (--remat);
moments in bfloat16; LoRA with frozen weights in bfloat16.  A tenth of each device is left to its
runtime.

The bytes follow from shapes (lensllm_jax.finetune.memory); against XLA's account of the compiled
step on a CPU they are within 15 % for GPT-2, Llama with LoRA, T5 with --remat and BART with four
passes (tests/finetune/test_memory.py).

--output_dir receives plan.csv: every way that was tried, in bytes.  Seconds per candidate.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.common import cli
from experiments.common.flags import (
    define_candidates,
    define_compute_dtype,
    define_devices,
    define_lora_rank,
    define_output_dir,
)
from lensllm_jax import checks
from lensllm_jax.checkpoints.adapters import is_adapter, read_adapter
from lensllm_jax.checkpoints.config import read_config
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.checkpoints.zoo import base_of, folder_of, list_zoo
from lensllm_jax.finetune.compute import LORA, ComputeConfig
from lensllm_jax.finetune.lora import check_rank
from lensllm_jax.finetune.memory import StepMemory, step_memory
from lensllm_jax.models.family import ModelConfig
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder

CANDIDATES = define_candidates(None, "Names, folders or hub ids.")
DEVICE_GB = flags.DEFINE_float("device_gb", 80.0, "Memory of a device, 10^9 bytes.")
DEVICES = define_devices("1,4,8", "Numbers of devices, comma-separated.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples a step.")
NUM_TOKENS = flags.DEFINE_integer("num_tokens", 64, "Of an example; of either side if it has two.")
LORA_RANK = define_lora_rank()
COMPUTE_DTYPE = define_compute_dtype()
PLAN_DIR = define_output_dir(required=False)

USABLE = 0.9  # share of a device that a step may fill


class Way(NamedTuple):
    """One way to fine-tune a candidate."""

    compute: ComputeConfig
    memory: StepMemory

    @property
    def fits(self) -> bool:
        """Whether a device holds it."""
        return self.memory.total <= USABLE * DEVICE_GB.value * 1e9

    @property
    def flags(self) -> str:
        """What select_model wants to be told."""
        c = self.compute
        told = {
            f"--devices={c.devices}": c.devices > 1,
            "--remat": c.remat,
            f"--micro_batches={c.passes}": c.passes > 1,
            f"--moments_dtype={c.moments_dtype}": c.moments_dtype != ComputeConfig.moments_dtype,
            f"--tune=lora --lora_rank={c.lora_rank} --frozen_dtype=bfloat16": c.tune == LORA,
            f"--compute_dtype={c.dtype}": c.dtype is not None,
        }
        return " ".join(flag for flag, is_told in told.items() if is_told)


def main(_: Sequence[str]) -> None:
    """Prints the plan, and writes all that was tried."""
    names, counts = cli.names(CANDIDATES.value), cli.whole_numbers("devices", DEVICES.value)
    names = list_zoo() if names == ("zoo",) else names
    for name, value in (("device_gb", DEVICE_GB), ("batch_size", BATCH_SIZE),
                        ("num_tokens", NUM_TOKENS)):  # fmt: skip
        checks.positive(name, value.value)
    if not names or not counts:
        raise checks.UserError(
            f"`candidates` and `devices` must name one or more, got {names} and {counts}"
        )
    for count in counts:
        ComputeConfig(devices=count).check_batch(BATCH_SIZE.value)
    configs = {name: _config(name) for name in names}
    shown = terminal.table(
        f"Fine-tuning on devices of {DEVICE_GB.value:g} GB: {BATCH_SIZE.value} examples of "
        f"{NUM_TOKENS.value} tokens a step",
        left=["candidate"], right=["devices", "full GB", "chosen GB"],
    )  # fmt: skip
    shown.add_column("how")
    rows: list[dict[str, Any]] = []
    for name, config in configs.items():
        for count in counts:
            tried = list(_until_one_fits(config, count))
            rows += [_row(name, way) for way in tried]
            last = tried[-1]
            how = (last.flags or "as it is") if last.fits else "does not fit"
            shown.add_row(name, str(count), _gb(tried[0]), _gb(last) if last.fits else "-", how)
    terminal.show(shown)
    if PLAN_DIR.value:
        settings = {"candidates": list(names), **_settings()}
        RunFolder.open(PLAN_DIR.value, settings).write_rows("plan.csv", rows)


def _settings() -> dict[str, Any]:
    return {
        "device_gb": DEVICE_GB.value, "devices": DEVICES.value, "batch_size": BATCH_SIZE.value,
        "num_tokens": NUM_TOKENS.value, "lora_rank": LORA_RANK.value,
        "compute_dtype": COMPUTE_DTYPE.value,
    }  # fmt: skip


def _config(name: str) -> ModelConfig:
    """From a config alone.

    Raises:
        UserError: if there is none that is supported, or LoRA's rank is too large for it.
    """
    folder = folder_of(name)
    config = read_config(base_of(read_adapter(folder)) if is_adapter(folder) else folder).config
    check_rank(name, parameter_shapes(config), LORA_RANK.value)
    if config.max_positions is not None and NUM_TOKENS.value > config.max_positions:
        raise checks.UserError(
            f"`num_tokens` must be at most {config.max_positions} (the positions of {name}), got "
            f"{NUM_TOKENS.value}"
        )
    return config


def _until_one_fits(config: ModelConfig, devices: int) -> Iterator[Way]:
    """The ways in the order of what they cost, up to the first that fits."""
    plain = ComputeConfig(dtype=COMPUTE_DTYPE.value, devices=devices)
    single = dataclasses.replace(plain, micro_batches=BATCH_SIZE.value // devices)
    change = functools.partial(dataclasses.replace, single, remat=True)
    for compute in (
        plain,
        single,
        change(),
        change(moments_dtype="bfloat16"),
        change(tune=LORA, lora_rank=LORA_RANK.value, frozen_dtype="bfloat16"),
    ):
        memory = step_memory(
            config, compute, batch_size=BATCH_SIZE.value, num_tokens=NUM_TOKENS.value
        )
        way = Way(compute, memory)
        yield way
        if way.fits:
            return


def _row(name: str, way: Way) -> dict[str, Any]:
    c = way.compute
    return {
        "candidate": name, "devices": c.devices, "tune": c.tune, "remat": c.remat,
        "micro_batches": c.passes, "moments_dtype": c.moments_dtype,
        **way.memory._asdict(), "total": way.memory.total, "fits": way.fits,
    }  # fmt: skip


def _gb(way: Way) -> str:
    return f"{way.memory.total / 1e9:,.2f}"


if __name__ == "__main__":
    cli.run(main)
