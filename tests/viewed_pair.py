"""A registration on disk whose images are known in the world: what ``ofg view`` serves can be worked out by hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

SHAPE, MOVING_SHAPE = (13, 9, 11), (10, 12, 14)
LABELS = (3, 7, 2035)


@dataclass(frozen=True, eq=False)
class Known:
    """The pair: its sidecar, affines of both grids, voxels, and maps fixed points -> moving points (4, 4) RAS mm."""

    sidecar: Path
    fixed_affine: np.ndarray
    moving_affine: np.ndarray
    fixed: np.ndarray
    moving: np.ndarray
    warped: np.ndarray
    labels: np.ndarray
    total: np.ndarray
    start: np.ndarray


def affine(columns: list[list[float]], spacing: list[float], degrees: list[float], origin: list[float]) -> np.ndarray:
    matrix = np.eye(4)
    turned = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, :3] = turned @ np.array(columns, dtype=float).T * spacing
    matrix[:3, 3] = origin
    return matrix


FIXED_AFFINE = affine([[0, -1, 0], [-1, 0, 0], [0, 0, 1]], [2.0, 3.5, 2.5], [7, -5, 11], [21, 13, -14])
RAS_AXES = FIXED_AFFINE[:3, [1, 0, 2]] / [-3.5, -2.0, 2.5]  # directions of the fixed axes, turned to R, A, S
START = np.array([[1.05, 0.02, 0, 1.5], [-0.03, 0.97, 0.01, -2.0], [0, 0.04, 1.02, 0.5], [0, 0, 0, 1]])
TOTAL = np.array([[1.10, 0.05, -0.02, 2.0], [0.01, 0.90, 0.06, -1.0], [-0.04, 0.02, 1.20, 0.7], [0, 0, 0, 1]])


def write_known(folder: Path, name: str = "pair", total: np.ndarray | None = None) -> Known:
    """Axes to the back, the left and up, oblique and of unequal sizes; the moving grid is another such."""
    folder.mkdir(parents=True, exist_ok=True)
    fixed_affine, start, total = FIXED_AFFINE, START, TOTAL if total is None else total
    moving_affine = affine([[1, 0, 0], [0, 1, 0], [0, 0, -1]], [3.0, 2.2, 2.1], [-4, 8, 3], [-12, -14, 15])
    rng = np.random.default_rng(11)
    fixed, warped = (rng.normal(100, 20, SHAPE).astype(np.float32) for _ in range(2))
    moving = rng.normal(500, 90, MOVING_SHAPE).astype(np.float32)
    labels = rng.choice([0, *LABELS], SHAPE).astype(np.int16)
    index = np.indices(SHAPE, dtype=float).reshape(3, -1)
    points = fixed_affine[:3, :3] @ index + fixed_affine[:3, 3:]
    lps = (total[:3, :3] @ points + total[:3, 3:] - points) * [[-1], [-1], [1]]
    field = nib.Nifti1Image(lps.T.reshape(*SHAPE, 1, 3).astype(np.float32), fixed_affine)
    field.header.set_intent(1007)

    images = {
        "fixed": (fixed, fixed_affine),
        "moving": (moving, moving_affine),
        "fixed_labels": (labels, fixed_affine),
        "warped": (warped, fixed_affine),
        "warped_labels": (np.roll(labels, 1, 0), fixed_affine),
    }
    files = {role: folder / f"{name}_{role}.nii.gz" for role in images}
    for role, (data, matrix) in images.items():
        image = nib.Nifti1Image(data, matrix)
        image.header.set_xyzt_units("mm")
        nib.save(image, files[role])
    field.header.set_xyzt_units("mm")
    files["transform"] = folder / f"{name}_Warp.nii.gz"
    nib.save(field, files["transform"])
    inputs = ("fixed", "moving", "fixed_labels")
    digests = {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in files.items()}
    record = {
        "schema": 1,
        "tool": "ofg_deploy",
        "inputs": {role: {"path": files[role].name, "sha256": digests[role]} for role in inputs},
        "outputs": {role: path.name for role, path in files.items() if role not in inputs},
        "written": {
            role: {"bytes": path.stat().st_size, "sha256": digests[role]}
            for role, path in files.items()
            if role not in inputs
        },
        "transform": {"unit": "mm"},
        "init": "affine",
        "start": {"moving_from_fixed": start.tolist()},
        "metrics": {
            "ncc_before": 0.41,
            "ncc_start": 0.62,
            "ncc_after": 0.93,
            "dice_before": 0.5,
            "dice_after": 0.8,
            "folding_percent": 2.5,
            "dice_per_label": {"3": 0.8, "7": 0.75, "2035": 0.85},
        },
        "seconds": {"read": 0.25, "network": 0.5},
        "warnings": ["the <b>moving</b> image has no units"],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return Known(path, fixed_affine, moving_affine, fixed, moving, warped, labels, total, start)
