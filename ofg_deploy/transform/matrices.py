"""Text files of four rows of four numbers: which world they speak of, none of them says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.geometry import Grid, Matrix
from ofg_deploy.nifti_space import FARTHEST_MM
from ofg_deploy.transform.relative import fsl_from_world

MAX_BYTES = 2**16


def parse_matrix(content: bytes) -> Matrix | None:
    """(4, 4), or None if it is no such file. Lines that begin with # are comments."""
    if len(content) > MAX_BYTES:
        return None
    try:
        lines = [line.split() for line in content.decode("utf-8-sig").splitlines() if line.split("#")[0].strip()]
        matrix = np.array([[float(cell) for cell in line] for line in lines], dtype=np.float64)
    except ValueError:
        return None
    return matrix if matrix.shape == (4, 4) else None


def checked_matrix(matrix: Matrix, path: Path) -> Matrix:
    """As it is. Raises GeometryError unless it is an affine map that can be inverted and stays near a scan."""
    with np.errstate(all="ignore"):
        sound = (np.abs(matrix) <= FARTHEST_MM).all() and np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6)
        if not sound or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise GeometryError(f"{path} holds a matrix that is singular, not finite, or no affine map")
    return matrix


def from_flirt(reference_from_input: Matrix, fixed: Grid, moving: Grid) -> Matrix:
    """(4, 4) moving_from_fixed in RAS mm of a FLIRT matrix, which maps the input's scaled voxels to the reference's."""
    input_from_reference = np.linalg.inv(reference_from_input)
    there = np.linalg.inv(fsl_from_world(moving)) @ input_from_reference @ fsl_from_world(fixed)
    return np.asarray(there, dtype=np.float64)


def ambiguous(path: Path) -> InputError:
    """What to say of four rows of numbers without a ``format``."""
    return InputError(
        f"{path} is a 4x4 matrix as text, which does not say what it maps: ofg apply with `format=fsl` reads it as "
        "FLIRT's, with `format=greedy` as one of Greedy, c3d_affine_tool or NiftyReg (RAS mm, fixed to moving)"
    )
