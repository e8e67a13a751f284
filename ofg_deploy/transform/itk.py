"""ITK's transform files (LPS mm) through SimpleITK: affines as .mat, .txt, .tfm, and composites as .h5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.field import Field
from ofg_deploy.geometry import LPS_FROM_RAS, Grid, Matrix
from ofg_deploy.transform.maps import Chain, FieldMap, LinearMap, WorldMap

if TYPE_CHECKING:
    import SimpleITK as sitk

AFFINE_ENDINGS = (".mat", ".txt", ".tfm")
COMPOSITE_ENDINGS = (".h5", ".hdf5")


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
    transform = _read(path)
    if not transform.IsLinear():
        raise InputError(f"{path} is not a linear 3-D transform: give a displacement field as _Warp.nii.gz")
    return _to_matrix(transform, path)


def load_composite(path: Path) -> WorldMap:
    """Read a transform of linear ones and displacement fields in any order. Raises as ``load_affine``."""
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
    return maps[0] if len(maps) == 1 else Chain(tuple(maps))


def _to_field(transform: sitk.DisplacementFieldTransform, path: Path) -> FieldMap:
    import SimpleITK as sitk

    image = transform.GetDisplacementField()
    lps_from_vox = np.eye(4)
    lps_from_vox[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps_from_vox[:3, 3] = image.GetOrigin()
    vectors = sitk.GetArrayFromImage(image)
    if vectors.size == 0 or not np.isfinite(vectors).all():
        raise InputError(f"{path} holds a displacement field that is empty, or not finite")
    field = np.einsum("ij,zyxj->ixyz", LPS_FROM_RAS[:3, :3], vectors).astype(np.float32)
    return FieldMap(field, Grid((field.shape[1], field.shape[2], field.shape[3]), LPS_FROM_RAS @ lps_from_vox))


def _to_affine(moving_from_fixed: Matrix) -> sitk.AffineTransform:
    import SimpleITK as sitk

    lps = LPS_FROM_RAS @ moving_from_fixed @ LPS_FROM_RAS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def _to_matrix(transform: sitk.Transform, path: Path) -> Matrix:
    # Through points, because a linear transform has many classes and only some of them show a matrix.
    corners = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    images = np.array([transform.TransformPoint(corner) for corner in corners])
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = (images[1:] - images[0]).T, images[0]
    if not np.isfinite(lps).all() or abs(np.linalg.det(lps)) < 1e-9:
        raise GeometryError(f"{path} holds a transform that is singular or not finite")
    return np.asarray(LPS_FROM_RAS @ lps @ LPS_FROM_RAS)


def _read(path: Path) -> sitk.Transform:
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as an ITK transform") from error
    if transform.GetDimension() != 3:
        raise InputError(f"{path} is not a linear 3-D transform, nor a composite of such: it is for other dimensions")
    return transform


def _write(transform: sitk.Transform, path: Path) -> None:
    import SimpleITK as sitk

    try:
        sitk.WriteTransform(transform, str(path))
    except RuntimeError as error:  # what SimpleITK makes of a full disk
        raise OSError(f"{path.name} could not be written") from error
