"""Small heads for the tests of synthesis: FreeSurfer's numbers in ellipsoids, different in everybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import save_volume

SHAPE = (40, 36, 34)
TURNED = np.array([[-2.5, 0, 0, 50], [0, 0, 2.5, -40], [0, -2.5, 0, 42], [0, 0, 0, 1.0]])  # LIA, 2.5 mm


def head(seed: int, skull: bool = True) -> np.ndarray:
    """(X, Y, Z) int16: white matter, cortex, ventricles and thalamus of both sides, and skin around if wanted."""
    rng = np.random.default_rng(seed)
    index = np.indices(SHAPE, dtype=float)
    centre = np.array([19.5, 17.5, 16.5]) + rng.uniform(-1.5, 1.5, 3)
    stretch = rng.uniform(0.92, 1.08, 3)
    wave = 0.06 * np.sin(index[0] / 2.5 + rng.uniform(0, 6)) * np.cos(index[2] / 2.2 + rng.uniform(0, 6))

    def inside(*radius: float, at: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
        away = (index - (centre + at)[:, None, None, None]) / (np.array(radius) * stretch)[:, None, None, None]
        return (away**2).sum(axis=0) + wave < 1

    labels = np.zeros(SHAPE, np.int16)
    if skull:
        labels[inside(16, 14.5, 14)] = 507
    labels[inside(13, 12, 11)] = 3
    labels[inside(10.5, 9, 8)] = 2
    labels[inside(2, 3, 2, at=(3.5, -2, 0))] = 4
    labels[inside(2.5, 2.5, 2.5, at=(3, 3, -1))] = 10
    right = index[0] < centre[0]
    labels[right & (labels == 2)], labels[right & (labels == 3)] = 41, 42
    labels[inside(2, 3, 2, at=(-3.5, -2, 0))] = 43
    labels[inside(2.5, 2.5, 2.5, at=(-3, 3, -1))] = 49
    return labels


def make_label_maps(folder: Path, count: int = 5, skull: bool = True) -> Path:
    """A folder of heads ``p0`` and so on."""
    folder.mkdir(parents=True)
    for n in range(count):
        save_volume(folder / f"p{n}.nii.gz", head(n, skull), Grid(SHAPE, TURNED))
    return folder
