"""Displacement fields without torch: sample, convert units, compose with an affine, Jacobian.

A field is a pull field: it lives on the fixed grid and says where in the moving image to sample. Voxel fields have
components in array-axis order; millimetre fields in world x, y, z (RAS+). All arrays are (3, X, Y, Z).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofg_deploy.geometry import Grid, Matrix, transform_points

Field = npt.NDArray[np.float32]
ON_VOXEL = 1e-6  # voxels between two voxels that count as one
Layout = Literal["C", "F"]  # which axis is next in memory: the last, as networks have it, or the first, as files do


def sample(
    data: npt.NDArray[Any], index: Matrix, order: int = 1, fill: float = 0.0, dtype: npt.DTypeLike = None
) -> npt.NDArray[Any]:
    """Values of ``data`` (X, Y, Z) at voxel positions ``index`` (3, ...), in the type of ``data`` or, linear, another.

    ``order`` 1 is linear (images; whole numbers are rounded), 0 nearest (labels). As in ITK a voxel reaches half a
    voxel beyond its centre: up to there the edge value holds, past it ``fill``.
    """
    from ofg_deploy.kernels import sampling
    from ofg_deploy.kernels.slabs import over_slabs

    if order and data.dtype.kind != "f":
        return _rounded(sample(data.astype(np.float64), index, order, fill), data.dtype)
    if data.flags.f_contiguous:  # a kernel reads in C order
        data, index = data.T, index[::-1]
    points = np.ascontiguousarray(index, dtype=np.float64).reshape(3, -1)
    out = np.empty(index.shape[1:], dtype or data.dtype)
    seen, bits, value = _plain(np.ascontiguousarray(data), out, order, fill)
    over_slabs(sampling.at_points, points.shape[1], points.shape[1], seen, points, order == 1, value, bits.reshape(-1))
    return out


def resample(
    data: npt.NDArray[Any],
    source: Grid,
    target: Grid,
    source_from_target: Matrix,
    order: int = 1,
    layout: Layout = "C",
    fill: float = 0.0,
) -> npt.NDArray[Any]:
    """``data`` on ``source`` seen on ``target`` through a world-to-world (4, 4) map, interpolated once.

    ``fill`` is the value outside of ``data``.
    """
    out = np.empty(target.shape, data.dtype, layout)
    index_from_index = source.vox_from_world @ source_from_target @ target.world_from_vox
    if (there := _on_voxels(data[None], index_from_index[:3], target.shape)) is not None:
        out[...] = there[0]
        return out
    return _on_grid(data, index_from_index, None, np.zeros((3, 3)), out, order, fill)


def total_displacement_mm(field_vox: Field, network: Grid, fixed: Grid, moving_from_fixed: Matrix) -> Field:
    """The whole map of a registration as one displacement on the fixed image's own grid.

    With x a fixed world point, d the network's displacement there and A the affine: u(x) = A(x + d(x)) - x.
    Beyond the network's grid d holds its edge value, so the map stays continuous.

    Args:
        field_vox: (3, X, Y, Z) in voxels of ``network``.
        network: the grid the network worked on.
        fixed: the fixed image's grid, which the result lives on.
        moving_from_fixed: (4, 4) the affine start, fixed world mm -> moving world mm.

    Returns:
        (3, *fixed.shape) float32, RAS mm; each component in memory as a file has it, x next to x.
    """
    still = (moving_from_fixed - np.eye(4)) @ fixed.world_from_vox
    turn = moving_from_fixed[:3, :3] @ network.world_from_vox[:3, :3]
    return _total(field_vox, network.vox_from_world @ fixed.world_from_vox, still, turn, fixed.shape)


def turned(field: Field, still: Matrix, turn: Matrix) -> Field:
    """still (voxel, 1) + turn field(voxel) at every voxel of the field's own grid: the same map in other coordinates.

    Args:
        field: (3, X, Y, Z).
        still: (4, 4), of which the first three rows count. turn: (3, 3) or (4, 4), of which the upper left counts.

    Returns:
        (3, X, Y, Z) float32, worked out in double precision, each component in memory as a file has it.
    """
    return _total(field, np.eye(4), still, turn[:3, :3], field.shape[1:])


def _total(field: Field, index: Matrix, still: Matrix, turn: Matrix, shape: tuple[int, ...]) -> Field:
    from ofg_deploy.kernels import sampling
    from ofg_deploy.kernels.slabs import over_slabs

    out = np.empty((3, *shape[::-1]), np.float32)
    index, still = _reversed(index[:3]), _reversed(still[:3])
    if (there := _on_voxels(field, index, out.shape[1:])) is not None:
        over_slabs(sampling.total_on_voxels, out.shape[1], out[0].size, there, np.hstack([still, turn]), out)
        return out.transpose(0, 3, 2, 1)
    if field[0].flags.f_contiguous:  # a kernel reads in C order
        field, index = field.transpose(0, 3, 2, 1), index[::-1]
    matrix = np.hstack([index, still, turn])
    over_slabs(sampling.total_map, out.shape[1], out[0].size, np.ascontiguousarray(field), matrix, out)
    return out.transpose(0, 3, 2, 1)


def _on_voxels(field: npt.NDArray[Any], index: Matrix, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """The part of a field (C, X, Y, Z) seen from a grid whose voxels all lie on its own; None if they do not.

    Args:
        index: (3, 4) voxel of that grid -> voxel of the field. shape: of that grid.
    """
    ends = transform_points(
        np.vstack([index, [0, 0, 0, 1]]), np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape) - 1)[:, None]
    )
    size = np.array(field.shape[1:])[:, None]
    whole = np.rint(ends)
    if np.abs(ends - whole).max() > ON_VOXEL or (whole < 0).any() or (whole >= size).any():
        return None
    turn = np.rint(index[:, :3])
    if (np.abs(turn).sum(axis=0) != 1).any() or (np.abs(turn).sum(axis=1) != 1).any():
        return None
    axes, first = np.abs(turn).argmax(axis=0), np.rint(index[:, 3]).astype(int)
    parts: list[slice] = []
    for axis, own, count in zip(axes, range(3), shape, strict=True):
        step, start = int(turn[axis, own]), int(first[axis])
        end = start + step * count
        parts.append(slice(start, None if end < 0 else end, step))
    return field.transpose(0, *(1 + axes))[(slice(None), *parts)]


def warp(
    data: npt.NDArray[Any],
    moving: Grid,
    fixed: Grid,
    displacement_mm: Field,
    order: int = 1,
    fill: float = 0.0,
) -> npt.NDArray[Any]:
    """Moving ``data`` seen on the fixed grid: one interpolation at x + u(x).

    Args:
        data: (X, Y, Z) on ``moving``.
        displacement_mm: (3, *fixed.shape) RAS mm, the total map.
        order: 1 linear, 0 nearest. ``fill`` is the value where the map leaves the moving field of view.

    Returns:
        (X, Y, Z) in the type of ``data``, in memory as the displacement is.
    """
    out = np.empty(fixed.shape, data.dtype, "F" if displacement_mm[0].flags.f_contiguous else "C")
    index = moving.vox_from_world @ fixed.world_from_vox
    return _on_grid(data, index, displacement_mm, moving.vox_from_world[:3, :3], out, order, fill)


def _on_grid(
    data: npt.NDArray[Any],
    index_from_index: Matrix,
    field: npt.NDArray[Any] | None,
    turn: Matrix,
    out: npt.NDArray[Any],
    order: int,
    fill: float = 0.0,
) -> npt.NDArray[Any]:
    """Fill ``out`` with ``data`` at index_from_index (voxel, 1) + turn field(voxel)."""
    from ofg_deploy.kernels import sampling
    from ofg_deploy.kernels.slabs import over_slabs

    if order and data.dtype.kind != "f":
        found = np.empty_like(out, np.float64)
        return _rounded(
            _on_grid(data.astype(np.float64), index_from_index, field, turn, found, order, fill), data.dtype
        )
    matrix = np.hstack([index_from_index[:3], turn])
    # Kernels read and write in C order. What lies in Fortran order, as in a file, is that with the axes reversed.
    if data.flags.f_contiguous:
        data, matrix = data.T, matrix[::-1]
    written = out
    if not out.flags.c_contiguous:
        written, matrix = out.T, _reversed(matrix)
        field = None if field is None else field.transpose(0, 3, 2, 1)
    moved = np.empty((0, 0, 0, 0), np.float32) if field is None else np.ascontiguousarray(field)
    seen, bits, value = _plain(np.ascontiguousarray(data), written, order, fill)
    arguments = (seen, np.ascontiguousarray(matrix), moved, order == 1, value, bits)
    over_slabs(sampling.on_grid, written.shape[0], written.size, *arguments)
    return out


def _reversed(matrix: Matrix) -> Matrix:
    """An (n, 4) or wider matrix for an index whose axes come in reversed order."""
    return np.hstack([matrix[:, 2::-1], matrix[:, 3:]])


def _plain(
    data: npt.NDArray[Any], out: npt.NDArray[Any], order: int, fill: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Any]:
    """What a kernel is given. The nearest voxel's bits are moved, whatever they mean, so few types are compiled."""
    value = np.array(fill).astype(data.dtype)
    if order == 1:
        return data, out, float(value)
    bits = np.dtype(f"u{data.dtype.itemsize}")
    return data.view(bits), out.view(bits), int(value.view(bits))


