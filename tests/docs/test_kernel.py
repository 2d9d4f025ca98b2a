"""The accuracy of cost estimates in docs/kernel.md is that of the committed benchmark."""

from pathlib import Path

from tests.committed import table

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "kernel.md").read_text().split())


def column(method, name):
    return [float(row[name]) for row in table("ntk_benchmark") if row["method"] == method]


def estimated_over_measured(method, estimate, measurement):
    pairs = zip(column(method, estimate), column(method, measurement), strict=True)
    return [estimated / measured for estimated, measured in pairs]


def test_page_states_the_error_of_the_estimates():
    measured = column("structured", "seconds")
    seconds = estimated_over_measured("structured", "said_seconds", "seconds")
    memory = estimated_over_measured("structured", "said_gb", "peak_gb")
    assert (
        f"{len(measured)} kernels of {min(measured):.1f} to {max(measured):.0f} s: seconds "
        f"{min(seconds):.2f} to {max(seconds):.2f}, bytes {min(memory):.2f} to {max(memory):.2f}"
    ) in PAGE
    assert 0.75 <= min(seconds + memory) <= max(seconds + memory) <= 1.25
    contraction = estimated_over_measured("jacobian_contraction", "said_seconds", "seconds")
    close = sum(0.75 <= ratio <= 1.25 for ratio in contraction)
    assert f"Of {len(contraction)} contractions of neural-tangents {close} took" in PAGE
