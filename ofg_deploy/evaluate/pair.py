"""Evaluate one pair: from its files to its figures, top to bottom in ``evaluate``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy import metrics
from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.evaluate.pairs import Pair
from ofg_deploy.field import jacobian_determinant, resample, warp
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import Volume, load_labels, load_space
from ofg_deploy.nifti_file import MAX_VOXELS
from ofg_deploy.options.words import PointsFrame
from ofg_deploy.outputs import sha256_file
from ofg_deploy.surfels import hd95_l2r
from ofg_deploy.transform.dialects import load_map
from ofg_deploy.transform.landmarks import match, target_registration_error
from ofg_deploy.transform.maps import LinearMap, WorldMap, on_grid
from ofg_deploy.transform.points import load_points
from ofg_deploy.transform.resample import outside_warning

Names = dict[int, str]
Rows = tuple[tuple[float, ...], ...]
Numbers = dict[str, float | int | None]


@dataclass(frozen=True)
class LabelScore:
    """One label of a pair. ``hd95_mm`` and ``hd95_l2r`` are None where the label is in one of both maps only."""

    label: int
    name: str
    dice: float
    hd95_mm: float | None
    hd95_l2r: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was found: figures by column of ``results.csv``, labels, files with their sha256, and warnings."""

    pair: Pair
    numbers: Numbers
    labels: tuple[LabelScore, ...]
    inputs: dict[str, dict[str, str]]
    warnings: tuple[str, ...]


def evaluate(pair: Pair, names: Names | None, space: PointsFrame | None, max_voxels: int = MAX_VOXELS) -> Evaluation:
    """Dice, HD95, folding and landmark distances of one pair, as far as its files allow.

    Moving labels are fetched once, by nearest neighbour through the total map, on the fixed labels' own grid. Jacobian
    determinants are those of the total map in world mm, affine part included, on the transform's grid (for an affine
    on the fixed image's or labels').

    Args:
        pair: the files.
        names: labels to evaluate and what to call them; None for every label other than 0 under its number.
        space: world of the landmark tables that do not say it themselves; RAS if None.
        max_voxels: larger images, label maps and displacement fields are refused before their voxels are read.

    Raises:
        InputError, GeometryError: files that cannot be used or do not belong together.
    """
    start = time.perf_counter()
    if pair.defect:
        raise InputError(pair.defect)
    inputs = {role: _describe(path) for role, path in pair.files().items()}
    total = load_map(pair.transform, max_voxels=max_voxels) if pair.transform else LinearMap(np.eye(4))
    fixed = load_labels(pair.fixed_labels, max_voxels) if pair.fixed_labels else None
    moving = load_labels(pair.moving_labels, max_voxels) if pair.moving_labels else None
    view, open_ends = _view(pair, total, fixed, max_voxels)
    warnings = [line for volume in (fixed, moving) if volume for line in volume.warnings]
    warnings += [*total.warnings, *open_ends]
    numbers: Numbers = {}
    labels: tuple[LabelScore, ...] = ()
    if view is not None:
        numbers |= _regularity(total, view)
    if fixed and moving:
        overlap, labels, outside = _labels(total, pair.start, fixed, moving, names)
        numbers |= overlap
        warnings += [f"{pair.name}: {line}" for line in outside]
        if overlap["outside_percent"]:
            warnings.append(
                f"{pair.name}: the transform is unknown at {overlap['outside_percent']:.3g} % of the fixed labels' "
                "voxels, outside its grid: no moving label was fetched there"
            )
    if pair.fixed_points and pair.moving_points:
        landmarks = match(load_points(pair.fixed_points, space), load_points(pair.moving_points, space))
        numbers |= target_registration_error(landmarks, total, view, _linear(pair.start))
    numbers["seconds"] = round(time.perf_counter() - start, 3)
    return Evaluation(pair, numbers, labels, inputs, tuple(warnings))


