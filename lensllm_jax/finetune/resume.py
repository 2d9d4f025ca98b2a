"""Checkpoint: where a fine-tune stands, in one file, from which it goes on bit for bit.

Weights, moments, the best weights so far and the counts of the stopping rule are all that the
rest of a fine-tune depends on: the order of the examples follows from the seed.  A search of
settings has a position of its own (:mod:`lensllm_jax.finetune.search`) and the same file.  It is
safetensors (nothing in it is executed), appears whole or not at all, names the settings and the
data that it belongs to, carries a digest of everything in it, and the seconds that it took.

Example:
    >>> import tempfile, jax.numpy as jnp
    >>> from lensllm_jax.finetune.loop import TrainState
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "cell.safetensors"
    >>> start = Position.at_start(TrainState({"w": jnp.zeros(2)}, {"mu": jnp.zeros(2)}))
    >>> Checkpoint(file).save(start._replace(call=3), {"seed": 0})
    >>> Checkpoint(file).load(start, {"seed": 0}).call
    3
    >>> Checkpoint(file).load(start, {"seed": 1})
    Traceback (most recent call last):
    ...
    lensllm_jax.checks.UserError: `checkpoint` must be of this fine-tune, got ...: seed=0 there, ...
"""

import json
import pathlib
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax import checks, durable
from lensllm_jax.finetune.loop import TrainState
from lensllm_jax.fingerprint import fingerprint, named_arrays
from lensllm_jax.typing import Params


@runtime_checkable
class Resumable(Protocol):
    """A position that a checkpoint keeps."""

    @property
    def arrays(self) -> Any:
        """A tree of arrays."""

    @property
    def counts(self) -> dict[str, Any]:
        """All but the arrays, as JSON values."""

    def at(self, arrays: Any, counts: Mapping[str, Any]) -> "Resumable":
        """The position of these arrays and counts."""


Kept = TypeVar("Kept", bound=Resumable)


class Position(NamedTuple):
    """Where a fine-tune stands between two calls."""

    state: TrainState
    best_params: Params  # at the best step
    call: int = 0  # calls made
    best_loss: float = float("inf")  # nats per target token, lowest validation loss
    best_step: int = 0  # optimiser steps to it
    since_best: int = 0  # evaluations since then
    num_tokens: int = 0  # tokens trained on

    @classmethod
    def at_start(cls, state: TrainState) -> "Position":
        """Before the first call.

        Args:
            state: before the first step.

        Returns:
            The position; its best weights are a copy, since training reuses the state's memory.
        """
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
        """The position of these arrays and counts.

        Args:
            arrays: as ``arrays``.
            counts: as ``counts``.

        Returns:
            The position.
        """
        return Position(*arrays, **counts)


class Checkpoint:
    """The file of one fine-tune, which it alone writes.

    Attributes:
        path: of the file; its folder is made if absent.
        every_seconds: between two writings; 0 writes after every call.
        earlier_seconds: what the processes took whose work ``load`` found, each up to its last
            writing.
    """

    def __init__(self, path: str | pathlib.Path, *, every_seconds: float | int = 60):
        self.path = pathlib.Path(path)
        self.every_seconds = checks.not_negative("every_seconds", every_seconds)
        self.earlier_seconds = 0.0
        self._begun = self._written = time.monotonic()

    def save_if_due(self, position: Resumable, settings: Mapping[str, Any]) -> None:
        """``save``, if ``every_seconds`` have passed since the last.

        Args:
            position: where the fine-tune stands.
            settings: what the fine-tune is of, as JSON values.
        """
        if time.monotonic() - self._written >= self.every_seconds:
            self.save(position, settings)

    def save(self, position: Resumable, settings: Mapping[str, Any]) -> None:
        """Writes the position in place of the one before.

        Args:
            position: where the fine-tune stands.
            settings: what the fine-tune is of, as JSON values.

        Raises:
            OSError: if the disk does not take it; the file before then stays.
        """
        from safetensors.numpy import save

        tensors = named_arrays(position.arrays)
        seconds = self.earlier_seconds + time.monotonic() - self._begun
        stored = {"counts": position.counts, "seconds": seconds, "settings": settings}
        text = json.dumps(stored, sort_keys=True)
        metadata = {"position": text, "sha256": fingerprint([text, tensors])}
        durable.replace(self.path, save(tensors, metadata))
        self._written = time.monotonic()

    def load(self, start: Kept, settings: Mapping[str, Any]) -> Kept:
        """The position in the file.

        Args:
            start: before the first call: names, shapes and types of the arrays; those of the
                host stay there.
            settings: what the fine-tune is of, as JSON values.

        Returns:
            The position, or ``start`` where there is no file.

        Raises:
            UserError: if the file is damaged, or of another fine-tune.
        """
        for left in self.path.parent.glob(f".{self.path.name}.*{durable.PARTIAL}"):
            left.unlink(missing_ok=True)  # of a writer that was killed
        if not self.path.exists():
            return start
        stored, tensors = self._read()
        other = durable.differences(stored["settings"], json.loads(json.dumps(settings)))
        like = named_arrays(start.arrays)
        other += [
            f"{name} of another shape or type"
            for name in sorted({*tensors, *like})
            if _form(tensors.get(name)) != _form(like.get(name))
        ]
        if other:
            raise checks.UserError(
                f"`checkpoint` must be of this fine-tune, got {self.path}: {other[0]}; delete it "
                f"to start again"
            )
        leaves, structure = jax.tree.flatten(start.arrays)
        read = [
            jnp.asarray(tensors[name]) if isinstance(leaf, jax.Array) else tensors[name]
            for name, leaf in zip(like, leaves, strict=True)
        ]
        self.earlier_seconds = stored["seconds"]
        return cast(Kept, start.at(jax.tree.unflatten(structure, read), stored["counts"]))

    def discard(self) -> None:
        """Removes the file, once the result of the fine-tune is kept elsewhere."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict, dict[str, np.ndarray]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        content = self.path.read_bytes()
        try:
            tensors = load(content)
            (size,) = struct.unpack("<Q", content[:8])
            metadata = json.loads(content[8 : 8 + size])["__metadata__"]
            whole = fingerprint([metadata["position"], tensors]) == metadata["sha256"]
        except (SafetensorError, ValueError, KeyError, struct.error) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if not whole:
            raise self._damaged("its digest is another")
        return json.loads(metadata["position"]), tensors

    def _damaged(self, why: str) -> checks.UserError:
        return checks.UserError(
            f"`checkpoint` must be a whole file, got {self.path}, damaged ({why}): delete it to "
            f"start again"
        )


def _form(array: np.ndarray | None) -> tuple | None:
    return None if array is None else (array.shape, array.dtype)
