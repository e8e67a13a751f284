"""How well two images agree under a linear map: one measure for all stages, and its slope."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ofg_deploy.affine.pictures import Picture
from ofg_deploy.geometry import Matrix
from ofg_deploy.kernels.agreement import BINS, joint_histogram, look_up, slope
from ofg_deploy.kernels.compiled import most_threads

T = TypeVar("T")

# Steps of a sequence of points that fills a box evenly: 1/x, 1/x^2, 1/x^3 with x^4 = x + 1.
SPREAD = np.array([0.8191725133961645, 0.6710436067037893, 0.5497004779019703])
NEAR = 24  # parts of each edge of the box by which samples are sorted
ALONE = 8_000  # samples up to which a second thread costs more than it takes over


def both(work: Callable[[int], T], samples: float) -> list[T]:
    """``work(0)``, ``work(1)``, side by side where it is much: one for each image, and neither needs the other's."""
    if most_threads() == 1 or samples <= ALONE:
        return [work(0), work(1)]
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(work, 1)
        return [work(0), second.result()]


@dataclass(frozen=True, eq=False)
class Frames:
    """Lengths without a unit: positions of each image from the centre of its content, in a length both share.

    Attributes:
        fixed, moving: (4, 4), frame -> world.
        length: what is 1 in the frames, in world units.
    """

    fixed: Matrix
    moving: Matrix
    length: float

    @classmethod
    def of(cls, fixed: Picture, moving: Picture) -> Frames:
        """The length is the mean radius of what both images show."""
        length = float(np.sqrt(fixed.radius() * moving.radius()))
        frames = []
        for picture in (fixed, moving):
            frame = np.diag([length, length, length, 1.0])
            frame[:3, 3] = picture.centre_of_box()
            frames.append(frame)
        return cls(frames[0], frames[1], length)

    def to_world(self, moving_from_fixed: Matrix) -> Matrix:
        """(4, 4) between frames -> (4, 4) between worlds."""
        return self.moving @ moving_from_fixed @ np.linalg.inv(self.fixed)

    def from_world(self, moving_from_fixed: Matrix) -> Matrix:
        """The inverse of ``to_world``."""
        return np.asarray(np.linalg.inv(self.moving) @ moving_from_fixed @ self.fixed)


@dataclass(frozen=True, eq=False)
class Half:
    """Samples of one image, to be looked up in the other.

    Attributes:
        points: (N, 3) positions in the frame of the image the samples come from.
        bins: (N,) int64, of their values.
        data: (X, Y, Z), the other image. vox_from_frame: (4, 4), its frame -> its voxels.
        mask: (X, Y, Z) float32, how much the other image's voxels count; None: all.
    """

    points: Matrix
    bins: npt.NDArray[np.int64]
    data: npt.NDArray[np.float32]
    vox_from_frame: Matrix
    mask: npt.NDArray[np.float32] | None

    def told(self, other_from_mine: Matrix, with_slope: bool = False) -> tuple[float, Matrix]:
        """Mutual information in nats per sample, and its slope by the (4, 4) map, zeros unless asked for.

        Summed over the samples that the other image shows and divided by all there are: the others tell nothing. So
        nothing is won by a smaller overlap.
        """
        if self.bins.size == 0:
            return 0.0, np.zeros((4, 4))
        matrix = np.ascontiguousarray((self.vox_from_frame @ other_from_mine)[:3])
        found, counts, by_voxel = np.empty((self.bins.size, 8)), np.zeros((BINS, BINS)), np.zeros((4, 4))
        look_up(self.data, matrix, self.points, found)
        if self.mask is not None:
            _count(self.mask, matrix, self.points, found)
        joint_histogram(self.bins, found, counts)
        p = counts / self.bins.size
        apart = np.outer(p.sum(axis=1), p.sum(axis=0))
        there = p > 0
        table = np.zeros_like(p)
        table[there] = np.log(p[there] * p.sum() / apart[there])  # also the derivative of the sum below by p
        if with_slope:
            slope(self.bins, found, self.points, table, by_voxel)
        return float((p * table).sum()), self.vox_from_frame.T @ by_voxel / self.bins.size


