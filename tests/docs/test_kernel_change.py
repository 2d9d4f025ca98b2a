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


def largest_shares(eigenvalues, name):
    """The largest eigenvalue's share of the trace, in each state."""
    return [max(eigenvalues[name, state]) / sum(eigenvalues[name, state]) for state in STATES]


def test_rows_are_those_of_the_tables(eigenvalues, shares):
    expected = []
    for name, row in rows("change"):
        columns = ("trace_ratio", "relative_change", "alignment", "centred_alignment")
        largest = largest_shares(eigenvalues, name)
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
    ordered = {(one, state): sorted(by_layer, key=by_layer.get, reverse=True)
               for (one, state), by_layer in shares.items()}  # fmt: skip
    assert ordered[name, "after"][0] == "embed"
    assert ordered[name, "before"][:3] == ["embed", "block 0", "block 29"]  # of 30
    assert {ordered[on_sotu, state][0] for state in STATES} == {"block 0"}


def test_sentences_of_the_bundled_candidates_are_those_of_the_tables(eigenvalues):
    change, ends = dict(rows("change")), {}
    for task in ("pydoc", "sotu"):
        bundled = {name: row for name, row in change.items() if name.startswith(f"{task}, zoo/")}
        assert len(bundled) == 13
        for column in ("alignment", "trace_ratio"):
            values = [float(row[column]) for row in bundled.values()]
            ends[task, column] = f"{min(values):.2f} to {max(values):.2f}"
        for name in bundled:
            before, after = largest_shares(eigenvalues, name)
            assert after < before
        most = sorted(bundled, key=lambda name: float(bundled[name]["trace_ratio"]))[:3]
        assert {*most} == {f"{task}, zoo/{name}" for name in ("t5-xs", "t5-s", "mt5-xs")}
    assert (
        f"none keeps its direction (alignment {ends['pydoc', 'alignment']} on pydoc, "
        f"{ends['sotu', 'alignment']} on sotu), and the largest eigenvalue's share of the trace "
        f"falls for each; of the trace {ends['pydoc', 'trace_ratio']} is left on pydoc, "
        f"{ends['sotu', 'trace_ratio']} on sotu. T5 and mT5 change most"
    ) in WORDS
