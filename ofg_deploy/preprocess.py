"""From two images in the world to one pair on the network's grid. Training and serving both come through here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ofg_deploy.affine import Alignment, align
from ofg_deploy.background import Background
from ofg_deploy.errors import GeometryError, InputError, UsageError
from ofg_deploy.field import resample
from ofg_deploy.geometry import (
    Grid,
    Matrix,
    Shape,
    Spacing,
    check_axes,
    describe_extent,
    network_grid,
    overlap_fraction,
)
from ofg_deploy.nifti import Volume
from ofg_deploy.options import words

Init = words.Init
IMAGE_BASED: tuple[Init, ...] = ("centre", "rigid", "affine")  # those in which masks count
Kind = Literal["percentile", "minmax", "window", "linear"]

CONTENT_OUTSIDE = 0.02  # above this share of the fixed image's content beyond the grid a warning is due
DARK = 0.05  # after the recipe: a background that is not brighter is 0
LITTLE_OVERLAP = 0.25  # below this share of the fixed field of view a result is written with a warning


@dataclass(frozen=True)
class Intensity:
    """How intensities become 0..1.

    Attributes:
        kind: ``percentile`` clips to two percentiles of the image; ``minmax`` to its extremes; ``window`` to two
            values in the image's own units (CT); ``linear`` scales as ``window`` does but clips nothing, so that the
            result leaves 0..1 (published for abdomen CT; not for new work).
        low, high: percentiles, or limits in the image's units; not used by ``minmax``.

    Raises:
        UsageError: unknown kind, or limits out of order or range.
    """

    kind: Kind = "percentile"
    low: float = 0.5
    high: float = 99.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"intensity recipe {self.kind!r} is unknown: use one of {', '.join(get_args(Kind))}")
        out_of_range = self.kind == "percentile" and (self.low < 0 or self.high > 100)
        if out_of_range or not -np.inf < self.low < self.high < np.inf:
            raise UsageError(f"intensity limits {self.low:g}, {self.high:g} are out of order or range")
        for name in ("low", "high"):  # as they come back from a record: keys of caches are made of them
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def parse(cls, text: str) -> Intensity:
        """From the command line: ``percentile:0.5,99.5``, ``minmax``, ``window:-1000,1000`` or ``linear:0,500``."""
        kind, _, limits = text.partition(":")
        if not limits:
            if kind in ("window", "linear"):
                raise UsageError(f"intensity recipe {kind!r} needs its limits, for example {kind}:-1000,1000")
            return cls(kind)  # type: ignore[arg-type]
        try:
            low, high = (float(v) for v in limits.split(","))
        except ValueError as error:
            raise UsageError(f"intensity recipe {text!r} is not KIND:LOW,HIGH") from error
        return cls(kind, low, high)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.kind if self.kind == "minmax" else f"{self.kind}:{self.low:g},{self.high:g}"

    def apply(self, volume: Volume) -> npt.NDArray[np.float32]:
        """(X, Y, Z) float32 in 0..1 (beyond it with ``linear``).

        Raises:
            InputError: the recipe leaves a constant image.
        """
        return self.apply_with(volume, 0.0)[0]

    def apply_with(self, volume: Volume, value: float) -> tuple[npt.NDArray[np.float32], float]:
        """As ``apply``, and what the recipe makes of ``value``, an intensity of the same image."""
        from ofg_deploy.kernels.intensity import percentiles, rescale

        data = volume.data
        low, high = self.low, self.high
        if self.kind == "minmax":
            low, high = float(data.min()), float(data.max())
        elif self.kind == "percentile":
            low, high = percentiles(data, (self.low, self.high))
        clip = self.kind != "linear"
        unit = rescale(data, low, high, clip) if np.float32(low) < np.float32(high) else None
        if unit is None or unit.min() == unit.max():
            raise InputError(f"{volume.path} is constant within the intensity recipe {self} ({low:g} to {high:g})")
        return unit, float(rescale(np.array([value], np.float32), low, high, clip)[0])


def check_voxels(grid: Shape, least: int) -> None:
    """Raises UsageError for a network's grid with fewer voxels than ``least`` along some axis."""
    if min(grid) < least:
        raise UsageError(f"grid {' '.join(map(str, grid))}: this network needs at least {least} voxels along each axis")


