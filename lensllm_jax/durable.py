"""Files that appear whole or not at all, whatever kills the process or stops the machine.

The content is written beside its place, flushed to the disk, and only then given its name; the
folder is flushed after that, since the name is the folder's content (fsync(2)).

Example:
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a" / "b.txt"
    >>> replace(file, b"whole")
    >>> create(file, b"too late"), file.read_bytes()
    (False, b'whole')
    >>> [path.name for path in file.parent.iterdir()]
    ['b.txt']
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # how the name of a file ends that is being written, or never was finished


def replace(target: Path, content: bytes) -> None:
    """Writes a file, in place of one of that name.

    Args:
        target: where; its folder is made if absent.
        content: all of it.
    """
    with writing(target) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A file that another writer fills, in place of one of that name once it is whole.

    Args:
        target: where; its folder is made if absent.

    Yields:
        Where to write meanwhile.
    """
    with _aside(target) as aside:
        yield aside
        _flush(aside)
        os.replace(aside, target)


def create(target: Path, content: bytes) -> bool:
    """Writes a file unless there is one of that name; of several processes one wins.

    Args:
        target: where; its folder is made if absent.
        content: all of it.

    Returns:
        Whether it was written.
    """
    if target.exists():
        return False
    with _aside(target) as aside:
        aside.write_bytes(content)
        _flush(aside)
        try:
            os.link(aside, target)
        except FileExistsError:
            return False
    return True


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What stands otherwise in stored settings than in the present ones.

    Args:
        before: as read back.
        now: as they would be read back.

    Returns:
        One entry a name, both values in it; empty where they are equal.

    Example:
        >>> differences({"seed": 0, "n": 2}, {"seed": 1, "n": 2})
        ['seed=0 there, 1 now']
    """
    return [
        f"{name}={before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A name beside the target that no other writer has, gone or renamed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
