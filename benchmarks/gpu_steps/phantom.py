"""Heads that nobody was scanned for: nested ellipsoids with folds and texture, each number another head.

What they are for is time and parity, not anatomy: sizes, value ranges, background and compression are those of a
skull-stripped T1 image at 1 mm.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, zoom

Shape = tuple[int, int, int]
# Half axes and centre as shares of the field of view, label and intensity, from the outside in.
PARTS = (
    ((0.44, 0.45, 0.42), (0.0, 0.0, 0.0), 1, 45.0),  # fluid
    ((0.40, 0.41, 0.38), (0.0, 0.0, 0.0), 2, 75.0),  # cortex
    ((0.35, 0.36, 0.33), (0.0, 0.0, 0.01), 3, 110.0),  # white matter
    ((0.08, 0.17, 0.09), (-0.07, 0.01, 0.05), 4, 30.0),  # ventricles
    ((0.08, 0.16, 0.09), (0.07, 0.02, 0.05), 5, 30.0),
    ((0.07, 0.08, 0.07), (-0.13, 0.06, 0.0), 6, 90.0),  # deep grey matter
    ((0.07, 0.08, 0.07), (0.14, 0.05, 0.0), 7, 90.0),
    ((0.16, 0.10, 0.09), (0.0, -0.22, -0.20), 8, 80.0),  # cerebellum
)


def head(shape: Shape, number: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16]]:
    """Intensities of 0 to about 130, and labels 0 to 8, both (X, Y, Z).

    Every head has its own size, place and folds of a few voxels, so that two of them need registration.
    """
    rng = np.random.default_rng(number)
    axes = [np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in shape]
    places = []
    for place in np.meshgrid(*axes, indexing="ij"):
        folds = np.float32(0.015) * smooth_noise(shape, 12, rng) + np.float32(0.006) * smooth_noise(shape, 4, rng)
        moved = place + folds - np.float32(rng.uniform(-0.02, 0.02))
        places.append(moved / np.float32(rng.uniform(0.94, 1.06)))
    labels = np.zeros(shape, np.int16)
    image = np.zeros(shape, np.float32)
    for radii, centre, label, value in PARTS:
        inside = sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii, strict=True)) < 1
        labels[inside], image[inside] = label, value
    texture = smooth_noise(shape, 2, rng)
    return gaussian_filter(image, 0.6) + (labels > 0) * (4 * texture), labels


def smooth_noise(shape: Shape, width: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Of standard deviation about 1, from noise on a grid ``width`` times as coarse."""
    coarse = rng.standard_normal([n // width + 2 for n in shape]).astype(np.float32)
    fine = zoom(coarse, width, order=1)[tuple(slice(n) for n in shape)]
    scaled: npt.NDArray[np.float32] = (fine / fine.std()).astype(np.float32)
    return scaled


def write_heads(folder: Path, shape: Shape, numbers: range, processes: int) -> list[Path]:
    """Images ``head-N.nii.gz`` on oblique grids of 1 mm; those that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"head-{number}-{'x'.join(map(str, shape))}.nii.gz" for number in numbers]
    missing = [(path, shape, number) for path, number in zip(paths, numbers, strict=True) if not path.exists()]
    if len(missing) > 1 and processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(write_head, missing))
    else:
        list(map(write_head, missing))
    return paths


def write_head(job: tuple[Path, Shape, int]) -> None:
    from ofg_deploy.geometry import Grid
    from ofg_deploy.nifti import save_volume

    path, shape, number = job
    image, _ = head(shape, number)
    partial = path.with_name(f"partial-{path.name}")
    save_volume(partial, np.clip(10 * image, 0, None).astype(np.int16), Grid(shape, oblique(shape, number)))
    partial.replace(path)


def oblique(shape: Shape, number: int) -> npt.NDArray[np.float64]:
    """World from voxels: 1 mm, turned by a few degrees and moved by a few millimetres, the head near the origin."""
    rng = np.random.default_rng([7, number])
    matrix: Any = np.eye(4)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        angle = np.radians(rng.uniform(-4, 4))
        turn = np.eye(4)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    matrix[:3, 3] = rng.uniform(-4, 4, 3) - matrix[:3, :3] @ (np.array(shape) - 1) / 2
    return np.asarray(matrix, dtype=np.float64)
