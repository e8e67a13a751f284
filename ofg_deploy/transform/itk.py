"""ITK's transform files (LPS mm) through SimpleITK: affines as .mat, .txt, .tfm, and composites as .h5."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.field import Field
from ofg_deploy.geometry import LPS_FROM_RAS, Grid, Matrix
from ofg_deploy.nifti import FARTHEST_MM, grid_of
from ofg_deploy.outputs import plainly_named
from ofg_deploy.transform.aside import read_aside, read_linear_aside
from ofg_deploy.transform.maps import Chain, FieldMap, LinearMap, WorldMap, field_map

if TYPE_CHECKING:
    import SimpleITK as sitk

AFFINE_ENDINGS = (".mat", ".txt", ".tfm")
COMPOSITE_ENDINGS = (".h5", ".hdf5")
MAX_LINEAR_BYTES = 2**20  # chains of many included
_NUMBERS = rb"(?: +[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)* *"
ONE_TRANSFORM = re.compile(
    rb"#Insight Transform File V1\.0\s+(?:#[^\n]*\n)?Transform: \w+\s+"
    rb"Parameters:" + _NUMBERS + rb"\r?\n(?:FixedParameters:" + _NUMBERS + rb"\s*)?"
)
MATLAB_BYTES = {0: 8, 10: 4, 100: 8, 110: 4}  # of a number, by type of its matrix (little-endian ones)


def save_affine(path: Path, moving_from_fixed: Matrix) -> None:
    """Write ``*_0GenericAffine.mat``, which ANTs, SimpleITK and 3D Slicer apply like a warp. Raises OSError."""
    _write(_to_affine(moving_from_fixed), path)


def save_composite(path: Path, field: Field, grid: Grid, moving_from_fixed: Matrix | None) -> None:
    """Write a CompositeTransform: the displacement (3, X, Y, Z) in RAS mm first, then the affine. Raises OSError."""
    import SimpleITK as sitk

    lps_from_vox = LPS_FROM_RAS @ grid.world_from_vox
    vectors = np.einsum("ij,jxyz->zyxi", LPS_FROM_RAS[:3, :3], field.astype(np.float64))
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((lps_from_vox[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    image.SetOrigin(lps_from_vox[:3, 3].tolist())
    composite = sitk.CompositeTransform(3)  # ITK applies the last one added first
    if moving_from_fixed is not None:
        composite.AddTransform(_to_affine(moving_from_fixed))
    composite.AddTransform(sitk.DisplacementFieldTransform(image))
    _write(composite, path)


def load_affine(path: Path) -> Matrix:
    """Read a linear transform of any kind, rigid to affine or a chain.

    Returns:
        (4, 4) float64 moving_from_fixed, fixed RAS mm -> moving RAS mm.

    Raises:
        InputError: missing, not an ITK transform, not three-dimensional, or not linear.
        GeometryError: a matrix that is singular or not finite.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    return read_linear(path) if _is_one_sound_transform(path) else read_linear_aside(path).moving_from_fixed


def read_linear(path: Path) -> Matrix:
    """``load_affine`` in this process, which some files of others would crash."""
    transform = _read(path)
    if not transform.IsLinear():
        raise InputError(f"{path} is not a linear 3-D transform: give a displacement field as _Warp.nii.gz")
    return _to_matrix(transform, path)


