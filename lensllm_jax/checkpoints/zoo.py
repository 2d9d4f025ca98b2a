"""Zoo: the small, really pretrained candidates that come with the package.

``experiments/pretrain_zoo.py`` made them; each folder's ``pretraining.json`` says from
which text, for how many steps and to which loss.

Example:
    >>> import lensllm_jax as lens
    >>> "zoo/gpt2-xs" in lens.list_zoo()
    True
"""

from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import CONFIG, Candidate, load_folder
from lensllm_jax.checkpoints.tensors import FILES

FOLDER = Path(__file__).parent.parent / "zoo"
PREFIX = "zoo/"
HUB_PATTERNS = ["*.json", "*.model", "*.txt", *(f"*{Path(file).suffix}" for file in FILES)]


def list_zoo() -> tuple[str, ...]:
    """Names of the bundled candidates, in alphabetical order."""
    return tuple(PREFIX + path.parent.name for path in sorted(FOLDER.glob(f"*/{CONFIG}")))


def load_candidate(name: str, *, dtype: str = "float32") -> Candidate:
    """Loads a candidate by whatever names it.

    Args:
        name: "zoo/..." for a bundled one, a path to a checkpoint folder, or the id of a
            model on the Hugging Face hub.
        dtype: type of the parameters.

    Raises:
        UserError: if there is no such candidate or it does not load.
    """
    return load_folder(folder_of(name), name=name, dtype=dtype)


def folder_of(name: str) -> Path:
    """The checkpoint folder of a candidate, fetched from the hub if need be.

    Raises:
        UserError: if there is none.
    """
    if name.startswith(PREFIX):
        checks.one_of("candidate", name, list_zoo())
        return FOLDER / name.removeprefix(PREFIX)
    return Path(name) if Path(name).is_dir() else Path(_download(name))


def _download(hub_id: str) -> str:
    """Folder of a hub model, fetched unless the cache has it."""
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            hub_id, allow_patterns=HUB_PATTERNS, ignore_patterns=_unneeded(hub_id)
        )
    except Exception as error:  # every network and hub failure ends in the same advice
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE=1 forbids to fetch it" if offline else type(error).__name__
        raise checks.UserError(
            f"`candidate` must be one of {', '.join(list_zoo())}, a checkpoint folder, or a model "
            f"that the Hugging Face hub lets us fetch, got {hub_id!r}, not in the cache ({why}): "
            "check the spelling and the network, or where there is one run `hf download "
            f"{hub_id} --local-dir FOLDER` and give the path of the folder"
        ) from error


def _unneeded(hub_id: str) -> list[str]:
    """Weights in formats that need not be fetched because a safer one is there."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(hub_id)
    except Exception:  # offline: the cache holds whatever was fetched before
        return []
    suffixes = [Path(single).suffix for single in FILES]
    for i, suffix in enumerate(suffixes):
        if any("/" not in file and file.endswith(suffix) for file in files):
            return [f"*{other}" for other in suffixes[i + 1 :]]
    return []
