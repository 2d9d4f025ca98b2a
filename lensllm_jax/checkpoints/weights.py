"""Weights: a family's table applied, from checkpoint tensors to parameters and back.

Loading is strict in both directions: every tensor fills a parameter or is listed as
ignored, every parameter is filled, every shape is that of the config, every value is
finite; all problems are reported at once.

Example:
    >>> from lensllm_jax.checkpoints.weights import parameter_shapes
    >>> from lensllm_jax.models.decoder import DecoderConfig
    >>> config = DecoderConfig(vocab_size=11, max_positions=8, d_model=8, num_layers=2,
    ...                        num_heads=2, d_ff=16)
    >>> parameter_shapes(config)["blocks/attention/query/kernel"]
    (2, 8, 8)
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lensllm_jax import checks
from lensllm_jax.checkpoints.formats import FLOATS
from lensllm_jax.checkpoints.stored_tensor import StoredTensor
from lensllm_jax.checkpoints.tensors import TensorFiles
from lensllm_jax.models.family import Family, ModelConfig, Weight
from lensllm_jax.typing import Params

_MAX_SHOWN = 20  # problems of one message
_ALIGNMENT = 64  # bytes: XLA's requirement on memory that it did not allocate itself


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Slash-joined path -> shape of every parameter, without allocating one."""
    keys = ("input_ids", "attention_mask", "decoder_input_ids", "labels")
    inputs = config.arguments(dict.fromkeys(keys, np.zeros((1, 1), np.int32)))
    # a key made outside would start JAX's devices, and map more than the shapes of many candidates
    tree = jax.eval_shape(lambda *rest: config.module().init(jax.random.key(0), *rest), *inputs)
    shapes = traverse_util.flatten_dict(tree["params"], sep="/")
    return {path: leaf.shape for path, leaf in shapes.items()}


def load_params(
    files: TensorFiles, family: Family, config: ModelConfig, *, dtype: np.dtype
) -> Params:
    """The parameter tree of a checkpoint.

    Args:
        files: its weight files; read one tensor at a time.
        family: the tables to follow.
        config: the model to fill.
        dtype: type of the parameters.

    Returns:
        A tree of numpy arrays; block parameters carry a leading axis ``l``.

    Raises:
        UserError: listing every tensor that is missing, unexpected, of another shape or type,
            not finite or too large for ``dtype``, and every file that is absent or does not
            read, each with file and tensor.
    """
    shapes = parameter_shapes(config)
    slots = _slots(family, config, shapes, _prefix(files, family))
    sources, copies = _sources(slots, files)
    absent = {name: slot for name, slot in sources.items() if name not in files.file_of}
    problems = [
        f"missing {name} (not in {files.listing})"
        for name, slot in absent.items()
        if not slot.weight.optional
    ]
    filled = {path for slot in slots for path in slot.weight.targets}
    problems += [f"nothing for our {path}" for path in sorted(set(shapes) - filled)]
    # allocated as tensors of these shapes are found, and not at all where one is missing: a config
    # alone says nothing of how much memory there should be
    params = _Allocated(shapes, dtype, is_real=not problems)
    for slot in absent.values() if not problems else ():  # optional ones
        for part in params.parts(slot):
            part[...] = 0
    tied: dict[str, StoredTensor] = {}  # tensors that must be equal to another
    for name, tensor in files.open({*sources, *copies} - set(absent), problems):
        wrong = _fill(params, sources[name], tensor) if name in sources else ()
        problems += [f"{name} {reason} (in {files.file_of[name]})" for reason in wrong]
        if name in {*copies, *copies.values()}:
            tied[name] = tensor
    # after all files were opened: an index may not name all that they hold
    problems += [
        f"unexpected {name} (in {files.file_of[name]})"
        for name in _unused(files, family, {*sources, *copies})
    ]
    problems += [
        f"{copy} (in {files.file_of[copy]}) unequal to {source}, its tied copy"
        for copy, source in copies.items()
        if {copy, source} <= set(tied) and not _equal(tied[copy], tied[source])
    ]
    if problems:
        raise checks.UserError(
            f"`{files.folder}` must hold the tensors that its config.json describes, "
            f"got: {_listed(problems)}"
        )
    return traverse_util.unflatten_dict(params.arrays, sep="/")


