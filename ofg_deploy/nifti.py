"""NIfTI in and out: what a header means in the world, and the only place that knows intents and LPS vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import LPS_FROM_RAS, Grid
from ofg_deploy.nifti_file import MAX_VOXELS, NiftiFile, open_nifti
from ofg_deploy.nifti_space import check_real, says_nothing, space_of
from ofg_deploy.nifti_write import write

INTENT_FSL_WARP = 2006  # FNIRT's displacement field
FSL_INTENTS = (INTENT_FSL_WARP, 2007, 2008, 2009)  # and its coefficients: cubic, cosines, quadratic
INTENT_VECTOR = 1007  # the one intent under which ITK, ANTs and nitransforms all read LPS vectors alike


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D image or label map in memory.

    Attributes:
        data: (X, Y, Z), float32 for images, an integer type for label maps.
        grid: where its voxels lie.
        path: the file it came from.
        space_code: NIfTI code of the affine used (1 scanner, 2 aligned, 3 Talairach, 4 MNI), copied to outputs.
        warnings: what the header left open, in one line each.
        sha256: of the file's bytes, as they were when it was read; None where nobody looked.
        in_memory: there is no such file; ``path`` is only a name.
    """

    data: npt.NDArray[Any]
    grid: Grid
    path: Path
    space_code: int = 1
    warnings: tuple[str, ...] = ()
    sha256: str | None = None
    in_memory: bool = False


