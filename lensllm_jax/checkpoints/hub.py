"""Hub: models of the Hugging Face hub, fetched into its cache, or found there.

Example:
    >>> HubModel.named("https://huggingface.co/facebook/opt-350m/tree/main")
    HubModel(id='facebook/opt-350m', revision='main')
"""

import re
from pathlib import Path
from typing import NamedTuple

from lensllm_jax import checks
from lensllm_jax.checkpoints.folder import FILES

_NAME = re.compile(
    r"((https?://)?(www\.)?(huggingface\.co|hf\.co)/|hf://)?"
    r"(?P<id>[\w-][\w.-]*(/[\w.-]+)?)"
    r"(@(?P<revision>[\w./-]+)|/(tree|blob|resolve)/(?P<page>[^/?#]+)[^?#]*)?/?([?#].*)?"
)
_PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja", *(f"*{Path(file).suffix}" for file in FILES)]
# copies of the same weights in folders of their own, in other layouts, or of fewer bits
_COPIES = ["*/*", "consolidated*", "*.fp16.*", "*.bf16.*", "*.fp32.*"]


class HubModel(NamedTuple):
    """A model on the hub, of its newest revision unless one is named."""

    id: str
    revision: str | None = None

    @classmethod
    def named(cls, name: str) -> "HubModel | None":
        """From an id, "id@revision", or the address of a page; None if it is none of these."""
        match = _NAME.fullmatch(name)
        return match and cls(match["id"], match["revision"] or match["page"])

    def folder(self) -> Path:
        """Its folder in the cache, fetched if need be.

        Raises:
            UserError: if it is not there and cannot be fetched.
        """
        import huggingface_hub

        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.id,
                    revision=self.revision,
                    allow_patterns=_PATTERNS,
                    ignore_patterns=self._unneeded(),
                )
            )
        except Exception as error:  # every network and hub failure ends in the same advice
            offline = huggingface_hub.constants.HF_HUB_OFFLINE
            why = "HF_HUB_OFFLINE=1 forbids to fetch it" if offline else type(error).__name__
            revision = f" --revision {self.revision}" if self.revision else ""
            raise checks.UserError(
                "`candidate` must be a bundled one, a checkpoint folder, or a model that the "
                f"Hugging Face hub lets us fetch, got {'@'.join(filter(None, self))!r}, not in the "
                f"cache ({why}): check the spelling and the network, or where there is one run "
                f"`hf download {self.id}{revision} --local-dir FOLDER` and give the path of the "
                "folder"
            ) from error

    def _unneeded(self) -> list[str]:
        """Patterns of copies of the weights, and of formats less safe than one that is there."""
        import huggingface_hub

        try:
            files = huggingface_hub.list_repo_files(self.id, revision=self.revision)
        except Exception:  # offline: the cache holds whatever was fetched before
            return []
        listings = (name for single in FILES for name in (single, f"{single}.index.json"))
        best = next((name for name in listings if name in files), None)
        if best is None:  # a variant, or a file of another name, is all there is
            return ["*/*"]
        formats = [Path(single).suffix for single in FILES]
        best_format = next(i for i, suffix in enumerate(formats) if suffix in best)
        return [*_COPIES, *(f"*{suffix}" for suffix in formats[best_format + 1 :])]


def snapshot(folder: Path) -> Path:
    """The checkpoint in a model's top folder of the hub cache; any other folder as it is.

    Raises:
        UserError: if the cache holds several revisions and none is the main one.
    """
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    if not snapshots or (folder / "config.json").exists():
        return folder
    main = folder / "refs" / "main"
    revision = main.read_text().strip() if main.is_file() else ""
    named = [path for path in snapshots if path.name == revision or len(snapshots) == 1]
    if not named:
        raise checks.UserError(
            f"`{folder}` must hold one revision, or say which is main, got "
            f"{', '.join(path.name for path in snapshots)}: give one of the folders in snapshots/"
        )
    return named[0]