class _Allocated:
    """The parameters of a model, each allocated when it is first written to."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, *, is_real: bool):
        self.shapes, self.dtype, self.is_real = shapes, dtype, is_real
        self.arrays: dict[str, np.ndarray] = {}

    def lengths(self, slot: "_Slot") -> tuple[tuple[int, ...], list[int]]:
        """Shape of what one slot takes but for the last axis, and lengths along that axis."""
        shapes = [self.shapes[path][slot.layer is not None :] for path in slot.weight.targets]
        return shapes[0][:-1], [shape[-1] for shape in shapes]

    def parts(self, slot: "_Slot") -> list[np.ndarray]:
        """The parts of parameters that one slot fills; nothing of them is kept if not real."""
        if not self.is_real:
            leading, lengths = self.lengths(slot)
            return [np.empty((*leading, length), self.dtype) for length in lengths]
        for path in slot.weight.targets:
            if path not in self.arrays:
                self.arrays[path] = _aligned(self.shapes[path], self.dtype)
        return [slot.part_of(self.arrays[path]) for path in slot.weight.targets]


def with_stored_head(files: TensorFiles, family: Family, config: ModelConfig) -> ModelConfig:
    """The config with the head that the files hold, which PyTorch's models follow too.

    A head that is stored is the embedding's only if it is equal; one that is not stored is the
    embedding's, where Hugging Face ties it whatever the config says.
    """
    untied = dataclasses.replace(cast(Any, config), tied_head=False)
    head = next((w for w in family.weights(untied) if w.targets == ("head/kernel",)), None)
    if head is None:  # a family whose head is always the embedding
        return config
    embedding = embedding_tensor(family, untied).removeprefix(family.prefixes[0])
    prefix = _prefix(files, family)
    heads = [("" if head.outside else prefix) + head.hf, *head.copies]
    names = {name for name in heads if name in files.file_of}
    if not names:
        tied = family.ties_absent_head or cast(Any, config).tied_head
        return dataclasses.replace(cast(Any, config), tied_head=tied)
    embedding_name = prefix + embedding
    if not cast(Any, config).tied_head or embedding_name not in files.file_of:
        return config
    stored = dict(files.open({embedding_name, *names}, []))
    table = stored.pop(embedding_name, None)
    equal = table is None or all(_equal(table, tensor) for tensor in stored.values())
    return config if equal else untied


def _listed(problems: Sequence[str]) -> str:
    """The first of them, and how many follow."""
    more = f"; and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
    return "; ".join(sorted(problems)[:_MAX_SHOWN]) + more


def checkpoint_tensors(
    params: Params, family: Family, config: ModelConfig, *, offset: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of a checkpoint's tensors, from a parameter tree: the inverse of loading.

    ``offset``: whether to undo the offsets of the table (gradients have none).
    """
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    shapes = {path: values.shape for path, values in flat.items()}
    for slot in _slots(family, config, shapes, family.prefixes[0]):
        whole = side_by_side(
            [slot.part_of(flat[path]) for path in slot.weight.targets], slot.weight.groups
        )
        if offset and slot.weight.offset:
            whole = whole - whole.dtype.type(slot.weight.offset)
        yield slot.name, np.ascontiguousarray(whole.T if slot.weight.transpose else whole)


def embedding_tensor(family: Family, config: ModelConfig) -> str:
    """Usual name of the tensor that holds the embedding of tokens."""
    (weight,) = (w for w in family.weights(config) if w.ours == "embed/embedding")
    return family.prefixes[0] + weight.hf


