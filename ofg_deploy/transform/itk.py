"""ITK's transform files (LPS mm): lists as .mat, .txt, .tfm, and composites as .h5 through SimpleITK."""

from __future__ import annotations

import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.field import Field
from ofg_deploy.geometry import LPS_FROM_RAS, Grid, Matrix
from ofg_deploy.nifti_space import FARTHEST_MM, grid_of
from ofg_deploy.outputs import plainly_named
from ofg_deploy.transform.aside import read_aside
from ofg_deploy.transform.itk_list import ON_LATTICES, Listed, read_list, without_identities
from ofg_deploy.transform.maps import Chain, FieldMap, LinearMap, WorldMap, field_map, marked
from ofg_deploy.transform.spline import SplineMap

if TYPE_CHECKING:
    import SimpleITK as sitk

_HDF5 = threading.Lock()  # the library is for one thread, and SimpleITK lets others run meanwhile
AFFINE_ENDINGS = (".mat", ".txt", ".tfm")
COMPOSITE_ENDINGS = (".h5", ".hdf5")
MATRICES = ("AffineTransform", "MatrixOffsetTransformBase", "Rigid3DTransform", "CenteredAffineTransform")


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


def load_list(path: Path) -> WorldMap:
    """Read ``.txt``, ``.tfm`` or ``.mat``: one transform, or several, of which the last one is applied first.

    As ANTs composes them, with or without a CompositeTransform at their start.

    Raises:
        InputError: as ``itk_list.read_list``. GeometryError: a matrix that is singular or not finite.
    """
    listed = read_list(path)
    if any(e.kind == "BSplineDeformableTransform" for e in listed) and len(without_identities(listed)) > 1:
        raise InputError(
            f"{path} lists a BSplineDeformableTransform with other transforms, which its ITK added up and today's ITK "
            "composes: harden it in 3D Slicer and save the displacement field"
        )
    maps = tuple(to_map(each, path) for each in reversed(listed))
    return maps[0] if len(maps) == 1 else Chain(maps)


def load_composite(path: Path) -> WorldMap:
    """Read an ``.h5`` of linear maps, B-splines and displacement fields in any order. Raises as ``load_list``."""
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
        if each.IsLinear():  # a composite of such, too; SimpleITK takes ANTs' MatrixOffsetTransformBase for one
            maps.append(LinearMap(_to_matrix(each, path)))
        elif each.GetTransformEnum() == sitk.sitkComposite:
            inner = sitk.CompositeTransform(each)
            waiting += [inner.GetNthTransform(n) for n in range(inner.GetNumberOfTransforms())]
        elif each.GetTransformEnum() == sitk.sitkDisplacementField:
            maps.append(_to_field(sitk.DisplacementFieldTransform(each), path))
        elif each.GetTransformEnum() == sitk.sitkBSplineTransform:
            numbers = np.array(each.GetParameters()), np.array(each.GetFixedParameters())
            maps.append(_to_spline(*numbers, sitk.BSplineTransform(each).GetOrder(), path))
        else:
            raise InputError(
                f"{path} holds a {each.GetName()}: linear maps, B-splines and displacement fields are read"
            )
    return maps


