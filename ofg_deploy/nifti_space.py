"""What a NIfTI header means in the world: its grid, what it leaves open, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.geometry import LPS_FROM_RAS, Grid, Matrix, Shape, corner_voxels, shear_vox, squared, transform_points
from ofg_deploy.readers import conflict_said

FARTHEST_MM = 1e6  # that a map may lead: more is damage
FARTHEST_VOX = 5e5  # from the world's origin, in the largest voxel size: beyond it float32 is off by a share of a voxel
SHEAR_VOX = 0.05  # by which ITK would move a corner of a sheared grid; more is reported
CONFLICT_VOX = 0.1  # sform and qform further apart than this anywhere in the volume are reported


class Typed(Protocol):
    """Voxels of some type, in a file or in memory."""

    @property
    def path(self) -> Path:
        """Or a name."""

    @property
    def on_disk(self) -> np.dtype[Any]:
        """Type of the voxels."""


class Header(Protocol):
    """What ``space_of`` looks at: a ``NiftiFile``, or the header of an image in memory."""

    @property
    def path(self) -> Path:
        """Or a name."""

    @property
    def header(self) -> Any:
        """Nibabel's."""

    @property
    def pixdim(self) -> npt.NDArray[np.float64]:
        """(8,)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the voxels."""

    @property
    def repairs(self) -> tuple[str, ...]:
        """What was mended."""


def check_real(nifti: Typed) -> None:
    """Raises InputError for colours, complex and other numbers that no interpolation takes."""
    on_disk = nifti.on_disk
    if on_disk.fields is not None or on_disk.kind not in "iuf":
        raise InputError(
            f"{nifti.path} has voxels of type {on_disk}, expected a scalar image: save one component as an image of "
            "its own"
        )


@dataclass(frozen=True, eq=False)
class Orientations:
    """Both affines of a header, (4, 4) voxel index -> RAS+ mm each, None where not coded.

    Attributes:
        sform, qform: the affines.
        sform_code, qform_code: their NIfTI codes.
    """

    sform: Matrix | None
    qform: Matrix | None
    sform_code: int
    qform_code: int

    def gap_mm(self, shape: Shape) -> float:
        """Largest distance between what both say of a corner voxel's centre; 0 where one is not coded.

        But for a shear, which no qform can hold.
        """
        if self.sform is None or self.qform is None:
            return 0.0
        corners = corner_voxels(shape)
        with np.errstate(all="ignore"):  # a damaged qform may be further away than a number can say
            between = transform_points(squared(self.sform), corners) - transform_points(self.qform, corners)
            return float(np.linalg.norm(between, axis=0).max())


def orientations(nifti: Header) -> Orientations:
    """Sform and qform of a header. Raises GeometryError where one is coded and damaged."""
    try:
        with np.errstate(all="ignore"):  # NaN and infinity go on to those who look at the matrices
            sform, sform_code = nifti.header.get_sform(coded=True)
            qform, qform_code = nifti.header.get_qform(coded=True)
    except (HeaderDataError, ValueError) as error:
        line = " ".join(str(error).split())
        raise GeometryError(f"{nifti.path} has a damaged orientation: {line}") from error
    return Orientations(sform, qform, int(sform_code), int(qform_code))


def check_voxel_sizes(nifti: Header) -> None:
    """Raises GeometryError unless pixdim, which the qform's axes are as long as, can be voxel sizes."""
    sizes = nifti.pixdim[1:4]
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        said = "x".join(f"{v:g}" for v in sizes)
        raise GeometryError(f"{nifti.path} has voxel sizes {said} mm: positive ones are needed")


def grid_of(path: Path, shape: tuple[int, ...], affine: Matrix) -> Grid:
    """The grid of a file, if it is one. Raises GeometryError with the file's name."""
    x, y, z = shape[:3]
    with np.errstate(all="ignore"):  # what overflows is refused by what follows
        try:
            grid = Grid((x, y, z), affine)
        except GeometryError as error:
            raise GeometryError(f"{path}: {error}") from error
        farthest = float(np.abs(grid.corners_mm()).max())
    if not farthest <= FARTHEST_VOX * max(grid.spacing_mm):
        far = f"{farthest:g} mm from the world's origin, more than {FARTHEST_VOX:g} voxels"
        raise GeometryError(f"{path} lies up to {far}: the header is damaged")
    return grid


def conflict_mm(world_from_vox: Matrix) -> float:
    """How far apart sform and qform may be: a share of the smallest voxel, in whatever unit that is small."""
    return CONFLICT_VOX * float(np.linalg.norm(world_from_vox[:3, :3], axis=0).min())


def shear_said(grid: Grid) -> str:
    """What to know of axes within tolerance of right angles, in words; empty where nobody would notice."""
    if (moved := shear_vox(grid)) <= SHEAR_VOX:
        return ""
    return f"its axes are off right angles: tools built on ITK place it up to {moved:.2f} voxel elsewhere, or refuse it"


def space_of(nifti: Header) -> tuple[Grid, int, tuple[str, ...]]:
    """Of an open file: its grid, the NIfTI code of the affine and what the header left open. Raises GeometryError."""
    path = nifti.path
    units = int(nifti.header["xyzt_units"]) % 8
    if units not in (0, 2):  # unset means mm to every tool
        named = {1: "metres", 3: "microns"}.get(units, f"an unknown unit (code {units})")
        raise GeometryError(
            f"{path} gives its geometry in {named}: rewrite the header in mm: ofg check {quote(str(path))}"
        )
    found = orientations(nifti)
    affine, code = (found.qform, found.qform_code) if found.sform is None else (found.sform, found.sform_code)
    if affine is None:
        raise GeometryError(
            f"{path} has neither sform nor qform, so left and right are unknown and tools disagree: "
            "set one (fslorient, nibabel, 3D Slicer)"
        )
    if found.sform is None:
        check_voxel_sizes(nifti)
    grid = grid_of(path, nifti.shape, affine)
    warnings = nifti.repairs
    if not (gap := found.gap_mm(grid.shape)) <= conflict_mm(grid.world_from_vox):  # a NaN in the qform disagrees too
        said = conflict_said(found.sform_code, found.qform_code, gap)
        warnings = (
            *warnings,
            f"{path.name}: {said}. A copy on which all agree: ofg check {quote(str(path))} --fix DIR",
        )
    if said := shear_said(grid):
        warnings = (*warnings, f"{path.name}: {said}")
    return grid, code, warnings


def says_nothing(nifti: Header) -> bool:
    """Whether a header has the geometry of an array that was saved without one: none, or ones in RAS or LPS."""
    found = orientations(nifti)
    coded = [matrix for matrix in (found.sform, found.qform) if matrix is not None]
    unset = (np.eye(4), LPS_FROM_RAS)
    return all(any(np.allclose(matrix, other, atol=1e-6) for other in unset) for matrix in coded)
