"""Displacements in voxels, by array alone: Learn2Reg (NIfTI) and VoxelMorph (.npz or NIfTI)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import DAMAGED, GeometryError, InputError
from ofg_deploy.field import Field
from ofg_deploy.geometry import Grid, Shape, same_grid
from ofg_deploy.nifti import load_space, load_vectors
from ofg_deploy.nifti_file import open_nifti
from ofg_deploy.transform.maps import FieldMap, field_map
from ofg_deploy.transform.relative import from_relative, voxel_from_world


def load_voxels(path: Path, form: str, fixed: Grid, moving: Grid, max_voxels: int) -> FieldMap:
    """Read a field as a displacement on the fixed grid.

    Raises:
        InputError: of another form, damaged or too large. GeometryError: of another grid.
    """
    warnings: tuple[str, ...] = ()
    if form == "voxelmorph" and path.name.lower().endswith((".npz", ".npy")):
        relative = _by_shape(_load_numpy(path, max_voxels), fixed.shape, path)
    else:
        if form == "voxelmorph" and open_nifti(path, max_voxels, components=3).shape == (3, *fixed.shape):
            relative, grid, warnings = _components_first(path, fixed.shape, max_voxels)
            intent = 0
        else:
            relative, grid, intent, warnings = load_vectors(path, max_voxels, fixed if form == "l2r" else None)
        if intent != 0:
            raise InputError(f"{path} has NIfTI intent {intent}, so it is no field in the form of {form}")
        if not same_grid(grid, fixed, 0.01):
            raise GeometryError(f"{path} lies on another grid than the fixed image: it belongs to another pair")
    return field_map(from_relative(relative, fixed, moving, voxel_from_world), fixed, path, warnings)


def _components_first(path: Path, shape: Shape, max_voxels: int) -> tuple[Field, Grid, tuple[str, ...]]:
    """(3, X, Y, Z) as NIfTI with the fixed image's affine: what VoxelMorph's PyTorch script saves."""
    if shape[1:] == (3, 3):  # then (3, Y, Z, 3) may be meant as well
        raise _ambiguous(path)
    grid, _, warnings = load_space(path, 3 * max_voxels)
    field = open_nifti(path, max_voxels, components=3).read(np.dtype(np.float32))
    return field, Grid(shape, grid.world_from_vox), warnings


def _by_shape(vol: npt.NDArray[Any], shape: Shape, path: Path) -> Field:
    """(3, X, Y, Z) of an array whose components come first or last, as the fixed image's shape tells."""
    while vol.ndim > 4 and vol.shape[0] == 1:  # the batch
        vol = vol[0]
    if vol.ndim != 4 or 3 not in (vol.shape[0], vol.shape[3]) or vol.dtype.kind not in "fiu":
        raise InputError(f"{path} holds {vol.dtype} {vol.shape}: a field (X, Y, Z, 3) or (3, X, Y, Z) is needed")
    first, last = vol.shape == (3, *shape), vol.shape == (*shape, 3)
    if first and last:
        raise _ambiguous(path)
    if not first and not last:
        raise GeometryError(f"{path} holds {vol.shape}, a field for other images: the fixed image has {shape} voxels")
    return np.asarray(vol if first else np.moveaxis(vol, -1, 0), dtype=np.float32)


def _ambiguous(path: Path) -> InputError:
    return InputError(f"{path} has 3 voxels along its axes, so which of them are the components cannot be told")


def _load_numpy(path: Path, max_voxels: int) -> npt.NDArray[Any]:
    """The array ``vol``, or the only one. Nothing pickled, nothing larger than an image may be."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        if path.name.lower().endswith(".npy"):
            if path.stat().st_size > 24 * max_voxels + 2**16:
                raise InputError(f"{path} holds more than `max_voxels` {max_voxels}: is it damaged?")
            return np.asarray(np.load(path, allow_pickle=False, mmap_mode="r"))
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > 24 * max_voxels:
                raise InputError(f"{path} claims more than `max_voxels` {max_voxels}: is it damaged?")
        with np.load(path, allow_pickle=False) as arrays:
            vol: npt.NDArray[Any] = arrays["vol" if "vol" in arrays or len(arrays.files) != 1 else arrays.files[0]]
            return vol
    except InputError:
        raise
    except (*DAMAGED, KeyError) as error:
        raise InputError(f"{path} cannot be read as a VoxelMorph field (.npz with vol): {error}") from error