def check_spacing(spacing_mm: Spacing) -> None:
    """Raises UsageError unless all are finite and above 0."""
    if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise UsageError(f"spacing {' '.join(f'{s:g}' for s in spacing_mm)}: finite numbers of mm above 0 are needed")


@dataclass(frozen=True)
class NetworkInput:
    """What a network expects to see: part of every checkpoint and of every exported model.

    Attributes:
        shape: voxels of the network's grid (X, Y, Z).
        spacing_mm: its voxel size.
        intensity: the recipe both images go through.
        init: the alignment its training pairs had before the network saw them.
        axes: anatomical directions of the grid's axes. Published networks for FreeSurfer's volumes work in ``LIA``.

    Raises:
        UsageError: values out of range or unknown.
    """

    shape: Shape
    spacing_mm: Spacing
    intensity: Intensity
    init: Init
    axes: str = "RAS"

    def __post_init__(self) -> None:
        check_voxels(self.shape, 2)
        check_spacing(self.spacing_mm)
        object.__setattr__(self, "spacing_mm", tuple(map(float, self.spacing_mm)))
        if self.init not in get_args(Init):
            raise UsageError(f"init {self.init!r} is unknown: use one of {', '.join(get_args(Init))}")
        try:
            check_axes(self.axes)
        except GeometryError as error:
            raise UsageError(str(error)) from error


UNKNOWN = Background.given(0.0)  # of a pair that is not from two images


@dataclass(frozen=True, eq=False)
class PreparedPair:
    """Both images on the network's grid, and the way back.

    Attributes:
        fixed, moving: (X, Y, Z) float32 in 0..1 on ``grid``, the affine start applied to ``moving``.
        grid: the network's grid in the fixed image's world.
        moving_from_fixed: (4, 4) the affine start, fixed world mm -> moving world mm.
        overlap: share of the fixed field of view that the moving one covers (0..1).
        outside: share of the fixed image's content (voxels more than 0.05 off its background after the recipe) beyond
            ``grid``.
        background: the moving image's own, in its unit.
        empty: what the recipe makes of the fixed and of the moving image's background: the value of ``fixed`` and
            ``moving`` outside of the images.
        alignment: how the start was found; None where that was not kept.
    """

    fixed: npt.NDArray[np.float32]
    moving: npt.NDArray[np.float32]
    grid: Grid
    moving_from_fixed: Matrix
    overlap: float
    outside: float
    background: Background = UNKNOWN
    empty: tuple[float, float] = (0.0, 0.0)
    alignment: Alignment | None = None

    def warnings(self) -> list[str]:
        """What a user should know about this pair, one line each."""
        found = self.alignment.warnings() if self.alignment else []
        if self.overlap < LITTLE_OVERLAP:
            found.append(f"the moving image covers only {self.overlap:.0%} of the fixed field of view")
        if self.outside > CONTENT_OUTSIDE:
            found.append(f"{self.outside:.0%} of the fixed image's content lies outside the network's grid")
        return found


@dataclass(frozen=True, eq=False)
class Start:
    """How the moving image is first brought to the fixed one.

    Attributes:
        init: what is done: ``none`` and ``header`` trust the world coordinates of both headers, see the conventions;
            the others as ``affine.align``. Not looked at where ``matrix`` is given.
        fixed_mask, moving_mask: label maps on their images' grids; what is 0 there does not count for the alignment.
        matrix: (4, 4) moving_from_fixed that is known already.
    """

    init: Init
    fixed_mask: Volume | None = None
    moving_mask: Volume | None = None
    matrix: Matrix | None = None

    def align(self, fixed: Volume, moving: Volume) -> Alignment:
        """The start of this pair.

        Raises:
            GeometryError: images that share no space, unless that is what the start is to mend.
        """
        if self.matrix is not None:
            return Alignment(self.matrix, self.init, self.init)
        if self.init != "centre" and overlap_fraction(fixed.grid, moving.grid, np.eye(4)) == 0.0:
            raise GeometryError(_no_overlap(fixed, moving, "in world coordinates"))
        if self.init not in IMAGE_BASED:
            return Alignment(np.eye(4), self.init, self.init)
        return align(fixed, moving, self.init, self.fixed_mask, self.moving_mask)  # type: ignore[arg-type]


