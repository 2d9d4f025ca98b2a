"""Colours are distinguishable in all common colour vision, and what shares one is not alike.

Dichromats' vision is simulated by the matrices of Machado, Oliveira and Fernandes, "A
physiologically-based model for simulation of color vision deficiency" (2009), at severity 1, on
linear RGB; distances are those of CIELAB (1976).
"""

import itertools

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from lensllm_jax.report import figures
from lensllm_jax.selection.selectors import SELECTORS

VISIONS = {
    "common": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# of sRGB's white D65 (IEC 61966-2-1)
XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
WHITE = (0.95047, 1.0, 1.08883)
# 2.3 is just noticed of two large fields side by side (Mahy et al. 1994); thin lines apart need
# several times that, and the nearest two of the palette are 16 apart
APART = 15.0


def lab(colour, vision):
    """CIELAB of a colour as it is seen."""
    coded = np.array(to_rgb(colour))
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    x = np.array(XYZ) @ np.clip(np.array(VISIONS[vision]) @ linear, 0.0, 1.0) / WHITE
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours, vision):
    seen = [lab(colour, vision) for colour in colours]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))


def families():
    return [colour for colour, _ in figures.FAMILIES.values()]


def test_lab_is_that_of_the_standard():
    # white, and sRGB's red as CIE 15 gives it
    np.testing.assert_allclose(lab("#ffffff", "common"), (100.0, 0.0, 0.0), atol=0.02)
    np.testing.assert_allclose(lab("#ff0000", "common"), (53.24, 80.09, 67.20), atol=0.02)


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_distinguishable(vision):
    white = "#ffffff"  # what they are drawn on
    assert nearest((*figures.COLOURS, white), vision) > APART
    assert set(families()) <= set(figures.COLOURS)
    assert len(set(families())) == len(families())


def test_colours_that_are_not_distinguishable_are_caught():
    common = [f"C{i}" for i in range(7)]  # of matplotlib
    assert nearest(common, "common") > APART
    assert nearest(common, "protanopia") < APART
    assert nearest(common, "deuteranopia") < APART
    assert nearest(("#0000ff", "#008060"), "tritanopia") < nearest(
        ("#0000ff", "#008060"), "common"
    )  # each matrix takes something away


@pytest.mark.parametrize("vision", VISIONS)
def test_the_map_of_kernels_rises_in_lightness(vision):
    shades = colormaps[figures.HEAT](np.linspace(0.0, 1.0, 32))
    lightness = [lab(shade[:3], vision)[0] for shade in shades]
    assert np.all(np.diff(lightness) > 0)


def test_a_map_that_does_not_rise_is_caught():
    lightness = [lab(shade[:3], "common")[0] for shade in colormaps["jet"](np.linspace(0, 1, 32))]
    assert not np.all(np.diff(lightness) > 0)


def look(name):
    style = figures.style_of_selector(name)
    return style["color"], style["linestyle"], style["marker"]


def alike(looks):
    """Pairs that neither colour and dash nor the marker separates."""
    return [
        (a, b)
        for (a, of_a), (b, of_b) in itertools.combinations(looks.items(), 2)
        if of_a[:2] == of_b[:2] or of_a[2] == of_b[2]
    ]


def test_no_two_selectors_look_alike():
    looks = {name: look(name) for name in (*SELECTORS, "upwards")}
    assert not alike(looks)
    twin = alike(looks | {"twin": ("#0072B2", "--", "o")})
    assert twin == [("lensllm", "twin"), ("rectified", "twin")]  # by its marker, by its dash


def test_a_new_selector_has_a_look_of_its_own_and_leaves_the_others_alone(monkeypatch):
    before = {name: look(name) for name in SELECTORS}
    monkeypatch.setitem(SELECTORS, "a_new_one", None)
    monkeypatch.setitem(SELECTORS, "another", None)
    assert {name: look(name) for name in before} == before
    assert not alike({name: look(name) for name in SELECTORS})


def test_no_two_candidates_look_alike_while_dashes_last():
    looks = [tuple(figures.colour_of(i).values()) for i in range(28)]
    assert len(set(looks)) == 28
