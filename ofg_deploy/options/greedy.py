"""Steps down the smoothed gradient of the local NCC (``kernels.refine.Greedy``): guidance and refinement step alike."""

from __future__ import annotations

import math

DEFAULTS = {"step": 0.5, "limit": 2.0, "gradient_sigma": 1.5, "field_sigma": 0.5}
WINDOW = 5
# Beyond them float32 gives out or a step takes for ever, long after there was any sense: at a hundredth of the mean
# length nearly all vectors are shortened, and 100 voxels are wider than what is registered.
BOUNDS = {
    "step": (1e-6, 100.0),
    "limit": (0.01, math.inf),
    "gradient_sigma": (0.0, 100.0),
    "field_sigma": (0.0, 100.0),
}
