"""The bytes of a NIfTI file that we write: one compressed stream, the same bytes for the same voxels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from ofg_deploy.geometry import Grid

LEVEL = 1  # of ISA-L: ten times faster than zlib's 1, and within 5 % of its size on fields
GZIP = 31  # window of 32 KiB in a gzip wrapper; no name and no time in it
CHUNK_BYTES = 2**20  # packed at once: memory stays at the volume and this


@dataclass(frozen=True)
class Time:
    """The fourth axis of a series, as its header has it.

    Attributes:
        volumes: how many.
        step: from one to the next (``pixdim[4]``). unit: its code, the upper bits of ``xyzt_units``.
        offset: of the first one (``toffset``).
    """

    volumes: int
    step: float
    unit: int
    offset: float


def write(
    path: Path,
    parts: Iterable[npt.NDArray[Any]],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    grid: Grid,
    space_code: int,
    intent: int = 0,
    time: Time | None = None,
    units: str = "mm",
) -> None:
    """Write a NIfTI-1 file with sform and qform both set to the grid, in mm; packed if its name ends in ``.gz``.

    Args:
        parts: the voxels in the order of the file, in one array or in several; (X, Y, Z) each.
        shape: of the file, any axes after the first three.
        time: of a series, whose axis is the fourth of ``shape``.
        units: of length: ``mm``, or ``unknown`` where the grid's are those of a header that names none.
    """
    image = nib.Nifti1Image(np.broadcast_to(np.zeros((), dtype), shape), grid.world_from_vox)
    image.header.set_xyzt_units(units)
    image.set_sform(grid.world_from_vox, space_code)
    image.set_qform(grid.world_from_vox, space_code)
    if time:
        image.header["pixdim"][4], image.header["toffset"] = time.step, time.offset
        image.header["xyzt_units"] = int(image.header["xyzt_units"]) | time.unit
    if intent:
        image.header.set_intent(intent)
    image.header.set_slope_inter(1, 0)
    image.header["magic"], image.header["vox_offset"] = b"n+1", 352
    packer = isal_zlib.compressobj(LEVEL, wbits=GZIP) if path.suffix == ".gz" else None
    with path.open("wb") as stream:
        head = image.header.binaryblock + bytes(4)
        stream.write(packer.compress(head) if packer else head)
        for part in parts:
            # A file's order is Fortran's: in memory that is the array with its axes reversed.
            content = np.ascontiguousarray(part.T).data.cast("B")
            for start in range(0, len(content), CHUNK_BYTES):
                chunk = content[start : start + CHUNK_BYTES]
                stream.write(packer.compress(chunk) if packer else chunk)
        if packer:
            stream.write(packer.flush())
