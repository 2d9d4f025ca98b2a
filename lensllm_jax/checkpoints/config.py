"""Config: what a checkpoint's config.json says, and the family that understands it.

Hugging Face's own class completes the attributes by its defaults and turns old spellings
into today's.  Attributes that its model does not know are ignored, as it ignores them; every
other one that could change a logit is either supported or refused by name.

Example:
    >>> from lensllm_jax.checkpoints.config import parse_config
    >>> parse_config({"model_type": "gpt2", "n_layer": 6}).config.num_layers
    6
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lensllm_jax import checks
from lensllm_jax.checkpoints.attributes import unknown_attributes
from lensllm_jax.checkpoints.files import is_there, read_json
from lensllm_jax.checkpoints.folder import contents
from lensllm_jax.checkpoints.gguf.config import read_gguf_config
from lensllm_jax.checkpoints.gguf.header import is_gguf
from lensllm_jax.models.family import Family, ModelConfig
from lensllm_jax.models.registry import FAMILIES

CONFIG = "config.json"
_QUANTIZED = ("quantization_config", "compression_config")
_LONGEST = 300  # characters about one attribute


def transformers() -> Any:
    """Hugging Face's library, imported late (it is slow) and without its advice on PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


class CheckpointConfig(NamedTuple):
    """A config, as theirs and as ours."""

    family: Family  # the tables that read it
    attributes: dict[str, Any]  # theirs, all of them, completed by their defaults
    config: ModelConfig  # ours
    ignored: tuple[str, ...] = ()  # attributes that Hugging Face's model does not know

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user may want to know of it, a line each."""
        # a name may be any text, a line break or the codes of a terminal among it
        names = [key if key.isidentifier() else ascii(key) for key in self.ignored]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        listed = ", ".join(name[:60] for name in names[:8]) + more
        note = f"{CONFIG}: {listed} ignored, as by Hugging Face's {self.family.name} model"
        return (note,) if self.ignored else ()


def read_config(folder: str | Path) -> CheckpointConfig:
    """The config of a checkpoint folder, or of a GGUF file.

    Raises:
        UserError: if there is no such file, or ``parse_config`` refuses what it says.
    """
    if is_gguf(folder):
        return parse_config(read_gguf_config(folder), name=str(folder))
    path = Path(folder) / CONFIG
    if not is_there(path):
        raise checks.UserError(
            f"`{folder}` must be a checkpoint folder with {CONFIG}, got "
            f"{contents(Path(folder)) or 'none'}"
        )
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise checks.UserError(
            f"`{path}` must hold attributes, `model_type` among them, got {str(stored)[:80]}"
        )
    return parse_config(stored, name=str(path))


def parse_config(stored: Mapping[str, Any], *, name: str = CONFIG) -> CheckpointConfig:
    """The family of a config, and the config that it describes.

    Args:
        stored: the attributes as they were published.
        name: what to call them in a message.

    Raises:
        UserError: if the family is unknown, or naming every attribute that is not supported.
    """
    model_type = stored.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise checks.UserError(
            f"`model_type` in {name} must be one of {', '.join(sorted(FAMILIES))}, "
            f"got {str(model_type)[:80]!r}"
        )
    family = FAMILIES[model_type]
    # Hugging Face's classes make lists of so many layers
    _check_sizes({key: value for key, value in stored.items() if "layer" in key}, name, 10_000)
    if quantized := stored.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        method = method or ", ".join(map(str, quantized))[:_LONGEST]
        raise checks.UserError(
            f"`quantization_config` in {name} must be absent (weights as numbers), got those of "
            f"{method!r}: give the checkpoint that was quantized, or a GGUF file of it"
        )
    # an empty one is as good as none
    stored = {key: value for key, value in stored.items() if value or key not in _QUANTIZED}
    config_class = type(transformers().AutoConfig.for_model(model_type))
    defaults = config_class().to_dict()
    try:
        attributes = {**defaults, **config_class.from_dict(dict(stored)).to_dict()}
    except Exception as error:  # transformers validates with classes of its own
        raise checks.UserError(
            f"`{name}` must be a valid {model_type} config, "
            f"got {' '.join(str(error).split())[-_LONGEST:]}"
        ) from error
    attributes |= {key: stored[key] for key in family.as_stored if key in stored}
    ignored = unknown_attributes(config_class, attributes)
    known = {key: value for key, value in attributes.items() if key not in ignored}
    _check_sizes(known, name, 2**31 - 1)
    config, problems = family.read_config(known, defaults)
    if problems or config is None:
        raise checks.UserError(
            f"`{name}` must describe a {model_type} model with supported settings, got "
            + "; ".join(" ".join(problem.split())[:_LONGEST] for problem in problems)
        )
    return CheckpointConfig(family, attributes, config, tuple(sorted(ignored)))


def _check_sizes(attributes: Mapping[str, Any], name: str, most: int) -> None:
    """Refuses numbers that no checkpoint has, before anything of that size is made."""
    for key, value in attributes.items():
        if isinstance(value, int) and abs(value) > most:
            raise checks.UserError(
                f"`{key}` in {name} must be at most {most:,}, got {str(value)[:40]}"
            )
