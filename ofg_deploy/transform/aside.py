"""ITK's composites (.h5) are read in a process of their own: damaged ones bring HDF5's reader down, or to no end.

Run with arguments FILE MEGABYTES this module is that process: what the file holds goes to its standard output as an
.npz, and what is wrong with it to its standard error, with exit code 3.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy.child import command
from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid
from ofg_deploy.transform.maps import FieldMap, LinearMap, WorldMap

LONGEST_S = 60.0  # and a second for each megabyte
MEGABYTES = 4096  # of memory, and 64 times the file: HDF5 may be compressed


def read_aside(path: Path) -> list[WorldMap]:
    """Linear maps and fields of a composite, the first one applied first.

    Raises:
        InputError: as ``itk.read_composite``; a reader that crashed, or needed memory or time out of all proportion.
    """
    size = 1 + path.stat().st_size // 2**20
    try:
        done = subprocess.run(
            command(__name__, str(path), str(MEGABYTES + 64 * size)),
            capture_output=True,
            check=False,
            timeout=LONGEST_S + size,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path} cannot be read as an ITK transform: its reader came to no end") from error
    if done.returncode == InputError.exit_code:
        raise InputError(done.stderr.decode(errors="replace").splitlines()[-1])
    if done.returncode:
        raise InputError(f"{path} cannot be read as an ITK transform: it brought its reader down")
    maps: list[WorldMap] = []
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as parts:
        while (number := str(len(maps))) + "matrix" in parts:
            matrix, field = parts[number + "matrix"], parts.get(number + "field")
            maps.append(LinearMap(matrix) if field is None else FieldMap(field, Grid(field.shape[1:], matrix)))
    return maps


def _hand_over(path: Path, megabytes: int) -> None:
    from ofg_deploy.transform.itk import read_composite

    with suppress(ValueError):  # macOS takes no such limit: a process there maps more from its start
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever the libraries print is none of it
        try:
            maps = read_composite(path)
        except InputError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
        parts: dict[str, Any] = {}
        for number, each in enumerate(maps):
            if isinstance(each, FieldMap):
                parts[f"{number}field"], parts[f"{number}matrix"] = each.field, each.domain.world_from_vox
            elif isinstance(each, LinearMap):
                parts[f"{number}matrix"] = each.moving_from_fixed
        np.savez(out, **parts)


if __name__ == "__main__":
    _hand_over(Path(sys.argv[1]), int(sys.argv[2]))
