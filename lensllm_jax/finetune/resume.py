"""Checkpoint: where a fine-tune stands, in one file, from which it resumes bit for bit.

Weights, moments, the best weights so far and the counts of the stopping rule are all that the
rest of a fine-tune depends on: the order of the examples follows from the seed.  A search
(:mod:`lensllm_jax.finetune.search`) has its own position in the same kind of file: safetensors
(nothing in it is executed), whole or absent, with a digest, the settings and data that it
belongs to, and the seconds that it took.

Example:
    >>> import tempfile, jax.numpy as jnp
    >>> from lensllm_jax.finetune.loop import TrainState
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "cell.safetensors"
    >>> start = Position.at_start(TrainState({"w": jnp.zeros(2)}, {"mu": jnp.zeros(2)}))
    >>> Checkpoint(file).save(start._replace(call=3), {"seed": 0})
    >>> Checkpoint(file).load(start, {"seed": 0}).call
    3
"""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax import checks, durable
from lensllm_jax.checkpoints.formats import open_tensors, write_safetensors
from lensllm_jax.checkpoints.stored_tensor import Tensors
from lensllm_jax.finetune.loop import TrainState
from lensllm_jax.fingerprint import fingerprint, named_arrays
from lensllm_jax.typing import Params

_STORED = {"counts": dict, "seconds": float, "settings": dict}  # what a position's text holds
_SHARE = 20  # a writing takes at most one in so many seconds
_NOT_OURS = (TypeError, AttributeError, RecursionError, OverflowError)  # of JSON of another form


@runtime_checkable
class Resumable(Protocol):
    """A position that a checkpoint stores."""

    @property
    def arrays(self) -> Any:
        """A pytree of arrays."""

    @property
    def counts(self) -> dict[str, Any]:
        """All but the arrays, as JSON values."""

    def at(self, arrays: Any, counts: Mapping[str, Any]) -> "Resumable":
        """The position with these arrays and counts."""


ResumableT = TypeVar("ResumableT", bound=Resumable)


class Position(NamedTuple):
    """Where a fine-tune stands between two calls."""

    state: TrainState
    best_params: Params  # at the best step
    call: int = 0  # calls made
    best_loss: float = float("inf")  # nats per byte, lowest validation loss
    best_step: int = 0  # optimiser steps to it
    since_best: int = 0  # evaluations since then
    num_tokens: int = 0  # tokens trained on

    @classmethod
    def at_start(cls, state: TrainState) -> "Position":
        """The position before the first call; best weights are a copy, for steps donate theirs."""
        return cls(state, jax.tree.map(jnp.copy, state.params))

    @property
    def arrays(self) -> tuple[TrainState, Params]:
        """The weights and moments."""
        return self.state, self.best_params

    @property
    def counts(self) -> dict[str, Any]:
        """All but the arrays."""
        return {name: getattr(self, name) for name in self._fields[2:]}

    def at(self, arrays: tuple[TrainState, Params], counts: Mapping[str, Any]) -> "Position":
        """The position with these arrays and counts."""
        return Position(*arrays, **counts)


