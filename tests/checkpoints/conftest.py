"""What tests of checkpoints share."""

import shutil

import pytest

from lensllm_jax.checkpoints.zoo import FOLDER
from tests.checkpoints.changes import SMALLEST


@pytest.fixture
def folder(tmp_path):
    """A copy of the smallest bundled candidate, to be changed."""
    return shutil.copytree(FOLDER / SMALLEST, tmp_path / SMALLEST)
