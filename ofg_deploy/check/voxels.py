"""Findings in the voxels of one file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.appearance import Look
from ofg_deploy.check.convert import check_line
from ofg_deploy.check.finding import Finding
from ofg_deploy.label_map import label_map_by
from ofg_deploy.nifti_file import NiftiFile

LABEL_NAME = re.compile(r"(^|[^a-z])(a?seg|segmentation|parc|aparc|labels?|mask)([^a-z]|$)", flags=re.IGNORECASE)
PART = 2**20  # voxels looked at in one go


def look(
    nifti: NiftiFile, data: npt.NDArray[Any], nan: float | None = None
) -> tuple[npt.NDArray[Any], Look | None, list[Finding]]:
    """Findings in (X, Y, Z) voxels; with the voxels and a summary, None where there is nothing to compare.

    Args:
        nan: what a user wants in place of NaN and infinity; None makes it 0, which nobody should register with.
    """
    findings = []
    if bad := sum(int((~_finite(part)).sum()) for part in _parts(data)):
        text = f"{bad} of {data.size} voxels are NaN, infinite, or too large for float32"
        if nan is None:
            ask = "say what belongs there: 0, or what this image has for background"
            findings.append(Finding("error", "voxels", text, ask, command=check_line(nifti.path, "--nan 0")))
        else:
            findings.append(Finding("error", "voxels", text, f"write {nan:g} there", True))
        for part in _parts(data):
            part[~_finite(part)] = nan or 0
    low, high = float(np.float32(data.min())), float(np.float32(data.max()))
    named = bool(LABEL_NAME.search(nifti.path.name))
    if low == high and not named:
        findings.append(Finding("error", "voxels", f"every voxel is {low:g}", "use an image with content"))
        return data, None, findings
    whole = data.dtype.kind != "f" or not (
        fractions := sum(int((part != np.round(part)).sum()) for part in _parts(data))
    )
    if named and not whole:
        text = f"a label map by its name, and {fractions} voxels are no whole numbers"
        findings.append(Finding("error", "labels", text, "resample the original again by nearest neighbour"))
    if named or label_map_by(nifti.path, int(nifti.header["intent_code"]), data):
        return data, None, findings
    return data, Look.of(data), findings


def _parts(data: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """(X, Y, n) views, one after another: what is computed of one takes little memory beside the whole."""
    step = max(1, PART // max(1, data.shape[0] * data.shape[1]))
    for start in range(0, data.shape[2], step):
        yield data[:, :, start : start + step]


def _finite(part: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.isfinite(part.astype(np.float32, copy=False))  # as it is registered
