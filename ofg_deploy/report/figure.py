"""Registrations in one picture, a row of panels for each, by matplotlib: for a notebook or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ofg_deploy.report.panels import Panel, Plane
from ofg_deploy.report.png import DARK, LIGHT, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(rows: Sequence[tuple[str, list[Panel]]]) -> Figure:
    """A figure with a row of panels for each registration, named on the left."""
    from matplotlib.figure import Figure

    columns = min(len(shown) for _, shown in rows)
    width, height = rows[0][1][0].planes[0].view.size_mm
    size = (2.3 * columns, (2.2 * height / width + 0.4) * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained", facecolor=DARK)
    every = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, shown) in zip(every, rows, strict=True):
        for axes, panel in zip(line, shown, strict=False):
            _draw(axes, panel, shown[0].planes[0])
        line[0].set_ylabel(name, color=LIGHT, fontsize=14, fontweight="bold", parse_math=False)
    for axes, panel in zip(figure.axes, rows[0][1], strict=False):
        axes.set_title(panel.title, color=LIGHT, fontsize=14)
    return figure


def _draw(axes: Axes, panel: Panel, fixed: Plane) -> None:
    plane = panel.planes[0]
    picture = fixed.image if plane.image is None else plane.image
    assert picture is not None
    width, height = plane.view.size_mm
    faint, extent = 0.4 if plane.image is None else 1.0, (0, width, 0, height)
    axes.imshow(PALETTE[picture], alpha=faint, origin="lower", extent=extent, interpolation="nearest")
    axes.set(xticks=[], yticks=[], facecolor=DARK, autoscale_on=False)
    axes.set_xlabel(panel.note, color=LIGHT, fontsize=12)
    axes.spines[:].set_visible(False)
    for curve in plane.curves:
        gap = np.full((1, 2), np.nan)
        x, y = np.concatenate([part for line in curve.lines for part in (line, gap)] or [gap]).T
        axes.plot(x, y, color=curve.colour, linewidth=0.8, linestyle="--" if curve.dashed else "-")
    if panel.key == "fixed":
        for at, letter in zip((0.03, 0.97), plane.view.ends, strict=True):
            axes.text(at, 0.5, letter, color=LIGHT, fontsize=10, ha="center", transform=axes.transAxes)
