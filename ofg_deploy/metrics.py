"""Numbers that say whether a registration is good: overlap, surface distance, folding, similarity."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.geometry import Matrix, Spacing

Labels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Corner = tuple[int, int, int]

SLAB = 4  # planes of cubes worked on at a time, so that memory stays small
CORNERS: tuple[Corner, ...] = tuple(product((0, 1), (0, 1), (0, 1)))


def _tetrahedron(origin: Corner, steps: int) -> tuple[Corner, list[Corner], float]:
    """A corner of a cube, the three corners that many edges away, and the sign of their determinant at rest."""
    ends = [corner for corner in CORNERS if np.abs(np.subtract(corner, origin)).sum() == steps]
    return origin, ends, float(np.sign(np.linalg.det(np.subtract(ends, origin))))


# Both ways to cut a cube into five: one tetrahedron at each corner, and the two between every other corner.
TETRAHEDRA = (*(_tetrahedron(c, 1) for c in CORNERS), _tetrahedron((0, 0, 0), 2), _tetrahedron((1, 1, 1), 2))


def dice(a: Labels, b: Labels) -> dict[int, float]:
    """Dice overlap 2|A and B| / (|A| + |B|) of each label other than 0 that occurs in either map; 0 if only in one."""
    in_a, in_b, in_both = (_count(labels) for labels in (a, b, a[a == b]))
    found = sorted(in_a.keys() | in_b.keys())
    return {label: 2.0 * in_both.get(label, 0) / (in_a.get(label, 0) + in_b.get(label, 0)) for label in found}


def hd95_mm(a: Labels, b: Labels, spacing_mm: Spacing) -> dict[int, float]:
    """95th percentile Hausdorff distance in mm, see ``hausdorff_mm``, for each label other than 0 present in both maps.

    A label present in one map only has no distance and is left out.
    """
    return {label: hausdorff_mm(in_a, in_b, spacing_mm) for label, in_a, in_b in common_labels(a, b)}


def common_labels(a: Labels, b: Labels) -> Iterator[tuple[int, Mask, Mask]]:
    """Each label other than 0 that is in both maps, and its masks in the box that holds both."""
    from scipy.ndimage import find_objects

    common = np.array(sorted(_count(a).keys() & _count(b).keys()), dtype=np.int64)
    if not common.size:
        return
    index_a, index_b = _positions(a, common), _positions(b, common)
    boxes = zip(find_objects(index_a), find_objects(index_b), strict=True)
    for position, (in_a, in_b) in enumerate(boxes, start=1):
        # Beyond the two labels nothing matters, and distance maps of the whole volume cost most of the time.
        box = tuple(slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(in_a, in_b, strict=True))
        yield int(common[position - 1]), index_a[box] == position, index_b[box] == position


def hausdorff_mm(a: Mask, b: Mask, spacing_mm: Spacing, percentile: float = 95.0) -> float:
    """Percentile of the distances between the surfaces of two masks, in each direction, then the larger one.

    The surface of a mask is its voxels with a 6-neighbour outside it (the border of the array counts as outside);
    distances run between voxel centres, in mm along the array axes, whose direction in the world does not matter.
    The directed percentiles are not pooled, as in Learn2Reg and DeepMind's surface-distance. Those weight each surface
    element by its area and place it between voxels, so figures differ by fractions of a voxel, and Learn2Reg's own
    script counts in voxels: ``surfels.hd95_l2r``. At ``percentile`` 100 this is the Hausdorff distance of the two
    surfaces.

    Args:
        a, b: (X, Y, Z), each with at least one voxel set.
        spacing_mm: voxel size along each array axis.
        percentile: 0..100.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    surface_a, surface_b = a & ~binary_erosion(a), b & ~binary_erosion(b)
    to_b = distance_transform_edt(~surface_b, sampling=spacing_mm)[surface_a]
    to_a = distance_transform_edt(~surface_a, sampling=spacing_mm)[surface_b]
    return float(max(np.percentile(to_b, percentile), np.percentile(to_a, percentile)))


def folding_percent(determinant: npt.NDArray[Any]) -> float:
    """Percentage of voxels whose Jacobian determinant is not positive."""
    return 100.0 * float(np.count_nonzero(determinant <= 0)) / determinant.size


