"""Analyze 7.5 pairs (``.hdr`` with ``.img`` or ``.img.gz``): voxels and spacing, for they know no orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.fileholders import FileHolder

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Spacing
from ofg_deploy.nifti_file import MAX_VOXELS

_HEADER_BYTES = 348
_MAGIC = slice(344, 347)


def is_nifti(path: Path) -> bool:
    """Whether the file is NIfTI by name, or a ``.hdr`` with NIfTI's magic in a pair that nibabel finds by itself."""
    if path.suffix != ".hdr":
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(_HEADER_BYTES)[_MAGIC] == b"ni1" and path.with_suffix(".img").is_file()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def load(path: Path) -> tuple[npt.NDArray[Any], Spacing]:
    """(X, Y, Z) voxels as stored, and their spacing in mm.

    Args:
        path: the header. A plain ``.nii`` or ``.nii.gz`` is refused: it has an orientation of its own.

    Raises:
        InputError: a file is missing, truncated or not one 3-D volume of real numbers.
    """
    if path.suffix != ".hdr":
        raise InputError(f"{path} is not Analyze like its companion: give both files of a subject in one format")
    body = next((b for b in (path.with_suffix(".img"), path.with_suffix(".img.gz")) if b.is_file()), None)
    if body is None:
        raise InputError(f"{path}: missing .img or .img.gz")
    try:
        image = nib.AnalyzeImage.from_file_map({"header": FileHolder(str(path)), "image": FileHolder(str(body))})
        shape = tuple(int(n) for n in image.shape)
        if len(shape) < 3 or set(shape[3:]) - {1} or np.prod(shape, dtype=np.float64) > MAX_VOXELS:
            raise InputError(f"{path} has shape {shape}: one 3-D volume is needed")
        data = np.asarray(image.dataobj).reshape(shape[:3])
        x, y, z = (abs(float(size)) for size in image.header.get_zooms()[:3])
    except InputError:
        raise
    except Exception as error:  # nibabel raises whatever a damaged header leads to
        raise InputError(f"{path} cannot be read as Analyze (truncated or another format): {error}") from error
    if data.dtype.kind not in "iuf" or not all(np.isfinite(s) and s > 0 for s in (x, y, z)):
        raise InputError(f"{path} has voxels of type {data.dtype} and size {x:g}x{y:g}x{z:g} mm: not usable")
    return data, (x, y, z)
