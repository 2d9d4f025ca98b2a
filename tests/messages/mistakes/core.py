"""Mistakes with matrices, the metrics of a ranking, paired comparisons and folders of results."""

import dataclasses

import numpy as np

from lensllm_jax import delimited, durable, linalg, metrics
from lensllm_jax.paired import paired

LOSSES = [1.0, 2.0, 3.0]
SPECTRUM = linalg.NtkSpectrum(np.ones(2), np.ones(2), learning_rate=0.1)


def spectrum(**changes):
    return dataclasses.replace(SPECTRUM, **changes)


def opened(folder, name, content):
    """Opens a folder that holds a file, or the file itself."""
    (folder / name).write_text(content)
    path = folder / name if name == "file" else folder
    return durable.open_folder("output_dir", path, {"seed": 2}, record="run.json")


def cells(*lines):
    return delimited.read_delimited(lines, headings=("target",))


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("the file", "hold a header ... got no line", lambda tmp: cells()),
    (
        "the file",
        "CSV ... got a broken row that begins on line 2",
        lambda tmp: cells("target", '"'),
    ),
    ("row 2", "have 1 cells like the header ... got 2", lambda tmp: cells("target", "a,b")),
    ("output_dir", "folder ... got the file", lambda tmp: opened(tmp, "file", "")),
    (
        "output_dir",
        "folder that can be made ... null byte",
        lambda tmp: durable.open_folder("output_dir", f"{tmp}/a\0b", {}, record="run.json"),
    ),
    ("output_dir", "empty or hold ... notes.txt", lambda tmp: opened(tmp, "notes.txt", "")),
    (
        "output_dir",
        "hold a run.json ... got one that does not read",
        lambda tmp: opened(tmp, "run.json", "["),
    ),
    (
        "output_dir",
        "these settings ... seed=1 there, 2 now",
        lambda tmp: opened(tmp, "run.json", '{"settings": {"seed": 1}}'),
    ),
    (
        "matrix",
        "finite ... got nan at index (0, 0)",
        lambda tmp: linalg.symmetric_eigen(np.array([[np.nan]])),
    ),
    (
        "matrix",
        "symmetric ... got 1.0e+00",
        lambda tmp: linalg.symmetric_eigen(np.array([[1.0, 2.0], [0.0, 1.0]])),
    ),
    (
        "losses",
        "have shape ... got (1, 3)",
        lambda tmp: metrics.pearson_correlation(LOSSES, [LOSSES]),
    ),
    (
        "scores",
        "have shape ... got (2,)",
        lambda tmp: metrics.pearson_correlation(LOSSES[:2], LOSSES),
    ),
    (
        "scores",
        "finite ... got nan at index (1,)",
        lambda tmp: metrics.pearson_correlation([1.0, np.nan, 2.0], LOSSES),
    ),
    ("scores", "name two or more ... got 1", lambda tmp: metrics.pearson_correlation([1.0], [1.0])),
    (
        "scores",
        "vary over candidates ... got a constant",
        lambda tmp: metrics.pearson_correlation([1.0, 1.0], [1.0, 2.0]),
    ),
    (
        "losses",
        "finite ... got inf at index (1,)",
        lambda tmp: metrics.relative_accuracy(1.0, [1.0, np.inf]),
    ),
    (
        "losses",
        "hold two different values ... got only 1.0",
        lambda tmp: metrics.relative_accuracy(1.0, [1.0, 1.0]),
    ),
    (
        "selected_loss",
        "one of `losses` ... got 4.0",
        lambda tmp: metrics.relative_accuracy(4.0, LOSSES),
    ),
    (
        "differences",
        "finite ... got nan at index (0, 0)",
        lambda tmp: paired(np.array([[np.nan, 1.0]])),
    ),
    ("differences", "have two or more ... got 1", lambda tmp: paired(np.array([[1.0]]))),
    (
        "squared_projections",
        "have shape ... got (3,)",
        lambda tmp: spectrum(squared_projections=np.ones(3)),
    ),
    (
        "eigenvalues",
        "finite ... got nan at index (1,)",
        lambda tmp: spectrum(eigenvalues=np.array([1.0, np.nan])),
    ),
    (
        "squared_projections",
        "finite ... got nan at index (1,)",
        lambda tmp: spectrum(squared_projections=np.array([1.0, np.nan])),
    ),
    ("learning_rate", "positive ... got 0.0", lambda tmp: spectrum(learning_rate=0.0)),
    (
        "eigenvalues",
        "not be negative ... got a minimum of -1.0",
        lambda tmp: spectrum(eigenvalues=-np.ones(2)),
    ),
    ("steps", "zero or positive ... got -1.0", lambda tmp: SPECTRUM.loss(-1.0)),
    ("steps", "finite ... got nan", lambda tmp: SPECTRUM.loss(np.nan)),
]
