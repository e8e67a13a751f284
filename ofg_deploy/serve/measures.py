"""How good a registration is: similarity, regularity, overlap of labels, distance of landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofg_deploy import metrics
from ofg_deploy.field import Field, jacobian_determinant, resample
from ofg_deploy.geometry import Grid, Matrix
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import PreparedPair
from ofg_deploy.transform.landmarks import Landmarks, errors_mm
from ofg_deploy.transform.maps import LinearMap, WorldMap

Image = npt.NDArray[Any]


def measure(
    pair: PreparedPair,
    network_vox: Field,
    fixed: Volume,
    moving: Volume,
    warped: Image,
    inside: npt.NDArray[np.bool_],
    displacement: Field,
) -> dict[str, Any]:
    """Similarity on the fixed grid; folding and spread of the network's field and of the total map.

    Similarities before, after the start and at the end are taken over the same voxels: those that the moving image
    reaches before or after, by the headers alone or by the total map. Where one of the maps leaves the moving image
    there, its own background stands, whatever ``--fill`` says: so no choice of a fill makes a gain, and a map that
    pushes the moving image out of view loses by it.

    Args:
        warped: (X, Y, Z) the moving image through the total map; not looked at where ``inside`` is False.
        inside: (X, Y, Z) where the total map stays within the moving image.
    """
    background = pair.background.value

    def placed(moving_from_fixed: Matrix) -> Image:
        return resample(moving.data, moving.grid, fixed.grid, moving_from_fixed, layout="F", fill=np.nan)

    before = placed(np.eye(4))
    compared = inside | ~np.isnan(before)

    def seen(image: Image, known: npt.NDArray[np.bool_] | None = None) -> Image:
        """The image where the images are compared, its background where it is not known."""
        known = ~np.isnan(image) if known is None else known
        filled = image if known.all() else np.where(known, image, np.float32(background))
        return filled if compared.all() else filled.ravel(order="F")[compared.ravel(order="F")]

    target, first, last = seen(fixed.data), seen(before), seen(warped, inside)
    if target.size:
        ncc_before = ncc_start = metrics.ncc(target, first)
        if not np.array_equal(pair.moving_from_fixed, np.eye(4)):
            ncc_start = metrics.ncc(target, seen(placed(pair.moving_from_fixed)))
        ncc_after = metrics.ncc(target, last)
        mi_before, mi_after = (metrics.mutual_information(target, image) for image in (first, last))
    else:  # neither the headers nor the map bring the images together
        ncc_before = ncc_start = ncc_after = mi_before = mi_after = 0.0
    network = jacobian_determinant(network_vox)
    total = jacobian_determinant(displacement, fixed.grid.world_from_vox)
    return {
        "ncc_before": ncc_before,
        "ncc_start": ncc_start,
        "ncc_after": ncc_after,
        "mi_before": mi_before,
        "mi_after": mi_after,
        "compared_percent": 100.0 * float(compared.mean()),
        "folding_percent": metrics.folding_percent(total),
        "min_jacobian": float(total.min()),
        "sdlogj": metrics.sdlogj(total),
        "network_folding_percent": metrics.folding_percent(network),
        "network_sdlogj": metrics.sdlogj(network),
        "displacement_mm_max": _longest(displacement),
        "overlap": pair.overlap,
    }


def _longest(displacement: Field) -> float:
    """By planes: to touch new memory for squares of all components would cost more than they do."""
    planes = np.moveaxis(displacement, -1, 0)
    return float(np.sqrt(np.max([sum(u * u for u in plane).max() for plane in planes])))


def landmark_errors(
    landmarks: Landmarks, moving_from_fixed: Matrix, forward: WorldMap, view: Grid
) -> dict[str, float | int]:
    """Distance of mapped fixed landmarks to their moving ones in mm: by the headers, after the start, at the end.

    Raises:
        GeometryError: none of them lies in the fixed field of view.
    """
    maps = {"before": None, "start": LinearMap(moving_from_fixed), "after": forward}
    distances, inside = errors_mm(landmarks, maps, view)
    numbers: dict[str, float | int] = {"landmarks": int(inside.sum()), "landmarks_outside": int((~inside).sum())}
    for when, distance in distances.items():
        numbers[f"tre_{when}_mean_mm"] = float(distance.mean())
        numbers[f"tre_{when}_median_mm"] = float(np.median(distance))
        numbers[f"tre_{when}_max_mm"] = float(distance.max())
    return numbers


def compare_labels(fixed: Volume, moving: Volume, warped: Any) -> dict[str, Any]:
    """Dice before and after, HD95 after, of label maps: the moving one as it was and warped (X, Y, Z)."""
    before = resample(moving.data, moving.grid, fixed.grid, np.eye(4), order=0)
    dice = metrics.dice(fixed.data, warped)
    hd95 = metrics.hd95_mm(fixed.data, warped, fixed.grid.spacing_mm)
    return {
        "dice_before": metrics.mean(metrics.dice(fixed.data, before)),
        "dice_after": metrics.mean(dice),
        "dice_per_label": {str(label): value for label, value in dice.items()},
        "hd95_mm": metrics.mean(hd95),
        "hd95_mm_per_label": {str(label): value for label, value in hd95.items()},
    }
