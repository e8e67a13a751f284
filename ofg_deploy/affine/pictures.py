"""What a start sees of an image: intensities in 0..1, no more voxels than it needs, where its content lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.geometry import Matrix, transform_points
from ofg_deploy.kernels.intensity import percentiles, rescale
from ofg_deploy.nifti import Volume

MOST_VOXELS = 2e6  # a deformable step follows: eight times as many say little more and take eight times as long
FEW_VOXELS = 2e4  # of the picture in which the content is looked for
ENOUGH = 1e5  # of the picture whose smoothness is measured
CONTENT = 0.05  # share of the intensity range by which content differs from the background
PAIRWISE = 8  # numbers from which on numpy adds up in pairs
MARGIN = 0.1  # of the content's extent, on each side


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as a start sees it.

    Attributes:
        data: (X, Y, Z) float32 in 0..1, C order; 0 and 1 are percentiles of what counts.
        world_from_vox: (4, 4).
        mask: (X, Y, Z) bool on the same grid, what counts; None: everything.
        background: in 0..1, the median of the outermost voxels: what is taken to be beyond the field of view.
        box: (3, 2) voxel coordinates between which the content lies, with a margin, within the field of view.
    """

    data: npt.NDArray[np.float32]
    world_from_vox: Matrix
    mask: npt.NDArray[np.bool_] | None
    background: float
    box: Matrix

    @classmethod
    def of(cls, volume: Volume, mask: Volume | None) -> Picture:
        """Any linear change of the intensities (up to their sign) and any unit of length give the same picture."""
        counts = None if mask is None else mask.data != 0
        unit = _unit(volume.data, None if counts is None else volume.data[counts])
        grid = volume.grid
        factors = _factors(unit.shape, grid.spacing_mm, MOST_VOXELS)
        data, world_from_vox = _shrunk(unit, grid.world_from_vox, factors)
        if counts is not None:
            share, _ = _shrunk(counts.astype(np.float32), grid.world_from_vox, factors)
            counts = share > 0.5 if (share > 0.5).any() else share > 0
        background = _background(data, counts)
        return cls(data, world_from_vox, counts, background, _box(data, counts, background, world_from_vox))

    def shrunk(self, most: float) -> tuple[npt.NDArray[np.float32], Matrix]:
        """The picture in larger voxels, of which about ``most`` fill the content's box, and their world_from_vox."""
        return _shrunk(self.data, self.world_from_vox, self._factors(most))

    def mask_shrunk(self, most: float) -> npt.NDArray[np.float32] | None:
        """The mask in the voxels of ``shrunk``, as shares of each that count."""
        if self.mask is None:
            return None
        return _shrunk(self.mask.astype(np.float32), self.world_from_vox, self._factors(most))[0]

    def _factors(self, most: float) -> tuple[int, ...]:
        share = self.voxels() / self.data.size
        spacing = np.linalg.norm(self.world_from_vox[:3, :3], axis=0)
        return _factors(self.data.shape, spacing, most / share)

    def voxels(self) -> float:
        """Of the content's box."""
        return float(np.prod(self.box[:, 1] - self.box[:, 0]))

    def centre_of_view(self) -> Matrix:
        """(3,) world position."""
        return transform_points(self.world_from_vox, (np.array(self.data.shape) - 1) / 2)

    def centre_of_mass(self) -> Matrix:
        """(3,) world position; the mass of a voxel is its distance from the background, so never below 0."""
        weights = np.abs(self.data.astype(np.float64) - self.background)
        if self.mask is not None:
            weights *= self.mask
        total = weights.sum()
        if total == 0:
            return self.centre_of_view()
        profiles = (weights.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
        index = [float((profile * np.arange(profile.size)).sum() / total) for profile in profiles]
        return transform_points(self.world_from_vox, np.array(index))

    def centre_of_box(self) -> Matrix:
        """(3,) world position."""
        return transform_points(self.world_from_vox, self.box.mean(axis=1))

    def radius(self) -> float:
        """Root mean square distance of the box's points from its centre, in world units."""
        edges = (self.box[:, 1] - self.box[:, 0]) * np.linalg.norm(self.world_from_vox[:3, :3], axis=0)
        return float(np.sqrt((edges**2).sum() / 12))

    def places(self) -> float:
        """How many independent places the content's box shows: its volume in cubes as wide as the image is smooth.

        Worsley's resolution elements, from the variance of the slopes (Kiebel et al., NeuroImage 10 (1999)).
        """
        cut = self.data[tuple(slice(int(np.ceil(a)), int(np.floor(b)) + 1) for a, b in self.box)]
        spacing = np.linalg.norm(self.world_from_vox[:3, :3], axis=0)
        data = _shrunk(cut, self.world_from_vox, _factors(cut.shape, spacing, ENOUGH))[0].astype(np.float64)
        variance = data.var()
        if variance == 0:
            return 1.0
        count = 1.0
        for axis, n in enumerate(data.shape):
            rough = (np.diff(data, axis=axis) ** 2).mean() / variance
            width = np.sqrt(4 * np.log(2) / rough) if rough > 0 else np.inf
            count *= max(n / max(width, 1.0), 1.0)
        return count


def _unit(data: npt.NDArray[Any], counted: npt.NDArray[Any] | None) -> npt.NDArray[np.float32]:
    seen = data if counted is None else counted
    low, high = percentiles(seen, (0.5, 99.5))
    if not np.float32(low) < np.float32(high):  # small on a ground of one value
        low, high = float(seen.min()), float(seen.max())
    if not np.float32(low) < np.float32(high):
        return np.zeros(data.shape, np.float32)
    return rescale(data, low, high, clip=True)


def _factors(shape: tuple[int, ...], spacing: Any, most: float) -> tuple[int, ...]:
    """By how much to shrink each axis so that ``most`` voxels, about cubes, are left."""
    spacing = np.asarray(spacing)
    factors = np.ones(3, dtype=int)
    while True:
        left = np.maximum(np.array(shape) // factors, 1)
        if np.prod(left, dtype=float) <= most:
            break
        able = np.array(shape) // (factors + 1) >= 4
        if not able.any():
            break
        factors[np.argmin(np.where(able, spacing * factors, np.inf))] += 1
    return tuple(int(f) for f in factors)


def _shrunk(
    data: npt.NDArray[np.float32], world_from_vox: Matrix, factors: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], Matrix]:
    """Means of blocks; what is left over at the upper faces is dropped, less than a block."""
    matrix = world_from_vox.copy()
    matrix[:3, 3] += world_from_vox[:3, :3] @ ((np.array(factors) - 1) / 2)
    matrix[:3, :3] *= factors
    for axis, f in enumerate(factors):
        if f > 1:
            n = data.shape[axis] // f
            data = data[(slice(None),) * axis + (slice(n * f),)]
            data = _means(data.reshape(*data.shape[:axis], n, f, *data.shape[axis + 1 :]), axis + 1)
    return np.ascontiguousarray(data), matrix


def _means(data: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Along an axis, to the bit as ``numpy.mean``, which takes many times as long where that axis is short."""
    if data.shape[axis] >= PAIRWISE:
        return np.asarray(data.mean(axis=axis, dtype=np.float32))
    parts = np.moveaxis(data, axis, 0)
    total: npt.NDArray[np.float32] = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    total /= np.float32(len(parts))
    return total


def _background(data: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None) -> float:
    faces = np.zeros(data.shape, np.bool_)
    for axis in range(3):
        ends = [slice(None)] * 3
        for end in (0, -1):
            ends[axis] = end  # type: ignore[call-overload]
            faces[tuple(ends)] = True
    seen = faces if mask is None else faces & mask
    if seen.sum() < faces.sum() / 10:  # a mask's own border is no background
        return 0.0
    return float(np.median(data[seen]))


def _box(
    data: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None, background: float, world_from_vox: Matrix
) -> Matrix:
    spacing = np.linalg.norm(world_from_vox[:3, :3], axis=0)
    factors = (1, 1, 1) if mask is not None else _factors(data.shape, spacing, FEW_VOXELS)
    content = mask if mask is not None else np.abs(_shrunk(data, world_from_vox, factors)[0] - background) > CONTENT
    box = np.empty((3, 2))
    for axis, (n, f) in enumerate(zip(data.shape, factors, strict=True)):
        there = np.flatnonzero(content.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(there[0]) * f, int(there[-1] + 1) * f) if there.size else (0, n)
        margin = MARGIN * (last - first)
        box[axis] = max(first - margin, 0) - 0.5, min(last + margin, n) - 0.5
    return box
