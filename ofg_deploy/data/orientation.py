"""Geometry for arrays that come without any: an assumption, stated by the user or the layout, checked on the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from ofg_deploy.data.labels import Anatomy
from ofg_deploy.errors import GeometryError, UsageError
from ofg_deploy.geometry import Grid, Shape, Spacing

_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def check_codes(codes: str) -> str:
    """Three letters such as ``RAS`` or ``LIA``: the direction in which each array axis runs. Raises UsageError."""
    letters = codes.upper()
    if sorted(_OPPOSITE[c] if c in "LPI" else c for c in letters if c in _OPPOSITE) != ["A", "R", "S"]:
        raise UsageError(f"`orientation` {codes!r} is not an orientation: give three letters, for example LIA or RAS")
    return letters


def assumed_grid(shape: Shape, codes: str, spacing_mm: Spacing) -> Grid:
    """A grid with the given axes whose field of view is centred at the world's origin."""
    ornt = axcodes2ornt(tuple(codes))
    ras_shape = [0, 0, 0]
    for axis, (target, _) in enumerate(ornt):
        ras_shape[int(target)] = shape[axis]
    spacing_ras = [0.0, 0.0, 0.0]
    for axis, (target, _) in enumerate(ornt):
        spacing_ras[int(target)] = spacing_mm[axis]
    world_from_ras = np.diag([*spacing_ras, 1.0])
    world_from_ras[:3, 3] = -np.array(spacing_ras) * (np.array(ras_shape) - 1) / 2
    # inv_ornt_aff takes indices of the reoriented array to those of the original one.
    return Grid(shape, world_from_ras @ np.linalg.inv(inv_ornt_aff(ornt, shape)))


def check_anatomy(labels: npt.NDArray[Any], grid: Grid, anatomy: Anatomy, name: str) -> bool:
    """Whether left is left, up is up and front is front, as far as the label map tells.

    Returns:
        True if the labels confirm the orientation, False if they lack the structures it takes.

    Raises:
        GeometryError: they contradict it; the message names the orientation that they show.
    """
    found = {}
    pairs = {"R": (anatomy.left, anatomy.right), "S": (anatomy.inferior, anatomy.superior)}
    for code, (low, high) in {**pairs, "A": (anatomy.posterior, anatomy.anterior)}.items():
        ends = [_centre(labels, numbers) for numbers in (low, high)]
        if ends[0] is None or ends[1] is None:
            return False
        found[code] = ends[1] - ends[0]
    shown = ["", "", ""]
    # Sides first, they are the clearest; cerebellum and putamen differ in height too, so that axis goes last.
    for code in ("R", "S", "A"):
        free = [axis for axis in range(3) if not shown[axis]]
        axis = max(free, key=lambda a, v=found[code]: abs(v[a]))  # type: ignore[misc]
        shown[axis] = code if found[code][axis] > 0 else _OPPOSITE[code]
    codes = "".join(shown)
    if codes != grid.orientation:
        raise GeometryError(
            f"{name}: taken as {grid.orientation}, but its labels show {codes} (left/right, up/down or front/back are "
            f"elsewhere): give `orientation` {codes} if all of the set is stored so"
        )
    return True


def _centre(labels: npt.NDArray[Any], numbers: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
    index = np.nonzero(np.isin(labels, numbers))
    if index[0].size == 0:
        return None
    return np.array([axis.mean() for axis in index])
