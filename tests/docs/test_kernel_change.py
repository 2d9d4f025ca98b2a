"""How far fine-tuning moves kernels, as docs/REPRODUCTION.md says, is that of the tables."""

from collections import defaultdict

import pytest

from tests.committed import table
from tests.docs.reproduction import WORDS, selector_rows

STATES = ("before", "after")


def rows(kind):
    """(task and candidate, row) of the bundled candidates and of the published one."""
    for stem in ("pydoc", "published_pydoc", "sotu", "published_sotu"):
        for row in table(f"{stem}_kernel_{kind}"):
            yield f"{stem.removeprefix('published_')}, {row['candidate']}", row


@pytest.fixture(scope="module")
def eigenvalues():
    return {(name, row["state"]): [*map(float, row["eigenvalues"].split())]
            for name, row in rows("states")}  # fmt: skip


@pytest.fixture(scope="module")
def shares():
    """(task and candidate, state) -> layer -> share of the trace."""
    found = defaultdict(dict)
    for name, row in rows("layers"):
        found[name, row["state"]][row["layer"]] = float(row["share"])
    return found


def test_rows_are_those_of_the_tables(eigenvalues, shares):
    expected = []
    for name, row in rows("change"):
        columns = ("trace_ratio", "relative_change", "alignment", "centred_alignment")
        largest = [max(eigenvalues[name, s]) / sum(eigenvalues[name, s]) for s in STATES]
        layer = max(shares[name, "before"], key=shares[name, "before"].get)
        carried = [shares[name, state][layer] for state in STATES]
        cells = [row["steps"], *(f"{float(row[column]):.2f}" for column in columns)]
        cells += [", ".join(f"{share:.2f}" for share in largest)]
        cells += [f"{layer} " + ", ".join(f"{share:.2f}" for share in carried)]
        expected.append((name, cells))
    assert list(selector_rows("| task, candidate | steps |")) == expected


def test_traces_are_the_sums_of_the_eigenvalues(eigenvalues):
    """The kernel's own trace; layers' are measured by other code."""
    for name, row in rows("change"):
        before, after = (sum(eigenvalues[name, state]) for state in STATES)
        assert after / before == pytest.approx(float(row["trace_ratio"]), rel=1e-4)


def test_sentences_are_those_of_the_tables(eigenvalues, shares):
    name, on_sotu = (f"{task}, published/smollm2-135m" for task in ("pydoc", "sotu"))
    change = dict(rows("change"))
    ratio = {name: float(row["trace_ratio"]) for name, row in change.items()}
    largest = {one: max(eigenvalues[one, "after"]) / max(eigenvalues[one, "before"])
               for one in (name, on_sotu)}  # fmt: skip
    assert (
        f"After {change[name]['steps']} steps on pydoc SmolLM2's kernel has {ratio[name]:.2f} of "
        f"its trace and {largest[name]:.2f} of its largest eigenvalue; the centred kernel turns "
        f"less than the whole one. After {change[on_sotu]['steps']} on sotu, at three times the "
        f"rate, it has {ratio[on_sotu]:.2f} of its trace and {largest[on_sotu]:.2f} times its"
    ) in WORDS
    assert float(change[name]["centred_alignment"]) > float(change[name]["alignment"])
    assert float(change[on_sotu]["alignment"]) < 0.15  # "hardly any of its direction"
    pydoc, sotu = (f"{ratio[f'{task}, zoo/t5-xs']:.3f}" for task in ("pydoc", "sotu"))
    assert f"t5-xs keeps {pydoc} of its trace on pydoc and {sotu} on sotu" in WORDS
    bundled = [row for one, row in change.items() if one.startswith("pydoc, zoo/")]
    assert len(bundled) == 13
    values = [[float(row[column]) for row in bundled] for column in ("trace_ratio", "alignment")]
    ends = [f"{end(of_one):.2f}" for of_one in values for end in (min, max)]
    assert (
        "none keeps its trace ({} to {} of it) or its direction (alignment {} to {}), and the "
        "largest eigenvalue's share of the trace falls for each; T5 and mT5 change most"
    ).format(*ends) in WORDS
    for row in bundled:
        of_one = (eigenvalues[f"pydoc, {row['candidate']}", state] for state in STATES)
        before, after = (max(values) / sum(values) for values in of_one)
        assert after < before
    most = sorted(bundled, key=lambda row: float(row["trace_ratio"]))[:3]
    assert {row["candidate"] for row in most} == {"zoo/t5-xs", "zoo/t5-s", "zoo/mt5-xs"}
    ordered = {(one, state): sorted(by_layer, key=by_layer.get, reverse=True)
               for (one, state), by_layer in shares.items()}  # fmt: skip
    assert ordered[name, "after"][0] == "embed"
    assert ordered[name, "before"][:3] == ["embed", "block 0", "block 29"]  # of 30
    assert {ordered[on_sotu, state][0] for state in STATES} == {"block 0"}
