"""The report of one kernel: its spectrum, and the decay of its loss."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.report import _parts, figures
from lensllm_jax.report.sections import Block, Definitions, Drawing, Report, Section, Table


def kernel_report(
    name: str,
    theta: Float[np.ndarray, "n n"],
    spectrum: NtkSpectrum,
    run: _parts.Run,
    summary: Mapping[str, Any] | None = None,
) -> Report:
    """The report of a candidate's kernel.

    Args:
        name: of the candidate.
        theta: the kernel, squared nats per unit of parameters.
        spectrum: of it, for F(t).
        run: content of run.json.
        summary: content of ntk.json, of which single values are shown.
    """
    values = np.sort(np.asarray(spectrum.eigenvalues, np.float64))[::-1]
    rows = [
        {"j": j, "eigenvalue": float(x), "share_of_trace": float(x / values.sum())}
        for j, x in enumerate(values, start=1)
    ]
    single = {k: v for k, v in (summary or {}).items() if isinstance(v, str | int | float)}
    entries = {
        **single,
        "examples": len(values),
        "trace": f"{values.sum():.6g}",
        "largest eigenvalue": f"{values[0]:.6g}",
        "smallest eigenvalue": f"{values[-1]:.6g}",
        "asymmetry, largest |Θij − Θji|": f"{np.abs(theta - theta.T).max():.3g}",
    }
    eigenvalues: list[Block] = [_parts.spectra({name: values}), Table(rows, "eigenvalues of Θ")]
    return Report(
        f"Neural tangent kernel of {name}",
        [
            Section("The kernel", [Definitions(entries)]),
            Section("Spectrum", eigenvalues),
            Section("Kernel loss", [_kernel_loss(name, spectrum)]),
            Section("How this was made", [_parts.command(run)], details=[_parts.settings(run)]),
        ],
    )


def _kernel_loss(name: str, spectrum: NtkSpectrum) -> Drawing:
    start = float(spectrum.loss(np.array(0.0)))
    fastest = 1.0 / (2.0 * spectrum.learning_rate * float(spectrum.eigenvalues.max()))
    steps = fastest * np.geomspace(1e-2, 1e5, 200)
    drawn, axes = figures.axes_with("optimiser steps t", "kernel loss F(Θ, t) (squared output)")
    axes.plot(steps, spectrum.loss(steps), label=name, **figures.colour_of(0))
    axes.set_xscale("log")
    axes.set_title("Decay of the kernel loss (Eq 9)")
    end = float(spectrum.loss(steps[-1:])[0])
    summary = f"F falls from {start:.4g} at t = 0 to {end:.4g} at t = {steps[-1]:.3g} steps."
    return Drawing("Kernel loss", "kernel_loss.png", figures.svg(drawn, axes), summary, summary)
