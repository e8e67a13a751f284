"""What images look like as a whole: cut out of their background or not, CT numbers or not, where they are bright.

Guesses, computed once while training prepares its pairs, by ``ofg check`` for people to judge, and by ``-m auto`` of
``ofg register`` to choose a model.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ofg_deploy.field import resample
from ofg_deploy.geometry import Grid, in_view, network_grid, thinned, transform_points
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import NetworkInput
from ofg_deploy.records import fitted

EMPTY = 0.35  # share of exactly equal background in a brain cut out of its head; air of a scan is noise
HOUNSFIELD_AIR = -500.0  # below it there is air in a CT; no other modality writes such numbers
EDGE = 8  # blocks of a thumbnail along each axis: enough to tell contrasts apart, too few to show anybody
UNKNOWN = 255
CONTENT = 0.05  # of 0..1: above it a voxel is no background
FEWEST = 30  # blocks that make a correlation worth saying
MIXED = 0.1  # a model whose images look cut out in a larger share, and in less than all but this, has seen both
COARSER = 2.0  # voxel side of an image to that of the network's grid
# Of an image that counts as like those a model was trained on; stricter than what is worth a warning of ofg check.
COVERED = 0.6  # share of the blocks that the model's images fill
OUTSIDE = 0.25  # share of its content beyond the network's grid
SPREADS, SLACK = 3.0, 0.05  # standard deviations its likeness may lie below theirs, and never less than this


@dataclass(frozen=True)
class Look:
    """A summary of one image's intensities.

    Attributes:
        low, high: extremes of the finite voxels.
        background: share of voxels that equal ``0``, or the lowest value where there is no 0.
        rim: the same on the outermost voxels alone.
    """

    low: float
    high: float
    background: float
    rim: float

    @classmethod
    def of(cls, data: npt.NDArray[Any]) -> Look:
        """Of finite voxels (X, Y, Z)."""
        low, high = float(np.float32(data.min())), float(np.float32(data.max()))
        empty = 0.0 if low <= 0 <= high and (data == 0).any() else low
        faces = [np.moveaxis(data, axis, 0)[index].ravel() for axis in range(3) for index in (0, -1)]
        rim = float(np.mean(np.concatenate(faces) == empty))
        return cls(low, high, float(np.mean(data == empty)), rim)

    @property
    def stripped(self) -> bool:
        """Looks cut out: a background of one value, which reaches all around. Defaced or masked scans look alike."""
        return self.background > EMPTY and self.rim > 0.995

    @property
    def ct(self) -> bool:
        """Looks like CT numbers."""
        return self.low < HOUNSFIELD_AIR


def thumbnail(volume: Volume, expects: NetworkInput, centre: Grid | None = None) -> npt.NDArray[np.float32]:
    """(8, 8, 8): means of blocks of an image as a network sees it, NaN where most of a block is outside of it.

    Args:
        centre: on whose field of view the network's grid is centred; the image's own if absent.
    """
    grid = network_grid(centre or volume.grid, expects.shape, expects.spacing_mm, expects.axes)
    unit = expects.intensity.apply(volume)
    values, seen = (_blocks(resample(a, volume.grid, grid, np.eye(4))) for a in (unit, np.ones_like(unit)))
    return np.where(seen > 0.5, values / np.maximum(seen, 0.5), np.nan).astype(np.float32)


def likeness(first: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]]) -> float:
    """Correlation of two thumbnails where both are known; NaN where too little is, or nothing varies."""
    both = np.isfinite(first) & np.isfinite(other)
    a, b = (t[both] for t in (first, other))
    if both.sum() < FEWEST or min(np.ptp(a), np.ptp(b)) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


class _Record(msgspec.Struct):
    """``Appearance`` as it travels; ``mean`` is base64, a byte for each block."""

    stripped: float
    mean: str
    likeness: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Appearance:
    """What the fixed images look like that a network was trained on; travels with its checkpoint and its model.

    Attributes:
        stripped: share of them that look cut out of their background, 0..1.
        mean: (8, 8, 8) mean of their thumbnails, NaN where most of them show nothing.
        likeness: mean and standard deviation of their likeness to it.
    """

    stripped: float
    mean: npt.NDArray[np.float32]
    likeness: tuple[float, float]

    @classmethod
    def of(cls, stripped: npt.NDArray[np.bool_], thumbnails: npt.NDArray[np.float32]) -> Appearance:
        """Of N images: (N,) ``Look.stripped`` and (N, 8, 8, 8) ``thumbnail``."""
        known = np.isfinite(thumbnails)
        often = known.mean(axis=0) > 0.5
        total = np.where(known, thumbnails, 0).sum(axis=0)
        mean = np.where(often, total / np.maximum(known.sum(axis=0), 1), np.nan).astype(np.float32)
        alike = np.array([likeness(t, mean) for t in thumbnails])
        alike = alike[np.isfinite(alike)]
        spread = (float(alike.mean()), float(alike.std())) if alike.size else (1.0, 0.0)
        return cls(float(np.mean(stripped)), mean, spread)

    def difference(self, volume: Volume, expects: NetworkInput, centre: Grid | None = None) -> str | None:
        """Why an image is not like those the model was trained on; None if it is.

        Args:
            centre: as ``thumbnail``.

        Raises:
            InputError: the model's intensity recipe leaves a constant image.
        """
        look = Look.of(volume.data)
        if min(self.stripped, 1 - self.stripped) < MIXED and look.stripped != (self.stripped > MIXED):
            cut = "looks skull-stripped" if look.stripped else "does not look skull-stripped"
            return f"it {cut}, and {self.stripped:.0%} of the model's images do"
        longest, usual_side = max(volume.grid.spacing_mm), max(expects.spacing_mm)
        if longest > COARSER * usual_side:
            return f"its voxels are up to {longest:.3g} mm long, the network's {usual_side:.3g} mm"
        seen = thumbnail(volume, expects, centre)
        covered = float(np.isfinite(seen)[np.isfinite(self.mean)].mean())
        if covered < COVERED:
            return f"it covers {covered:.0%} of what the model's images show"
        outside = _share_outside(volume, expects, centre)
        if outside > OUTSIDE:
            return f"{outside:.0%} of its content lies outside the network's field of view"
        alike, (usual, spread) = likeness(seen, self.mean), self.likeness
        if not alike >= usual - max(SPREADS * spread, SLACK):  # NaN is not like them
            return f"its likeness to their mean image is {alike:.2f}, theirs {usual:.2f} +- {spread:.2f}"
        return None

    def to_record(self) -> dict[str, Any]:
        """JSON-ready; the mean image in steps of 1/254, 255 where it is not known."""
        steps = np.where(np.isfinite(self.mean), np.clip(np.round(self.mean * UNKNOWN), 0, UNKNOWN - 1), UNKNOWN)
        mean, spread = (round(v, 4) for v in self.likeness)
        return {
            "stripped": round(self.stripped, 4),
            "mean": base64.b64encode(steps.astype(np.uint8).tobytes()).decode(),
            "likeness": [mean, spread],
        }

    @classmethod
    def from_record(cls, record: Any) -> Appearance | None:
        """None where a model has none: it was trained elsewhere, or by an older version."""
        try:
            known = fitted(record, _Record, "the record of training images is damaged")
            steps = np.frombuffer(base64.b64decode(known.mean, validate=True), np.uint8).reshape(EDGE, EDGE, EDGE)
        except ValueError:  # of base64 and numpy, too
            return None
        mean = np.where(steps == UNKNOWN, np.nan, steps / np.float32(UNKNOWN)).astype(np.float32)
        return cls(known.stripped, mean, known.likeness)


def _share_outside(volume: Volume, expects: NetworkInput, centre: Grid | None) -> float:
    """Share of an image's content, on a coarse lattice, that lies beyond the network's grid."""
    grid = network_grid(centre or volume.grid, expects.shape, expects.spacing_mm, expects.axes)
    picked, index = thinned(volume.grid.shape)
    content = expects.intensity.apply(volume)[picked] > CONTENT
    inside = in_view(transform_points(grid.vox_from_world @ volume.grid.world_from_vox, index), grid.shape)
    return float((~inside)[content].mean()) if content.any() else 0.0


def _blocks(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(X, Y, Z) -> (8, 8, 8) means of blocks as equal as they can be, each at least a voxel."""
    means = data.astype(np.float64)
    for axis, size in enumerate(data.shape):
        at = np.arange(EDGE) * size // EDGE
        ends = np.maximum(np.append(at[1:], size), at + 1)
        blocks = [means.take(range(a, b), axis).mean(axis, keepdims=True) for a, b in zip(at, ends, strict=True)]
        means = np.concatenate(blocks, axis)
    return means
