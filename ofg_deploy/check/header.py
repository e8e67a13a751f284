"""Findings in a header, and the affine to believe: the reader's rule, and where that fails the only valid one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofg_deploy.check.convert import check_line, load, nibabel_line
from ofg_deploy.check.finding import Finding, Severity
from ofg_deploy.errors import GeometryError
from ofg_deploy.geometry import Grid, Matrix
from ofg_deploy.nifti_file import NiftiFile
from ofg_deploy.nifti_space import Orientations, check_voxel_sizes, conflict_mm, grid_of, orientations, shear_said
from ofg_deploy.options.words import Unit
from ofg_deploy.readers import conflict_said

PLAUSIBLE_MM = (20.0, 1000.0)  # longest side of a field of view; from a mouse's head to a whole body
ANISOTROPIC = 4.0  # longest to shortest voxel side
SHEAR_SEEN = 1e-5  # cosine between axes which rounding of float32 headers does not explain
SLOPES = (1e-9, 1e6)
UNIT_MM: dict[Unit, tuple[str, float]] = {"um": ("microns", 0.001), "mm": ("millimetres", 1.0), "m": ("metres", 1000.0)}
UNIT_CODES: dict[int, Unit] = {1: "m", 2: "mm", 3: "um"}
VOXEL_MM = (0.05, 5.0)  # of a header without a unit: shortest side of a voxel, beyond which mm are doubtful


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        grid: where the voxels lie; None where that cannot be known.
        code: NIfTI code of the affine believed.
        in_mm: the header or the user says that lengths are mm; otherwise they are taken for mm.
        findings: everything worth saying.
    """

    grid: Grid | None
    code: int
    in_mm: bool
    findings: tuple[Finding, ...]


def look(nifti: NiftiFile, unit: Unit | None = None) -> Header:
    """Findings of one header. What the reader refuses is a finding; raises GeometryError for lengths of no grid.

    Args:
        unit: of its lengths, as the user says; None believes the header.
    """
    shape = nifti.shape
    if min(shape[:3]) < 2:
        return Header(
            None, 0, True, (Finding("error", "shape", f"{_by(shape)} voxels is no volume", "use a 3-D scan"),)
        )
    findings = [Finding("note", "header", line.split(": ", 1)[1], "write it anew", True) for line in nifti.repairs]
    findings += _axes_beyond_three(nifti)
    affine, code, said = _believed(nifti)
    findings += said
    grid = None
    if affine is not None:
        scale, units = _units(nifti, affine, unit)
        findings += units
        grid = grid_of(nifti.path, shape, np.diag([scale, scale, scale, 1.0]) @ affine)
        findings += _geometry(nifti, grid, not (units or unit))
    slope = abs(float(nifti.header["scl_slope"]))
    if slope and np.isfinite(slope) and not SLOPES[0] <= slope <= SLOPES[1]:
        findings.append(
            Finding("warning", "scaling", f"scl_slope is {slope:g}", "compare the values with the original")
        )
    return Header(grid, code, bool(unit or int(nifti.header["xyzt_units"]) % 8), tuple(findings))


def _axes_beyond_three(nifti: NiftiFile) -> list[Finding]:
    more = nifti.shape[3:]
    if not more:
        return []
    if set(more) == {1}:
        return [Finding("note", "shape", f"{_by(nifti.shape)}: trailing axes of 1", "drop them", True)]
    line = nibabel_line(f"{load(nifti.path)}.slicer[..., {', '.join('0' * len(more))}]")
    text = f"{_by(nifti.shape)}: more than one volume"
    return [Finding("error", "shape", text, "take one: the command below takes the first", command=line)]


