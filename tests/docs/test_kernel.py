"""What docs/kernel.md says of foretold costs is what the committed benchmark says."""

from pathlib import Path

from tests.committed import table

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "kernel.md").read_text().split())


def column(method, name):
    return [float(row[name]) for row in table("ntk_benchmark") if row["method"] == method]


def foretold_over_measured(method, said, seen):
    pairs = zip(column(method, said), column(method, seen), strict=True)
    return [foretold / measured for foretold, measured in pairs]


def test_page_says_how_far_off_the_foretold_was():
    measured = column("structured", "seconds")
    seconds = foretold_over_measured("structured", "said_seconds", "seconds")
    held = foretold_over_measured("structured", "said_gb", "peak_gb")
    assert (
        f"{len(measured)} kernels of {min(measured):.1f} to {max(measured):.0f} s: seconds "
        f"{min(seconds):.2f} to {max(seconds):.2f}, bytes {min(held):.2f} to {max(held):.2f}"
    ) in PAGE
    assert 0.75 <= min(seconds + held) <= max(seconds + held) <= 1.25
    contraction = foretold_over_measured("jacobian_contraction", "said_seconds", "seconds")
    close = sum(0.75 <= ratio <= 1.25 for ratio in contraction)
    assert f"Of {len(contraction)} contractions of neural-tangents {close} took" in PAGE
