"""Pairs on which registration tools are compared: images and label maps, the moving ones brought to the fixed grid.

Every tool starts from the same affine, which is in the moving files. Whole brains are rendered from label maps of two
people (``MEANS``: an intensity for each structure, with blur, texture, noise), T1-like or with other contrasts on the
moving side; hippocampi are real; abdomens are label phantoms of organs that slide along a body wall that stays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ofg_deploy.affine import align
from ofg_deploy.field import resample
from ofg_deploy.geometry import Grid, transform_points
from ofg_deploy.nifti import Volume, load_image, load_labels, save_volume

DATA = Path(__file__).resolve().parents[2] / "shared/data"
HEAD_SHAPE = (160, 192, 224)

# FreeSurfer's structures and a T1-like mean for each; left and right alike.
MEANS = {
    2: 110, 3: 70, 4: 20, 5: 20, 7: 105, 8: 68, 10: 92, 11: 80, 12: 86, 13: 102,
    14: 22, 15: 22, 16: 100, 17: 73, 18: 70, 24: 18, 26: 78, 28: 96, 41: 110, 42: 70,
    43: 20, 44: 20, 46: 105, 47: 68, 49: 92, 50: 80, 51: 86, 52: 102, 53: 73, 54: 70,
    58: 78, 60: 96,
}  # fmt: skip
CONTRASTS = ("T1", "T2", "FLAIR", "EPI", "random")


@dataclass(frozen=True)
class Pair:
    """Files of one pair, all on the fixed grid but for ``moving`` and ``moving_labels``, which may have their own."""

    fixed: Path
    moving: Path
    fixed_labels: Path
    moving_labels: Path


def heads(work: Path, numbers: list[int], contrast: str = "T1") -> Pair:
    """Two rendered heads, the fixed one T1-like; made once in a folder."""
    made = Pair(*(work / f"{name}.nii.gz" for name in ("fixed", "moving", "fixed_labels", "moving_labels")))
    if all(path.exists() for path in vars(made).values()):
        return made
    work.mkdir(parents=True, exist_ok=True)
    (first, a), (second, b) = (_head(n, c) for n, c in zip(numbers, ("T1", contrast), strict=True))
    affine = align(first, second if contrast == "T1" else _head(numbers[1], "T1")[0], "affine")
    inside = np.argwhere(a > 0)
    corner = ((inside.min(axis=0) + inside.max(axis=0) + 1) // 2) - np.array(HEAD_SHAPE) // 2
    matrix = first.grid.world_from_vox.copy()
    matrix[:3, 3] += matrix[:3, :3] @ corner
    grid = Grid(HEAD_SHAPE, matrix)
    for volume, labels, to, path, drawn in (
        (first, a, np.eye(4), made.fixed, made.fixed_labels),
        (second, b, _matrix(affine), made.moving, made.moving_labels),
    ):
        values = np.rint(10 * np.clip(resample(volume.data, volume.grid, grid, to), 0, None))
        save_volume(path, values.astype(np.int16), grid)
        save_volume(drawn, resample(labels, volume.grid, grid, to, order=0), grid)
    return made


def _head(number: int, contrast: str) -> tuple[Volume, Any]:
    path = sorted((DATA / "brain_label_maps").glob("*.nii.gz"))[number]
    volume = load_labels(path)
    labels = np.where(np.isin(volume.data, list(MEANS)), volume.data, 0).astype(np.int16)
    table, rng = np.zeros(labels.max() + 1, np.float32), np.random.default_rng(number)
    table[list(MEANS)] = [_mean(label, contrast) for label in MEANS]
    image = gaussian_filter(table[labels], 1.5 if contrast == "EPI" else 0.7)
    texture = gaussian_filter(rng.normal(0, 1, labels.shape), 1.0)
    image += (labels > 0) * (rng.normal(0, 2, labels.shape) + 3 * texture / texture.std())
    return Volume(image.astype(np.float32), volume.grid, path), labels


def _mean(label: int, contrast: str) -> float:
    t1, fluid = float(MEANS[label]), MEANS[label] < 30
    if contrast == "T2":
        return 150 - t1
    if contrast == "FLAIR":  # grey matter above white, fluid dark
        return 20.0 if fluid else 160 - t1
    if contrast == "EPI":  # fluid bright, little between grey and white matter
        return 130.0 if fluid else 110 - 0.3 * t1
    if contrast == "random":  # left and right alike
        return float(np.random.default_rng(MEANS[label]).uniform(20, 130))
    return t1


def hippocampi(work: Path, split: str, count: int) -> list[Pair]:
    """Real pairs of ``validation`` or ``test``, moving resampled by our affine start."""
    splits, root = json.loads((DATA / "hippocampus/splits.json").read_text()), DATA / "hippocampus"
    held = splits["validation"]
    named = [(held[i], held[(i + 7) % len(held)]) for i in range(len(held))]
    if split == "test":
        named = [(p["fixed"], p["moving"]) for p in splits["test_pairs"]]
    pairs = []
    for n, (a, b) in enumerate(named[:count]):
        folder = work / f"{split}_{n:02d}"
        made = Pair(*(folder / f"{name}.nii.gz" for name in ("fixed", "moving", "fixed_labels", "moving_labels")))
        if not made.moving_labels.exists():
            folder.mkdir(parents=True, exist_ok=True)
            fixed, moving = (load_image(root / "images" / f"{name}.nii.gz") for name in (a, b))
            drawn = [load_labels(root / "labels" / f"{name}.nii.gz") for name in (a, b)]
            affine = _matrix(align(fixed, moving, "affine"))
            save_volume(made.fixed, fixed.data, fixed.grid)
            # Edge values are held beyond the moving image: zeros would be an edge that no tool knows to be none.
            index = transform_points(
                moving.grid.vox_from_world @ affine @ fixed.grid.world_from_vox,
                np.indices(fixed.grid.shape, dtype=float),
            )
            carried = map_coordinates(moving.data.astype(np.float32), index, order=1, mode="nearest")
            save_volume(made.moving, carried, fixed.grid)
            save_volume(made.fixed_labels, drawn[0].data.astype(np.int16), fixed.grid)
            labels = resample(drawn[1].data, drawn[1].grid, fixed.grid, affine, order=0)
            save_volume(made.moving_labels, labels.astype(np.int16), fixed.grid)
        pairs.append(made)
    return pairs


# Centre and half axes in mm of a body of 340 x 240 x 240 mm, intensity, and how far it moves along the body, in mm.
ORGANS = {
    1: ((-70, 10, 30), (75, 70, 65), 110, 30),  # liver
    2: ((85, -30, 40), (35, 30, 45), 120, 25),  # spleen
    3: ((-60, -50, -45), (25, 25, 45), 140, 15),  # right kidney
    4: ((62, -50, -35), (25, 25, 45), 140, 18),  # left kidney
    5: ((45, 40, 20), (40, 35, 35), 70, 20),  # stomach
    6: ((0, -75, 0), (22, 22, 200), 170, 0),  # spine, which stays
    7: ((0, -38, 0), (11, 11, 200), 150, 0),  # aorta, which stays
}


def abdomen(work: Path, seed: int = 0) -> Pair:
    """A phantom on 170 x 120 x 120 voxels of 2 mm: organs shift by up to 30 mm along the body and change their size."""
    made = Pair(*(work / f"{name}.nii.gz" for name in ("fixed", "moving", "fixed_labels", "moving_labels")))
    if made.moving_labels.exists():
        return made
    work.mkdir(parents=True, exist_ok=True)
    grid = Grid(
        (170, 120, 120), np.diag([2.0, 2.0, 2.0, 1.0]) + np.array([[0, 0, 0, v] for v in (-170, -120, -120, 0)])
    )
    where = np.indices(grid.shape) * 2.0 - np.array([170, 120, 120]).reshape(3, 1, 1, 1)
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(96, 96, 96)), 1.5, mode="wrap")
    texture /= texture.std()
    for moved, path, drawn in ((0.0, made.fixed, made.fixed_labels), (1.0, made.moving, made.moving_labels)):
        body = (where[0] / 165) ** 2 + (where[1] / 112) ** 2 < 1
        image, labels = np.where(body, 50.0, 0.0), np.zeros(grid.shape, np.int16)
        image += np.where(body, 6 * map_coordinates(texture, where / 4 + 300, order=1, mode="grid-wrap"), 0)
        for label, (centre, axes, value, shift) in ORGANS.items():
            size = 1 + moved * rng.uniform(-0.1, 0.1) * (shift > 0)
            own = where - np.array(centre, float).reshape(3, 1, 1, 1)
            own[2] += moved * shift
            own /= size
            wave = 1 + 0.08 * np.sin(own[0] / 12 + label) * np.cos(own[1] / 15) * np.sin(own[2] / 13 + 2 * label)
            inside = body & (sum((own[i] / axes[i]) ** 2 for i in range(3)) < wave)
            labels[inside] = label
            grain = map_coordinates(texture, own / 3 + 40 * label, order=1, mode="grid-wrap")
            image = np.where(inside, value + 8 * grain, image)
        image = gaussian_filter(image, 0.6) + rng.normal(0, 4, grid.shape)
        save_volume(path, np.rint(10 * np.clip(image, 0, None)).astype(np.int16), grid)
        save_volume(drawn, labels, grid)
    return made


def _matrix(found: Any) -> Any:
    """(4, 4) of a start, which is that or holds it."""
    return getattr(found, "moving_from_fixed", found)
