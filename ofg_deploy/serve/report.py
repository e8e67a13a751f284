"""What registrations look like: a figure per pair and one self-contained HTML page, from the files they wrote."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, io_orientation

from ofg_deploy.errors import InputError
from ofg_deploy.field import jacobian_determinant, resample
from ofg_deploy.geometry import canonical
from ofg_deploy.nifti import Volume, load_image, load_labels, load_transform
from ofg_deploy.outputs import sha256_file, staged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = npt.NDArray[Any]  # (height, width), row 0 at the bottom

# Okabe and Ito's colours, told apart with any colour vision: blue belongs to the fixed image, orange to the moving one.
FIXED, MOVING, DARK, LIGHT = "#56b4e9", "#e69f00", "#11161c", "#e8eaed"
PANELS = ("fixed", "moving", "warped", "difference before", "difference after", "deformation", "Jacobian", "labels")
LEGEND = (
    "Each row is cut through the slice of the fixed image with most contrast, patient's right on the right. "
    "Differences: blue where the fixed image is brighter, orange where the moving one is. Deformation: where a regular "
    "lattice of the fixed image goes in the moving one. Jacobian determinant: dark where volume is kept, orange where "
    "it grows from fixed to moving, blue where it shrinks, white where space folds. Labels: fixed in blue, warped in "
    "orange. Numbers are those of the whole volume."
)
COLUMNS = {  # of the tables: heading -> (key of Registration.numbers, format)
    "Dice before": ("dice_before", ".3f"),
    "Dice after": ("dice_after", ".3f"),
    "NCC before": ("ncc_before", ".3f"),
    "NCC after": ("ncc_after", ".3f"),
    "folding (%)": ("folding_percent", ".3f"),
    "smallest Jacobian": ("min_jacobian", ".3f"),
    "seconds": ("seconds", ".2f"),
}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa4af; --line: #2d353e; --page: #161b22; } }
body { margin: 0 auto; max-width: 96rem; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; }
p { max-width: 46rem; color: var(--soft); margin: 0 0 .8rem; } div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem 1.1rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: .85rem; color: var(--soft); } td:first-child, th:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: .4rem; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; border-radius: 8px; }
"""


@dataclass(frozen=True)
class Registration:
    """One registration on disk.

    Attributes:
        sidecar: the JSON that ``ofg register`` wrote; its other outputs lie beside it.
        method: what it is summarised and compared under, for example the name of the model.
    """

    sidecar: Path
    method: str = ""

    @cached_property
    def record(self) -> dict[str, Any]:
        """The sidecar's content. Raises InputError if it is missing or not one of ours."""
        try:
            record = json.loads(self.sidecar.read_text(encoding="utf-8"))
            known = record["tool"] == "ofg_deploy" and record["schema"] == 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.sidecar} is not a readable sidecar of ofg register: {error}") from error
        if not known:
            raise InputError(f"{self.sidecar} is not a sidecar this version reads (ofg_deploy, schema 1)")
        return dict(record)

    @property
    def numbers(self) -> dict[str, float | None]:
        """The metrics by name, and the time of all stages as ``seconds``."""
        return {**self.record["metrics"], "seconds": sum(self.record["seconds"].values())}

    @property
    def labelled(self) -> bool:
        """Whether both images had label maps."""
        return "fixed_labels" in self.record["inputs"]

    def file(self, role: str) -> Path:
        """An input or output by its role in the sidecar. Raises InputError if there is none, or the input changed."""
        if name := self.record["outputs"].get(role):
            return self.sidecar.parent / str(name)
        if role not in self.record["inputs"]:
            raise InputError(f"{self.sidecar} names no file for '{role}'")
        known = self.record["inputs"][role]
        path = Path(known["path"])
        if path.is_file() and sha256_file(path) != known["sha256"]:
            raise InputError(f"{path} has changed since {self.sidecar} was written: register it again")
        return path


