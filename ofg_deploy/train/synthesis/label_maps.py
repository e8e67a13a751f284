"""Label maps as they were drawn: which labels they hold, where, and voxels as small numbers ready to be rendered."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import Volume, load_labels
from ofg_deploy.train.synthesis.contrasts import T1, is_freesurfer, is_outer, structure, t1_means

FEWEST_LABELS = 3  # beside the background; with fewer there is nothing inside that a registration could align
MARGIN_MM = 10.0  # around the labels in what is planned and written; deformations stay within it
SCORED_MM3 = 300.0  # structures below it are a few voxels, whose Dice is chance
# Fluid around the brain, vessels, lesions: no structure with a boundary of its own.
NOT_SCORED = {24, 30, 31, 72, 77, 80}
# Around maps that end at the brain: fluid, bone, skin, up to this distance from it (mm). No drawn label is negative.
SHELL_MM = {-1: 3.0, -2: 8.0, -3: 13.0}
SMALL_MM = 2.0  # voxels of the rendering that is aligned with the common frame: enough for an affine


@dataclass(frozen=True)
class Looked:
    """What a label map holds.

    Attributes:
        path: its file.
        volume_mm3: of each label but 0.
        content: the box around everything that is not outside of the brain (or body), with a margin.
    """

    path: Path
    volume_mm3: dict[int, float]
    content: Grid


@dataclass(frozen=True, eq=False)
class Coded:
    """A label map, cut to what it holds.

    Attributes:
        codes: (X, Y, Z) uint8 or uint16, positions in ``numbers``.
        numbers: (N,) label numbers, the first is 0; negative ones were added around (``SHELL_MM``).
        grid: where the voxels lie.
    """

    codes: npt.NDArray[Any]
    numbers: npt.NDArray[np.int64]
    grid: Grid

    @property
    def outer(self) -> npt.NDArray[np.bool_]:
        """(N,) which labels lie around the brain, air among them."""
        return np.array([outside(n) for n in map(int, self.numbers)])

    def clean(self) -> npt.NDArray[np.float32]:
        """(N,) means of the rendering that is the same for everybody: T1-like, nothing around the brain."""
        return np.where(self.outer, 0, t1_means(self.numbers)).astype(np.float32)


def outside(number: int) -> bool:
    """Whether a label lies around the brain, or is air."""
    return number <= 0 or is_outer(number)


def look(path: Path) -> Looked:
    """Read a label map to its last voxel.

    Raises:
        InputError: not a label map, or too few labels to render an image of.
    """
    labels = load_labels(path)
    if labels.data.min() < 0:
        raise InputError(f"{path} has the negative label {labels.data.min()}: numbers from 0 are needed")
    numbers, counts = _counted(labels.data)
    voxel = float(np.prod(labels.grid.spacing_mm))
    found = {int(n): voxel * int(c) for n, c in zip(numbers, counts, strict=True) if n != 0}
    inside = [n for n in found if not outside(n)]
    if len(inside) < FEWEST_LABELS:
        raise InputError(
            f"{path} has {len(inside)} labels ({', '.join(map(str, inside)) or 'none'}): at least {FEWEST_LABELS} "
            "beside the background are needed to render an image"
        )
    box = _box(np.isin(labels.data, inside))
    return Looked(path, found, _cut(labels.grid, box, MARGIN_MM))


def scored(looked: list[Looked]) -> tuple[int, ...]:
    """Labels that count in the validation Dice: in all of these maps, not too small, and named structures of FreeSurfer
    where labels are numbered as FreeSurfer's."""
    common = set.intersection(*({n for n, v in one.volume_mm3.items() if v >= SCORED_MM3} for one in looked))
    common = {n for n in common if not outside(n)}
    if all(is_freesurfer(np.array([*one.volume_mm3])) for one in looked):
        common = {n for n in common if structure(n) in T1 and structure(n) not in NOT_SCORED}
    return tuple(sorted(common))


