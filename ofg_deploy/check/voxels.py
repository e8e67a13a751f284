"""Findings in the voxels of one file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.check.finding import Finding
from ofg_deploy.nifti_file import NiftiFile

LABEL_NAME = re.compile(r"(^|[^a-z])(a?seg|segmentation|parc|aparc|labels?|mask)([^a-z]|$)", flags=re.IGNORECASE)
MOST_LABELS = 40  # distinct whole numbers; an image has more
EMPTY = 0.35  # share of exactly equal background in a brain cut out of its head; air of a scan is noise
HOUNSFIELD_AIR = -500.0  # below it there is air in a CT; no other modality writes such numbers


@dataclass(frozen=True)
class Look:
    """A summary of intensities, to compare files by.

    Attributes:
        low, high: extremes of the finite voxels.
        background: share of voxels that equal ``0``, or the lowest value where there is no 0.
        rim: the same on the outermost voxels alone.
    """

    low: float
    high: float
    background: float
    rim: float

    @property
    def stripped(self) -> bool:
        """Looks cut out: a background of one value, which reaches all around. Defaced or masked scans look alike."""
        return self.background > EMPTY and self.rim > 0.995

    @property
    def ct(self) -> bool:
        """Looks like CT numbers."""
        return self.low < HOUNSFIELD_AIR


def look(nifti: NiftiFile, data: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Look | None, list[Finding]]:
    """(X, Y, Z) voxels with 0 for NaN and infinity, a summary (None where there is nothing to compare), findings."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(data.astype(np.float32, copy=False))  # as it is registered
    findings = []
    if bad := int(data.size - finite.sum()):
        text = f"{bad} of {data.size} voxels are NaN, infinite, or too large for float32"
        findings.append(Finding("error", "voxels", text, "write 0 there: look whether 0 means background", True))
        data = np.where(finite, data, 0)
    low, high = float(np.float32(data.min())), float(np.float32(data.max()))
    named = bool(LABEL_NAME.search(nifti.path.name))
    if low == high and not named:
        findings.append(Finding("error", "voxels", f"every voxel is {low:g}", "use an image with content"))
        return data, None, findings
    whole = data.dtype.kind != "f" or not (fractions := int((data != np.round(data)).sum()))
    if named and not whole:
        text = f"a label map by its name, and {fractions} voxels are no whole numbers"
        findings.append(Finding("error", "labels", text, "resample the original again by nearest neighbour"))
    if named or (whole and np.unique(data[::2, ::2, ::2]).size <= MOST_LABELS):
        return data, None, findings
    empty = 0.0 if low <= 0 <= high and (data == 0).any() else low
    faces = [np.take(data, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)]
    rim = float(np.mean(np.concatenate(faces) == empty))
    return data, Look(low, high, float(np.mean(data == empty)), rim), findings