def load_composite(path: Path) -> WorldMap:
    """Read a transform of linear ones and displacement fields in any order. Raises as ``load_affine``."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    maps = read_aside(path)
    return maps[0] if len(maps) == 1 else Chain(tuple(maps))


def read_composite(path: Path) -> list[WorldMap]:
    """What it consists of, the first one applied first. Call ``load_composite``: a damaged file may crash this."""
    import SimpleITK as sitk

    maps: list[WorldMap] = []
    waiting = [_read(path)]
    while waiting:
        each = waiting.pop()
        if each.GetTransformEnum() == sitk.sitkComposite:
            inner = sitk.CompositeTransform(each)
            waiting += [inner.GetNthTransform(n) for n in range(inner.GetNumberOfTransforms())]
        elif each.GetTransformEnum() == sitk.sitkDisplacementField:
            maps.append(_to_field(sitk.DisplacementFieldTransform(each), path))
        elif each.IsLinear():
            maps.append(LinearMap(_to_matrix(each, path)))
        else:
            raise InputError(f"{path} holds a {each.GetName()}: linear maps and displacement fields are read")
    return maps


@np.errstate(all="ignore")  # what overflows is refused
def _to_field(transform: sitk.DisplacementFieldTransform, path: Path) -> FieldMap:
    import SimpleITK as sitk

    image = transform.GetDisplacementField()
    lps_from_vox = np.eye(4)
    lps_from_vox[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps_from_vox[:3, 3] = image.GetOrigin()
    vectors = sitk.GetArrayFromImage(image)
    field = np.einsum("ij,zyxj->ixyz", LPS_FROM_RAS[:3, :3], vectors).astype(np.float32)
    grid = grid_of(path, field.shape[1:], LPS_FROM_RAS @ lps_from_vox)
    return field_map(field, grid, path)


def _to_affine(moving_from_fixed: Matrix) -> sitk.AffineTransform:
    import SimpleITK as sitk

    lps = LPS_FROM_RAS @ moving_from_fixed @ LPS_FROM_RAS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


@np.errstate(all="ignore")
def _to_matrix(transform: sitk.Transform, path: Path) -> Matrix:
    # Through points, because a linear transform has many classes and only some of them show a matrix.
    corners = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    images = np.array([transform.TransformPoint(corner) for corner in corners])
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = (images[1:] - images[0]).T, images[0]
    if not (np.abs(lps) <= FARTHEST_MM).all() or abs(np.linalg.det(lps)) < 1e-9:  # False for NaN
        raise GeometryError(f"{path} holds a transform that is singular, not finite or leads out of any scan")
    return np.asarray(LPS_FROM_RAS @ lps @ LPS_FROM_RAS)


def _read(path: Path) -> sitk.Transform:
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    name = path.name.lower()
    if name.endswith(AFFINE_ENDINGS) and path.stat().st_size > MAX_LINEAR_BYTES:
        raise InputError(f"{path} is larger than {MAX_LINEAR_BYTES} bytes: no linear transform")
    if name.endswith(".mat"):
        _check_matlab(path)
    try:
        with plainly_named(path) as named:
            transform = sitk.ReadTransform(named)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter where its complaint quotes bytes that are no text
        raise InputError(f"{path} cannot be read as an ITK transform") from error
    if transform.GetDimension() != 3:
        raise InputError(f"{path} is not a linear 3-D transform, nor a composite of such: it is for other dimensions")
    return transform


def _is_one_sound_transform(path: Path) -> bool:
    """Whether the file needs no process of its own: what ended ITK's readers were parts of composites and no numbers.

    Raises:
        InputError: larger than any linear transform.
    """
    if path.stat().st_size > MAX_LINEAR_BYTES:
        raise InputError(f"{path} is larger than {MAX_LINEAR_BYTES} bytes: no linear transform")
    content = path.read_bytes()
    if b"Composite" in content:
        return False
    return path.name.lower().endswith(".mat") or bool(ONE_TRANSFORM.fullmatch(content))


def _check_matlab(path: Path) -> None:
    """ITK's reader allocates what the header of a Matlab 4 matrix promises, unseen: let it be what is there.

    Raises:
        InputError: matrices of other types, or not exactly as many bytes as they need.
    """
    content, at = path.read_bytes(), 0
    while at < len(content):
        kind, rows, columns, imaginary, letters = struct.unpack("<5i", content[at : at + 20].ljust(20, b"\0"))
        sound = kind in MATLAB_BYTES and 0 < rows <= 64 and 0 < columns <= 64 and not imaginary and 0 < letters <= 256
        at += 20 + letters + MATLAB_BYTES.get(kind, 0) * rows * columns
        if not sound or at > len(content):
            raise InputError(f"{path} cannot be read as an ITK transform: no linear one in the form of Matlab 4")


def _write(transform: sitk.Transform, path: Path) -> None:
    import SimpleITK as sitk

    try:
        with plainly_named(path) as named:
            sitk.WriteTransform(transform, named)
    except RuntimeError as error:  # what SimpleITK makes of a full disk
        raise OSError(f"{path.name} could not be written") from error
