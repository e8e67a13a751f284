"""The start before the network: what brings the moving image roughly onto the fixed one.

``pictures``: what is looked at; ``agreement``: the measure; ``parameters``: the maps; ``search`` and ``descent``: the
way to the best one; ``stages``: which is kept. They need the compiled kernels and are imported when they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ofg_deploy.geometry import Matrix
from ofg_deploy.nifti import Volume

Kind = Literal["centre", "rigid", "affine"]
Stage = Literal["header", "centre", "rigid", "affine"]

VERSION = 2  # part of every cache key: raise it when the result of ``align`` changes
SAME_VOX = 0.5  # starts no further apart than this are the same


@dataclass(frozen=True, eq=False)
class Alignment:
    """A start, and how it was come by.

    Attributes:
        moving_from_fixed: (4, 4) float64, fixed RAS mm -> moving RAS mm.
        asked: the start that was asked for.
        kept: the one that is handed on; another one where that agrees no better than an earlier stage.
        measure: by stage, the mutual information of the images (nats, see ``agreement.Agreement``). Empty where no
            voxel was looked at.
        bounds: what the search would have taken further than is allowed, in words.
        apart: how far, in voxels of the fixed image, the stage asked for lies from the one kept, at most.
    """

    moving_from_fixed: Matrix
    asked: str
    kept: str
    measure: dict[str, float] = field(default_factory=dict)
    bounds: tuple[str, ...] = ()
    apart: float = 0.0

    def record(self) -> dict[str, Any]:
        """How it was come by, as JSON has it; empty where no voxel was looked at."""
        if not self.measure:
            return {}
        bounds = list(self.bounds)
        return {"asked": self.asked, "kept": self.kept, "mutual_information": self.measure, "bounds_reached": bounds}

    def warnings(self) -> list[str]:
        """What a user should know, one line each."""
        found = []
        if self.apart > SAME_VOX:
            found.append(
                f"the {self.asked} start agreed no better than the {self.kept} one, which is kept: "
                f"check the result, or give the start with `init`"
            )
        if self.bounds:
            found.append(f"the start is as far out as it may be ({', '.join(self.bounds)}): check the result")
        return found


def align(
    fixed: Volume,
    moving: Volume,
    kind: Kind = "affine",
    fixed_mask: Volume | None = None,
    moving_mask: Volume | None = None,
) -> Alignment:
    """Registration of two images by few parameters, never worse than what their headers say.

    Stages: the headers; the centres of the fields of view or those of mass, whichever agrees better (``centre`` moves
    nothing else); six parameters, from all of these and from many rotations; twelve. Kept is the last one that agrees
    better than the one kept before, by what the images show beyond what is believed of such maps beforehand. The same
    for any unit of length and any linear change of intensities; the same bits for any number of threads.

    Args:
        kind: how far to go.
        fixed_mask, moving_mask: label maps, each on its image's grid; where they are 0 nothing counts, neither for the
            agreement nor for the centres of mass.
    """
    from ofg_deploy.affine.stages import best

    return best(fixed, moving, kind, fixed_mask, moving_mask)