class Checkpoint:
    """The file of one fine-tune, written by one process at a time.

    Attributes:
        path: of the file; its folder is made if absent.
        every_seconds: between two writings, or more where one takes above a twentieth of that;
            0 writes after every call.
        earlier_seconds: runtime of the earlier processes that ``load`` resumes, each up to its
            last writing.
    """

    def __init__(self, path: str | pathlib.Path, *, every_seconds: float | int = 60):
        self.path = pathlib.Path(path)
        self.every_seconds = checks.not_negative("every_seconds", every_seconds)
        self.earlier_seconds = 0.0
        self._started = self._written = time.monotonic()
        self._took = 0.0

    def save_if_due(self, position: Resumable, settings: Mapping[str, Any]) -> None:
        """``save``, if it is time for the next."""
        wait = max(self.every_seconds, _SHARE * self._took) if self.every_seconds else 0.0
        if time.monotonic() - self._written >= wait:
            self.save(position, settings)

    def save(self, position: Resumable, settings: Mapping[str, Any]) -> None:
        """Writes the position and the fine-tune's settings (JSON values) in place of the last."""
        begun = time.monotonic()
        tensors = named_arrays(position.arrays)
        seconds = self.earlier_seconds + time.monotonic() - self._started
        stored = {"counts": position.counts, "seconds": seconds, "settings": settings}
        text = json.dumps(stored, sort_keys=True)
        digests = {name: fingerprint(x) for name, x in tensors.items()}
        metadata = {"position": text, "sha256": fingerprint([text, digests])}
        write_safetensors(self.path, tensors, metadata)
        self._written = time.monotonic()
        self._took = self._written - begun

    def load(self, start: ResumableT, settings: Mapping[str, Any]) -> ResumableT:
        """The position in the file, or ``start`` where there is no file.

        Args:
            start: before the first call: names, shapes and types of the arrays; NumPy arrays stay
                on the host.
            settings: of the fine-tune, as JSON values.

        Raises:
            UserError: if the file is damaged, or of another fine-tune.
        """
        durable.remove_partials(self.path)
        if not self.path.exists():
            return start
        stored, tensors, kinds = self._read()
        mismatches = durable.differences(stored["settings"], json.loads(json.dumps(settings)))
        expected = named_arrays(start.arrays)
        mismatches += [
            f"{name} of another shape or type"
            for name in sorted({*kinds, *expected})
            if kinds.get(name) != _shape_and_dtype(expected.get(name))
        ]
        if mismatches:
            raise checks.UserError(
                f"`checkpoint` must be of this fine-tune, got {self.path}: {mismatches[0]}; "
                "delete it to start again"
            )
        if not _are_counts(stored["counts"], start.counts):
            raise self._damaged("its counts are none of a fine-tune")
        leaves, structure = jax.tree.flatten(start.arrays)
        values = [  # one at a time: there is no room for all of them twice
            _where(leaf, tensors[name].whole()) for name, leaf in zip(expected, leaves, strict=True)
        ]
        self.earlier_seconds = stored["seconds"]
        return cast(ResumableT, start.at(jax.tree.unflatten(structure, values), stored["counts"]))

    def check_at_most(self, name: str, count: int, most: int) -> None:
        """Refuses a count of the loaded position that no fine-tune reaches.

        Raises:
            UserError: if it is one.
        """
        if count > most:
            raise self._damaged(f"{name} {count} of {most}")

    def discard(self) -> None:
        """Removes the file, once the result is stored elsewhere."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict, Tensors, dict[str, tuple | None]]:
        """What is stored beside the tensors, the tensors, still in the file, and their kinds."""
        import safetensors

        try:
            tensors = open_tensors(self.path)
            with safetensors.safe_open(self.path, framework="numpy") as file:
                metadata = file.metadata()
            kinds, digests = {}, {}
            for name, tensor in tensors.items():
                values = tensor.whole()
                kinds[name], digests[name] = _shape_and_dtype(values), fingerprint(values)
            undamaged = fingerprint([metadata["position"], digests]) == metadata["sha256"]
        except (checks.UserError, ValueError, KeyError, *_NOT_OURS) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if not undamaged:
            raise self._damaged("its digest is another")
        stored = json.loads(metadata["position"])
        parts = stored if isinstance(stored, dict) else {}
        if {name: type(part) for name, part in parts.items()} != _STORED:
            raise self._damaged("it holds no position")
        return stored, tensors, kinds

    def _damaged(self, why: str) -> checks.UserError:
        return checks.UserError(
            f"`checkpoint` must be a whole file, got {self.path}, damaged ({why}): delete it to "
            f"start again"
        )


def _where(leaf: Any, values: np.ndarray) -> Any:
    """The values where a leaf of the start is: on the host, a device, or cut between several."""
    if not isinstance(leaf, jax.Array):
        return values
    one = len(leaf.sharding.device_set) == 1
    return jnp.asarray(values) if one else jax.device_put(values, leaf.sharding)


def _are_counts(stored: Any, expected: Mapping[str, Any]) -> bool:
    """Whether counts have the names and types of others, and could be of a fine-tune."""
    if not isinstance(stored, dict) or stored.keys() != expected.keys():
        return False
    return all(
        type(stored[name]) is type(value) and (isinstance(value, float) or stored[name] >= 0)
        for name, value in expected.items()
    )


def _shape_and_dtype(array: np.ndarray | None) -> tuple | None:
    return None if array is None else (array.shape, array.dtype)
