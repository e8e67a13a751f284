"""ITK's composites (.h5) are read in a process of their own: damaged ones crash HDF5's reader, or never end.

That process is ``composite_reader``, with arguments FILE MEGABYTES: what the file holds comes from its standard output
as an .npz, and what is wrong with it from its standard error, as JSON, with an exit code of ``ERRORS``.
"""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import numpy as np

from ofg_deploy.child import command
from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.geometry import Grid
from ofg_deploy.transform.maps import LinearMap, WorldMap, field_map
from ofg_deploy.transform.spline import SplineMap

READER = "ofg_deploy.transform.composite_reader"
LONGEST_S = 60.0  # and a second for each megabyte
# By exit code of that process; 1 and 2 are the interpreter's own.
ERRORS: dict[int, type[InputError]] = {4: GeometryError, 3: InputError}
MEGABYTES = 4096  # of memory, and 64 times the file: HDF5 may be compressed


def read_aside(path: Path) -> list[WorldMap]:
    """Linear maps and fields of a file, the first one applied first.

    Raises:
        InputError: as ``itk.read_composite``; a reader that crashed, or needed memory or time out of all proportion.
    """
    size = 1 + path.stat().st_size // 2**20
    try:
        done = subprocess.run(
            command(READER, str(path), str(MEGABYTES + 64 * size)),
            capture_output=True,
            check=False,
            timeout=LONGEST_S + size,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path} cannot be read as an ITK transform: the reader timed out") from error
    if done.returncode in ERRORS:
        raise ERRORS[done.returncode](json.loads(done.stderr.splitlines()[-1]))
    if done.returncode:
        raise InputError(f"{path} cannot be read as an ITK transform: the reader crashed")
    if b"more than one transform in the file" in done.stderr:  # SimpleITK's warning
        raise InputError(
            f"{path} lists several transforms without a CompositeTransform, of which SimpleITK gives the first only: "
            "antsApplyTransforms -d 3 -r REFERENCE -t FILE -o [total_Warp.nii.gz,1] makes one field of them"
        )
    maps: list[WorldMap] = []
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as parts:
        while (number := str(len(maps))) + "matrix" in parts:
            matrix, field, spline = (parts.get(number + part) for part in ("matrix", "field", "spline"))
            if spline is not None:
                maps.append(SplineMap(spline, Grid(spline.shape[1:], matrix), int(parts[number + "order"])))
            elif field is not None:
                grid, unknown = Grid(field.shape[1:], matrix), parts.get(number + "unknown")
                maps.append(field_map(field, grid, path, unknown=unknown))
            else:
                maps.append(LinearMap(matrix))
    return maps
