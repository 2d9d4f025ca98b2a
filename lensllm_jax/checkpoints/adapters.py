r"""Adapter: a fine-tune stored as low-rank updates of a base (LoRA), in PEFT's format.

A matrix :math:`W` of the base becomes

.. math:: W + s\, B A, \qquad s = \alpha / r \text{ or, rank-stabilised, } \alpha / \sqrt{r},

with :math:`A \in R^{r \times d_{in}}`, :math:`B \in R^{d_{out} \times r}` (Hu et al., 2022;
Kalajdzievski, 2023), row by row while the base is read, in float32.  Tensors that were trained as
a whole replace the base's.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.checkpoints.files import is_there, read_json
from lensllm_jax.checkpoints.formats import StoredTensor, open_tensors, write_safetensors
from lensllm_jax.checkpoints.tensors import TensorFiles
from lensllm_jax.checkpoints.weights import side_by_side
from lensllm_jax.models.family import Family, ModelConfig

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, _WEIGHTS)
_WRAPPER = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
# settings that make the update, or the base under it, another
_REFUSED = (
    "use_dora", "use_qalora", "lora_bias", "layer_replication", "target_parameters",
    "trainable_token_indices", "megatron_config", "alora_invocation_tokens", "velora_config",
    "monteclora_config",
)  # fmt: skip
# starts from which the base stays as it is
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


class _Update(NamedTuple):
    """What becomes of one tensor of the base: a replacement, or a product that is added."""

    replacement: StoredTensor | None = None
    left: Float[np.ndarray, "d_out r"] | None = None  # scaled
    right: Float[np.ndarray, "r d_in"] | None = None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter folder, with the name of its base."""

    folder: Path
    base: str  # as ``load_candidate`` takes it
    settings: Mapping[str, Any] = dataclasses.field(repr=False)

    def merged(self, files: TensorFiles, family: Family, config: ModelConfig) -> "MergedFiles":
        """The base's files, whose tensors are updated as they are read.

        Raises:
            UserError: if the adapter's weights do not read, or are of another base.
        """
        parts = _parts(self.folder / _WEIGHTS)
        updates: dict[str, _Update] = {}
        names = {_canonical(name, family): name for name in files.file_of}
        matrices = _untransposed(family, config)
        for module, tensors in parts.items():
            name = module if "whole" in tensors else f"{module}.weight"
            canonical = _canonical(name, family)
            if canonical not in names:
                raise checks.UserError(
                    f"`{self.folder}` must be an adapter of {self.base}, got an update of {name}, "
                    f"which {files.listing} lacks: name its own base in {ADAPTER_CONFIG}"
                )
            transposed = "embedding" in tensors or _without_layer(canonical) in matrices
            updates[names[canonical]] = self._update(module, tensors, transposed=transposed)
        return MergedFiles(
            files.folder, files.file_of, files.listing, files.wrapper, updates=updates
        )

    def _update(
        self, module: str, tensors: Mapping[str, StoredTensor], *, transposed: bool
    ) -> _Update:
        if "whole" in tensors:
            return _Update(replacement=tensors["whole"])
        if {"A", "B"} - set(tensors):
            raise checks.UserError(
                f"`{self.folder / _WEIGHTS}` must hold lora_A and lora_B of {module}, got only one"
            )
        a, b = (tensors[side].whole().astype(np.float32) for side in "AB")
        if a.ndim != 2 or b.ndim != 2 or not 0 < len(a) == b.shape[1]:
            raise checks.UserError(
                f"`{self.folder / _WEIGHTS}` must hold lora_A (r, d_in) and lora_B (d_out, r) of "
                f"{module}, got {a.shape} and {b.shape}"
            )
        b = b * np.float32(self._scale(module, rank=len(a)))
        return _Update(left=a.T, right=b.T) if transposed else _Update(left=b, right=a)

    def _scale(self, module: str, *, rank: int) -> float:
        patterns = self.settings.get("alpha_pattern") or {}
        alpha = next(
            (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)),
            self.settings.get("lora_alpha", 8),
        )
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


