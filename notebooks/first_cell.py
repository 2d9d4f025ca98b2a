# Colab: put the address here from which git can clone this project. It is not known where this
# notebook was written. Where lensllm_jax can be imported already, this cell installs nothing.
REPOSITORY = ""

import configparser
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = pathlib.Path("/content/lensllm_source")  # not lensllm_jax: it would be imported as that
PACKAGES = pathlib.Path("/content/lensllm_packages")  # so that Colab's own stay as they are


def lacking(lock, least, present):
    """What to install: what is absent, or all that differs from the lock if a version is too old.

    lock: the requirements of requirements.txt; least: those of setup.cfg, the oldest that will
    do; present: version of each installed package.
    """
    wanted = {canonicalize_name(r.name): r for r in lock if not r.marker or r.marker.evaluate()}
    known = [(present.get(canonicalize_name(r.name)), r.specifier) for r in least]
    if any(version is not None and version not in specifier for version, specifier in known):
        return [r for name, r in wanted.items() if present.get(name) not in r.specifier]
    return [r for name, r in wanted.items() if name not in present]


def requirements(text):
    return [Requirement(line) for line in text.splitlines() if line and line[0] not in " #"]


def in_colab():
    if not REPOSITORY:
        raise RuntimeError("`REPOSITORY` must be this project's address, got none: put it at the top")
    if not SOURCE.exists():  # a restarted runtime has it already, and the packages too
        subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, SOURCE], check=True)
    sys.path[:0] = [str(SOURCE), str(PACKAGES)]
    os.environ["PYTHONPATH"] = f"{SOURCE}:{PACKAGES}"  # for the commands that cells start
    setup = configparser.ConfigParser()
    setup.read(SOURCE / "setup.cfg")
    packages = importlib.metadata.distributions()
    missing = lacking(
        requirements((SOURCE / "requirements.txt").read_text()),
        requirements(setup["options"]["install_requires"]),
        {canonicalize_name(p.metadata["Name"]): p.version for p in packages},
    )
    loaded = sorted({r.name for r in missing} & set(sys.modules))
    if loaded:
        raise RuntimeError(f"`{loaded[0]}` must not be imported yet, got an old one: restart first")
    if missing:
        plain = [f"{r.name}{r.specifier}" for r in missing]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", PACKAGES]
        subprocess.run([*pip, *plain], check=True)


if not importlib.util.find_spec("lensllm_jax"):
    in_colab()