def prepare_pair(
    fixed: Volume, moving: Volume, wanted: NetworkInput, start: Start | Alignment | None = None
) -> PreparedPair:
    """Bring two images onto the network's grid, each with a single interpolation.

    Args:
        start: the alignment to start from, found already or not; None means as the network was trained.

    Raises:
        GeometryError: the images do not overlap in the world, or not any more after the affine start.
        InputError: the intensity recipe leaves a constant image.
    """
    alignment = start if isinstance(start, Alignment) else (start or Start(wanted.init)).align(fixed, moving)
    moving_from_fixed = alignment.moving_from_fixed
    overlap = overlap_fraction(fixed.grid, moving.grid, moving_from_fixed)
    if overlap == 0.0:
        raise GeometryError(_no_overlap(fixed, moving, "after the start"))
    grid = network_grid(fixed.grid, wanted.shape, wanted.spacing_mm, wanted.axes)
    fixed_unit, fixed_empty, _ = normalised(fixed, wanted.intensity)
    moving_unit, moving_empty, background = normalised(moving, wanted.intensity)
    return PreparedPair(
        fixed=resample(fixed_unit, fixed.grid, grid, np.eye(4), fill=fixed_empty),
        moving=resample(moving_unit, moving.grid, grid, moving_from_fixed, fill=moving_empty),
        grid=grid,
        moving_from_fixed=moving_from_fixed,
        overlap=overlap,
        outside=content_outside(fixed_unit, fixed_empty, fixed.grid, grid),
        background=background,
        empty=(fixed_empty, moving_empty),
        alignment=alignment,
    )


def normalised(volume: Volume, intensity: Intensity) -> tuple[npt.NDArray[np.float32], float, Background]:
    """The image after the recipe, what its background is there, and its background as it is stored.

    A dark background stays the 0 that networks are trained with; noise in the air makes no difference to them.

    Raises:
        InputError: the recipe leaves a constant image.
    """
    background = Background.of(volume.data)
    unit, empty = intensity.apply_with(volume, background.value)
    return unit, 0.0 if abs(empty) <= DARK else empty, background


def content_outside(unit: npt.NDArray[Any], empty: float, source: Grid, network: Grid) -> float:
    """Share of the voxels more than 0.05 off the background whose centres lie beyond the network's field of view."""
    from ofg_deploy.kernels.sampling import count_beyond
    from ofg_deploy.kernels.slabs import over_slabs

    matrix = (network.vox_from_world @ source.world_from_vox)[:3]
    data = np.abs(unit - np.float32(empty)) if empty else unit
    if data.flags.f_contiguous:  # a kernel reads in C order
        data, matrix = data.T, np.hstack([matrix[:, 2::-1], matrix[:, 3:]])
    counts = np.zeros((data.shape[0], 2), np.int64)
    over_slabs(count_beyond, data.shape[0], data.size, np.ascontiguousarray(data), matrix, network.shape, 0.05, counts)
    content, beyond = counts.sum(axis=0)
    return float(beyond / content) if content else 0.0


def _no_overlap(fixed: Volume, moving: Volume, where: str) -> str:
    return (
        f"{fixed.path} ({describe_extent(fixed.grid)}) and {moving.path} ({describe_extent(moving.grid)}) "
        f"do not overlap {where}: check the headers, or start with `init=centre`"
    )
