"""How a pair is registered: what decides the result, apart from the images and the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from ofg_deploy.errors import UsageError, check_choice
from ofg_deploy.geometry import Matrix, Shape, Spacing
from ofg_deploy.nifti_file import MAX_VOXELS
from ofg_deploy.options.words import Interpolation, PointsFrame, Quality, StepSimilarity
from ofg_deploy.passes import check_passes
from ofg_deploy.preprocess import IMAGE_BASED, Init
from ofg_deploy.serve.refinement import Refinement
from ofg_deploy.transform.resample import OF_LABELS


@dataclass(frozen=True, eq=False)
class GivenMatrix:
    """An initial alignment that is known: (4, 4), fixed world -> moving world, RAS mm."""

    moving_from_fixed: Matrix


Begin = Init | Path | GivenMatrix  # an initial alignment by its kind, by a file that holds it, or as it is


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides a registration's result, apart from its inputs and its model.

    Attributes:
        init: alignment to start from, a known one, or the path of a file that holds it; None means as the network was
            trained.
        fill: value of warped images where the map leaves the field of view; None for the background of each image.
        interpolation: of additional images; None for ``nearest`` where one is a label map, and ``linear`` otherwise.
        label_interpolation: ``nearest`` or ``genericlabel``.
        refinement: steps on the pair, after the network or without one; None takes none, unless ``quality`` is given.
        quality: the same by how much effort is to be taken; what that means depends on the voxels of the grid.
        similarity: what the steps of ``quality`` follow; ``refinement`` has its own.
        threads: of these steps; 0 for as many as are set.
        grid: of the network, for a model that takes several; None means the one it was trained on.
        passes: how often the network is asked, each time with the moving image moved by the field so far (``passes``);
            None means as the model was trained.
        points_frame: coordinate frame of tables of points that do not name their own; RAS if None.
        inverse: compute the inverse transform on the moving grid too.
        max_voxels: larger images and label maps are refused before their voxels are read.

    Raises:
        UsageError: a value that cannot be used.
    """

    init: Begin | None = None
    fill: float | None = None
    interpolation: Interpolation | None = None
    label_interpolation: Interpolation = "nearest"
    refinement: Refinement | None = None
    quality: Quality | None = None
    similarity: StepSimilarity = "auto"
    threads: int = 0
    grid: Shape | None = None
    passes: int | None = None
    points_frame: PointsFrame | None = None
    inverse: bool = False
    max_voxels: int = MAX_VOXELS

    def __post_init__(self) -> None:
        if self.fill is not None and not np.isfinite(self.fill):
            raise UsageError(f"`fill` {self.fill}: a finite number is needed, or auto")
        if self.passes is not None:
            check_passes(self.passes)
        if self.points_frame is not None:
            check_choice("points_frame", self.points_frame, get_args(PointsFrame))
        if self.label_interpolation not in OF_LABELS:
            raise UsageError(f"`label_interpolation` {self.label_interpolation}: use {' or '.join(OF_LABELS)}")

    def steps_on(self, spacing_mm: Spacing) -> Refinement | None:
        """The steps on the pair, on a grid of such voxels; None for none."""
        if self.quality is None:
            return self.refinement
        return Refinement.of_quality(self.quality, self.similarity, spacing_mm, self.threads)


def check_masks(init: object, masked: bool) -> None:
    """Raises UsageError where there is a mask and nothing that it could restrict."""
    if masked and init not in IMAGE_BASED:
        raise UsageError(f"masks have no effect with `init` {init}, which does not look at the images: leave them out")