@dataclass(frozen=True, eq=False)
class Agreement:
    """The measure at one resolution: what each image tells of the other, in nats per place.

    The mean of both directions: a map that shrinks one image into a slice of the other, or moves it out of view, may
    still tell much in one direction and tells nothing in the other.
    """

    forward: Half
    backward: Half

    @classmethod
    def between(cls, fixed: Picture, moving: Picture, frames: Frames, voxels: float, samples: int) -> Agreement:
        """At about so many voxels and samples of what each image shows."""
        pictures, frame_of = (fixed, moving), (frames.fixed, frames.moving)
        small = both(lambda mine: pictures[mine].shrunk(voxels), samples)

        def half(mine: int) -> Half:
            other = 1 - mine
            inverse: Matrix = np.linalg.inv(frame_of[mine]).astype(np.float64)
            points, values = _samples(pictures[mine], *small[mine], inverse, samples)
            bins = np.rint(1.0 + values * (BINS - 4.0)).astype(np.int64)
            data, world_from_vox = small[other]
            vox_from_frame = np.linalg.inv(world_from_vox) @ frame_of[other]
            return Half(points, bins, data, vox_from_frame, pictures[other].mask_shrunk(voxels))

        return cls(*both(half, samples))

    def value(self, moving_from_fixed: Matrix) -> float:
        """The measure of a map between frames."""
        back: Matrix = np.linalg.inv(moving_from_fixed).astype(np.float64)
        (there, _), (back_again, _) = self._told((moving_from_fixed, back), with_slope=False)
        return (there + back_again) / 2

    def _told(self, maps: tuple[Matrix, Matrix], with_slope: bool) -> list[tuple[float, Matrix]]:
        halves = self.forward, self.backward
        return both(lambda n: halves[n].told(maps[n], with_slope), min(half.bins.size for half in halves))

    def with_slope(self, moving_from_fixed: Matrix) -> tuple[float, Matrix]:
        """The measure, and its derivative by the (4, 4) matrix (last row 0)."""
        inverse: Matrix = np.linalg.inv(moving_from_fixed).astype(np.float64)
        (there, by_matrix), (back, by_inverse) = self._told((moving_from_fixed, inverse), with_slope=True)
        by_matrix = by_matrix - inverse.T @ by_inverse @ inverse.T
        by_matrix[3] = 0
        return (there + back) / 2, by_matrix / 2


def _count(mask: npt.NDArray[np.float32], matrix: Matrix, points: Matrix, found: Matrix) -> None:
    """Multiply the weights by a mask, and their slopes with them."""
    share = np.zeros_like(found)
    look_up(mask, matrix, points, share)
    seen = share[:, 1] > 0
    found[seen, 5:] = found[seen, 5:] * share[seen, :1] + found[seen, 1:2] * share[seen, 2:5]
    found[seen, 1] *= share[seen, 0]


def _samples(
    picture: Picture, data: npt.NDArray[np.float32], world_from_vox: Matrix, frame_from_world: Matrix, count: int
) -> tuple[Matrix, Matrix]:
    """(N, 3) points in the frame that fill the content's box, off the voxels' lattice, and the (N,) values there."""
    index = picture.box[:, 0] + _spread(count) * (picture.box[:, 1] - picture.box[:, 0])
    if picture.mask is not None:
        nearest = np.clip(np.rint(index).astype(np.int64), 0, np.array(picture.mask.shape) - 1)
        index = index[picture.mask[tuple(nearest.T)]]
    held = _mapped(np.linalg.inv(world_from_vox) @ picture.world_from_vox, index)
    held = np.ascontiguousarray(np.clip(held, -0.5, np.array(data.shape) - 0.5))
    found = np.empty((len(index), 8))
    look_up(data, np.eye(4)[:3], held, found)
    return np.ascontiguousarray(_mapped(frame_from_world @ picture.world_from_vox, index)), found[:, 0]


@lru_cache(maxsize=8)
def _spread(count: int) -> Matrix:
    """(N, 3) places in a box of edge 1, neighbours in turn: their voxels are in cache. Not to be written to."""
    steps = np.arange(1, count + 1)[:, None] * SPREAD % 1.0
    return np.asarray(steps[np.lexsort((steps * NEAR).astype(np.int64).T)])


def _mapped(matrix: Matrix, points: Matrix) -> Matrix:
    """(N, 3) points; without a matrix product, whose last bits depend on the number of threads."""
    return matrix[:3, 3] + sum(points[:, n : n + 1] * matrix[:3, n] for n in range(3))
