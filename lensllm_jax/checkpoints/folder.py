"""Folder: which files hold the weights of a checkpoint, or what lies there instead.

What Hugging Face loads comes first: a whole file before shards, safetensors before the formats
of Flax and PyTorch.  Then whatever is unambiguous: one variant, shards that lack their index, one
file of another name.
"""

import re
from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.checkpoints.files import is_there

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# the whole file of each format; its index is called the same with ".index.json" after it
FILES = (SINGLE, "flax_model.msgpack", "pytorch_model.bin")

_VARIANT = re.compile(r"model\.([\w-]+)\.safetensors|model\.safetensors\.index\.([\w-]+)\.json")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.(safetensors|bin)")
# weights in layouts of their own, which Hugging Face does not load either
_OTHER_LAYOUT = re.compile(r"consolidated.*\.(safetensors|pth)")
_OTHER_FORMATS = (".h5", ".pt", ".pth", ".ckpt", ".onnx", ".bin", ".npz", ".msgpack")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The file(s) that hold a checkpoint's weights, or the one index that names such files.

    Raises:
        UserError: if there are none, or it is not clear which; it says what lies there.
    """
    for single in FILES:
        for name in (single, f"{single}.index.json"):
            if is_there(folder / name):
                return (folder / name,)
    variants: dict[str, Path] = {}
    for path in sorted(folder.glob("model.*")):
        if match := _VARIANT.fullmatch(path.name):
            variants.setdefault(match[1] or match[2], path)
    if len(variants) == 1:
        return tuple(variants.values())
    if variants:
        raise checks.UserError(
            f"`{folder}` must hold one variant of the weights, got {', '.join(variants)}: rename "
            f"one of them to {SINGLE}"
        )
    if shards := _shards(folder):
        return shards
    others = [path for path in folder.glob("*.safetensors") if not _is_foreign(path.name)]
    if len(others) == 1:
        return tuple(others)
    raise checks.UserError(
        f"`{folder}` must hold {', '.join(FILES)}, or an index of several such files, got "
        f"{contents(folder) or 'no weights: save the model again with safe_serialization=True'}"
    )


def _shards(folder: Path) -> tuple[Path, ...]:
    """The shards of a checkpoint that lacks their index, if all are there."""
    sets: dict[tuple[str, str, str], dict[int, Path]] = {}
    for path in sorted(folder.glob("*-of-*")):
        if (match := _SHARD.fullmatch(path.name)) and not _is_foreign(path.name):
            key = (match["stem"], match["total"], path.suffix)
            sets.setdefault(key, {})[int(match["number"])] = path
    if len(sets) != 1:
        return ()
    ((_, total, suffix), shards) = next(iter(sets.items()))
    absent = [number for number in range(1, int(total) + 1) if number not in shards]
    if absent:
        raise checks.UserError(
            f"`{folder}` must hold all {int(total)} shards of the weights, got no shard "
            f"{', '.join(map(str, absent[:5]))} ({suffix[1:]}): fetch the rest"
        )
    return tuple(shards.values())


def _is_foreign(name: str) -> bool:
    return name.startswith("adapter") or _OTHER_LAYOUT.fullmatch(name) is not None


def contents(folder: Path) -> str | None:
    """What a folder holds instead of a checkpoint, and what to do about it; None if nothing."""

    def names(*patterns: str, below: Path = folder) -> str:
        found = sorted({path.name for pattern in patterns for path in below.glob(pattern)})
        return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")

    downloads = folder / ".cache" / "huggingface" / "download"
    unfinished = names("*.incomplete") or names("**/*.incomplete", below=downloads)
    checkpoints = sorted(path.parent.name for path in folder.glob("*/config.json"))
    lying = [
        (unfinished, "an unfinished download ({}): fetch it again"),
        (names("checkpoint-*"), "checkpoints of a training run ({}): give one of those folders"),
        (names("*.gguf"), "GGUF files ({}): give the path of one of them"),
        (names("adapter_*"), "an adapter of another model ({}): give it with adapter_config.json"),
        (
            names("consolidated*"),
            "weights in a layout of their own ({}): fetch the files model*.safetensors",
        ),
        (
            names(*(f"*{suffix}" for suffix in _OTHER_FORMATS)),
            "only {}: save the model again with safe_serialization=True",
        ),
        (names("*.safetensors"), "several files of weights ({}): keep one of them"),
        (", ".join(checkpoints[:5]), "folders of checkpoints ({}): give one of them"),
    ]
    return next((phrase.format(found) for found, phrase in lying if found), None)
