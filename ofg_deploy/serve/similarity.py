"""What the steps on a pair follow, ``similarity``: chosen by what the two images show of one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.field import Field
from ofg_deploy.kernels.refine import Measure
from ofg_deploy.options.words import StepSimilarity

LIMIT_PERCENT = 2.5  # pairs of one contrast had 1.1 at most, of others 3.1 or more: benchmarks/NOTES.md
LOOKED_AT = (8, 40)  # voxels along the shortest axis of the level at which images are compared

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """The similarity of one pair.

    Attributes:
        asked: what the user wants; ``auto`` takes ``mind`` where ``opposite_percent`` is above ``LIMIT_PERCENT``.
        taken: what the steps follow.
        opposite_percent: of the clear local relations between the images where the steps start, those against the
            others (``kernels.contrast.opposite_share``).
    """

    asked: StepSimilarity
    taken: Measure
    opposite_percent: float

    @property
    def differs(self) -> bool:
        """The images show different contrasts."""
        return self.opposite_percent > LIMIT_PERCENT

    def comparable(self, moving: Image, fixed: Image, field: Field) -> Image:
        """``moving`` as the local NCC can be taken of it: with ``mind`` in the contrast of ``fixed``."""
        from ofg_deploy.kernels.contrast import in_contrast_of

        return in_contrast_of(fixed, moving, warped(moving, field)) if self.taken == "mind" else moving

    def warnings(self) -> list[str]:
        """What a user should know, one line each."""
        if not (self.differs and self.taken == "ncc"):
            return []
        return [
            f"the images show different contrasts ({self.opposite_percent:.3g} % of their clear local relations run "
            "against the others), for which `similarity=ncc` can lead away from the anatomy: use auto or mind"
        ]

    def record(self) -> dict[str, Any]:
        """For the sidecar."""
        return {
            "asked": self.asked,
            "taken": self.taken,
            "opposite_percent": self.opposite_percent,
            "limit_percent": LIMIT_PERCENT,
        }


def choose(asked: StepSimilarity, field: Field, moving: Image, fixed: Image) -> Chosen:
    """What the steps on a pair follow.

    The images are compared where the steps start from, at half the resolution or less: the first level whose shortest
    axis has at most 40 voxels. There noise is small, and structures that two people share still lie upon each other.

    Args:
        field: (3, X, Y, Z) voxels, from which the steps start.
        moving, fixed: (X, Y, Z) float32, NaN where unknown.
    """
    from ofg_deploy.kernels.contrast import opposite_share

    share = opposite_share(*(_coarse(image) for image in (warped(moving, field), fixed)))
    taken: Measure = "mind" if asked == "mind" or (asked == "auto" and 100 * share > LIMIT_PERCENT) else "ncc"
    return Chosen(asked, taken, round(100 * share, 4))


def warped(moving: Image, field: Field) -> Image:
    """``moving`` on the grid of the field, NaN where unknown; not copied where the field is 0."""
    from ofg_deploy.kernels.warp import warp

    if not field.any():
        return moving
    out = np.empty_like(moving)
    warp(moving, field, out, np.empty_like(field), np.nan)
    return out


def _coarse(image: Image) -> Image:
    from ofg_deploy.kernels import levels

    least, most = LOOKED_AT
    coarsen = levels.coarsen_known if np.isnan(image).any() else levels.coarsen
    for level in range(image.size):
        shape = levels.coarser_shape(image.shape)
        if (level and min(image.shape) <= most) or min(shape) < least:
            break
        out = np.empty(shape, np.float32)
        coarsen(image, out)
        image = out
    return image
