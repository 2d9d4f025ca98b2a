"""One style for all figures: panels name their axes, kernels side by side share a scale."""

import itertools

import numpy as np
import pytest

from lensllm_jax.language_modelling import LOSS_UNIT
from lensllm_jax.report import figures
from lensllm_jax.selection.loss_table import LossTable


def test_kernels_side_by_side_share_a_scale():
    small, large = np.eye(3), 5.0 * np.eye(3)
    figure, _ = figures.draw_kernels({"small": small, "large": large})
    scales = [image.get_clim() for axes in figure.axes for image in axes.images]
    assert scales == [(0.0, 5.0), (0.0, 5.0)]
    alone, _ = figures.draw_kernels({"small": small})
    assert alone.axes[0].images[0].get_clim() == (0.0, 1.0)


@pytest.mark.parametrize("count", [1, 2])
def test_every_panel_names_its_axes(count):
    figure, panels = figures.panels(*[("x (unit)", "y (unit)")] * count)
    assert len(panels) == count
    for axes in panels:
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (unit)", "y (unit)")
    assert figures.png(figure, panels[-1])[1:4] == b"PNG"  # without a legend, as nothing is named


def drawn_curves(**changes):
    sizes, losses = np.array([0, 200, 400]), np.array([[2.0, 1.5, 1.2]])
    table = LossTable(("a" * 80,), sizes, losses, np.ones(1), ("",), **changes)
    figure, axes = figures.draw_loss_curves(table, {}, target_size=800)
    figures.png(figure, axes)
    return axes


def test_losses_per_byte_have_a_scale_of_bits():
    axes = drawn_curves(unit=LOSS_UNIT)
    (bits,) = axes.child_axes
    assert axes.get_ylabel() == "test loss (nats per byte)"
    assert bits.get_ylabel() == "bits per byte"
    low, high = (end / np.log(2) for end in axes.get_ylim())
    assert bits.get_ylim() == pytest.approx((low, high))
    other = drawn_curves()  # the unit of a table from a file is not known
    assert (other.get_ylabel(), list(other.child_axes)) == ("test loss", [])


def test_a_star_stands_at_the_prediction_and_a_dashed_line_leads_to_it_where_no_law_does():
    sizes, losses = np.array([0, 200, 400]), np.array([[2.0, 1.5, 1.2], [3.0, 2.0, np.nan]])
    table = LossTable(("a", "b"), sizes, losses, np.ones(2), ("",) * 2)
    laws, predicted = {"a": lambda size: 1.0 + 0.0 * size}, {"a": 0.9, "b": 1.4}
    _, axes = figures.draw_loss_curves(table, laws, target_size=800, predicted=predicted)
    stars = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "*"]
    assert stars == [[[800, 0.9]], [[800, 1.4]]]
    dashed = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [[[200, 2.0], [800, 1.4]]]


def test_a_long_name_is_shortened_and_a_title_is_not():
    axes = drawn_curves(task="pydoc")
    assert axes.get_title() == "pydoc: measured losses and predictions (stars)"
    (name,) = (text.get_text() for text in axes.texts)
    assert name == "a" * 12 + "\u2026" + "a" * 12


def test_names_stand_apart_beside_the_ends_of_their_curves():
    sizes, losses = np.array([0, 200, 400]), np.full((9, 3), 1.5)
    losses[:, 2] = [1.0, 1.001, 1.002, 1.003, 1.2, 1.4, 1.41, 1.42, np.nan]
    names = tuple(f"candidate-{i}" for i in range(9))
    table = LossTable(names, sizes, losses, np.ones(9), ("",) * 9)
    figure, axes = figures.draw_loss_curves(table, {}, target_size=400)
    figures.png(figure, axes)
    assert axes.get_legend() is None
    figure.canvas.draw()  # in pixels of the screen, not of the file
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    inside = axes.get_window_extent()
    assert all(inside.x0 < box.x0 and box.x1 < inside.x1 for box in boxes)
    points = axes.transData.transform([(400, 1.42)] * 2)
    assert max(points[:, 0]) < min(box.x0 for box in boxes)
    lowest = [text.get_text() for text in sorted(axes.texts, key=lambda t: t.get_position()[1])]
    assert lowest[:4] == ["candidate-0", "candidate-1", "candidate-2", "candidate-3"]


def test_more_names_than_lines_stay_in_the_legend():
    sizes, losses = np.array([0, 200]), np.linspace(1.0, 2.0, 60).reshape(30, 2)
    table = LossTable(tuple(map(str, range(30))), sizes, losses, np.ones(30), ("",) * 30)
    figure, axes = figures.draw_loss_curves(table, {}, target_size=400)
    figures.png(figure, axes)
    assert len(axes.get_legend().get_texts()) == 30
    assert not axes.texts
