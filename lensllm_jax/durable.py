"""Files that appear whole or not at all, whatever kills the process or stops the machine.

The content is written to a temporary file in the same folder, flushed to the disk, and only then
renamed; the folder is flushed after that, since the name is the folder's content (fsync(2)).

Example:
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "b.txt"
    >>> replace(file, b"whole")
    >>> create(file, b"too late"), file.read_bytes()
    (False, b'whole')

A folder may belong to one set of settings, so that a run resumes only what it began itself:

    >>> folder = open_folder("store", file.parent / "c", {"seed": 0}, record="run.json")
    >>> open_folder("store", folder, {"seed": 1}, record="run.json")
    Traceback (most recent call last):
    ...
    lensllm_jax.checks.UserError: `store` must hold results of these settings, got ...: name ...
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lensllm_jax import checks

# why there can be no folder of a name: dangling and circular links, files above it, its length
_NO_FOLDER = (errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR)
PARTIAL = ".partial"  # how the name of a file ends that is being written, or never was finished


def replace(target: Path, content: bytes) -> None:
    """Writes a file, in place of one of that name; its folder is made if absent."""
    with writing(target) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yields a path for another writer to fill; the file then takes the place of ``target``."""
    with _aside(target) as aside:
        mode = aside.stat().st_mode
        yield aside
        os.chmod(aside, mode)  # some writers put a file of their own there, for its owner alone
        _flush(aside)
        os.replace(aside, target)


@contextlib.contextmanager
def writing_folder(target: Path) -> Iterator[Path]:
    """Yields a folder for another writer to fill; it then takes the place of ``target``."""
    aside = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed writer
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in (*aside.iterdir(), aside):
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _flush(target.parent)


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder of files to a new or an empty one: renamed, or copied to another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with writing_folder(target) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True)
        shutil.rmtree(source)


def create(target: Path, content: bytes) -> bool:
    """Writes a file unless one exists, and returns whether it did; one of several writers wins."""
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


def user_cache(name: str) -> Path:
    """The folder of this name in the user's cache of this package; it need not exist."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lensllm_jax" / name


def open_folder(
    argument: str, path: str | Path, settings: Mapping[str, Any], *, record: str,
    notes: Mapping[str, Any] | None = None, growing: Iterable[str] = (),
) -> Path:  # fmt: skip
    """A folder that belongs to one set of settings: a new one, or an earlier one of the same.

    Args:
        argument: what the caller calls ``path``.
        path: where the folder is or will be.
        settings: JSON values that decide everything in it.
        record: file within it that holds them; of several processes the first writes it.
        notes: further JSON values of a new record, which may differ later.
        growing: lists and dictionaries of the settings that may hold more than those of the record,
            which stays as it is.

    Raises:
        UserError: if the path is a file or can be no folder, or the folder holds something else.
    """
    path, another = Path(path), "name another folder"
    if os.path.exists(path) and not path.is_dir():
        raise checks.UserError(f"`{argument}` must be a folder, got the file {path}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FOLDER:
            raise
        raise checks.UserError(
            f"`{argument}` must be a folder that can be made, got {path}, {error}: {another}"
        ) from None
    foreign = sorted(p.name for p in path.iterdir() if not p.name.endswith(PARTIAL))
    if foreign and not (path / record).exists():
        raise checks.UserError(
            f"`{argument}` must be empty or hold an earlier {record}, got {path} with "
            f"{foreign[0]}: {another}"
        )
    content = json_bytes({"settings": settings, **(notes or {})})
    create(path / record, content)
    try:
        stored = json.loads((path / record).read_bytes())
        before, lost = stored["settings"], (notes or {}).keys() - stored.keys()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
        before = lost = None
    is_ours = isinstance(before, dict)
    different: list[str] = []
    if is_ours:
        now = json.loads(content)["settings"]
        grown = {name: now[name] for name in growing if _holds(now.get(name), before.get(name))}
        different = differences({**before, **grown}, now)
    if not is_ours or (lost and not different):
        raise checks.UserError(
            f"`{argument}` must hold a {record} of ours, got one that does not read: {path}; "
            f"{another}"
        )
    if different:
        raise checks.UserError(
            f"`{argument}` must hold results of these settings, got {path} with "
            f"{'; '.join(different)}: {another}"
        )
    return path


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON file with sorted keys.

    Raises:
        ValueError: if a number is not finite.
    """
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One entry per name whose stored value differs from the present one, with both values.

    Example:
        >>> differences({"seed": 0, "n": 2}, {"seed": 1, "n": 2})
        ['seed=0 there, 1 now']
        >>> differences({"sha256": {"a": "f3", "b": "11"}}, {"sha256": {"a": "0c", "b": "11"}})
        ["sha256 of a='f3' there, '0c' now"]
    """
    found = []
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{name} of {difference}" for difference in differences(one, other)]
        elif one != other:
            found.append(f"{name}={one!r} there, {other!r} now")
    return found


def _holds(more: Any, less: Any) -> bool:
    """Whether a list has all values of another one, or a dictionary all items."""
    if isinstance(more, dict) and isinstance(less, dict):
        return more | less == more
    return isinstance(more, list) and isinstance(less, list) and all(x in more for x in less)


def remove_partials(target: Path) -> None:
    """Removes what killed writers of ``target`` left; that of a living one is locked and stays."""
    _remove_dead(target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}"))


def remove_all_partials(folder: Path) -> None:
    """The same, of every file of a folder and below."""
    _remove_dead(folder.rglob(f".*{PARTIAL}"))


def _remove_dead(partials: Iterable[Path]) -> None:
    for partial in partials:
        with contextlib.suppress(OSError), open(partial, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A temporary name in the target's folder, unique to this writer; removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with open(aside, "xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield aside
    except OSError as error:
        if error.filename is None:  # a full disk: the user must learn which
            error.filename = str(target)
        raise
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
