"""FreeSurfer's linear transforms (``.lta``): from points of ``src``, which is the image moved, to points of ``dst``."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid, Matrix
from ofg_deploy.transform.maps import LinearMap
from ofg_deploy.transform.matrices import checked_matrix

VOX_TO_VOX, RAS_TO_RAS = 0, 1
MAX_BYTES = 2**20
FIELD = re.compile(r"^[ \t]*(\w+)[ \t]*=([^#\n]*)", flags=re.MULTILINE)
VOLUME = ("volume", "voxelsize", "xras", "yras", "zras", "cras")  # three numbers each
APART_MM = 0.1  # of two geometries that are meant to be one


def is_lta(path: Path, content: bytes) -> bool:
    """By its name, or because it begins as such files do."""
    lines = (line.strip() for line in content[: 2**16].split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return path.name.lower().endswith(".lta") or re.match(rb"type\s*=\s*\d", first) is not None


def load_lta(path: Path, content: bytes, fixed: Grid | None, moving: Grid | None) -> LinearMap:
    """Read one transform between scanner coordinates or voxels.

    Args:
        fixed, moving: grids of the images, if known; a file that names them the other way round gets a warning.

    Raises:
        InputError: damaged, of another type, or several transforms. GeometryError: a matrix that is none.
    """
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes: no .lta")
    text = content.decode("latin1")
    head, _, volumes = text.partition("src volume info")
    source, _, target = volumes.partition("dst volume info")
    fields = dict(FIELD.findall(head))
    if (kind := fields.get("type", "").strip()) not in (str(VOX_TO_VOX), str(RAS_TO_RAS)):
        raise InputError(
            f"{path} is an .lta of type {kind or 'unknown'}: 0 (voxels) and 1 (RAS) are read; lta_convert --inlta FILE "
            "--outlta OUT.lta writes type 1"
        )
    if fields.get("nxforms", "").strip() != "1":
        raise InputError(f"{path} is an .lta of {fields.get('nxforms', 'no').strip()} transforms: one is read")
    matrix = _matrix(path, head)
    frames = [_world_from_vox(part) for part in (source, target)]
    if kind == str(VOX_TO_VOX):
        if frames[0] is None or frames[1] is None:
            raise InputError(f"{path} is an .lta between voxels without the geometry of both volumes (valid = 1)")
        matrix = checked_matrix(frames[1] @ matrix @ np.linalg.inv(frames[0]), path)
    return LinearMap(np.asarray(np.linalg.inv(matrix), dtype=np.float64), warnings=_turned(path, frames, fixed, moving))


def _matrix(path: Path, head: str) -> Matrix:
    _, _, rows = head.partition("1 4 4\n")
    try:
        matrix = np.array([line.split() for line in rows.strip().splitlines()[:4]], dtype=np.float64)
    except ValueError:
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise InputError(f"{path} is truncated or damaged: an .lta with four rows of four numbers is needed")
    return checked_matrix(matrix, path)


def _world_from_vox(text: str) -> Matrix | None:
    """(4, 4) of a volume's description; None where it is not valid."""
    fields = dict(FIELD.findall(text))
    try:
        parts = {name: np.array(fields[name].split(), dtype=np.float64) for name in VOLUME}
    except (KeyError, ValueError):
        return None
    if fields.get("valid", "").strip() != "1" or any(part.shape != (3,) for part in parts.values()):
        return None
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([parts["xras"], parts["yras"], parts["zras"]], axis=1) * parts["voxelsize"]
    matrix[:3, 3] = parts["cras"] - matrix[:3, :3] @ (parts["volume"] / 2)
    return matrix if np.isfinite(matrix).all() and abs(np.linalg.det(matrix)) > 1e-9 else None


def _turned(path: Path, frames: list[Matrix | None], fixed: Grid | None, moving: Grid | None) -> tuple[str, ...]:
    source, target = frames
    if source is None or target is None or fixed is None or moving is None:
        return ()

    def fits(frame: Matrix, grid: Grid) -> bool:
        corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in grid.shape), 1]], dtype=np.float64).T
        return bool(np.abs(frame @ corners - grid.world_from_vox @ corners).max() <= APART_MM)

    if fits(source, fixed) and fits(target, moving) and not (fits(source, moving) and fits(target, fixed)):
        return (f"{path.name} moves the reference onto the image, as its volumes say: [FILE,1] is its inverse",)
    return ()
