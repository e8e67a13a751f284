"""Corresponding landmarks: which belongs to which, and how far a map leaves them from where they belong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.geometry import Grid, Matrix, in_view, transform_points
from ofg_deploy.transform.maps import Inside, WorldMap
from ofg_deploy.transform.points import Points

SHOWN = 3  # labels in a message


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Both ends of each: (3, N) RAS mm in the fixed and in the moving image's space, and how they were matched."""

    fixed: Matrix
    moving: Matrix
    matched_by: str


def match(fixed: Points, moving: Points) -> Landmarks:
    """Pair the points of two tables: by label where both have the same labels, by row where they tell nothing.

    Points that one of the tables calls not defined are left out.

    Raises:
        InputError: different numbers of points, or labels of which some occur in both tables and others do not.
    """
    count, other = len(fixed.labels), len(moving.labels)
    if count != other:
        raise InputError(
            f"{fixed.path} has {count} and {moving.path} {other} landmarks: one for one is needed, in the same order "
            "or under the same labels"
        )
    order, by = np.arange(count), "row"
    names, others = ({*points.labels} - {""} for points in (fixed, moving))
    if len(names) == len(others) == count:  # each table tells its points apart
        if names == others:
            place = {label: row for row, label in enumerate(moving.labels)}
            order, by = np.array([place[label] for label in fixed.labels]), "label"
        elif shared := names & others:
            odd = sorted(names ^ others)
            raise InputError(
                f"{fixed.path} and {moving.path} share {len(shared)} labels and not {', '.join(odd[:SHOWN])}"
                f"{' and others' if len(odd) > SHOWN else ''}: give corresponding landmarks the same labels, or none"
            )
    defined = fixed.defined & moving.defined[order]
    if not defined.any():
        raise InputError(f"{fixed.path} and {moving.path} have no landmark that is defined in both")
    return Landmarks(fixed.world[:, defined], moving.world[:, order][:, defined], by)


def errors_mm(
    landmarks: Landmarks, maps: Mapping[str, WorldMap | None], view: Grid | None
) -> tuple[dict[str, Matrix], Inside]:
    """Distances (N,) in mm of mapped fixed landmarks to their moving ones, by map; and which landmarks count.

    Those in the field of view that every map knows count, the same ones for all maps.

    Args:
        maps: fixed -> moving; None for the headers alone.
        view: field of view of the fixed side, if known.

    Raises:
        GeometryError: none of them counts.
    """
    inside = np.ones(landmarks.fixed.shape[1], dtype=bool)
    if view is not None:
        inside &= in_view(transform_points(view.vox_from_world, landmarks.fixed), view.shape)
    distances = {}
    for name, world_map in maps.items():
        mapped = landmarks.fixed
        if world_map is not None:
            displacement, known = world_map.displacement_mm(landmarks.fixed)
            mapped, inside = mapped + displacement, inside & known
        distances[name] = np.linalg.norm(mapped - landmarks.moving, axis=0)
    if not inside.any():
        raise GeometryError(
            f"none of {inside.size} landmarks lies in the fixed field of view: are they world mm, and is "
            "`points_frame` right?"
        )
    return {name: distance[inside] for name, distance in distances.items()}, inside


def target_registration_error(
    landmarks: Landmarks, total: WorldMap, view: Grid | None, start: WorldMap | None = None
) -> dict[str, float | int]:
    """Of an evaluation: before (headers alone), after the initial alignment if known, and after; see ``errors_mm``."""
    maps = {"before_": None, **({"start_": start} if start else {}), "": total}
    distances, inside = errors_mm(landmarks, maps, view)
    numbers: dict[str, float | int] = {"landmarks": int(inside.sum()), "landmarks_outside": int((~inside).sum())}
    for when, distance in distances.items():
        numbers |= {
            f"tre_{when}mean_mm": float(distance.mean()),
            f"tre_{when}median_mm": float(np.median(distance)),
            f"tre_{when}p95_mm": float(np.percentile(distance, 95)),
            f"tre_{when}max_mm": float(distance.max()),
        }
    return numbers
