"""Zoo: the small, really pretrained candidates that come with the package.

``experiments/pretrain_zoo.py`` made them; each folder's ``pretraining.json`` says from
which text, for how many steps and to which loss.

Example:
    >>> import lensllm_jax as lens
    >>> "zoo/gpt2-xs" in lens.list_zoo()
    True
"""

import os
from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.checkpoints import published
from lensllm_jax.checkpoints.adapters import Adapter, is_adapter, read_adapter
from lensllm_jax.checkpoints.candidate import CONFIG, Candidate, load_folder
from lensllm_jax.checkpoints.gguf.header import is_gguf
from lensllm_jax.checkpoints.hub import HubModel, snapshot

FOLDER = Path(__file__).parent.parent / "zoo"
PREFIX = "zoo/"


def list_zoo() -> tuple[str, ...]:
    """Names of the bundled candidates, in alphabetical order."""
    return tuple(PREFIX + path.parent.name for path in sorted(FOLDER.glob(f"*/{CONFIG}")))


def load_candidate(name: str | Path, *, dtype: str = "float32") -> Candidate:
    """Loads a candidate by whatever names it.

    Args:
        name: "zoo/..." for a bundled one, "published/..." for one that
            ``experiments.published`` brought into the cache, a path to a checkpoint folder, an
            adapter folder or a GGUF file, or a model on the Hugging Face hub: its id,
            "id@revision", or the address of its page.
        dtype: type of the parameters.

    Raises:
        UserError: if there is no such candidate or it does not load.
    """
    folder = folder_of(name)
    if not is_adapter(folder):
        return load_folder(folder, name=str(name), dtype=dtype)
    adapter = read_adapter(folder)
    return load_folder(base_of(adapter), name=str(name), dtype=dtype, adapter=adapter)


def base_of(adapter: Adapter) -> Path:
    """The checkpoint that an adapter is merged into, fetched from the hub if need be.

    Raises:
        UserError: if there is none, or it is an adapter itself.
    """
    base = folder_of(adapter.base)
    if is_adapter(base):
        raise checks.UserError(
            f"base of `{adapter.folder}` must be a whole model, got the adapter {base}: merge "
            "that into its own base first"
        )
    return base


def folder_of(name: str | Path) -> Path:
    """The checkpoint folder or GGUF file of a candidate, fetched from the hub if need be.

    Raises:
        UserError: if there is none.
    """
    checks.path("candidate", name)
    folder = Path(name).expanduser()  # os.path: a name that is too long is no folder
    if isinstance(name, str) and name.startswith(PREFIX):
        bundled = FOLDER / name.removeprefix(PREFIX)
        if name in list_zoo() or not os.path.isdir(folder):
            checks.one_of("candidate", name, list_zoo())
            return bundled
    is_published = isinstance(name, str) and name.startswith(published.PREFIX)
    if is_published and (name in published.PUBLISHED or not os.path.exists(folder)):
        return published.published_file(str(name))
    if is_gguf(folder) and os.path.isfile(folder):
        return folder
    if name != "" and os.path.isdir(folder):  # Path("") is the present folder
        return snapshot(folder)
    model = HubModel.named(name) if isinstance(name, str) and name[:1] not in "./~" else None
    if model is None:
        what = (
            "a file: give the folder that it lies in" if os.path.isfile(folder) else "nothing there"
        )
        raise checks.UserError(
            f"`candidate` must be one of {', '.join(list_zoo())}, a checkpoint folder, a GGUF "
            f"file, or a model on the Hugging Face hub, got {str(name)!r}, {what}"
        )
    return model.folder()
