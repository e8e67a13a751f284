"""Two sets for ``guidance_quality.py``: hippocampus MRI, and brains with intensities made from their label maps.

All subjects are brought affinely to one training subject, and the networks see them on one small grid there. Scores are
taken on the fixed image's own grid, through both affines and the field at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ofg_deploy import metrics
from ofg_deploy.affine import align
from ofg_deploy.field import resample
from ofg_deploy.geometry import Grid, Shape, lattice, transform_points
from ofg_deploy.nifti import load_image, load_labels, save_volume

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
SPLITS = ("training", "validation", "test")
FACTOR = 3  # mm of a brain's voxel; the label maps have 1 mm

# T1-like means by FreeSurfer's numbers, both sides alike; what is not named here is not part of the brain.
INTENSITY = {
    **{2: 0.85, 3: 0.55, 4: 0.15, 5: 0.15, 7: 0.8, 8: 0.52, 10: 0.68, 11: 0.58, 12: 0.62, 13: 0.74, 14: 0.15},
    **{15: 0.15, 16: 0.76, 17: 0.54, 18: 0.53, 24: 0.12, 26: 0.57, 28: 0.72, 30: 0.5},
    **{41: 0.85, 42: 0.55, 43: 0.15, 44: 0.15, 46: 0.8, 47: 0.52, 49: 0.68, 50: 0.58, 51: 0.62, 52: 0.74},
    **{53: 0.54, 54: 0.53, 58: 0.57, 60: 0.72, 62: 0.5},
}
# Scored: everything with a boundary of its own at 3 mm.
STRUCTURES = (2, 3, 4, 7, 8, 10, 11, 12, 13, 16, 17, 18, 28, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60)


@dataclass(frozen=True, eq=False)
class Subjects:
    """A set in its common frame.

    Attributes:
        names: of the subjects, in the order of ``images``.
        images: (N, X, Y, Z) float32 in 0..1 on ``grid``.
        affines: (N, 4, 4) own_from_common, mm.
        grid: of the common frame.
        pairs: (fixed, moving) indices by split.
        files: image and label map of each subject on its own grid.
        evaluated: label numbers that count.
    """

    names: list[str]
    images: np.ndarray
    affines: np.ndarray
    grid: Grid
    pairs: dict[str, list[tuple[int, int]]]
    files: list[tuple[Path, Path]]
    evaluated: tuple[int, ...]

    def dice(self, field: np.ndarray, fixed: int, moving: int) -> float:
        """Mean Dice of the moving labels warped onto the fixed image's grid.

        Args:
            field: (3, X, Y, Z) voxels of ``grid``.
        """
        truth, source = (load_labels(self.files[n][1]) for n in (fixed, moving))
        common_from_fixed = self.grid.vox_from_world @ np.linalg.inv(self.affines[fixed]) @ truth.grid.world_from_vox
        index = transform_points(common_from_fixed, lattice(truth.grid.shape))
        index = index + np.stack([map_coordinates(c, index, order=1, mode="nearest") for c in field])
        moving_from_common = source.grid.vox_from_world @ self.affines[moving] @ self.grid.world_from_vox
        place = transform_points(moving_from_common, index)
        return self.score(truth.data, map_coordinates(source.data, place, order=0, mode="constant"))

    def score(self, truth: np.ndarray, warped: np.ndarray) -> float:
        """Mean Dice over the labels that count."""
        found = metrics.dice(truth, warped)
        return float(np.mean([found[n] for n in self.evaluated if found.get(n) is not None]))


def load(name: str, work: Path) -> Subjects:
    """``hippocampus`` or ``brains``; brought to the common frame once, then read from ``work``."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    files, splits, pairs, evaluated, shape = {"hippocampus": _hippocampus, "brains": _brains}[name](folder)
    order = [n for split in SPLITS for n in splits[split]]
    stored = folder / "common.npz"
    if not stored.exists():
        _bring_together([files[n] for n in order], len(splits["training"]), shape, stored)
    index = {n: i for i, n in enumerate(order)}
    with np.load(stored) as arrays:
        grid = Grid(shape, arrays["world_from_vox"])
        images, affines = arrays["images"], arrays["affines"]
    by_index = {split: [(index[a], index[b]) for a, b in listed] for split, listed in pairs.items()}
    return Subjects(order, images, affines, grid, by_index, [files[n] for n in order], evaluated)


def _bring_together(files: list[tuple[Path, Path]], training: int, shape: Shape, stored: Path) -> None:
    volumes = [load_image(image) for image, _ in files]
    sizes = np.array([v.grid.shape for v in volumes[:training]])
    target = volumes[int(np.argmin(np.abs(sizes - np.median(sizes, axis=0)).sum(axis=1)))]
    world_from_vox = target.grid.world_from_vox.copy()
    world_from_vox[:3, 3] += world_from_vox[:3, :3] @ np.round((np.array(target.grid.shape) - shape) / 2)
    grid = Grid(shape, world_from_vox)
    affines = [np.eye(4) if v is target else align(target, v).moving_from_fixed for v in volumes]
    images = [
        resample(_normalised(v.data), v.grid, grid, a).astype(np.float32) for v, a in zip(volumes, affines, strict=True)
    ]
    np.savez(stored, images=np.stack(images), affines=np.stack(affines), world_from_vox=world_from_vox)


