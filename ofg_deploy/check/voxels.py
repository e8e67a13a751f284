"""Findings in the voxels of one file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.appearance import Look
from ofg_deploy.check.finding import Finding
from ofg_deploy.nifti_file import NiftiFile

LABEL_NAME = re.compile(r"(^|[^a-z])(a?seg|segmentation|parc|aparc|labels?|mask)([^a-z]|$)", flags=re.IGNORECASE)
MOST_LABELS = 40  # distinct whole numbers; an image has more


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
    return data, Look.of(data), findings