@np.errstate(all="ignore")  # what overflows is refused
def _to_field(transform: sitk.DisplacementFieldTransform, path: Path) -> FieldMap:
    import SimpleITK as sitk

    image = transform.GetDisplacementField()
    lps_from_vox = np.eye(4)
    lps_from_vox[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps_from_vox[:3, 3] = image.GetOrigin()
    return _field_of(sitk.GetArrayFromImage(image), lps_from_vox, path)


def _field_of(vectors: npt.NDArray[Any], lps_from_vox: Matrix, path: Path) -> FieldMap:
    """From (Z, Y, X, 3) LPS mm, float64."""
    unknown = np.asarray(marked(vectors).any(axis=-1)).transpose(2, 1, 0)
    field = np.einsum("ij,zyxj->ixyz", LPS_FROM_RAS[:3, :3], vectors).astype(np.float32)
    grid = grid_of(path, field.shape[1:], LPS_FROM_RAS @ lps_from_vox)
    return field_map(field, grid, path, unknown=unknown)


def to_map(listed: Listed, path: Path) -> WorldMap:
    """What a transform of a list does, in RAS. Raises as ``load_list``."""
    if listed.kind in MATRICES:
        return LinearMap(_checked(_lps_matrix(listed), path))
    if listed.kind not in ON_LATTICES:
        return LinearMap(_to_matrix(_by_itk(listed, path), path))
    if listed.kind == "DisplacementFieldTransform":
        x, y, z = listed.fixed[:3].astype(int)
        return _field_of(listed.parameters.reshape(z, y, x, 3), _lps_from_index(listed.fixed), path)
    return _to_spline(listed.parameters, listed.fixed, listed.order, path)


def _lps_from_index(fixed: Matrix) -> Matrix:
    """(4, 4) of ITK's 18 numbers: size, origin, spacing, direction."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = fixed[9:].reshape(3, 3) * fixed[6:9], fixed[3:6]
    return matrix


@np.errstate(all="ignore")
def _to_spline(parameters: Matrix, fixed: Matrix, order: int, path: Path) -> SplineMap:
    x, y, z = fixed[:3].astype(int)
    if not 1 <= order <= 3 or min(x, y, z) <= order:
        raise InputError(
            f"{path} holds a B-spline of order {order} on {x}x{y}x{z} control points: orders 1 to 3 are read"
        )
    if not (np.abs(parameters) <= FARTHEST_MM).all():
        raise InputError(f"{path} holds a B-spline with coefficients longer than {FARTHEST_MM:g} mm")
    control = grid_of(path, (x, y, z), LPS_FROM_RAS @ _lps_from_index(fixed))
    lps = parameters.reshape(3, z, y, x).transpose(0, 3, 2, 1)
    return SplineMap(np.einsum("ij,jxyz->ixyz", LPS_FROM_RAS[:3, :3], lps), control, order)


def _lps_matrix(listed: Listed) -> Matrix:
    """(4, 4) of the classes whose parameters hold it: x -> M (x - c) + c + t."""
    matrix = np.eye(4)
    matrix[:3, :3] = listed.parameters[:9].reshape(3, 3)
    inner = listed.kind == "CenteredAffineTransform"  # whose centre is a parameter
    centre = listed.parameters[9:12] if inner else listed.fixed
    matrix[:3, 3] = listed.parameters[-3:] + centre - matrix[:3, :3] @ centre
    return matrix


def _by_itk(listed: Listed, path: Path) -> sitk.Transform:
    """ITK's transform of a class that is more than a matrix; its numbers have been checked, and are all it sees."""
    import SimpleITK as sitk

    with TemporaryDirectory() as folder:
        clean = Path(folder) / "one.txt"
        numbers = (" ".join(map(repr, part.tolist())) for part in (listed.parameters, listed.fixed))
        clean.write_text(
            "#Insight Transform File V1.0\n#Transform 0\nTransform: {}_double_3_3\nParameters: {}\n"
            "FixedParameters: {}\n".format(listed.kind, *numbers)
        )
        try:
            with _HDF5:
                return sitk.ReadTransform(str(clean))
        except RuntimeError as error:  # a versor that is longer than 1
            raise InputError(f"{path} cannot be read as an ITK transform: its {listed.kind} is not one") from error


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
    return _checked(lps, path)


def _checked(lps: Matrix, path: Path) -> Matrix:
    """In RAS. Raises GeometryError."""
    if not (np.abs(lps) <= FARTHEST_MM).all() or abs(np.linalg.det(lps)) < 1e-9:  # False for NaN
        raise GeometryError(f"{path} holds a transform that is singular, not finite or leads out of any scan")
    return np.asarray(LPS_FROM_RAS @ lps @ LPS_FROM_RAS)


def _read(path: Path) -> sitk.Transform:
    import SimpleITK as sitk

    try:
        with plainly_named(path) as named, _HDF5:
            transform = sitk.ReadTransform(named)
    # The second where its complaint quotes bytes that are not text, the others for classes that SimpleITK lacks.
    except (RuntimeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as an ITK transform") from error
    if transform.GetDimension() != 3:
        raise InputError(f"{path} is not a 3-D transform, nor a composite of such: it is for other dimensions")
    return transform


def _write(transform: sitk.Transform, path: Path) -> None:
    import SimpleITK as sitk

    try:
        with plainly_named(path) as named, _HDF5:
            sitk.WriteTransform(transform, named)
    except RuntimeError as error:  # what SimpleITK makes of a full disk
        raise OSError(f"{path.name} could not be written") from error
