"""The process that ``aside`` starts: reads a composite of ITK within a limit of memory, and hands on what it holds."""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.transform.aside import ERRORS
from ofg_deploy.transform.itk import read_composite
from ofg_deploy.transform.maps import FieldMap, LinearMap
from ofg_deploy.transform.spline import SplineMap


def _hand_over(path: Path, megabytes: int) -> None:
    with suppress(ValueError):  # macOS takes no such limit: a process there maps more from its start
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever the libraries print is none of it
        try:
            maps = read_composite(path)
        except InputError as error:
            print(json.dumps(str(error)), file=sys.stderr)
            sys.exit(next(code for code, kind in ERRORS.items() if isinstance(error, kind)))
        parts: dict[str, Any] = {}
        for number, each in enumerate(maps):
            if isinstance(each, FieldMap):
                parts[f"{number}field"], parts[f"{number}matrix"] = each.field, each.domain.world_from_vox
                if each.unknown is not None:
                    parts[f"{number}unknown"] = each.unknown
            elif isinstance(each, SplineMap):
                parts[f"{number}spline"], parts[f"{number}order"] = each.coefficients, each.order
                parts[f"{number}matrix"] = each.control.world_from_vox
            elif isinstance(each, LinearMap):
                parts[f"{number}matrix"] = each.moving_from_fixed
        np.savez(out, **parts)


if __name__ == "__main__":
    _hand_over(Path(sys.argv[1]), int(sys.argv[2]))
