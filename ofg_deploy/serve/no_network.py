"""Registration without a network: a grid planned from the two images, and a field of zeros for the steps to start from.

The steps on the pair themselves are ``refinement``; no runtime and no model file is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.field import Field
from ofg_deploy.geometry import Grid, Shape, Spacing, canonical
from ofg_deploy.memory import free_ram
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import Init, Intensity, NetworkInput
from ofg_deploy.serve.refinement import ACROSS_BELOW

NONE = "none"

FEWEST = 12  # voxels of the grid along an axis: the window of the local NCC fits, and one coarser level
ALIKE = 1.25  # a moving image that is coarser by less does not count as such: the fixed voxels stay as they are
COARSEST_TO_FIXED = 2.0  # a coarser moving image makes the grid coarser than the fixed one, by at most this
# Longest to shortest side of a voxel; beyond it all sides become alike: steps, windows and coarse levels count in
# voxels. On five pairs of hippocampi with slices of 4 mm the Dice was 0.685 on 1 x 1 x 3 mm, 0.690 with a ratio of 2,
# 0.691 on cubes of the same volume in a quarter of the time, 0.700 on cubes of 1 mm and 0.707 on cubes of 3 mm.
ANISOTROPY = 1.5
COARSER = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # of all axes alike, where memory is short

# Measured as the peak memory of whole registrations; tests/test_no_network.py holds them to it.
BYTES_PER_GRID_VOXEL = 118  # the pair, its fields, and the working memory of the steps
BYTES_OF_DESCRIPTORS = 32  # and these, on grids so short that they are compared at full resolution, too
BYTES_PER_IMAGE_VOXEL = 50  # of the fixed image: intensities, displacement, warped image, what is measured of them
BYTES_PER_MOVING_VOXEL = 10
SHARE = 0.8  # of the free memory


@dataclass(frozen=True)
class Planned:
    """A grid for one pair.

    Attributes:
        shape, spacing_mm: in the order of RAS, as ``NetworkInput`` has them.
        coarser: factor by which it is coarser than the images ask for; 1 where memory suffices.
        need_bytes: memory of a registration on it.
    """

    shape: Shape
    spacing_mm: Spacing
    coarser: float
    need_bytes: int


@dataclass(frozen=True)
class NoNetwork:
    """Stands where a model's contract stands: what a pair is prepared for where there is no model.

    Attributes:
        memory_bytes: what a registration may take. Grids that need more are made coarser. Not compared: machines that
            have enough of it give the same.
        network: always ``none``.
        init: the start where nobody names one.
    """

    memory_bytes: int = field(compare=False)
    network: str = NONE
    init: Init = "affine"

    @classmethod
    def here(cls, pairs_at_once: int = 1) -> NoNetwork:
        """With a share of the memory that is free now; the pairs of a batch share it equally."""
        return cls(int(SHARE * free_ram()) // pairs_at_once)

    def on_grid(self, grid: Shape | None) -> None:
        """None: the grid is planned from each pair. Raises UsageError for a grid."""
        if grid is not None:
            raise UsageError(f"`grid` {' '.join(map(str, grid))} is of a network; without one the grid is planned")

    def passes_asked(self, passes: int | None) -> None:
        """None: nothing is asked. Raises UsageError for a number of passes."""
        if passes is not None:
            raise UsageError(f"`passes` {passes} is of a network, and there is none: leave it out, or name a model")

    def plan(self, fixed: Volume, moving: Volume) -> tuple[NetworkInput, tuple[str, ...]]:
        """What the pair is prepared for, and warnings.

        Raises:
            InputError: the pair does not fit into the memory even on the coarsest grid.
        """
        planned = plan_grid(fixed.grid, moving.grid, self.memory_bytes)
        if planned.need_bytes > self.memory_bytes:
            raise InputError(
                f"{fixed.path} ({'x'.join(map(str, fixed.grid.shape))} voxels) needs about "
                f"{planned.need_bytes / 1e9:.2g} GB to be registered, {self.memory_bytes / 1e9:.2g} GB may be used: "
                "crop or resample the fixed image, or use a machine with more memory"
            )
        warnings: tuple[str, ...] = ()
        if planned.coarser > 1:
            spacing = " x ".join(f"{s:.3g}" for s in planned.spacing_mm)
            warnings = (
                f"memory is short ({self.memory_bytes / 1e9:.2g} GB may be used): the grid of the registration is "
                f"{planned.coarser:g} times coarser than the images ask for, {spacing} mm",
            )
        return NetworkInput(planned.shape, planned.spacing_mm, _intensity(fixed, moving), self.init), warnings


class WithoutNetwork:
    """See ``serve.engine.Engine``: predicts no displacement, from which the steps on the pair start."""

    runtime = NONE
    provider = "CPU"
    model_sha256 = None

    def __init__(self, contract: NoNetwork) -> None:
        self.contract = contract

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> Field:
        """(X, Y, Z) twice -> (3, X, Y, Z) of zeros."""
        return np.zeros((3, *fixed.shape), np.float32)


Promise = Contract | NoNetwork  # what a pair is prepared for


def plan_grid(fixed: Grid, moving: Grid, memory_bytes: int) -> Planned:
    """The finest grid over the fixed field of view that the images ask for and the memory allows.

    A voxel is as large as the fixed image's; where the moving image is coarser along an axis, as large as that one's,
    up to twice the fixed one's. Few slices are divided until there are ``FEWEST``. Where a voxel would be much longer
    along one axis than along another (``ANISOTROPY``) it becomes a cube of the same volume. Where memory is short all
    axes become coarser by one factor out of 1.25 to 4, but none shorter than ``FEWEST``; the last one is returned if
    none fits.
    """
    source = canonical(fixed)
    own = np.array(source.spacing_mm)
    extent = own * source.shape
    others = np.minimum(_resolution_along(source, moving), COARSEST_TO_FIXED * own)
    wanted = np.where(others > ALIKE * own, others, own)
    wanted = np.minimum(wanted, extent / FEWEST)
    if wanted.max() > ANISOTROPY * wanted.min():
        wanted = np.minimum(np.full(3, np.prod(wanted) ** (1 / 3)), extent / FEWEST)
    images = BYTES_PER_IMAGE_VOXEL * _voxels(fixed.shape) + BYTES_PER_MOVING_VOXEL * _voxels(moving.shape)
    planned = []
    for factor in COARSER:
        spacing = np.minimum(wanted * factor, extent / FEWEST)
        x, y, z = (max(FEWEST, int(np.ceil(n - 1e-3))) for n in extent / spacing)
        a, b, c = map(float, spacing)
        each = BYTES_PER_GRID_VOXEL + (BYTES_OF_DESCRIPTORS if min(x, y, z) < ACROSS_BELOW else 0)
        planned.append(Planned((x, y, z), (a, b, c), factor, images + each * x * y * z))
        if planned[-1].need_bytes <= memory_bytes:
            break
    return planned[-1]


def _resolution_along(source: Grid, moving: Grid) -> npt.NDArray[np.float64]:
    """Size of the moving image's voxels in mm along each axis of another grid, as their headers turn them."""
    axes, others = (g.world_from_vox[:3, :3] / np.array(g.spacing_mm) for g in (source, moving))
    along = others.T @ axes  # component of each axis of ``source`` along the moving image's
    return np.asarray(1 / np.sqrt(((along / np.array(moving.spacing_mm)[:, None]) ** 2).sum(axis=0)))


def _voxels(shape: Shape) -> int:
    return int(np.prod(shape))


def _intensity(fixed: Volume, moving: Volume) -> Intensity:
    """Percentiles, unless nearly all voxels of an image are alike, as where a small structure was cut out."""
    from ofg_deploy.kernels.intensity import percentiles

    usual = Intensity()
    for volume in (fixed, moving):
        low, high = percentiles(volume.data, (usual.low, usual.high))
        if not np.float32(low) < np.float32(high):
            return replace(usual, kind="minmax")
    return usual