@dataclasses.dataclass(frozen=True)
class MergedFiles(TensorFiles):
    """The weight files of a base, whose tensors come updated."""

    updates: Mapping[str, _Update] = dataclasses.field(default_factory=dict, repr=False)

    def open(
        self, names: set[str], problems: list[str] | None = None
    ) -> Iterator[tuple[str, StoredTensor]]:
        """As that of the base."""
        for name, tensor in super().open(names, problems):
            yield name, _updated(name, tensor, self.updates.get(name, _Update()))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return is_there(folder / ADAPTER_CONFIG)


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        UserError: if its settings do not read or are not supported, or it names no base.
    """
    path = folder / ADAPTER_CONFIG
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise checks.UserError(f"`{path}` must hold settings, got {str(settings)[:80]}")
    kind = settings.get("peft_type")
    refused = [f"{name}={settings[name]!r}" for name in _REFUSED if settings.get(name)]
    if kind != "LORA":
        refused.append(f"peft_type={kind!r} (only 'LORA')")
    if settings.get("init_lora_weights") not in _STARTS:
        refused.append(f"init_lora_weights={settings['init_lora_weights']!r} (changes the base)")
    if refused:
        raise checks.UserError(
            f"`{path}` must describe low-rank updates alone, got {'; '.join(refused)}: merge it "
            "into its base with PEFT (merge_and_unload) and save that"
        )
    _check_scales(path, settings)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise checks.UserError(f"`{path}` must name its base_model_name_or_path, got {base!r}")
    local = next((p for p in (Path(base).expanduser(), folder / base) if p.exists()), None)
    name = str(local) if local else f"{base}@{revision}" if revision else base
    return Adapter(folder, name, settings)


class Factors(NamedTuple):
    """The update s A B of a kernel (d_in, d_out), or of one per block along a leading axis l."""

    a: Float[np.ndarray, "*l d_in r"]
    b: Float[np.ndarray, "*l r d_out"]


def write_adapter(
    folder: Path, factors: Mapping[str, Factors], family: Family, config: ModelConfig,
    *, base: str, scale: float,
) -> None:  # fmt: skip
    """Writes an adapter folder, which PEFT and ``read_adapter`` read.

    Args:
        folder: where to; made if absent.
        factors: by slash-joined path of the kernel, all of one rank.
        family: of the base.
        config: of the base.
        base: what ``base_model_name_or_path`` is to say.
        scale: s.
    """
    rank = next(iter(factors.values())).a.shape[-1]
    ranks: dict[str, int] = {}  # by the last part of a module's name
    tensors: dict[str, np.ndarray] = {}
    for module, a, b in _modules(factors, family, config):
        ranks[module.rpartition(".")[2]] = len(a)
        tensors[f"{_WRAPPER}{module}.lora_A.weight"] = a
        tensors[f"{_WRAPPER}{module}.lora_B.weight"] = b
    other = {name: r for name, r in ranks.items() if r != rank}
    kind = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"
    settings = {
        "peft_type": "LORA", "task_type": kind, "base_model_name_or_path": base, "bias": "none",
        "r": rank, "lora_alpha": scale * rank, "lora_dropout": 0.0, "inference_mode": True,
        "target_modules": sorted(ranks),
        "rank_pattern": other, "alpha_pattern": {name: scale * r for name, r in other.items()},
        "fan_in_fan_out": bool(_untransposed(family, config)),  # GPT-2's layers are all stored so
    }  # fmt: skip
    write_safetensors(folder / _WEIGHTS, tensors)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _modules(
    factors: Mapping[str, Factors], family: Family, config: ModelConfig
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, A (r, d_in) and B (d_out, r) of each of Hugging Face's layers.

    One that holds several of our kernels side by side has the ranks of all: the rows of A follow
    each other, and each writes its own part of the outputs.
    """
    for weight in family.weights(config):
        parts = [factors[path] for path in weight.targets if path in factors]
        if not parts:
            continue
        prefix = "" if weight.outside else family.prefixes[0]
        for layer in range(len(parts[0].a)) if weight.stacked else (0,):
            pairs = [Factors(a[layer], b[layer]) if weight.stacked else (a, b) for a, b in parts]
            a = np.concatenate([a for a, _ in pairs], axis=1)
            b = np.concatenate([
                side_by_side([b if i == j else np.zeros((b.shape[0], other.shape[1]), b.dtype)
                              for j, (_, other) in enumerate(pairs)], weight.groups)
                for i, (_, b) in enumerate(pairs)
            ])  # fmt: skip
            name = (prefix + weight.source(layer)).removesuffix(".weight")
            yield name, np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)


def _check_scales(path: Path, settings: Mapping[str, Any]) -> None:
    """Checks that every scale is a number, and every pattern an expression."""
    patterns = settings.get("alpha_pattern") or {}
    try:
        # math.isfinite raises TypeError of what is no number
        finite = all(map(math.isfinite, [settings.get("lora_alpha", 8), *patterns.values()]))
        wrong = None if finite else "one that is not finite"
        for pattern in patterns:
            re.compile(pattern)
    except (TypeError, AttributeError, re.error) as error:
        wrong = str(error)
    if wrong:
        raise checks.UserError(
            f"`{path}` must scale by finite numbers (lora_alpha, alpha_pattern), got {wrong}"
        )


def _parts(path: Path) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of each module (sides A and B) or, by its own name, of each whole tensor."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in open_tensors(path).items():
        name = name.removeprefix(_WRAPPER).replace(".default.", ".")
        if match := _LORA.fullmatch(name):
            sides = parts.setdefault(match["module"], {})
            sides[match["side"]] = tensor
            if match["embedding"]:
                sides["embedding"] = tensor
        else:
            whole = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            parts[whole] = {"whole": tensor}
    return parts


def _canonical(name: str, family: Family) -> str:
    """A tensor's name without what a family's checkpoints may put before it."""
    prefix = next((p for p in family.prefixes if p and name.startswith(p)), "")
    return name.removeprefix(prefix)


def _without_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".{layer}.", name)


def _untransposed(family: Family, config: ModelConfig) -> set[str]:
    """Matrices that checkpoints store as (in, out), as GPT-2's ``Conv1D``."""
    return {
        weight.hf
        for weight in family.weights(config)
        if not weight.transpose and weight.targets[0].endswith("/kernel")
    }


def _updated(name: str, tensor: StoredTensor, update: _Update) -> StoredTensor:
    """A tensor of the base after its update."""
    if update.replacement is not None:
        return update.replacement
    left, right = update.left, update.right
    if left is None or right is None:
        return tensor
    if tensor.shape != (len(left), right.shape[-1]):
        raise checks.UserError(
            f"adapter of {name} must be of shape {tensor.shape}, got one of "
            f"{(len(left), right.shape[-1])}: it is of another base"
        )

    def rows(start: int, stop: int) -> np.ndarray:
        return tensor.rows(start, stop).astype(np.float32) + left[start:stop] @ right

    return StoredTensor(tensor.shape, "float32", 4, rows)
