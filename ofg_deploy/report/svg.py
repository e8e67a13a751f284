"""Panels and distributions as inline SVG. Coordinates of pictures are mm, y down; nothing refers outside the page."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from ofg_deploy.report.limits import Limit
from ofg_deploy.report.measures import Measure
from ofg_deploy.report.panels import Curve, Panel, Plane, Points
from ofg_deploy.report.png import Index, encode

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

    def panel(self, panel: Panel) -> str:
        """One panel; its images can be shown again by ``again``."""
        label = f"{panel.title} {panel.note}".strip()
        if all(plane.image is not None for plane in panel.planes):
            images = "".join(map(self._image, range(len(self._left)), panel.planes))
            inside = f'<g id="{self._identity}-{panel.key}">{images}</g>'
            inside += self.letters() if panel.key == "fixed" else ""
        else:
            inside = f'<g class="faint">{self.again("fixed")}</g>'
            inside += "".join(map(self._curves, range(len(self._left)), panel.planes))
        return self.frame(inside, label)

    def again(self, key: str) -> str:
        """The images of a panel once more, without their bytes."""
        return f'<use href="#{self._identity}-{key}"/>'

    def frame(self, inside: str, label: str) -> str:
        """An SVG of the size of all panels."""
        box = f'viewBox="0 0 {self.width:.2f} {self.height:.2f}"'
        return f'<svg class="view" {box} role="img" aria-label="{escape(label)}">{inside}</svg>'

    def letters(self) -> str:
        """Anatomical letters at the left and right edge of each plane."""
        size, found = 0.03 * self.width, []
        for left, view in zip(self._left, self._views, strict=True):
            for at, letter in zip((0.6 * size, view.size_mm[0] - 0.6 * size), view.ends, strict=True):
                where = f'x="{left + at:.1f}" y="{self.height / 2:.1f}" font-size="{size:.1f}"'
                found.append(f'<text class="letter" {where}>{letter}</text>')
        return "".join(found)

    def _top(self, plane: Plane) -> float:
        return float(self.height - plane.view.size_mm[1]) / 2

    def _image(self, at: int, plane: Plane) -> str:
        assert plane.image is not None
        width, height = plane.view.size_mm
        where = f'x="{self._left[at]:.2f}" y="{self._top(plane):.2f}" width="{width:.2f}" height="{height:.2f}"'
        kind = ' image-rendering="pixelated"' if max(plane.image.shape) < COARSE else ""
        return f'<image{kind} {where} preserveAspectRatio="none" href="{data_uri(plane.image)}"/>'

    def _curves(self, at: int, plane: Plane) -> str:
        width, height = plane.view.size_mm
        where = f'x="{self._left[at]:.2f}" y="{self._top(plane):.2f}" width="{width:.2f}" height="{height:.2f}"'
        paths = "".join(_path(curve, height) for curve in plane.curves)
        return f'<svg {where} viewBox="0 0 {width:.2f} {height:.2f}">{paths}</svg>'


def data_uri(picture: Index) -> str:
    """The PNG itself, as an address."""
    return f"data:image/png;base64,{base64.b64encode(encode(picture)).decode()}"


def distribution(measure: Measure, limit: Limit, values: Sequence[tuple[float, str, str]]) -> str:
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
    bars = "".join(
        f'<rect x="{10 + 10 * at}" y="{70 - tall * count:.1f}" width="9" height="{tall * count:.1f}"/>'
        for at, count in enumerate(counts)
        if count
    )
    ticks = "".join(f"M{x(value):.1f} 72v6" for value in numbers)
    lines = "".join(
        f'<g class="{kind}"><path d="M{x(at):.1f} {up + 2}V80"/>'
        f'<text x="{min(max(x(at), 14), 306):.1f}" y="{up}">{kind}</text></g>'
        for kind, at, up in (("fail", limit.fail, 8), ("warn", limit.warn, 18))
        if at is not None and low <= at <= high
    )
    marks = "".join(
        f'<path class="mark {status.split()[0]}" d="M{x(value):.1f} 73l5 9h-10z">'
        f"<title>{escape(f'{name}: {measure.show(value)} ({status})')}</title></path>"
        for value, name, status in values
        if status != "pass"
    )
    ends = "".join(f'<text x="{at}" y="94" class="{side}">{measure.show(value)}</text>' for at, value, side in shown)
    label = f"{measure.title}: {len(values)} pairs, median {measure.show(float(np.median(numbers)))}"
    return (
        f'<svg class="plot" viewBox="0 -4 320 102" role="img" aria-label="{escape(label)}"><g class="bars">{bars}</g>'
        f'<path class="ticks" d="{ticks}"/><path class="axis" d="M10 71H310"/>{lines}{marks}{ends}</svg>'
    )


def _span(numbers: npt.NDArray[np.float64], limit: Limit) -> tuple[float, float]:
    """From the smallest to the largest value, and to the limits that are not far from them."""
    low, high = float(numbers.min()), float(numbers.max())
    reach = 1.5 * (high - low) or max(abs(low), 1e-3)
    for at in (limit.warn, limit.fail):
        if at is not None and low - reach <= at <= high + reach:
            low, high = min(low, at), max(high, at)
    return low, high


def _path(curve: Curve, height: float) -> str:
    """Tenths of a mm as whole numbers, each point relative to the one before: a third of the bytes."""
    steps = "".join(_steps(np.round(np.stack([line[:, 0], height - line[:, 1]], axis=1) * 10)) for line in curve.lines)
    kind = ' class="dashed"' if curve.dashed else ""
    return f'<path{kind} stroke="{curve.colour}" transform="scale(.1)" d="{steps}"/>'


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
