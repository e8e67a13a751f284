"""Everything that can be said about one file, in the order in which a reader would stumble."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy.appearance import Look
from ofg_deploy.check import header, voxels
from ofg_deploy.check.convert import conversion_line
from ofg_deploy.check.finding import Finding
from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import check_volume
from ofg_deploy.nifti_file import NIFTI_NAME, NiftiFile, open_nifti
from ofg_deploy.options.words import Unit
from ofg_deploy.transform.positions import transform_named


@dataclass(frozen=True, eq=False)
class Examined:
    """One file, looked at.

    Attributes:
        path: the file.
        findings: what was found in it alone.
        grid: where its voxels lie; None if that cannot be known.
        code: NIfTI code of the affine believed.
        in_mm: somebody says that its lengths are mm, the header or the user; otherwise they are taken for mm.
        data: (X, Y, Z) as stored, scaled, 0 for NaN and infinity; None if they cannot be read as one volume.
        look: summary of an image's intensities; None for label maps and where there is nothing to compare.
    """

    path: Path
    findings: tuple[Finding, ...]
    grid: Grid | None = None
    code: int = 0
    in_mm: bool = True
    data: npt.NDArray[Any] | None = None
    look: Look | None = None


def examine(path: Path, max_voxels: int, unit: Unit | None = None, nan: float | None = None) -> Examined:
    """Header, then voxels. Raises nothing about the file: what makes it unusable is a finding.

    Args:
        unit: of the lengths, as the user says. nan: what belongs in place of NaN and infinity.
    """
    try:
        nifti = open_nifti(path, max_voxels)
    except InputError as error:
        return Examined(path, (_unusable(path, error),))
    if kind := transform_named(nifti):
        return Examined(path, (Finding("error", "file", f"{kind}, not an image", f"ofg apply -t {path} applies it"),))
    try:
        found = header.look(nifti, unit)
    except InputError as error:  # a geometry in mm that no grid can have
        return Examined(path, (_unusable(path, error),))
    try:
        check_volume(nifti)
        data = nifti.read(_in_memory(nifti)).reshape(nifti.shape[:3], order="F")
    except InputError as error:
        known = any(f.about == "shape" and f.severity == "error" for f in found.findings)
        findings = found.findings if known else (*found.findings, _unusable(path, error))
        return Examined(path, findings, found.grid, found.code, found.in_mm)
    data, summary, more = voxels.look(nifti, data, nan)
    return Examined(path, (*found.findings, *more), found.grid, found.code, found.in_mm, data, summary)


def _in_memory(nifti: NiftiFile) -> np.dtype[Any] | None:
    """As stored, but real numbers of eight bytes as float32, as they are registered: a small file may promise many."""
    slope, inter = (float(nifti.header[key]) for key in ("scl_slope", "scl_inter"))
    scaled = slope not in (0, 1) or inter != 0  # which makes them real
    return np.dtype(np.float32) if scaled or nifti.on_disk.kind == "f" else None


def _unusable(path: Path, error: InputError) -> Finding:
    line = "" if NIFTI_NAME.search(path.name) else conversion_line(path)
    fix = "convert it to NIfTI by the command below" if line else "convert it again from its source"
    return Finding("error", "file", str(error).removeprefix(f"{path} "), fix, command=line)