def pair_figure(*registrations: Registration) -> bytes:
    """PNG with a row of panels for each registration, which ``LEGEND`` explains.

    Slices stand upright in canonical axes with true proportions, across the axis with the largest voxels (the plane
    of acquisition). Intensities are shown from the 0.5 to the 99.5 percentile and subtracted as shown; Jacobian
    determinants run from 1/4 to 4 on a logarithmic scale. After an affine start the lattice leaves the affine part out.

    Raises:
        InputError: a file of a registration is missing, damaged, or changed since.
    """
    from matplotlib.figure import Figure

    columns = len(PANELS) - (not any(r.labelled for r in registrations))
    view = _View(load_image(registrations[0].file("fixed")))
    left, right, bottom, top = view.limits_mm
    size = (2.3 * columns, (2.2 * (top - bottom) / (right - left) + 0.4) * len(registrations) + 0.3)
    figure = Figure(figsize=size, layout="constrained", facecolor=DARK)
    grid = figure.subplots(len(registrations), columns, squeeze=False)
    for axes, registration in zip(grid, registrations, strict=True):
        _draw(list(axes), registration)
    for ax, title in zip(grid[0], PANELS, strict=False):
        ax.set_title(title, color=LIGHT, fontsize=14)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write_report(
    path: Path, title: str, intro: Sequence[str], registrations: Sequence[Registration], overwrite: bool = False
) -> None:
    """One self-contained HTML page: means by method, a table of every pair, and a figure for each.

    Args:
        path: the ``.html`` to write; appears only when complete.
        title, intro: headline and paragraphs, plain text.
        registrations: in the order to show; those of the same name (different methods) share a figure.

    Raises:
        InputError: as ``pair_figure``; also if ``path`` exists and ``overwrite`` is not set.
    """
    methods: dict[str, list[Registration]] = {}
    pairs: dict[str, list[Registration]] = {}
    for registration in registrations:
        methods.setdefault(registration.method, []).append(registration)
        pairs.setdefault(registration.sidecar.stem, []).append(registration)
    means = [[method, str(len(found)), *mean_cells(found)] for method, found in methods.items()]
    every = [[name, found.method, *mean_cells([found])] for name, group in pairs.items() for found in group]
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(text)}</p>" for text in intro)]
    body += ["<h2>Mean over pairs</h2>", _table(["method", "pairs", *COLUMNS], means)]
    body += ["<h2>Pictures</h2>", f"<p>{escape(LEGEND)}</p>"]
    with staged([path], overwrite) as [partial]:
        for name, group in pairs.items():
            image = base64.b64encode(pair_figure(*group)).decode()
            picture = f'<img alt="{escape(name)}" src="data:image/png;base64,{image}">'
            body.append(f"<figure><figcaption>{escape(name)}</figcaption>{picture}</figure>")
        body += ["<h2>Every pair</h2>", _table(["pair", "method", *COLUMNS], every)]
        head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        page = ["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>", ""]
        partial.write_text("\n".join(page), encoding="utf-8")


def mean_cells(registrations: Sequence[Registration]) -> list[str]:
    """The means over registrations as text, in the order of ``COLUMNS``; a dash where none has the number."""
    cells = []
    for key, form in COLUMNS.values():
        found = [v for r in registrations if (v := r.numbers.get(key)) is not None]
        cells.append(format(float(np.mean(found)), form) if found else "-")
    return cells