def _describe(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    return {"path": str(path.absolute()), "sha256": sha256_file(path)}


def _view(pair: Pair, total: WorldMap, fixed: Volume | None, max_voxels: int) -> tuple[Grid | None, tuple[str, ...]]:
    """The fixed field of view: the transform's own, else that of the fixed image, else that of the fixed labels.

    And what the header of the image left open, where it was read.
    """
    if total.domain is not None:
        return total.domain, ()
    if pair.fixed is not None:
        grid, _, warnings = load_space(pair.fixed, max_voxels)
        return grid, warnings
    return (fixed.grid if fixed else None), ()


def _regularity(total: WorldMap, view: Grid) -> Numbers:
    """Of the voxels whose neighbours are known too; where some are not, two of the measures have no meaning."""
    displacement, inside = on_grid(total, view)
    determinant = jacobian_determinant(displacement, view.world_from_vox)
    if not inside.all():
        from scipy.ndimage import binary_erosion

        known = determinant[binary_erosion(inside, border_value=1)]
        if not known.size:
            return {}
        return {
            "folding_percent": metrics.folding_percent(known),
            "non_diffeomorphic_percent": None,
            "min_jacobian": float(known.min()),
            "sdlogj": metrics.sdlogj(known),
            "sdlogj_l2r": None,
        }
    return {
        "folding_percent": metrics.folding_percent(determinant),
        "non_diffeomorphic_percent": metrics.non_diffeomorphic_percent(displacement, view.world_from_vox),
        "min_jacobian": float(determinant.min()),
        "sdlogj": metrics.sdlogj(determinant),
        "sdlogj_l2r": metrics.sdlogj_l2r(determinant),
    }


def _linear(start: Rows | None) -> LinearMap | None:
    return None if start is None else LinearMap(np.array(start, dtype=np.float64))


def _labels(
    total: WorldMap, start: Rows | None, fixed: Volume, moving: Volume, names: Names | None
) -> tuple[dict[str, Any], tuple[LabelScore, ...], tuple[str, ...]]:
    displacement, inside = on_grid(total, fixed.grid)
    foreground = fixed.data != 0
    if not foreground.any():
        raise InputError(f"{fixed.path} holds no label other than 0")
    outside = 100.0 * float(np.mean(~inside[foreground]))
    if outside == 100:
        raise GeometryError(f"the transform's grid holds none of the labels of {fixed.path}: do they belong together?")
    matrices = {"before": np.eye(4), **({"start": np.array(start, dtype=np.float64)} if start else {})}
    earlier = {w: resample(moving.data, moving.grid, fixed.grid, m, order=0) for w, m in matrices.items()}
    after = warp(moving.data, moving.grid, fixed.grid, displacement, order=0)
    after[~inside] = 0
    dice = _wanted(metrics.dice(fixed.data, after), names)
    hd95 = metrics.hd95_mm(fixed.data, after, fixed.grid.spacing_mm)
    as_there = hd95_l2r(fixed.data, after)
    scores = tuple(
        LabelScore(label, (names or {}).get(label, str(label)), value, hd95.get(label), as_there.get(label))
        for label, value in dice.items()
    )
    if not scores:
        raise InputError(f"{fixed.path} and {moving.path} hold none of the labels in `label_names`")
    numbers = {
        "dice": metrics.mean(dice),
        **{f"dice_{w}": metrics.mean(_wanted(metrics.dice(fixed.data, m), names)) for w, m in earlier.items()},
        **{f"hd95_{w}_mm": _mean_hd95(fixed, m, names) for w, m in earlier.items()},
        "hd95_mm": metrics.mean({s.label: s.hd95_mm for s in scores if s.hd95_mm is not None}),
        "hd95_l2r": metrics.mean({s.label: s.hd95_l2r for s in scores if s.hd95_l2r is not None}),
        "labels": len(scores),
        "labels_in_one_map": sum(s.hd95_mm is None for s in scores),
        "outside_percent": outside,
    }
    return numbers, scores, outside_warning(displacement, inside, fixed.grid, moving.grid)


def _mean_hd95(fixed: Volume, labels: Any, names: Names | None) -> float | None:
    return metrics.mean(_wanted(metrics.hd95_mm(fixed.data, labels, fixed.grid.spacing_mm), names))


def _wanted(values: dict[int, float], names: Names | None) -> dict[int, float]:
    return values if names is None else {label: value for label, value in values.items() if label in names}