def saved_tensors(
    params: Params, family: Family, config: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of each tensor of a saved checkpoint, copies that are stored included."""
    prefix = family.prefixes[0]
    copies = {
        ("" if weight.outside else prefix) + weight.hf: weight.copies
        for weight in family.weights(config)
        if weight.writes_copies
    }
    for name, values in checkpoint_tensors(params, family, config):
        yield name, values
        for copy in copies.get(name, ()):
            if copy.startswith(prefix):
                yield copy, values


class _Slot(NamedTuple):
    """Where one tensor goes."""

    name: str  # in the checkpoint
    copies: tuple[str, ...]  # names of further tensors that hold the same
    weight: Weight
    layer: int | None  # block number, None for what stands once

    def part_of(self, parameter: np.ndarray) -> np.ndarray:
        """The part of a parameter that the tensor fills, as a view."""
        return parameter if self.layer is None else parameter[self.layer]


def _slots(
    family: Family, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> list[_Slot]:
    """Every tensor that the config requires."""
    return [
        _Slot(
            ("" if weight.outside else prefix) + weight.source(layer or 0),
            weight.copies,
            weight,
            layer,
        )
        for weight in family.weights(config)
        # stacked parameters carry the blocks along their first axis
        for layer in (range(shapes[weight.targets[0]][0]) if weight.stacked else (None,))
    ]


def _sources(slots: Sequence[_Slot], files: TensorFiles) -> tuple[dict[str, _Slot], dict[str, str]]:
    """Which tensor fills which slot, and the further tensors that must hold the same."""
    sources = {
        next((name for name in (slot.name, *slot.copies) if name in files.file_of), slot.name): slot
        for slot in slots
    }
    copies = {
        copy: source
        for source, slot in sources.items()
        for copy in (slot.name, *slot.copies)
        if copy in files.file_of and copy != source
    }
    return sources, copies


def _prefix(files: TensorFiles, family: Family) -> str:
    """What stands before the tensors' names in these files."""
    return next(
        (p for p in family.prefixes if any(n.startswith(p) for n in files.file_of)),
        family.prefixes[0],
    )


def _unused(files: TensorFiles, family: Family, used: set[str]) -> Iterator[str]:
    prefix = _prefix(files, family)
    ignored = [re.compile(pattern) for pattern in family.ignored]
    for name in set(files.file_of) - used:
        if not any(pattern.fullmatch(name.removeprefix(prefix)) for pattern in ignored):
            yield name


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that starts where JAX can take it over without a copy."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors hold the same values, read block by block."""
    return (
        a.shape == b.shape
        and {a.dtype, b.dtype} <= set(FLOATS)
        and all(
            np.array_equal(values, b.rows(start, start + len(values)))
            for start, values in a.blocks()
        )
    )


def _fill(params: _Allocated, slot: _Slot, tensor: StoredTensor) -> Iterator[str]:
    """Writes one tensor into its parameter(s), block by block; yields what is wrong with it."""
    weight = slot.weight
    leading, lengths = params.lengths(slot)
    expected = (*leading, sum(lengths))
    stored = expected[::-1] if weight.transpose else expected
    if tensor.shape != stored:
        yield f"of shape {tensor.shape} (the config requires {stored})"
    if tensor.dtype not in FLOATS:
        yield f"of type {tensor.dtype} (a parameter is one of {', '.join(FLOATS)})"
    if tensor.shape != stored or tensor.dtype not in FLOATS:
        return
    parts = params.parts(slot)
    if len(parts) == 1:
        (part,) = parts
        blocks = tensor.blocks()
        stored_part = part.T if weight.transpose else part
    else:  # a tensor that holds several parameters is that of one block, and small
        stored_part, blocks = np.empty(stored, parts[0].dtype), iter([(0, tensor.whole())])
    for start, values in blocks:
        if reason := _out_of_range(values, stored_part.dtype):
            yield reason
            return
        stored_part[start : start + len(values)] = values
    if weight.offset:
        stored_part += stored_part.dtype.type(weight.offset)
    if len(parts) > 1:
        ours = stored_part.T if weight.transpose else stored_part
        for part, values in zip(parts, _split(ours, lengths, weight.groups), strict=True):
            part[...] = values


def _out_of_range(values: np.ndarray, dtype: np.dtype) -> str | None:
    """Why these values cannot become ones of ``dtype``, if they cannot."""
    extremes = [float(values.min()), float(values.max())]  # of a NaN, both are NaN
    if not np.isfinite(extremes).all():
        return "holds values that are not finite"
    largest, limit = max(map(abs, extremes)), float(jnp.finfo(dtype).max)
    return f"holds {largest:.3g}, too large for {dtype}" if largest > limit else None


def _split(whole: np.ndarray, lengths: Sequence[int], groups: int) -> list[np.ndarray]:
    """The parameters that lie side by side along the last axis, group by group."""
    grouped = whole.reshape(*whole.shape[:-1], groups, -1)
    ends = np.cumsum([length // groups for length in lengths])[:-1]
    return [
        part.reshape(*whole.shape[:-1], length)
        for part, length in zip(np.split(grouped, ends, axis=-1), lengths, strict=True)
    ]


def side_by_side(parts: Sequence[np.ndarray], groups: int) -> np.ndarray:
    """Parameters as one tensor holds them along its last axis, the inverse of ``_split``."""
    leading = parts[0].shape[:-1]
    grouped = [part.reshape(*leading, groups, -1) for part in parts]
    return np.concatenate(grouped, axis=-1).reshape(*leading, -1)
