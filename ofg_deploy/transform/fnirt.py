"""FSL's warps: relative and absolute ones, and FNIRT's spline coefficients.

Sources: the documentation of fslpy's ``transform.fnirt`` (what the header of coefficients holds) and FSL's technical
report TR07JA2 (the splines).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.field import Field
from ofg_deploy.geometry import Grid, Matrix, lattice, same_grid, thinned, transform_points
from ofg_deploy.nifti import INTENT_FSL_WARP, load_vectors
from ofg_deploy.nifti_file import NiftiFile, open_nifti
from ofg_deploy.nifti_space import FARTHEST_MM
from ofg_deploy.transform.maps import FieldMap, field_map
from ofg_deploy.transform.positions import from_positions
from ofg_deploy.transform.relative import from_relative, fsl_from_world

CUBIC = 2007
NOT_EXPANDED = {2008: "cosine", 2009: "quadratic spline", 2016: "TOPUP", 2017: "TOPUP", 2018: "TOPUP"}


def load_fsl_warp(path: Path, fixed: Grid, moving: Grid, max_voxels: int) -> FieldMap:
    """Read any warp of FSL as a displacement on the fixed grid.

    Raises:
        InputError: of another form, damaged, or coefficients that are not expanded here. GeometryError: another grid.
    """
    nifti = open_nifti(path, max_voxels, components=3)
    intent = int(nifti.header["intent_code"])
    if intent == CUBIC:
        relative, warnings = _expanded(nifti, fixed), nifti.repairs
    elif intent in NOT_EXPANDED:
        raise InputError(f"{path} holds {NOT_EXPANDED[intent]} coefficients of FSL (intent {intent}): {_command()}")
    else:
        relative, grid, intent, warnings = load_vectors(path, max_voxels)
        if intent != INTENT_FSL_WARP:
            raise InputError(f"{path} has NIfTI intent {intent}, so it is no field in the form of fsl")
        if not same_grid(grid, fixed, 0.01):
            raise GeometryError(f"{path} lies on another grid than the fixed image: it belongs to another pair")
        if holds_coordinates(relative, fixed):
            relative = from_positions(relative, fsl_from_world(fixed) @ fixed.world_from_vox)
            warnings = (*warnings, f"{path.name} holds absolute coordinates, not displacements: read as such")
    return field_map(from_relative(relative, fixed, moving, fsl_from_world), fixed, path, warnings)


@np.errstate(all="ignore")  # what is not finite is refused by who called
def holds_coordinates(field: Field, fixed: Grid) -> bool:
    """Whether (3, X, Y, Z) are FSL's coordinates in the moving image, not displacements: the header says neither.

    Of both readings the one is taken whose linear part is nearer to a rotation. applywarp asks which of them is spread
    less: the same between images that are stored alike, but wrong where axes are swapped, which turns by 90 degrees.
    """
    picked, index = thinned(fixed.shape)
    points = transform_points(fsl_from_world(fixed) @ fixed.world_from_vox, index).reshape(3, -1)
    values = field[(slice(None), *picked)].reshape(3, -1).astype(np.float64)
    if not (np.abs(values) <= FARTHEST_MM).all():
        return False
    fit, *_ = np.linalg.lstsq(np.vstack([points, np.ones(points.shape[1])]).T, values.T, rcond=None)
    absolute, relative = (
        np.square(np.log(np.maximum(np.linalg.svd(linear, compute_uv=False), 1e-6))).sum()
        for linear in (fit[:3].T, fit[:3].T + np.eye(3))
    )
    return bool(absolute < relative)


def _command() -> str:
    return "fnirtfileutils --in=COEFFICIENTS --ref=REFERENCE --out=FIELD.nii.gz --withaff makes the field read here"


def _expanded(nifti: NiftiFile, fixed: Grid) -> Field:
    """Coefficients as a relative warp (3, X, Y, Z) in FSL's mm on the reference's grid, its affine part included.

    In their header pixdim is the distance of the knots in voxels of the reference, qoffset its shape, the intent
    parameters its voxel size, and the sform FLIRT's matrix from the source to the reference.
    """
    path, header = nifti.path, nifti.header
    if nifti.shape[3:] != (3,):
        raise InputError(f"{path} has shape {nifti.shape}: FNIRT coefficients (X, Y, Z, 3) are needed")
    knots = np.round(nifti.pixdim[1:4])
    shape = np.array([float(header[f"qoffset_{axis}"]) for axis in "xyz"])
    sizes = np.array([float(header[f"intent_p{n}"]) for n in (1, 2, 3)])
    with np.errstate(all="ignore"):
        expected = np.ceil((shape + 1) / knots) + 2
        sound = (knots >= 2) & (nifti.pixdim[1:4] == knots) & (shape >= 2) & (expected == nifti.shape[:3])
    if not sound.all():
        raise InputError(f"{path} has FNIRT coefficients whose header does not fit their number: {_command()}")
    if tuple(shape) != fixed.shape or not np.allclose(sizes, fixed.spacing_mm, rtol=1e-3):
        own = "x".join(f"{n:g}" for n in shape), "x".join(f"{s:g}" for s in sizes)
        raise GeometryError(
            f"{path} has FNIRT coefficients for a reference of {own[0]} voxels of {own[1]} mm, not for this one of "
            f"{fixed.shape}: convertwarp --ref=REFERENCE --warp1=COEFFICIENTS --relout --out=FIELD.nii.gz makes a field"
        )
    if np.linalg.det(fixed.world_from_vox[:3, :3]) > 0:
        raise GeometryError(f"{path}: the reference is stored right to left, as FSL turns it first: {_command()}")
    source_from_reference = _affine_part(nifti)
    vectors = np.moveaxis(nifti.read(np.dtype(np.float64)), -1, 0)
    for axis, (voxels, knot) in enumerate(zip(fixed.shape, knots, strict=True), start=1):
        basis = _cubic(np.arange(voxels)[:, None] / knot + 1 - np.arange(vectors.shape[axis]))
        vectors = np.moveaxis(np.tensordot(basis, vectors, axes=(1, axis)), 0, axis)
    still = (source_from_reference - np.eye(4)) @ fsl_from_world(fixed) @ fixed.world_from_vox
    return np.asarray(vectors + transform_points(still, lattice(fixed.shape)), dtype=np.float32)


def _affine_part(nifti: NiftiFile) -> Matrix:
    matrix = nifti.header.get_sform()
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise InputError(f"{nifti.path} has FNIRT coefficients with a damaged affine part (its sform)")
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _cubic(at: Matrix) -> Matrix:
    """The cubic B-spline."""
    t = np.abs(at)
    return np.asarray(np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0)))