def non_diffeomorphic_percent(displacement: npt.NDArray[Any], world_from_vox: Matrix | None = None) -> float:
    """Non-diffeomorphic volume in percent of the volume spanned by the voxel centres.

    Eight neighbouring voxels span a cube, and a cube falls into five tetrahedra in two ways: four at every other corner
    and one between them. With V_t the signed volumes of these ten tetrahedra after the map x -> x + u(x), positive
    for the identity, each cube gives 1/2 sum_t max(0, -V_t), the mean over both ways. Unlike the determinant by central
    differences this misses no fold, since the map is linear in each tetrahedron. The volume is that of the folded
    tetrahedra where they arrive, so an affine part of the map scales it by its determinant.

    Source: Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 2024
    (arXiv:2212.06060), which repeats the border voxels outwards and sums over voxels instead of over whole cubes.

    Args:
        displacement: (3, X, Y, Z); in voxels when ``world_from_vox`` is None, otherwise in mm.
        world_from_vox: (4, 4) or (3, 3) affine of the grid the displacement lives on.
    """
    axes = np.eye(3) if world_from_vox is None else world_from_vox[:3, :3]
    shape, turn = displacement.shape[1:], np.sign(np.linalg.det(axes))
    folded = 0.0
    for start in range(0, shape[0] - 1, SLAB):
        slab = displacement[:, start : start + SLAB + 1].astype(np.float64)
        slab += np.tensordot(axes, np.indices(slab.shape[1:], dtype=np.float64), axes=1)
        cubes = [n - 1 for n in slab.shape[1:]]
        corners = {c: slab[(slice(None), *(slice(o, o + n) for o, n in zip(c, cubes, strict=True)))] for c in CORNERS}
        for origin, ends, sign in TETRAHEDRA:
            (a, b, c), (d, e, f), (g, h, i) = (corners[end] - corners[origin] for end in ends)
            determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
            folded -= float(np.minimum(determinant * (sign * turn), 0).sum())
    # A tetrahedron's volume is a sixth of its determinant, and the two ways to cut a cube are averaged.
    return 100.0 * folded / 12 / float(np.prod([n - 1 for n in shape]) * abs(np.linalg.det(axes)))


def sdlogj(determinant: npt.NDArray[Any]) -> float:
    """Standard deviation of the logarithm of the Jacobian determinant, clipped to 1e-9..1e9.

    An affine part of the map adds a constant to the logarithm: it does not count.
    """
    from ofg_deploy.kernels.jacobian import log_spread

    return log_spread(determinant, 1e-9, 1e9)


def sdlogj_l2r(determinant: npt.NDArray[Any]) -> float | None:
    """SDlogJ as Learn2Reg's evaluation computes it, for comparison with its tables: std of log(clip(J + 3, 1e-9, 1e9)).

    The outer two voxels of every face are left out. The 3 keeps the logarithm finite for most folds and makes the
    figure about a quarter of ``sdlogj``; it also makes an affine part of the map count. Where fixed and moving image
    share a grid, as they do there, the determinant in mm is theirs in voxels.

    Args:
        determinant: (X, Y, Z); None comes back if an axis has fewer than 5 voxels.
    """
    inner = determinant[2:-2, 2:-2, 2:-2].astype(np.float64)
    return float(np.log(np.clip(inner + 3, 1e-9, 1e9)).std()) if inner.size else None


def ncc(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Pearson correlation of two images over all voxels; 0 where one of them is constant."""
    from ofg_deploy.kernels.intensity import correlation

    return correlation(a, b)


def mutual_information(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Of two images on one grid, in nats: see ``kernels.intensity.mutual_information``."""
    from ofg_deploy.kernels.intensity import mutual_information as compute

    return compute(a, b)


def mean(values: dict[int, float]) -> float | None:
    """Mean over labels; None (JSON null) when there is none."""
    return float(np.mean(list(values.values()))) if values else None


def _count(labels: Labels) -> dict[int, int]:
    """Voxels of each label other than 0, the background."""
    values, counts = np.unique(labels[labels != 0], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _positions(labels: Labels, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """1, 2, ... where the label is the first, second, ... of the sorted ``wanted``; 0 elsewhere."""
    index = np.searchsorted(wanted, labels).clip(max=wanted.size - 1)
    return np.where(wanted[index] == labels, index + 1, 0).astype(np.int32)
