"""What an image has where nothing was scanned: the value that stands for all that lies outside of it.

The rule moves with the image: an image plus a constant, or times a positive one, has its background likewise (but for
step 4, which keeps the customary 0).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ONE_VALUE = 0.1  # of the outermost voxels: so many equal ones are no tissue
DARK_RIM = 0.25  # of the outermost voxels: so many dark ones are air
NEAR = 0.05  # of the width between the 0.5th and the 99.5th percentile


@dataclass(frozen=True)
class Background:
    """A value for what lies outside of an image.

    Attributes:
        value: in the image's own unit.
        found: where it comes from, in words.
        clear: the outermost voxels show it; otherwise it is the lowest there is, for want of a background.
    """

    value: float
    found: str
    clear: bool = True

    @classmethod
    def of(cls, data: npt.NDArray[Any]) -> Background:
        """Of an intensity image (X, Y, Z), finite. The first of these that applies:

        1. The most frequent value of the outermost voxels, where a tenth of them have it: padding, a masked
           background, of whatever brightness.
        2. The median of the dark outermost voxels, where a quarter of them are dark: air with its noise. Dark is what
           lies less than ``NEAR`` above the 0.5th percentile of the image.
        3. The lowest value; the 0.5th percentile where it lies further than ``NEAR`` below that.
        4. Where 2 or 3 give less than ``NEAR`` above 0 in an image without negative values: 0.
        """
        rim = _rim(data)
        values, counts = np.unique(rim, return_counts=True)
        share = counts.max() / rim.size
        if share >= ONE_VALUE:
            return cls(float(values[counts.argmax()]), f"the value of {share:.0%} of the image's outermost voxels")
        low, high = _percentiles(data)
        lowest, near = float(data.min()), NEAR * (high - low)
        dark = rim[rim <= low + near]
        if clear := dark.size >= DARK_RIM * rim.size:
            value = float(np.median(dark))
            found = f"the median of the dark ones ({dark.size / rim.size:.0%}) among the image's outermost voxels"
        elif low - lowest <= near:
            value, found = lowest, "the image's lowest value"
        else:
            value, found = low, "the image's 0.5th percentile"
        if lowest >= 0 and value <= near:
            return cls(0.0, f"0, which is close to {found}", clear)
        return cls(value, found, clear)

    @classmethod
    def given(cls, value: float) -> Background:
        """What a user asked for."""
        return cls(value, "given")

    def record(self) -> dict[str, Any]:
        """For a sidecar."""
        return {key: value for key, value in asdict(self).items() if key != "clear"}


OF_LABELS = Background(0.0, "0, as in every label map")


def _rim(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The voxels of all six faces; those of an edge count in each of its faces."""
    # Not by numpy.take, which copies a volume in the order of a file as a whole to take a face out of it.
    return np.concatenate([np.moveaxis(data, axis, 0)[index].ravel() for axis in range(3) for index in (0, -1)])


def _percentiles(data: npt.NDArray[Any]) -> tuple[float, float]:
    from ofg_deploy.kernels.intensity import percentiles

    low, high = percentiles(data, (0.5, 99.5))
    return low, high
