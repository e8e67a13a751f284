"""Landmarks: how far the map leaves them from where they belong."""

from __future__ import annotations

import numpy as np

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.geometry import Grid, Matrix, in_view, transform_points
from ofg_deploy.transform.maps import WorldMap


def target_registration_error(
    fixed: Matrix, moving: Matrix, total: WorldMap, view: Grid | None
) -> dict[str, float | int]:
    """Distances in mm between mapped fixed landmarks and their moving ones, before (headers alone) and after.

    Only landmarks inside the field of view count, the same ones before and after.

    Args:
        fixed, moving: (3, N) RAS mm, in the same order.
        total: fixed -> moving.
        view: field of view of the fixed side, if known.

    Raises:
        InputError: different numbers of landmarks. GeometryError: none of them in the field of view.
    """
    if fixed.shape != moving.shape:
        raise InputError(f"{fixed.shape[1]} fixed and {moving.shape[1]} moving landmarks: one for one is needed")
    displacement, inside = total.displacement_mm(fixed)
    if view is not None:
        index = transform_points(view.vox_from_world, fixed)
        inside = inside & in_view(index, view.shape)
    if not inside.any():
        raise GeometryError(
            f"none of {fixed.shape[1]} landmarks lies in the fixed field of view: are they world mm, and is "
            "--points-frame right?"
        )
    numbers: dict[str, float | int] = {"landmarks": int(inside.sum()), "landmarks_outside": int((~inside).sum())}
    for when, mapped in (("before_", fixed), ("", fixed + displacement)):
        distance = np.linalg.norm(mapped - moving, axis=0)[inside]
        numbers |= {
            f"tre_{when}mean_mm": float(distance.mean()),
            f"tre_{when}median_mm": float(np.median(distance)),
            f"tre_{when}p95_mm": float(np.percentile(distance, 95)),
        }
    return numbers
