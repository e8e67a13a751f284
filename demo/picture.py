"""The demo's picture: one column for each way of registration, figures below it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from heads import Result

from ofg_deploy.nifti import load_image, load_labels
from ofg_deploy.report.panels import lattice, outlines
from ofg_deploy.report.png import DARK, LIGHT, PALETTE, grey, signed
from ofg_deploy.report.view import View, Window, best_view

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE = "#56b4e9", "#e69f00"  # fixed and warped, as in the report
WHITE_MATTER = 3


def draw(folder: Path, results: Sequence[Result]) -> bytes:
    """PNG: outlines of the white matter, differences and deformation in one axial slice.

    Args:
        folder: holds ``fixed.nii.gz`` and ``fixed_labels.nii.gz``.
        results: in the order of the columns.
    """
    from matplotlib.figure import Figure

    fixed, labels = load_image(folder / "fixed.nii.gz"), load_labels(folder / "fixed_labels.nii.gz")
    window = Window(fixed.data)
    view = best_view(fixed, window)
    target, truth = window(view.cut(fixed.data)), view.cut(labels.data) == WHITE_MATTER
    width, height = view.size_mm
    columns = len(results)
    figure = Figure(figsize=(3.1 * columns, 9.2 * height / width + 0.9), layout="constrained", facecolor=DARK)
    for number, (column, result) in enumerate(zip(figure.subplots(3, columns).T, results, strict=True)):
        shown = Window(result.warped)(view.cut(result.warped))
        _image(column[0], view, grey(shown))
        _outline(column[0], view, truth, BLUE)
        _outline(column[0], view, view.cut(result.labels) == WHITE_MATTER, ORANGE)
        _image(column[1], view, signed(shown - target))
        _grid(column[2], view, result, grey(target))
        column[0].set_title(result.name, color=LIGHT, fontsize=16, fontweight="bold")
        column[2].set_xlabel(_figures(result), color=LIGHT, fontsize=13)
        if number == 0:
            rows = ("white matter: fixed blue, moving orange", "difference to the fixed head", "deformation")
            for axes, text in zip(column, rows, strict=True):
                axes.set_ylabel(text, color=LIGHT, fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()


def _figures(result: Result) -> str:
    if result.displacement_mm is None:
        return f"Dice {result.dice:.3f}"
    return f"Dice {result.dice:.3f}, folds {result.folding_percent:.3f} %\n{result.seconds:.1f} s"


def _image(axes: Axes, view: View, picture: np.ndarray, faint: float = 1.0) -> None:
    width, height = view.size_mm
    axes.imshow(PALETTE[picture], alpha=faint, origin="lower", extent=(0, width, 0, height), interpolation="bilinear")
    axes.set(xticks=[], yticks=[], facecolor=DARK, autoscale_on=False)
    axes.spines[:].set_visible(False)


def _outline(axes: Axes, view: View, mask: np.ndarray, colour: str) -> None:
    _lines(axes, outlines(view, mask.astype(np.uint8)), colour)


def _grid(axes: Axes, view: View, result: Result, fixed: np.ndarray) -> None:
    """The deformation without its affine part, fitted over the fixed head."""
    _image(axes, view, fixed, 0.35)
    if result.displacement_mm is None:
        return
    _lines(axes, lattice(view, *view.cut_deformation(result.displacement_mm, result.moving_from_fixed)), ORANGE)


def _lines(axes: Axes, lines: Sequence[np.ndarray], colour: str) -> None:
    gap = np.full((1, 2), np.nan)
    x, y = np.concatenate([part for line in lines for part in (line, gap)] or [gap]).T
    axes.plot(x, y, color=colour, linewidth=0.9)
