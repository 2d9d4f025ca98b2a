"""One style for all figures: panels name their axes, kernels side by side share a scale."""

import numpy as np
import pytest

from lensllm_jax.report import figures


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