def _believed(nifti: NiftiFile) -> tuple[Matrix | None, int, list[Finding]]:
    """The affine in the header's unit, its code, and why it is the one."""
    found, damage = _orientations(nifti)
    if found.sform is not None:
        return _sform_first(nifti, found, damage)
    if found.qform is None and not damage:
        ask = "fslorient, nibabel or 3D Slicer can set one: look at the image first, left and right are unknown"
        return None, 0, [Finding("error", "orientation", "neither sform nor qform is coded", ask)]
    qform, wrong = _valid(nifti, found.qform, sizes=True)
    if qform is None:
        return None, 0, [Finding("error", "qform", damage or wrong, "convert the file again")]
    note = Finding("note", "sform", "only the qform is coded", "write both, for tools that read the sform", True)
    return qform, found.qform_code, [note]


def _sform_first(nifti: NiftiFile, found: Orientations, damage: str) -> tuple[Matrix | None, int, list[Finding]]:
    """As ``_believed``, where a sform is coded: it wins unless it can be none and the qform can."""
    sform, sform_wrong = _valid(nifti, found.sform)
    qform, qform_wrong = _valid(nifti, found.qform, sizes=True)
    if sform is None and "sheared" in sform_wrong:  # somebody's registration: dropping it would move the image
        ask = "resample it onto an unsheared grid, by the command below"
        return None, 0, [Finding("error", "sform", sform_wrong, ask, command=_anew(nifti))]
    if sform is None and qform is None:
        return None, 0, [Finding("error", "sform", sform_wrong, "convert it again from its source")]
    if sform is None:
        fix = "the qform is the one valid orientation: copy it to the sform"
        return qform, found.qform_code, [Finding("error", "sform", sform_wrong, fix, True)]
    gap = found.gap_mm(_three(nifti))
    keep = "the sform is read first, here as in most tools: copy it to the qform"
    if damage:
        said = [Finding("error", "qform", damage, keep, True)]
    elif found.qform is None:
        said = [Finding("note", "qform", "only the sform is coded", "write both, for tools that read the qform", True)]
    elif qform is None:
        said = [Finding("warning", "qform", qform_wrong, keep, True)]
    elif gap > conflict_mm(sform):
        text = conflict_said(found.sform_code, found.qform_code, gap)
        said = [Finding("warning", "orientation", text, f"{keep} (if the qform is right, set the sform by hand)", True)]
    else:
        said = []
    return sform, found.sform_code, said


def _orientations(nifti: NiftiFile) -> tuple[Orientations, str]:
    """As ``nifti_space.orientations``; a damaged qform is said, and its place is empty."""
    try:
        return orientations(nifti), ""
    except GeometryError as error:
        sform, code = nifti.header.get_sform(coded=True)
        return Orientations(sform, None, int(code), 0), str(error).removeprefix(f"{nifti.path} has ")


def _valid(nifti: NiftiFile, affine: Matrix | None, sizes: bool = False) -> tuple[Matrix | None, str]:
    """The affine if it can be one, else what is wrong with it."""
    if affine is None:
        return None, ""
    try:
        if sizes:
            check_voxel_sizes(nifti)
        return grid_of(nifti.path, nifti.shape, affine).world_from_vox, ""
    except GeometryError as error:
        return None, str(error).removeprefix(str(nifti.path)).lstrip(": ")


