"""Figures of the theory say what was measured, how surely, and what could not be fitted."""

import numpy as np
import pytest

from lensllm_jax.report import theory

SIZES = (100, 200, 400)
FIT = {"coefficient": 2.0, "exponent": -0.5, "low": -0.7, "high": -0.3, "level": 0.9}


def rows(**more):
    return [
        {
            "size": n, "training_loss": 1.0, "test_loss": 1.2, "empirical_term": 1.1,
            "curvature_term": 30.0 / n, "confidence_term": 90.0 / n, "sum_h": 2.0 * n**0.5,
            "sum_h_error": 0.1, "trace": 5.0, "trace_low": 4.0, "trace_high": 7.0,
            "gradient_variance": 1.0, **more,
        }
        for n in SIZES
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were made, before they became pictures."""
    figures = []

    def record(figure, *_):
        figures.append(figure)
        return b""

    monkeypatch.setattr(theory, "as_png", record)
    monkeypatch.setattr(theory, "png", record)
    return figures


def test_the_terms_stand_on_each_other_up_to_the_bound(drawn):
    theory.bound_figure(rows())
    theory.bound_figure(rows(remainder_term=0.5))
    without, whole = (figure.axes[0] for figure in drawn)
    assert "no bound" in without.get_title()
    assert "no bound" not in whole.get_title()
    for axes, known in ((without, 2.3), (whole, 2.8)):
        tops = [band.get_paths()[0].vertices[:, 1].max() for band in axes.collections]
        assert tops[-1] == pytest.approx(known)  # at n = 100
    assert len(whole.collections) == len(without.collections) + 1


def test_errors_and_intervals_are_drawn_and_what_has_no_fit_is_named(drawn):
    decays = {"sum_h": FIT, "trace": FIT, "gradient_variance": {"no fit": "not all positive"}}
    theory.decay_figure(rows(), decays)
    axes = drawn[0].axes[0]
    labels = {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    label = f"{theory._QUANTITIES['sum_h']}: $n^{{0.50}}$ (0.30 to 0.70)"
    assert label in labels
    assert "variance of the gradient: not positive at every n" in labels
    first = rows()[0]["sum_h"]
    segments = labels[label].lines[2][0].get_segments()
    assert [np.ptp(s[:, 1]) for s in segments] == pytest.approx([0.2 / first] * len(SIZES))
    trace = next(handle for text, handle in labels.items() if text.startswith("trace"))
    ends = trace.lines[2][0].get_segments()[0][:, 1]
    assert ends == pytest.approx([4.0 / 5.0, 7.0 / 5.0])


def test_two_sizes_have_no_interval():
    open_ends = {**FIT, "low": -np.inf, "high": np.inf}
    assert theory._power(open_ends) == "$n^{0.50}$ (two sizes: no interval)"
    assert theory._power({**FIT, "exponent": 0.001}).startswith("$n^{0.00}$")