class _View:
    """The slice to show, and how arrays on the fixed grid become upright pictures of it.

    Attributes:
        extent_mm: left, right, bottom, top of a picture.
        limits_mm: the part of it worth showing: the content of the fixed image and a margin.
        ends: anatomical letters of its left and right edge.
    """

    def __init__(self, fixed: Volume) -> None:
        self._orientation = io_orientation(fixed.grid.world_from_vox)
        self._grid = canonical(fixed.grid)
        sizes = np.round(2 * np.array(self._grid.spacing_mm) / min(self._grid.spacing_mm))
        self._across = 2 - int(np.argmax(sizes[::-1]))  # axial where they are about equal
        self._plane = [axis for axis in range(3) if axis != self._across]
        slices = np.moveaxis(self._upright(fixed.data), self._across, 0)
        quarter = len(slices) // 4
        edges = [np.abs(np.gradient(s)).sum() for s in slices[quarter : len(slices) - quarter]]
        self._index = quarter + int(np.argmax(edges))
        width, height = (self._grid.shape[axis] * self._grid.spacing_mm[axis] for axis in self._plane)
        self.extent_mm = (0.0, width, 0.0, height)
        content = _unit(self.cut(fixed.data), fixed.data) > 0.05
        x, y = (centres[content] for centres in self.centres_mm())
        margin = 0.06 * max(np.ptp(x), np.ptp(y))
        left, bottom = max(0.0, x.min() - margin), max(0.0, y.min() - margin)
        self.limits_mm = (left, min(width, x.max() + margin), bottom, min(height, y.max() + margin))
        self.ends = "PA" if self._across == 0 else "LR"

    def cut(self, data: npt.NDArray[Any]) -> Picture:
        """(X, Y, Z) on the fixed grid -> picture."""
        return np.asarray(self._upright(data).take(self._index, self._across).T)

    def centres_mm(self) -> tuple[Picture, Picture]:
        """Horizontal and vertical position of every pixel's centre."""
        across, up = ((np.arange(self._grid.shape[a]) + 0.5) * self._grid.spacing_mm[a] for a in self._plane)
        x, y = np.meshgrid(across, up)
        return x, y

    def cut_field(self, total_mm: npt.NDArray[np.float32]) -> tuple[Picture, Picture, Picture]:
        """(3, X, Y, Z) RAS mm -> horizontal and vertical displacement in mm, Jacobian determinant."""
        upright = np.stack([self._upright(component) for component in total_mm])
        first = max(self._index - 1, 0)  # with its neighbours, for the central differences
        slab = upright.take(range(first, min(self._index + 2, upright.shape[self._across + 1])), self._across + 1)
        at = self._index - first
        determinant = jacobian_determinant(slab, self._grid.world_from_vox).take(at, self._across)
        directions = self._grid.world_from_vox[:3, :3] / np.array(self._grid.spacing_mm)
        x, y = (np.tensordot(directions[:, a], slab, axes=1).take(at, self._across).T for a in self._plane)
        return x, y, np.asarray(determinant.T)

    def _upright(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(apply_orientation(data, self._orientation))


def _draw(axes: list[Axes], registration: Registration) -> None:
    """One row: ``PANELS``, with the numbers of the whole volume below those they belong to."""
    from matplotlib.colors import LinearSegmentedColormap

    fixed, moving, warped = (load_image(registration.file(role)) for role in ("fixed", "moving", "warped"))
    before = resample(moving.data, moving.grid, fixed.grid, np.eye(4))
    view, numbers = _View(fixed), registration.numbers
    images = ((fixed.data, fixed), (before, moving), (warped.data, moving))
    target, start, result = (_unit(view.cut(data), whole.data) for data, whole in images)
    x, y, determinant = view.cut_field(load_transform(registration.file("transform"))[0])
    grey: dict[str, Any] = {"cmap": LinearSegmentedColormap.from_list("grey", [DARK, "#ffffff"]), "vmin": 0, "vmax": 1}
    signed = LinearSegmentedColormap.from_list("fixed-moving", [FIXED, DARK, MOVING])

    def show(panel: str, picture: Picture, note: str = "", **how: Any) -> Axes:
        ax = axes[PANELS.index(panel)]
        ax.imshow(picture, origin="lower", extent=view.extent_mm, interpolation="nearest", **how)
        ax.set(xticks=[], yticks=[], aspect="equal", autoscale_on=False, facecolor=DARK)
        ax.set(xlim=view.limits_mm[:2], ylim=view.limits_mm[2:])
        ax.set_xlabel(note, color=LIGHT, fontsize=12)
        ax.spines[:].set_visible(False)
        return ax

    first = show("fixed", target, **grey)
    first.set_ylabel(registration.method, color=LIGHT, fontsize=14, fontweight="bold")
    for at, letter in zip((0.03, 0.97), view.ends, strict=True):
        first.text(at, 0.5, letter, color=LIGHT, fontsize=10, ha="center", transform=first.transAxes)
    show("moving", start, **grey)
    show("warped", result, **grey)
    for when, picture in (("before", start), ("after", result)):
        note = f"NCC {numbers[f'ncc_{when}']:.3f}"
        show(f"difference {when}", picture - target, note, cmap=signed, vmin=-1, vmax=1)
    ax = show("deformation", target, f"up to {numbers['displacement_mm_max']:.1f} mm", alpha=0.4, **grey)
    _draw_lattice(ax, view, x, y, registration.record["init"] == "affine")
    folding = f"folding {numbers['folding_percent']:.3f} %"
    show("Jacobian", np.log2(np.clip(determinant, 0.25, 4)), folding, cmap=signed, vmin=-2, vmax=2)
    show("Jacobian", np.where(determinant > 0, np.nan, 1.0), folding, **grey)
    if registration.labelled:
        dice = " → ".join(f"{numbers[f'dice_{when}'] or 0:.3f}" for when in ("before", "after"))
        ax = show("labels", target, f"Dice {dice}", alpha=0.6, **grey)
        for role, colour in (("fixed_labels", FIXED), ("warped_labels", MOVING)):
            _draw_outlines(ax, view, view.cut(load_labels(registration.file(role)).data), colour)
    elif len(axes) == len(PANELS):
        show("labels", target, "no labels", alpha=0.6, **grey)


def _draw_lattice(ax: Axes, view: _View, dx: Picture, dy: Picture, affine: bool) -> None:
    """Where a regular lattice goes; an affine part would carry it out of the picture and is left out."""
    x, y = view.centres_mm()
    if affine:
        design = np.stack([np.ones(x.size), x.ravel(), y.ravel()], axis=1)
        dx, dy = (d - (design @ np.linalg.lstsq(design, d.ravel(), rcond=None)[0]).reshape(d.shape) for d in (dx, dy))
    step = max(1, round(max(x.shape) / 20))
    for across, up in ((x + dx, y + dy), ((x + dx).T, (y + dy).T)):
        ax.plot(across[:, step // 2 :: step], up[:, step // 2 :: step], color=MOVING, linewidth=0.7)


def _draw_outlines(ax: Axes, view: _View, labels: Picture, colour: str) -> None:
    x, y = view.centres_mm()
    for label in np.unique(labels[labels > 0]):
        ax.contour(x, y, labels == label, levels=[0.5], colors=[colour], linewidths=0.9)


def _unit(picture: Picture, whole: npt.NDArray[Any]) -> Picture:
    """Intensities 0..1 between the 0.5 and the 99.5 percentile of the whole image."""
    low, high = np.percentile(whole, (0.5, 99.5))
    return np.asarray(np.clip((picture - low) / max(high - low, 1e-6), 0, 1))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first two columns are names, the others numbers."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div><table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
