"""The forms in which tools keep a transform: each is written and read here and nowhere else.

============  ==========================================  ===================================================
dialect       file                                        what it holds
============  ==========================================  ===================================================
itk           _Warp.nii.gz, (X, Y, Z, 1, 3), intent 1007  total displacement, LPS mm; affines as .mat, .txt, .tfm
ants          _1Warp.nii.gz, as itk                       displacement without the affine, which is applied after it
itk-h5        _Composite.h5                               displacement, then affine, as one CompositeTransform
fsl           _fslwarp.nii.gz, (X, Y, Z, 3), intent 2006  total, relative, mm between FSL's scaled voxels (FNIRT)
l2r           disp_FIXED_MOVING.nii.gz, (X, Y, Z, 3)      total, voxels along the array axes
voxelmorph    _voxelmorph.npz, vol (X, Y, Z, 3)           total, voxels along the array axes
greedy        4x4 as text, read only                      affine, RAS mm (Greedy, c3d_affine_tool, NiftyReg)
============  ==========================================  ===================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofg_deploy.errors import GeometryError, InputError, ParityError, UsageError
from ofg_deploy.field import Field, turned
from ofg_deploy.geometry import Grid, Matrix, same_grid, thinned, transform_points
from ofg_deploy.nifti import INTENT_FSL_WARP, save_transform, save_vectors
from ofg_deploy.nifti_file import MAX_VOXELS, open_nifti
from ofg_deploy.options.words import Dialect, Form
from ofg_deploy.transform import itk, itk_list
from ofg_deploy.transform.elastix import is_elastix, load_elastix
from ofg_deploy.transform.fnirt import load_fsl_warp
from ofg_deploy.transform.foreign import refuse_foreign
from ofg_deploy.transform.freesurfer import is_lta, load_lta
from ofg_deploy.transform.maps import Chain, LinearMap, WorldMap
from ofg_deploy.transform.matrices import ambiguous, checked_matrix, from_flirt, parse_matrix
from ofg_deploy.transform.positions import load_displacements
from ofg_deploy.transform.relative import fsl_from_world, to_relative, voxel_from_world
from ofg_deploy.transform.voxels import load_voxels

TEXT_BYTES = 2**20 + 1  # of a file, enough to tell what it is
OF_BOTH_IMAGES: tuple[Form, ...] = ("fsl", "l2r", "voxelmorph")  # read only with fixed and moving grid
ON_ONE_GRID: tuple[Dialect, ...] = ("l2r", "voxelmorph")
NIFTI = (".nii", ".nii.gz")
LINEAR_ENDINGS = (*itk.AFFINE_ENDINGS, *itk.COMPOSITE_ENDINGS, ".lta")  # of what may be a start
ROUNDTRIP_VOX = 3e-4  # of the largest voxel size; ten times what float32 rounds off at the edge of a large image
ROUNDED = 2.0**-21  # of the longest displacement; four times what float32 rounds off


@dataclass(frozen=True, eq=False)
class Registration:
    """What a registration found: everything any dialect needs.

    Attributes:
        displacement_mm: (3, *fixed.shape) RAS mm, the total map.
        moving_from_fixed: (4, 4) the affine part A in it, applied last; None without one.
        fixed, moving: the images' grids.
        space_code: NIfTI code of the fixed image's affine.
    """

    displacement_mm: Field
    moving_from_fixed: Matrix | None
    fixed: Grid
    moving: Grid
    space_code: int = 1

    def without_affine(self) -> Field:
        """(3, X, Y, Z) RAS mm: d of the total map A(x + d(x))."""
        if self.moving_from_fixed is None:
            return self.displacement_mm
        fixed_from_moving = np.asarray(np.linalg.inv(self.moving_from_fixed), dtype=np.float64)
        still = (fixed_from_moving - np.eye(4)) @ self.fixed.world_from_vox
        return turned(self.displacement_mm, still, fixed_from_moving)


def check_images(
    dialect: Dialect, fixed: Path, fixed_grid: Grid, moving: Path, moving_grid: Grid, max_voxels: int = MAX_VOXELS
) -> None:
    """Raises GeometryError where a dialect cannot say what lies between these images."""
    if dialect in ON_ONE_GRID and not same_grid(fixed_grid, moving_grid, 0.01):
        apart = np.abs(fixed_grid.corners_mm() - moving_grid.corners_mm()).max()
        raise GeometryError(
            f"`format` {dialect} needs fixed and moving image on one grid; {fixed_grid.shape} and {moving_grid.shape} "
            f"are up to {apart:.3g} mm apart: resample the moving image first, or use `format=itk`"
        )
    if dialect == "fsl":
        for path, grid in ((fixed, fixed_grid), (moving, moving_grid)):
            sizes = open_nifti(path, max_voxels).pixdim[1:4]
            if not np.allclose(np.abs(sizes), grid.spacing_mm, rtol=1e-3):
                said = "x".join(f"{size:g}" for size in sizes)
                raise GeometryError(
                    f"`format=fsl`: {path} has pixdim {said} but its sform has voxels of "
                    f"{'x'.join(f'{size:g}' for size in grid.spacing_mm)} mm, and FSL goes by pixdim: mend the header"
                )


def write(path: Path, dialect: Dialect, found: Registration) -> None:
    """Write one file of a dialect; for ``ants`` the affine stands in its own file beside it. Raises OSError."""
    if dialect == "itk-h5":
        itk.save_composite(path, found.without_affine(), found.fixed, found.moving_from_fixed)
    elif dialect in ("itk", "ants"):
        field = found.displacement_mm if dialect == "itk" else found.without_affine()
        save_transform(path, field, found.fixed, found.space_code)
    elif dialect == "fsl":
        relative = to_relative(found.displacement_mm, found.fixed, found.moving, fsl_from_world)
        save_vectors(path, relative, found.fixed, found.space_code, INTENT_FSL_WARP)
    else:
        relative = to_relative(found.displacement_mm, found.fixed, found.moving, voxel_from_world)
        if dialect == "l2r":
            save_vectors(path, relative, found.fixed, found.space_code)
        else:
            with path.open("wb") as stream:
                np.savez_compressed(stream, vol=np.moveaxis(relative, 0, -1))


def load_map(
    path: Path,
    form: Form = "itk",
    fixed: Grid | None = None,
    moving: Grid | None = None,
    max_voxels: int = MAX_VOXELS,
) -> WorldMap:
    """Read one file of any form; those that say what they are (ITK, elastix, .lta) go with any ``form``.

    Args:
        fixed, moving: grids of the images, without which fsl, l2r and voxelmorph fields mean nothing.
        max_voxels: a larger field is refused before it is read; what a composite may need has limits of its own.

    Raises:
        InputError: a file that is missing, damaged, of another form, too large, or holds numbers that are not finite.
        GeometryError: a field on another grid than ``fixed``.
        UsageError: a form that needs grids which were not given.
    """
    name = path.name.lower()
    if not name.endswith((*NIFTI, ".npz", ".npy", *itk.COMPOSITE_ENDINGS)):
        return _load_text(path, form, fixed, moving)
    if form in OF_BOTH_IMAGES:
        both = _both(path, form, fixed, moving)
        return load_fsl_warp(path, *both, max_voxels) if form == "fsl" else load_voxels(path, form, *both, max_voxels)
    if form == "itk-h5" or name.endswith(itk.COMPOSITE_ENDINGS):
        return itk.load_composite(path)
    if not name.endswith(NIFTI):
        raise _no_transform(path, form)
    return load_displacements(path, max_voxels)


def load_linear(path: Path) -> Matrix:
    """(4, 4) moving_from_fixed of a file of linear transforms, as an alignment to start from.

    Raises:
        InputError, GeometryError: as ``load_map``; InputError where anything in it is not linear.
    """
    maps = [load_map(path)]
    matrix = np.eye(4)
    while maps:
        each = maps.pop(0)
        if isinstance(each, Chain):
            maps = [*each.maps, *maps]
        elif isinstance(each, LinearMap):
            matrix = each.moving_from_fixed @ matrix
        else:
            raise InputError(f"{path} is not a linear 3-D transform: a field cannot be started from, only applied")
    return matrix


def _load_text(path: Path, form: Form, fixed: Grid | None, moving: Grid | None) -> WorldMap:
    """What is no array: told by its content, as names like .txt and .mat are everybody's."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    with path.open("rb") as stream:
        content = stream.read(TEXT_BYTES)
    if itk_list.is_text(content):
        return itk.load_list(path)
    if is_elastix(content):
        return load_elastix(path)
    if is_lta(path, content):
        return load_lta(path, content, fixed, moving)
    refuse_foreign(path, content)
    if (matrix := parse_matrix(content)) is not None:
        if form == "fsl":
            return LinearMap(from_flirt(checked_matrix(matrix, path), *_both(path, form, fixed, moving)))
        if form == "greedy":
            return LinearMap(checked_matrix(matrix, path))
        raise ambiguous(path)
    if path.name.lower().endswith(itk.AFFINE_ENDINGS):
        return itk.load_list(path)
    raise _no_transform(path, form)