def stem(path: Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.(nii|nii\.gz|img|hdr)$", "", path.name, flags=re.IGNORECASE)


def load_image(path: Path | str, max_voxels: int = MAX_VOXELS, constant: bool = False) -> Volume:
    """Read an intensity image as float32, scaling (``scl_slope``) applied.

    Args:
        constant: whether one value everywhere will do, as in a result to look at.

    Raises:
        InputError: the file is missing, truncated, not NIfTI, not one 3-D volume of at most ``max_voxels``, not scalar,
            holds NaN or infinite voxels, or is constant where that will not do.
        GeometryError: its affine is missing, singular or sheared.
    """
    path = Path(path)
    nifti = open_nifti(path, max_voxels)
    check_volume(nifti)
    grid, code, warnings = space_of(nifti)
    voxels, sha256 = nifti.read_hashed(np.dtype(np.float32))
    return Volume(as_image(voxels.reshape(grid.shape, order="F"), path, constant), grid, path, code, warnings, sha256)


def as_image(data: npt.NDArray[Any], path: Path, constant: bool = False) -> npt.NDArray[Any]:
    """The voxels as they are, unless ``load_image`` would refuse them; raises as it does."""
    check_finite(data, path)
    if not constant and data.min() == data.max():
        raise InputError(f"{path} is constant ({data.flat[0]:g} everywhere): there is nothing to register")
    return data


def check_finite(data: npt.NDArray[Any], path: Path) -> None:
    """Raises InputError for NaN or infinite voxels."""
    if not np.isfinite(data).all():
        bad = int(data.size - np.isfinite(data).sum())
        line = f"ofg check {quote(str(path))} --nan VALUE --fix DIR"
        raise InputError(f"{path} has {bad} NaN or infinite voxels: replace them first: {line}")


def load_labels(path: Path | str, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a label map. Integer files keep their type; float files must hold whole numbers and become int32.

    Raises:
        InputError, GeometryError: as ``load_image`` (a constant label map is allowed), or values that are not whole.
    """
    path = Path(path)
    nifti = open_nifti(path, max_voxels)
    check_volume(nifti)
    grid, code, warnings = space_of(nifti)
    voxels, sha256 = nifti.read_hashed()
    return Volume(as_labels(voxels.reshape(grid.shape, order="F"), path), grid, path, code, warnings, sha256)


def as_labels(data: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """What ``load_labels`` makes of voxels; raises as it does."""
    if data.dtype.kind == "f" and not np.array_equal(data, np.round(data)):  # also true of NaN
        raise InputError(f"{path} holds fractional values or NaN: a label map with whole numbers is needed")
    if (wanted := label_type(data.dtype)) != data.dtype:
        limits = np.iinfo(wanted)
        if data.min().item() < limits.min or data.max().item() > limits.max:
            raise InputError(f"{path} has label numbers beyond 32 bits")
    return data.astype(wanted, copy=False)


def label_type(stored: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which labels stored so are kept."""
    return np.dtype(np.int32) if stored.kind == "f" or stored.itemsize == 8 else stored


def load_grid(path: Path | str) -> Grid:
    """Only the geometry of a file, without its voxels. Raises as ``load_image``."""
    path = Path(path)
    return load_space(path)[0]


def load_space(path: Path | str, max_voxels: int = MAX_VOXELS) -> tuple[Grid, int, tuple[str, ...]]:
    """As ``load_grid``, with the NIfTI code of the affine and what the header left open."""
    path = Path(path)
    return space_of(open_nifti(path, max_voxels))


def save_volume(path: Path, data: npt.NDArray[Any], grid: Grid, space_code: int = 1, units: str = "mm") -> None:
    """Write (X, Y, Z) data with sform and qform both set to the grid, in mm (or a unit that nobody knows)."""
    write(path, [data], data.shape, data.dtype, grid, space_code, units=units)


def save_transform(path: Path, displacement_mm: npt.NDArray[np.float32], grid: Grid, space_code: int = 1) -> None:
    """Write a displacement field in the form ITK, ANTs and nitransforms read alike.

    Args:
        path: ``*_Warp.nii.gz``.
        displacement_mm: (3, X, Y, Z) float32, RAS mm, from a fixed point to its moving point. On disk it becomes
            (X, Y, Z, 1, 3) LPS mm with intent 1007.
        grid: the fixed image's grid.
    """
    write(path, _turned(displacement_mm), (*grid.shape, 1, 3), np.dtype(np.float32), grid, space_code, INTENT_VECTOR)


def save_vectors(
    path: Path, vectors: npt.NDArray[np.float32], grid: Grid, space_code: int = 1, intent: int = 0
) -> None:
    """Write (3, X, Y, Z) components as they are, as (X, Y, Z, 3): FSL, and those who read by array alone."""
    write(path, vectors, (*grid.shape, 3), vectors.dtype, grid, space_code, intent)


def load_vectors(
    path: Path, max_voxels: int = MAX_VOXELS, of_array: Grid | None = None
) -> tuple[npt.NDArray[np.float32], Grid, int, tuple[str, ...]]:
    """Read what ``save_vectors`` wrote: (3, X, Y, Z), its grid, its intent and what the header left open.

    Args:
        of_array: the grid to which a file belongs by its array alone, where its header says nothing of a geometry (as
            arrays are saved: no affine, or the identity) and its shape is the same.

    Raises:
        InputError: not a 4-D (X, Y, Z, 3) NIfTI, or its grid has more than ``max_voxels``.
    """
    nifti = open_nifti(path, max_voxels, components=3)
    if nifti.shape[3:] != (3,):
        raise InputError(f"{path} has shape {nifti.shape}: a field of shape (X, Y, Z, 3) is needed")
    check_real(nifti)
    if of_array is not None and nifti.shape[:3] == of_array.shape and says_nothing(nifti):
        said = f"{path.name}: its header says nothing of a geometry; read by its array, as Learn2Reg does"
        grid, warnings = of_array, (*nifti.repairs, said)
    else:
        grid, _, warnings = space_of(nifti)
    vectors = np.moveaxis(nifti.read(np.dtype(np.float32)), -1, 0)
    return vectors, grid, int(nifti.header["intent_code"]), warnings


@np.errstate(all="ignore")  # what is not finite is refused by who asked for a map
def load_transform(
    path: Path | str, max_voxels: int = MAX_VOXELS
) -> tuple[npt.NDArray[np.float32], Grid, tuple[str, ...]]:
    """Read what ``save_transform`` wrote: (3, X, Y, Z) RAS mm, its grid and what the header left open.

    Raises:
        InputError: not a 5-D (X, Y, Z, 1, 3) NIfTI with intent 1007, or its grid has more than ``max_voxels``.
    """
    path = Path(path)
    nifti = open_transform(path, max_voxels)
    grid, _, warnings = space_of(nifti)
    lps = np.moveaxis(nifti.read(np.dtype(np.float32))[:, :, :, 0, :], -1, 0)
    for sign, component in zip(np.diag(LPS_FROM_RAS), lps, strict=False):
        if sign < 0:
            _negated(component, component)
    return lps, grid, warnings


def open_transform(path: Path, max_voxels: int = MAX_VOXELS) -> NiftiFile:
    """Its header, before anything else of it is judged. Raises InputError as ``load_transform``."""
    nifti = open_nifti(path, max_voxels, components=3)
    intent = int(nifti.header["intent_code"])
    if nifti.shape[3:] != (1, 3) or intent != INTENT_VECTOR:
        fsl = intent in FSL_INTENTS
        hint = "`format=fsl` of ofg apply reads it" if fsl else "for another format give `format` of ofg apply"
        raise InputError(
            f"{path} is not a displacement field of ITK: expected shape (X, Y, Z, 1, 3) with intent 1007, not "
            f"{nifti.shape} with {intent}; {hint}"
        )
    check_real(nifti)
    return nifti


def _turned(vectors: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """RAS components as LPS, one (X, Y, Z) at a time."""
    for sign, component in zip(np.diag(LPS_FROM_RAS), vectors, strict=False):
        yield component if sign > 0 else _negated(component)


def _negated(component: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Never -0, which would be other bytes for the same."""
    return np.subtract(np.float32(0), component, out=out)


def check_volume(nifti: NiftiFile) -> None:
    """Raises InputError unless the file promises one volume of real numbers; trailing axes of 1 are fine."""
    path, shape = nifti.path, nifti.shape
    if set(shape[3:]) - {1}:
        raise InputError(f"{path} has shape {shape}: one 3-D volume is needed, extract it first")
    if min(shape[:3]) < 2:
        raise InputError(f"{path} has shape {shape}: a 3-D volume is needed, every axis at least 2 voxels")
    check_real(nifti)
