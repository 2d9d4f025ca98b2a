"""How far fine-tuning moves kernels, as docs/REPRODUCTION.md says, is that of the tables."""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.committed import table

PAGE = (Path(__file__).parents[2] / "docs" / "REPRODUCTION.md").read_text()
WORDS = " ".join(PAGE.split())
STATES = ("before", "after")


def rows(kind):
    """Of the bundled candidates, then of the published one."""
    return [*table(f"pydoc_kernel_{kind}"), *table(f"published_pydoc_kernel_{kind}")]


@pytest.fixture(scope="module")
def eigenvalues():
    return {(row["candidate"], row["state"]): [*map(float, row["eigenvalues"].split())]
            for row in rows("states")}  # fmt: skip


@pytest.fixture(scope="module")
def shares():
    """(candidate, state) -> layer -> share of the trace."""
    found = defaultdict(dict)
    for row in rows("layers"):
        found[row["candidate"], row["state"]][row["layer"]] = float(row["share"])
    return found


def test_rows_are_those_of_the_tables(eigenvalues, shares):
    for row in rows("change"):
        name = row["candidate"]
        columns = ("trace_ratio", "relative_change", "alignment", "centred_alignment")
        largest = [max(eigenvalues[name, s]) / sum(eigenvalues[name, s]) for s in STATES]
        layer = max(shares[name, "before"], key=shares[name, "before"].get)
        carried = [shares[name, state][layer] for state in STATES]
        cells = [name, row["steps"], *(f"{float(row[column]):.2f}" for column in columns)]
        cells += [", ".join(f"{share:.2f}" for share in largest)]
        cells += [f"{layer} " + ", ".join(f"{share:.2f}" for share in carried)]
        assert f"| {' | '.join(cells)} |" in PAGE


def test_traces_are_the_sums_of_the_eigenvalues(eigenvalues):
    """The kernel's own trace; layers' are measured by other code."""
    for row in rows("change"):
        before, after = (sum(eigenvalues[row["candidate"], state]) for state in STATES)
        assert after / before == pytest.approx(float(row["trace_ratio"]), rel=1e-4)


def test_sentences_are_those_of_the_tables(eigenvalues, shares):
    name = "published/smollm2-135m"
    ratio = {row["candidate"]: float(row["trace_ratio"]) for row in rows("change")}
    steps = {row["candidate"]: row["steps"] for row in rows("change")}
    largest = max(eigenvalues[name, "after"]) / max(eigenvalues[name, "before"])
    assert (
        f"After {steps[name]} steps SmolLM2's kernel has {ratio[name]:.2f} of its trace and "
        f"{largest:.2f} of its largest eigenvalue"
    ) in WORDS
    assert f"t5-xs keeps {ratio['zoo/t5-xs']:.3f} of its trace" in WORDS
    ordered = {state: sorted(shares[name, state], key=shares[name, state].get, reverse=True)
               for state in STATES}  # fmt: skip
    assert ordered["after"][0] == "embed"
    assert ordered["before"][:3] == ["embed", "block 0", "block 29"]  # of 30
