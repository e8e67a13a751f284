"""Fields of one NIfTI form, (X, Y, Z, 1, 3) with intent 1007, and what they hold: ITK, SPM and NiftyReg.

============  =====================  ===================================================
writer        intent name            what it holds
============  =====================  ===================================================
ITK, ANTs     any other              displacements, LPS mm
SPM           ``Mapping``            positions in the moving image's world, RAS mm
NiftyReg      ``NREG_TRANS``         by the first intent parameter: 0 positions, 1 displacements, RAS mm
============  =====================  ===================================================
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError
from ofg_deploy.field import Field, turned
from ofg_deploy.geometry import LPS_FROM_RAS, Matrix, thinned, transform_points
from ofg_deploy.nifti import FSL_INTENTS, INTENT_VECTOR, load_space, open_transform
from ofg_deploy.nifti_file import NiftiFile
from ofg_deploy.transform.maps import FieldMap, field_map, marked

SPM = "Mapping"
NIFTYREG = "NREG"  # in front of every name it uses
NIFTYREG_FIELDS = {0: "positions", 1: "displacements"}
NIFTYREG_OTHERS = {
    2: "a grid of control points",
    3: "a velocity field",
    4: "a velocity field",
    5: "a grid of velocities",
    6: "a grid of control points",
}
SUSPECT = 0.5  # of its spread is left when coordinates are taken off a field: a map would have to scale by 1.7 to 3


@np.errstate(all="ignore")  # what is not finite is refused
def load_displacements(path: Path, max_voxels: int) -> FieldMap:
    """Read a field of any of the three.

    Raises:
        InputError: not such a file, a velocity field or a grid of control points, too large, or a field that is not
            finite (NaN in positions: unknown there). GeometryError: no grid.
    """
    nifti = open_transform(path, max_voxels)
    kind = _kind(nifti, _name(nifti))
    grid, _, warnings = load_space(path, 3 * max_voxels)
    vectors, unknown = _read(nifti, nan=kind == "positions")
    if kind == "positions":
        vectors = from_positions(vectors, grid.world_from_vox)
    elif kind == "itk":
        for sign, component in zip(np.diag(LPS_FROM_RAS), vectors, strict=False):  # in its place, and never -0
            (np.add if sign > 0 else np.subtract)(np.float32(0), component, out=component)
    found = field_map(vectors, grid, path, warnings, unknown)
    if kind == "itk" and _suspected(found):
        return replace(found, warnings=(*found.warnings, _suspicion(path)))
    return found


def _name(nifti: NiftiFile) -> str:
    return bytes(nifti.header["intent_name"]).split(b"\0")[0].decode("latin1").strip()


def _kind(nifti: NiftiFile, name: str) -> str:
    if name == SPM:
        return "positions"
    if not name.startswith(NIFTYREG):
        return "itk"
    code = float(nifti.header["intent_p1"])
    if name != "NREG_TRANS" or code not in NIFTYREG_FIELDS:
        what = NIFTYREG_OTHERS.get(int(code), "no field") if np.isfinite(code) else "no field"
        raise InputError(
            f"{nifti.path} is a transform of NiftyReg ({name}, {code:g}: {what if name == 'NREG_TRANS' else 'older'}): "
            "reg_transform -ref REFERENCE -disp FILE OUT.nii.gz makes the displacement field that is read here"
        )
    return "positions" if NIFTYREG_FIELDS[int(code)] == "positions" else "ras"


def transform_named(nifti: NiftiFile) -> str | None:
    """What kind of transform an open file is, for those who expected an image; None if it may be one."""
    intent = int(nifti.header["intent_code"])
    if intent in FSL_INTENTS:
        return "a warp of FSL" if intent == FSL_INTENTS[0] else "coefficients of FNIRT"
    if nifti.shape[3:] != (1, 3) or intent != INTENT_VECTOR:
        return None
    name = _name(nifti)
    writer = "SPM" if name == SPM else "NiftyReg" if name.startswith(NIFTYREG) else "ITK"
    return f"a transform of {writer}"


@np.errstate(all="ignore")  # what is not finite is refused by ``field_map``
def _read(nifti: NiftiFile, nan: bool) -> tuple[Field, npt.NDArray[np.bool_]]:
    """(3, X, Y, Z) as stored, and where a component is marked as unknown (or NaN)."""
    double = nifti.on_disk == np.dtype("f8").newbyteorder(nifti.on_disk.byteorder)
    stored = np.moveaxis(nifti.read(None if double else np.dtype(np.float32))[:, :, :, 0, :], -1, 0)
    unknown = np.zeros(stored.shape[1:], dtype=np.bool_)
    for component in stored:
        unknown |= marked(component)
        if nan:
            unknown |= np.isnan(component)
    field = stored.astype(np.float32, copy=False)
    if unknown.any():
        field[:, unknown] = 0
    return field, unknown


def from_positions(positions: Field, coordinates_from_vox: Matrix) -> Field:
    """What is left of (3, X, Y, Z) positions without the coordinates of the voxels, worked out in float64."""
    return turned(positions, -coordinates_from_vox, np.eye(3))


@np.errstate(all="ignore")
def _suspected(found: FieldMap) -> bool:
    """Whether displacements look like positions, in either frame."""
    picked, index = thinned(found.domain.shape)
    world = transform_points(found.domain.world_from_vox, index)
    displacement = found.field[(slice(None), *picked)]
    kept = np.ones(displacement.shape[1:], bool) if found.unknown is None else ~found.unknown[picked]
    positions = [world, transform_points(LPS_FROM_RAS, world)]
    apart = [sum(float(np.std((d - p)[kept])) for d, p in zip(displacement, at, strict=True)) for at in positions]
    return min(apart) < SUSPECT * sum(float(np.std(d[kept])) for d in displacement)


def _suspicion(path: Path) -> str:
    return (
        f"{path.name} is read as displacements, but its numbers look like positions: if they are, subtract the "
        "coordinates of the voxels first"
    )