def _units(nifti: NiftiFile, affine: Matrix, given: Unit | None) -> tuple[float, list[Finding]]:
    """Millimetres in the unit of the affine, and what is to be said. A unit in doubt is asked for, never guessed.

    A header's unit is in doubt where it is unknown, or makes a field of view of no usual size.
    """
    code = int(nifti.header["xyzt_units"]) % 8
    grid = Grid(_three(nifti), affine)
    longest = _longest_mm(grid)
    stated = UNIT_CODES.get(code)
    if given:
        name, scale = UNIT_MM[given]
        if stated == given == "mm":
            return scale, []
        severity: Severity = "note" if code in (0, 2) else "error"  # the reader takes no unit for mm
        was = UNIT_MM[stated][0] if stated else "no unit" if code == 0 else f"an unknown unit (code {code})"
        done = f"write mm, from {name}: {longest * scale:g} mm long"
        return scale, [Finding(severity, "units", f"geometry in {name}, as given; the header has {was}", done, True)]
    if stated == "mm":
        return 1.0, []
    if code == 0:
        low, high = VOXEL_MM
        usual = PLAUSIBLE_MM[0] <= longest <= PLAUSIBLE_MM[1] and low <= min(grid.spacing_mm) <= high
        text = f"no unit of length; read as mm ({longest:g} mm long), as by most tools"
        ask = "say the unit: um, mm or m"
        return 1.0, [Finding("note" if usual else "warning", "units", text, ask, command=_with_unit(nifti, "mm"))]
    name, scale = UNIT_MM[stated] if stated else (f"an unknown unit (code {code})", 1.0)
    if stated and PLAUSIBLE_MM[0] <= longest * scale <= PLAUSIBLE_MM[1]:
        return scale, [Finding("error", "units", f"geometry in {name}", f"write mm: {longest * scale:g} mm long", True)]
    lengths = ", ".join(f"{unit}: {longest * factor:g} mm" for unit, (_, factor) in UNIT_MM.items())
    ask = f"say the unit; how long it is by each: {lengths}"
    return scale, [Finding("error", "units", f"geometry in {name}", ask, command=_with_unit(nifti, stated or "mm"))]


def _with_unit(nifti: NiftiFile, unit: Unit) -> str:
    return check_line(nifti.path, f"--unit {unit}")


def _geometry(nifti: NiftiFile, grid: Grid, doubtful: bool) -> list[Finding]:
    """Of a grid in mm; ``doubtful``: nobody but the header has said that they are mm."""
    findings = []
    spacing = np.array(grid.spacing_mm)
    directions = grid.world_from_vox[:3, :3] / spacing
    if np.linalg.det(directions) < 0:
        text = f"left-handed axes ({grid.orientation}, as in radiological order)"
        findings.append(Finding("note", "directions", text))
    if (shear := float(np.abs(directions.T @ directions - np.eye(3)).max())) > SHEAR_SEEN:
        text = f"axes {shear:.1e} off a right angle (cosine), within tolerance"
        findings.append(Finding("note", "directions", text))
    if said := shear_said(grid):
        findings.append(
            Finding("warning", "directions", said, "resample it, by the command below", False, _anew(nifti))
        )
    if spacing.max() / spacing.min() > ANISOTROPIC:
        text = f"voxels of {_by(spacing)} mm: strongly anisotropic"
        findings.append(Finding("warning", "spacing", text, "expect little along the long side; use a finer scan"))
    longest = _longest_mm(grid)
    if not PLAUSIBLE_MM[0] <= longest <= PLAUSIBLE_MM[1]:
        text = f"the field of view is {longest:.4g} mm long"
        ask = "compare voxel size and unit with the scanner's"
        line = ""
        if doubtful:
            ask += "; where the unit is wrong, say the right one"
            line = _with_unit(nifti, "um" if longest > PLAUSIBLE_MM[1] else "m")
        findings.append(Finding("warning", "extent", text, ask, command=line))
    code = int(nifti.header["xyzt_units"]) % 8
    stored = nifti.pixdim[1:4]
    if code in (0, 2) and not np.allclose(stored, spacing, rtol=0.01):
        text = f"pixdim says voxels of {_by(stored)} mm, the affine {_by(spacing)} mm"
        findings.append(Finding("warning", "spacing", text, "the affine is read: write its sizes to pixdim", True))
    return findings


def _anew(nifti: NiftiFile) -> str:
    return nibabel_line(
        f"from nibabel.processing import resample_to_output; {load(nifti.path)}; image = resample_to_output(image)"
    )


def _longest_mm(grid: Grid) -> float:
    return float((np.array(grid.shape) * grid.spacing_mm).max())


def _three(nifti: NiftiFile) -> tuple[int, int, int]:
    x, y, z = nifti.shape[:3]
    return x, y, z


def _by(values: object) -> str:
    return "x".join(f"{v:g}" for v in values)  # type: ignore[attr-defined]