def _normalised(data: np.ndarray) -> np.ndarray:
    low, high = np.percentile(data, (0.5, 99.5))
    return np.clip((data - low) / (high - low), 0, 1)


Described = tuple[dict[str, tuple[Path, Path]], dict[str, list[str]], dict[str, Any], tuple[int, ...], Shape]


def _hippocampus(folder: Path) -> Described:
    data = SHARED / "hippocampus"
    given = json.loads((data / "splits.json").read_text())
    splits = {split: given[split] for split in SPLITS}
    files = {n: (data / f"images/{n}.nii.gz", data / f"labels/{n}.nii.gz") for s in SPLITS for n in splits[s]}
    held = splits["validation"]
    pairs = {
        "training": _every(splits["training"]),
        "validation": [(held[i], held[(i + 7) % len(held)]) for i in range(len(held))],
        "test": [(p["fixed"], p["moving"]) for p in given["test_pairs"]],
    }
    return files, splits, pairs, (1, 2), (40, 56, 40)


def _brains(folder: Path) -> Described:
    sources = sorted((SHARED / "brain_label_maps").glob("*.nii.gz"))
    names = [f"brain_{n:02d}" for n in range(1, len(sources) + 1)]
    files = {n: (folder / f"{n}.nii.gz", folder / f"{n}_labels.nii.gz") for n in names}
    for number, (name, source) in enumerate(zip(names, sources, strict=True)):
        if not files[name][1].exists():
            _make_brain(source, number, *files[name])
    splits = {"training": names[:10], "validation": names[10:12], "test": names[12:]}
    return files, splits, {s: _every(splits[s]) for s in SPLITS}, STRUCTURES, (56, 64, 48)


def _every(names: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for a in names for b in names if a != b]


def _make_brain(source: Path, seed: int, image_file: Path, labels_file: Path) -> None:
    """Intensities by label at 1 mm, then partial volume, a bias field and noise at 3 mm. Everybody differs a little."""
    rng, whole = np.random.default_rng(seed), load_labels(source)
    brain = np.isin(whole.data, list(INTENSITY))
    places = np.argwhere(brain & (whole.data != 24))
    low = places.min(axis=0) - 2 * FACTOR
    size = -(-(places.max(axis=0) + 2 * FACTOR + 1 - low) // FACTOR) * FACTOR
    crop = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
    labels = np.where(brain, whole.data, 0)[crop].astype(np.int32)
    means = np.zeros(max(INTENSITY) + 1, np.float32)
    jitter = dict.fromkeys(sorted(set(INTENSITY.values())), 0.0)
    jitter = {value: rng.normal(0, 0.02) for value in jitter}  # of tissues, so that both sides stay alike
    for number, value in INTENSITY.items():
        means[number] = value + jitter[value]
    fine = means[labels] + 0.03 * gaussian_filter(rng.standard_normal(labels.shape), 1.0) * (labels > 0)
    x, y, z = (n // FACTOR for n in labels.shape)
    coarse = fine.reshape(x, FACTOR, y, FACTOR, z, FACTOR).mean(axis=(1, 3, 5))
    bias = gaussian_filter(rng.standard_normal(coarse.shape), 12)
    image = coarse * (1 + 0.1 * bias / np.abs(bias).max()) + 0.02 * rng.standard_normal(coarse.shape) * (coarse > 0.02)
    matrix = whole.grid.world_from_vox.copy()
    middle = (FACTOR - 1) // 2
    matrix[:3, 3] += matrix[:3, :3] @ (low + middle)
    matrix[:3, :3] *= FACTOR
    grid = Grid((x, y, z), matrix)
    save_volume(image_file, np.maximum(image, 0).astype(np.float32), grid)
    save_volume(labels_file, labels[middle::FACTOR, middle::FACTOR, middle::FACTOR].astype(np.uint8), grid)


def syn(subjects: Subjects, pairs: list[tuple[int, int]]) -> Iterator[tuple[float, float]]:
    """Dice and seconds of ANTsPy's SyN with its defaults, its own affine start included. Raises ImportError."""
    import ants

    for fixed, moving in pairs:
        images = [ants.image_read(str(subjects.files[n][0])) for n in (fixed, moving)]
        labels = ants.image_read(str(subjects.files[moving][1]))
        start = time.perf_counter()
        found = ants.registration(images[0], images[1], "SyN")
        seconds = time.perf_counter() - start
        warped = ants.apply_transforms(images[0], labels, found["fwdtransforms"], interpolator="nearestNeighbor")
        truth = load_labels(subjects.files[fixed][1])
        yield subjects.score(truth.data, np.rint(warped.numpy()).astype(np.int32)), seconds


def syn_behind_affine(subjects: Subjects, pairs: list[tuple[int, int]]) -> Iterator[tuple[float, float]]:
    """The same of its deformable part alone, on what the networks see. Raises ImportError."""
    import ants

    for fixed, moving in pairs:
        images = [ants.from_numpy(subjects.images[n]) for n in (fixed, moving)]  # a voxel is a millimetre
        start = time.perf_counter()
        found = ants.registration(*images, "SyNOnly", initial_transform="identity")
        seconds = time.perf_counter() - start
        [warp] = [name for name in found["fwdtransforms"] if name.endswith("Warp.nii.gz")]
        field = np.moveaxis(ants.image_read(warp).numpy(), -1, 0)
        yield subjects.dice(field, fixed, moving), seconds
