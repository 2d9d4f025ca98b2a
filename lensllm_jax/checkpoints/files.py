"""Files of a checkpoint folder, none of which is trusted: what is read lies inside, and is a file.

A folder may come from anywhere.  Links out of it, git-lfs pointers, pipes, unfinished downloads
and JSON that is none each end in one line.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lensllm_jax import checks

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> Any:
    """The content of a JSON file, with or without a byte-order mark.

    Raises:
        UserError: if it is no JSON.
    """
    check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        reason = "levels without end" if isinstance(error, RecursionError) else error
        raise checks.UserError(f"`{path}` must be JSON, got {reason}") from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_there(path: Path) -> bool:
    """Whether there is something of this name, a link to a file that is gone included."""
    return os.path.lexists(path)


def check_file(path: Path) -> None:
    """Checks that a file can be read.

    Raises:
        UserError: if it is a link to a file that is gone, no regular file, or a git-lfs pointer.
    """
    if path.is_symlink() and not path.exists():
        raise checks.UserError(
            f"`{path}` must be a file, got a link to {os.readlink(path)}, which is gone: fetch it "
            "again"
        )
    if not path.is_file():
        raise checks.UserError(f"`{path}` must be a regular file, got something else: take it away")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise checks.UserError(
                f"`{path}` must hold the content itself, got a git-lfs pointer to it: run `git lfs "
                "pull` in that folder"
            )


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, links followed, is in a folder, or in the hub cache that the folder is in."""
    folder, path = folder.absolute(), path.resolve()
    # models--owner--name/snapshots/revision, whose files are links to models--owner--name/blobs
    in_cache = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return path.is_relative_to((folder.parents[1] if in_cache else folder).resolve())
