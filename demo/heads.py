"""Two heads, registered by ``ofg register FIXED MOVING`` and nothing else, beside what was there before.

The heads are the MNI152 template under two independent random deformations (``subjects.py``), in different contrasts,
voxel sizes and orientations, the moving one turned and shifted. No scan of two people comes with any package, so the
demo makes its own; their tissue labels are true by construction and are used for the figures only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from subjects import CENTRE_MM, make_subject, scanner

from ofg_deploy.field import jacobian_determinant
from ofg_deploy.geometry import Grid, thinned, transform_points
from ofg_deploy.metrics import dice, folding_percent, mean
from ofg_deploy.nifti import load_image, load_labels, load_transform, save_volume

FIXED = scanner("RAS", (120, 144, 116), (1.5, 1.5, 1.5))
MOVING = scanner("LPS", (98, 118, 88), (1.8, 1.8, 2.0))
TURN_DEGREES, SHIFT_MM = 7.0, (6.0, -9.0, 5.0)

SYN = """
import sys, ants, time
fixed, moving, labels, out = sys.argv[1:]
images = ants.image_read(fixed), ants.image_read(moving)
started = time.perf_counter()
found = ants.registration(*images, "SyN", outprefix=out + "/")
seconds = time.perf_counter() - started
ants.image_write(found["warpedmovout"], out + "/warped.nii.gz")
moved = ants.apply_transforms(images[0], ants.image_read(labels), found["fwdtransforms"], "nearestNeighbor")
ants.image_write(moved, out + "/labels.nii.gz")
ants.apply_transforms(images[0], images[1], found["fwdtransforms"], compose=out + "/total")
print(seconds)
"""


@dataclass(frozen=True, eq=False)
class Result:
    """One way to bring the moving head to the fixed one.

    Attributes:
        name: of the method.
        warped: (X, Y, Z) on the fixed grid.
        labels: the moving head's labels there.
        displacement_mm: (3, X, Y, Z) world RAS mm, the total map; None where nothing is deformed.
        moving_from_fixed: (4, 4) the affine part of it.
        seconds: of the command, or of the call of a library.
        dice: mean over the three tissues.
        folding_percent: of the total map.
    """

    name: str
    warped: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    displacement_mm: npt.NDArray[Any] | None
    moving_from_fixed: npt.NDArray[np.float64]
    seconds: float | None
    dice: float
    folding_percent: float


def write_heads(folder: Path) -> None:
    """``fixed.nii.gz`` and ``moving.nii.gz`` with ``*_labels.nii.gz``."""
    folder.mkdir(parents=True, exist_ok=True)
    angle = np.deg2rad(TURN_DEGREES)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = CENTRE_MM - turn[:3, :3] @ CENTRE_MM + SHIFT_MM
    for name, seed, grid, motion in (("fixed", 2001, FIXED, np.eye(4)), ("moving", 2002, MOVING, turn)):
        subject = make_subject(seed, grid)
        where = Grid(grid.shape, motion @ grid.world_from_vox)  # the head moved in the scanner
        save_volume(folder / f"{name}.nii.gz", subject.image, where)
        save_volume(folder / f"{name}_labels.nii.gz", subject.labels, where)


def register(folder: Path) -> list[Result]:
    """Before, affine, ours, and SyN where ANTsPy is installed."""
    fixed = load_labels(folder / "fixed_labels.nii.gz")
    started = time.perf_counter()
    _ofg(folder, "register", "fixed.nii.gz", "moving.nii.gz")
    seconds = time.perf_counter() - started
    record = json.loads((folder / "moving_to_fixed.json").read_text())
    identity = folder / "identity.txt"
    identity.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    ways = {
        "before": (identity.name, None),
        "affine": ("moving_to_fixed_0GenericAffine.mat", record["seconds"].get("prepare")),
        "ofg register": ("moving_to_fixed_Warp.nii.gz", seconds),
    }
    found = []
    for name, (transform, took) in ways.items():
        image, labels = f"{name.split()[0]}.nii.gz", f"{name.split()[0]}_labels.nii.gz"
        _ofg(folder, "apply", "moving.nii.gz", "-t", transform, "-r", "fixed.nii.gz", "-o", image)
        nearest = ("--interpolation", "nearest")
        _ofg(folder, "apply", "moving_labels.nii.gz", "-t", transform, "-r", "fixed.nii.gz", "-o", labels, *nearest)
        total = load_transform(folder / transform)[0] if transform.endswith("_Warp.nii.gz") else None
        found.append(_result(name, folder / image, folder / labels, total, took, fixed.data))
    if find_spec("ants"):
        found.append(_syn(folder, fixed.data))
    return found


def _syn(folder: Path, fixed: npt.NDArray[Any]) -> Result:
    out = folder / "syn"
    out.mkdir()
    given = [str(folder / name) for name in ("fixed.nii.gz", "moving.nii.gz", "moving_labels.nii.gz")]
    done = subprocess.run([sys.executable, "-c", SYN, *given, str(out)], check=True, capture_output=True, text=True)
    total = load_transform(out / "totalcomptx.nii.gz")[0]
    seconds = float(done.stdout.split()[-1])
    return _result("ANTs SyN", out / "warped.nii.gz", out / "labels.nii.gz", total, seconds, fixed)


def _result(
    name: str,
    image: Path,
    labels: Path,
    total: npt.NDArray[Any] | None,
    seconds: float | None,
    fixed: npt.NDArray[Any],
) -> Result:
    warped, moved = load_image(image), load_labels(labels)
    folds = 0.0 if total is None else folding_percent(jacobian_determinant(total, warped.grid.world_from_vox))
    overlap = mean(dice(fixed, moved.data)) or 0.0
    return Result(name, warped.data, moved.data, total, _affine_part(total, warped.grid), seconds, overlap, folds)


def _affine_part(total: npt.NDArray[Any] | None, grid: Grid) -> npt.NDArray[np.float64]:
    """(4, 4) least squares affine of a total map, so that pictures of all methods leave out the same."""
    matrix = np.eye(4)
    if total is not None:
        picked, index = thinned(grid.shape)
        points = transform_points(grid.world_from_vox, index).reshape(3, -1)
        there = points + total[(slice(None), *picked)].reshape(3, -1)
        matrix[:3] = np.linalg.lstsq(np.vstack([points, np.ones(points.shape[1])]).T, there.T, rcond=None)[0].T
    return matrix


def _ofg(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "ofg_deploy", *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL)