def _rounded(values: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.floor(values + 0.5).astype(dtype)


def jacobian_determinant(displacement: npt.NDArray[Any], world_from_vox: Matrix | None = None) -> Field:
    """det d(x + u)/dx at every voxel, by central differences (one-sided at the faces), as ``numpy.gradient``'s.

    Args:
        displacement: (3, X, Y, Z); in voxels when ``world_from_vox`` is None, otherwise in mm.
        world_from_vox: (4, 4) or (3, 3) affine of the grid the displacement lives on.
    """
    from ofg_deploy.kernels.jacobian import determinant
    from ofg_deploy.kernels.slabs import over_slabs

    axes = np.eye(3) if world_from_vox is None else world_from_vox[:3, :3]
    volume = float(np.linalg.det(axes))
    out: Field = np.empty(displacement.shape[1:], np.float32, "F" if displacement[0].flags.f_contiguous else "C")
    written: npt.NDArray[Any] = out
    if not out.flags.c_contiguous:  # reversed axes turn the volume's sign and the derivative's alike
        displacement, written = displacement.transpose(0, 3, 2, 1), out.T
        axes, volume = axes[:, ::-1], -volume
    arguments = (np.ascontiguousarray(displacement), np.ascontiguousarray(axes), volume, written)
    over_slabs(determinant, written.shape[0], written.size, *arguments)
    return out
