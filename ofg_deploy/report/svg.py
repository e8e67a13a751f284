"""Panels and distributions as inline SVG. Coordinates of pictures are mm, y down; nothing refers outside the page."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ofg_deploy.report.limits import Limit
from ofg_deploy.report.measures import Measure
from ofg_deploy.report.panels import Curve, Panel, Plane, Points
from ofg_deploy.report.png import data_uri
from ofg_deploy.report.templates import render

COARSE = 160  # pixels of the longer side: below it a picture is shown with sharp pixels, else smoothly
GAP = 0.02  # between planes, of their widths together
BINS = 30
ALIKE = 1e-9  # of the value: closer ones differ by rounding, and no bins fit between them


class Mosaic:
    """Planes of one registration beside each other, as every panel of it shows them.

    Attributes:
        width, height: of the whole, in mm.
    """

    def __init__(self, identity: str, shown: Sequence[Panel]) -> None:
        """``identity`` tells the pictures of this registration from all others of the page."""
        self._identity = identity
        self._views = [plane.view for plane in shown[0].planes]
        widths = [view.size_mm[0] for view in self._views]
        self.height = max(view.size_mm[1] for view in self._views)
        gap = GAP * sum(widths)
        self._left = [sum(widths[:at]) + gap * at for at in range(len(widths))]
        self.width = sum(widths) + gap * (len(widths) - 1)

    def panel(self, panel: Panel) -> Markup:
        """One panel; its images can be shown again by ``again``."""
        label = f"{panel.title} {panel.note}".strip()
        drawn = range(len(self._left))
        if all(plane.image is not None for plane in panel.planes):
            images = Markup("").join(map(self._image, drawn, panel.planes))
            inside = Markup('<g id="{}-{}">{}</g>').format(self._identity, panel.key, images)
            inside += self._letters() if panel.key == "fixed" else ""
        else:
            inside = Markup('<g class="faint">{}</g>').format(self._again("fixed"))
            inside += Markup("").join(map(self._curves, drawn, panel.planes))
        return self._frame(inside, label)

    def viewer(self, label: str) -> Markup:
        """Moving, warped and fixed image over each other; the page shows one of them."""
        layer = Markup('<g class="layer is-{}">{}</g>')
        layers = (layer.format(key, self._again(key)) for key in ("moving", "warped", "fixed"))
        return self._frame(Markup("").join(layers) + self._letters(), label)

    def _again(self, key: str) -> Markup:
        """The images of a panel once more, without their bytes."""
        return Markup('<use href="#{}-{}"/>').format(self._identity, key)

    def _frame(self, inside: Markup, label: str) -> Markup:
        """An SVG of the size of all panels."""
        frame = Markup('<svg class="view" viewBox="0 0 {:.2f} {:.2f}" role="img" aria-label="{}">{}</svg>')
        return frame.format(self.width, self.height, label, inside)

    def _letters(self) -> Markup:
        """Anatomical letters at the left and right edge of each plane."""
        size, found = 0.03 * self.width, []
        letter = Markup('<text class="letter" x="{:.1f}" y="{:.1f}" font-size="{:.1f}">{}</text>')
        for left, view in zip(self._left, self._views, strict=True):
            for at, end in zip((0.6 * size, view.size_mm[0] - 0.6 * size), view.ends, strict=True):
                found.append(letter.format(left + at, self.height / 2, size, end))
        return Markup("").join(found)

    def _place(self, at: int, plane: Plane) -> Markup:
        width, height = plane.view.size_mm
        top = float(self.height - height) / 2
        where = Markup('x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"')
        return where.format(self._left[at], top, width, height)

    def _image(self, at: int, plane: Plane) -> Markup:
        assert plane.image is not None
        kind = Markup(' image-rendering="pixelated"') if max(plane.image.shape) < COARSE else ""
        image = Markup('<image{} {} preserveAspectRatio="none" href="{}"/>')
        return image.format(kind, self._place(at, plane), data_uri(plane.image))

    def _curves(self, at: int, plane: Plane) -> Markup:
        width, height = plane.view.size_mm
        paths = Markup("").join(_path(curve, height) for curve in plane.curves)
        inner = Markup('<svg {} viewBox="0 0 {:.2f} {:.2f}">{}</svg>')
        return inner.format(self._place(at, plane), width, height, paths)


def distribution(measure: Measure, limit: Limit, values: Sequence[tuple[float, str, str]]) -> Markup:
    """A histogram, a tick for each pair and a mark for each that is not ``pass``, with the limits in sight.

    Args:
        values: of each pair: the number, the pair's name, its status.
    """
    numbers = np.array([value for value, _, _ in values])
    low, high = _span(numbers, limit)
    shown = [(10, low, "start"), (310, high, "end")]
    if high - low <= ALIKE * max(abs(low), abs(high), ALIKE):  # one value alone, but for rounding: in the middle
        room, shown = max(0.1 * abs(low), 1e-3), [(160, low, "middle")]
        low, high = low - room, high + room
    counts = np.histogram(numbers, BINS, (low, high))[0]

    def x(value: float) -> float:
        return 10 + 300 * (value - low) / (high - low)

    tall = 48 / counts.max()
    levels = (("fail", limit.fail, 8), ("warn", limit.warn, 18))
    return render(
        "distribution.svg.j2",
        label=f"{measure.title}: {len(values)} pairs, median {measure.show(float(np.median(numbers)))}",
        bars=[(10 + 10 * at, 70 - tall * count, tall * count) for at, count in enumerate(counts) if count],
        ticks=[x(value) for value in numbers],
        limits=[(kind, x(at), up) for kind, at, up in levels if at is not None and low <= at <= high],
        marks=[
            (x(value), status.split()[0], f"{name}: {measure.show(value)} ({status})")
            for value, name, status in values
            if status != "pass"
        ],
        ends=[(at, measure.show(value), side) for at, value, side in shown],
    )


def _span(numbers: npt.NDArray[np.float64], limit: Limit) -> tuple[float, float]:
    """From the smallest to the largest value, and to the limits that are not far from them."""
    low, high = float(numbers.min()), float(numbers.max())
    reach = 1.5 * (high - low) or max(abs(low), 1e-3)
    for at in (limit.warn, limit.fail):
        if at is not None and low - reach <= at <= high + reach:
            low, high = min(low, at), max(high, at)
    return low, high


def _path(curve: Curve, height: float) -> Markup:
    """Tenths of a mm as whole numbers, each point relative to the one before: a third of the bytes."""
    steps = "".join(_steps(np.round(np.stack([line[:, 0], height - line[:, 1]], axis=1) * 10)) for line in curve.lines)
    kind = Markup(' class="dashed"') if curve.dashed else ""
    return Markup('<path{} stroke="{}" transform="scale(.1)" d="{}"/>').format(kind, curve.colour, steps)


def _steps(tenths: Points) -> str:
    whole = tenths.astype(int)
    first, rest = whole[0], np.diff(whole, axis=0)
    return f"M{first[0]} {first[1]}l" + " ".join(f"{dx} {dy}" for dx, dy in rest)


def inline(shown: Sequence[Panel]) -> str:
    """All panels in a row as HTML for a notebook's cell; nothing in it refers outside, nor to another cell."""
    identity = f"ofg{secrets.token_hex(4)}"
    mosaic = Mosaic(identity, shown)
    figures = "".join(
        f"<figure>{mosaic.panel(panel)}<figcaption>{escape(panel.title)} {escape(panel.note)}</figcaption></figure>"
        for panel in shown
    )
    style = (
        f".{identity} {{ display: flex; flex-wrap: wrap; gap: 6px; padding: 6px; background: #11161c; color: #fff; }} "
        f".{identity} figure {{ margin: 0; width: 150px; font: 12px sans-serif; }} "
        f".{identity} .faint {{ opacity: .4; }} .{identity} .letter {{ fill: #fff; text-anchor: middle; }} "
        f".{identity} path {{ fill: none; vector-effect: non-scaling-stroke; }}"
    )
    return f'<div class="{identity}"><style>{style}</style>{figures}</div>'