def _both(path: Path, form: Form, fixed: Grid | None, moving: Grid | None) -> tuple[Grid, Grid]:
    if fixed is None or moving is None:
        raise UsageError(f"{path}: a transform in the form of {form} means nothing without both images")
    return fixed, moving


def _no_transform(path: Path, form: Form) -> InputError:
    endings = ", ".join((*NIFTI, *itk.AFFINE_ENDINGS, ".h5", ".lta"))
    return InputError(f"{path} is no transform in the form of {form}: {endings} are; `format` names another form")


def roundtrip_mm(paths: Sequence[Path], dialect: Dialect, found: Registration) -> float:
    """Read what was just written and apply it, one file after another, to some 4,000 fixed voxels.

    Returns:
        The largest error in mm.

    Raises:
        ParityError: beyond ``ROUNDTRIP_VOX``, or the map is not known everywhere on its own grid.
    """
    if dialect == "itk-h5":  # no hostile file: it needs no process of its own
        back = Chain(tuple(itk.read_composite(paths[0])))
    else:
        size = max(MAX_VOXELS, math.prod(found.fixed.shape))  # what was written may be read
        back = Chain(tuple(load_map(path, dialect, found.fixed, found.moving, size) for path in paths))
    picked, index = thinned(found.fixed.shape)
    displacement, inside = back.displacement_mm(transform_points(found.fixed.world_from_vox, index))
    gap = float(np.linalg.norm(displacement - found.displacement_mm[(slice(None), *picked)], axis=0).max())
    longest = max(float(found.displacement_mm.max()), -float(found.displacement_mm.min()))
    most = max(ROUNDTRIP_VOX * max(found.fixed.spacing_mm), ROUNDED * longest)
    if not inside.all() or not gap <= most:
        raise ParityError(
            f"{paths[0].name} was read back {gap:.3g} mm away from what was found (at most {most:g} mm): it is "
            "not published; please report this with the headers of both images"
        )
    return gap
