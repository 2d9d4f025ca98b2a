"""The accuracy of cost estimates in docs/kernel.md is that of the committed benchmark."""

from pathlib import Path

from tests.committed import table

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "kernel.md").read_text().split())


def column(method, name, file="ntk_benchmark"):
    return [float(row[name]) for row in table(file) if row["method"] == method]


def estimated_over_measured(method, estimate, measurement, file="ntk_benchmark"):
    pairs = zip(column(method, estimate, file), column(method, measurement, file), strict=True)
    return [estimated / measured for estimated, measured in pairs]


def test_page_states_the_error_of_the_estimates():
    measured = column("structured", "seconds")
    seconds = estimated_over_measured("structured", "said_seconds", "seconds")
    assert (
        f"{len(measured)} kernels of {min(measured):.1f} to {max(measured):.0f} s: seconds "
        f"{min(seconds):.2f} to {max(seconds):.2f}"
    ) in PAGE
    assert 0.75 <= min(seconds) <= max(seconds) <= 1.25
    memory = estimated_over_measured("structured", "said_gb", "peak_gb", "ntk_published")
    assert (
        f"Of SmolLM2-135M, Gemma-3-270M and Qwen2.5-Coder-0.5B bytes are {memory[0]:.2f}, "
        f"{memory[1]:.2f} and {memory[2]:.2f}"
    ) in PAGE
    assert all(0.85 <= ratio <= 1.15 for ratio in memory)
    contraction = estimated_over_measured("jacobian_contraction", "said_seconds", "seconds")
    close = sum(0.75 <= ratio <= 1.25 for ratio in contraction)
    assert f"Of {len(contraction)} contractions of neural-tangents {close} took" in PAGE