def coded(path: Path, shell: bool) -> Coded:
    """Cut to its labels and numbered from 0.

    Args:
        shell: add fluid, bone and skin where the map ends at the brain.
    """
    labels = load_labels(path)
    numbers, counts = _counted(labels.data)
    outer = sum(int(c) for n, c in zip(numbers, counts, strict=True) if n != 0 and outside(int(n)))
    inner = sum(int(c) for n, c in zip(numbers, counts, strict=True) if not outside(int(n)))
    bare = outer < 0.2 * inner  # a head is more than that
    margin = MARGIN_MM + (max(SHELL_MM.values()) if shell and bare else 0)
    grid, data = _padded(labels, _box(labels.data != 0), margin)
    numbers = np.array([0, *(n for n in numbers if n != 0)], np.int64)
    if shell and bare:
        inside = np.isin(data, [n for n in numbers if not outside(int(n))])
        away = distance_transform_edt(~inside, sampling=grid.spacing_mm)
        ends = np.array([0.0, *SHELL_MM.values()])
        data = data.astype(np.int64)
        for number, (near, far) in zip(SHELL_MM, pairwise(ends), strict=True):
            data[(away > near) & (away <= far) & (data == 0)] = number
        numbers = np.concatenate([numbers, list(SHELL_MM)])
    order = np.argsort(numbers)
    codes = order[np.searchsorted(numbers[order], data)]
    return Coded(codes.astype(np.uint8 if len(numbers) <= 256 else np.uint16), numbers, grid)


def small_image(one: Coded, path: Path) -> Volume:
    """The clean rendering at about ``SMALL_MM``: every n-th voxel."""
    step = [max(1, round(SMALL_MM / s)) for s in one.grid.spacing_mm]
    x, y, z = (slice(None, None, n) for n in step)
    data = np.ascontiguousarray(one.clean()[one.codes[x, y, z]])
    return Volume(data, Grid(data.shape, one.grid.world_from_vox @ np.diag([*step, 1.0])), path)


def inside_centre_mm(one: Coded) -> npt.NDArray[np.float64]:
    """(3,) world mm of the middle of the box around what lies inside."""
    low, high = _box(~one.outer[one.codes])
    return np.asarray((one.grid.world_from_vox @ [*((low + high - 1) / 2), 1.0])[:3])


def _counted(data: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Which numbers occur how often; counted, not sorted, where they are small."""
    if data.min() < 0 or data.max() >= 2**20:
        return np.unique(data, return_counts=True)
    counts = np.bincount(data.ravel(order="K"))
    numbers = np.flatnonzero(counts)
    return numbers, counts[numbers]


def _box(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First voxel of the box around a mask, and the one after its last."""
    along = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([a[0] for a in along]), np.array([a[-1] + 1 for a in along])


def _cut(grid: Grid, box: tuple[npt.NDArray[Any], npt.NDArray[Any]], margin_mm: float) -> Grid:
    margin = np.ceil(margin_mm / np.array(grid.spacing_mm)).astype(int)
    low, high = box[0] - margin, box[1] + margin
    matrix = grid.world_from_vox.copy()
    matrix[:3, 3] += matrix[:3, :3] @ low
    x, y, z = map(int, high - low)
    return Grid((x, y, z), matrix)


def _padded(
    labels: Volume, box: tuple[npt.NDArray[Any], npt.NDArray[Any]], margin_mm: float
) -> tuple[Grid, npt.NDArray[Any]]:
    """The box with a margin, in which there is air beyond the map."""
    grid = _cut(labels.grid, box, margin_mm)
    data = np.zeros(grid.shape, labels.data.dtype)
    margin = (np.array(grid.shape) - (box[1] - box[0])) // 2
    there = tuple(slice(int(a), int(b)) for a, b in zip(*box, strict=True))
    here = tuple(slice(int(m), int(m + b - a)) for m, a, b in zip(margin, *box, strict=True))
    data[here] = labels.data[there]
    return grid, data
