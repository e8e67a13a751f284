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
============  ==========================================  ===================================================
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ofg_deploy.errors import GeometryError, InputError, ParityError, UsageError
from ofg_deploy.field import Field, turned
from ofg_deploy.geometry import Grid, Matrix, same_grid, thinned, transform_points
from ofg_deploy.nifti import INTENT_FSL_WARP, load_transform, load_vectors, save_transform, save_vectors
from ofg_deploy.nifti_file import MAX_VOXELS, open_nifti
from ofg_deploy.transform import itk
from ofg_deploy.transform.maps import Chain, FieldMap, LinearMap, WorldMap, field_map
from ofg_deploy.transform.relative import from_relative, fsl_from_world, to_relative, voxel_from_world

Dialect = Literal["itk", "ants", "itk-h5", "fsl", "l2r", "voxelmorph"]
OF_BOTH_IMAGES: tuple[Dialect, ...] = ("fsl", "l2r", "voxelmorph")  # read only with fixed and moving grid
ON_ONE_GRID: tuple[Dialect, ...] = ("l2r", "voxelmorph")
NIFTI = (".nii", ".nii.gz")
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
            f"--format {dialect} needs fixed and moving image on one grid; {fixed_grid.shape} and {moving_grid.shape} "
            f"are up to {apart:.3g} mm apart: resample the moving image first, or use --format itk"
        )
    if dialect == "fsl":
        for path, grid in ((fixed, fixed_grid), (moving, moving_grid)):
            sizes = open_nifti(path, max_voxels).pixdim[1:4]
            if not np.allclose(np.abs(sizes), grid.spacing_mm, rtol=1e-3):
                said = "x".join(f"{size:g}" for size in sizes)
                raise GeometryError(
                    f"--format fsl: {path} has pixdim {said} but its sform has voxels of "
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
    dialect: Dialect = "itk",
    fixed: Grid | None = None,
    moving: Grid | None = None,
    max_voxels: int = MAX_VOXELS,
) -> WorldMap:
    """Read one file of a dialect, or an ITK affine, which goes with any.

    Args:
        fixed, moving: grids of the images, without which fsl, l2r and voxelmorph fields mean nothing.
        max_voxels: a larger field is refused before it is read; what a composite may need has limits of its own.

    Raises:
        InputError: a file that is missing, damaged, of another form, too large, or holds numbers that are not finite.
        GeometryError: a field on another grid than ``fixed``.
        UsageError: a dialect that needs grids which were not given.
    """
    name = path.name.lower()
    if name.endswith(itk.AFFINE_ENDINGS):
        return LinearMap(itk.load_affine(path))
    if dialect in OF_BOTH_IMAGES:
        if fixed is None or moving is None:
            raise UsageError(f"{path}: a transform in the form of {dialect} means nothing without both images")
        return _load_relative(path, dialect, fixed, moving, max_voxels)
    if dialect == "itk-h5" or name.endswith(itk.COMPOSITE_ENDINGS):
        return itk.load_composite(path)
    if not name.endswith(NIFTI):
        raise InputError(
            f"{path} is no transform in the form of {dialect}: {', '.join((*NIFTI, *itk.AFFINE_ENDINGS, '.h5'))} are; "
            "--format names another form"
        )
    field, domain, warnings = load_transform(path, max_voxels)
    return field_map(field, domain, path, warnings)


def _load_relative(path: Path, dialect: Dialect, fixed: Grid, moving: Grid, max_voxels: int) -> FieldMap:
    system = fsl_from_world if dialect == "fsl" else voxel_from_world
    warnings: tuple[str, ...] = ()
    if path.name.lower().endswith(".npz") and dialect == "voxelmorph":
        relative = _load_npz(path, max_voxels)
        if relative.shape[1:] != fixed.shape:
            raise GeometryError(f"{path} has {relative.shape[1:]} voxels, the fixed image {fixed.shape}")
    else:
        relative, grid, intent, warnings = load_vectors(path, max_voxels)
        if intent not in ((INTENT_FSL_WARP,) if dialect == "fsl" else (0,)):
            raise InputError(f"{path} has NIfTI intent {intent}, so it is no field in the form of {dialect}")
        if not same_grid(grid, fixed, 0.01):
            raise GeometryError(f"{path} lies on another grid than the fixed image: it belongs to another pair")
    return field_map(from_relative(relative, fixed, moving, system), fixed, path, warnings)


def _load_npz(path: Path, max_voxels: int) -> Field:
    """(3, X, Y, Z): the array ``vol``, or the only one. Nothing pickled, nothing larger than an image may be."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > 24 * max_voxels:
                raise InputError(f"{path} claims more than --max-voxels {max_voxels}: is it damaged?")
        with np.load(path, allow_pickle=False) as arrays:
            vol = arrays["vol"] if "vol" in arrays or len(arrays.files) != 1 else arrays[arrays.files[0]]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a VoxelMorph field (.npz with vol): {error}") from error
    if vol.ndim != 4 or vol.shape[3] != 3 or vol.dtype.kind not in "fiu":
        raise InputError(f"{path} holds {vol.dtype} {vol.shape}: a field (X, Y, Z, 3) is needed")
    return np.asarray(np.moveaxis(vol, -1, 0), dtype=np.float32)


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
