"""Surface distances as Learn2Reg's evaluation takes them: between surface elements, each weighted by its area.

The definition is that of DeepMind's surface-distance (Nikolov et al., arXiv:1809.04430): a surface element lies at each
corner where eight voxels meet of which some, but not all, belong to the mask. Its area is that of the surface which
marching cubes puts between the eight voxel centres.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from ofg_deploy.metrics import Labels, Mask, common_labels

CORNERS = tuple(product((0, 1), repeat=3))
# Areas for voxels of unit size. A part of the cube's corners that hang together by its edges is cut off by a piece of
# surface of its own; this is what each kind of part has, by the edges that meet at each of its corners.
AREAS = {
    (0,): np.sqrt(3) / 8,  # one corner: a triangle
    (1, 1): np.sqrt(2) / 2,  # an edge: a rectangle
    (1, 1, 2): 3 * np.sqrt(3) / 8 + 1 / 2,  # three corners of a face
    (2, 2, 2, 2): 1.0,  # a face: a square
    (1, 1, 1, 3): 3 * np.sqrt(3) / 4,  # a corner and its three neighbours: a hexagon
    (1, 1, 2, 2): np.sqrt(2) / 2 + np.sqrt(3) / 2,  # four corners in a chain that leaves the face
}


def hd95_l2r(a: Labels, b: Labels) -> dict[int, float]:
    """95th percentile Hausdorff distance of each label in both maps as Learn2Reg computes it: in voxels, whatever they
    measure in mm.

    In each direction it is the distance that 95 % of the surface's area does not exceed; then the larger one.

    Args:
        a, b: (X, Y, Z), fixed and warped labels.
    """
    return {label: robust_hausdorff(in_a, in_b, 95) for label, in_a, in_b in common_labels(a, b)}


def robust_hausdorff(a: Mask, b: Mask, percent: float) -> float:
    """In voxels, of two masks (X, Y, Z) with at least one voxel each."""
    from scipy.ndimage import distance_transform_edt

    areas = [_areas()[_codes(mask)] for mask in (a, b)]
    surfaces = [area > 0 for area in areas]
    found = []
    for (area, surface), other in zip(zip(areas, surfaces, strict=True), surfaces[::-1], strict=True):
        distance, weight = distance_transform_edt(~other)[surface], area[surface]
        order = np.lexsort((weight, distance))
        reached = np.cumsum(weight[order]) / weight.sum()
        place = min(int(np.searchsorted(reached, percent / 100)), order.size - 1)
        found.append(float(distance[order[place]]))
    return max(found)


def _codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """(X + 1, Y + 1, Z + 1) which of the eight voxels around each corner belong to the mask, a bit each."""
    padded = np.pad(mask, 1)
    shape = tuple(n - 1 for n in padded.shape)
    code = np.zeros(shape, np.uint8)
    for bit, offset in enumerate(CORNERS):
        part = padded[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
        code |= part.astype(np.uint8) << np.uint8(bit)
    return code


@cache
def _areas() -> npt.NDArray[np.float64]:
    """(256,) area by code. Of a set and of what it leaves of the cube it is the same, so the smaller one is cut off."""
    areas = np.zeros(256)
    for code in range(256):
        inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
        rest = inside if len(inside) <= 4 else set(CORNERS) - inside
        while rest:
            part = _part(rest)
            areas[code] += AREAS[tuple(sorted(len(_near(corner) & part) for corner in part))]
            rest = rest - part
    return areas


def _part(corners: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """One of the parts that hang together."""
    part = {min(corners)}
    while more := {near for corner in part for near in _near(corner) & corners} - part:
        part |= more
    return part


def _near(corner: tuple[int, ...]) -> set[tuple[int, ...]]:
    return {tuple(c ^ (axis == a) for a, c in enumerate(corner)) for axis in range(3)}
