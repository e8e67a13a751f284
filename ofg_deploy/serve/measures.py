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
LEAST_GAIN = 1e-3  # of Dice, correlation or mutual information (nats) over the initial alignment


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
    there, its own background stands, whatever ``fill`` says: so no choice of a fill makes a gain, and a map that
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
    similarity = dict.fromkeys((f"{m}_{w}" for m in ("ncc", "mi") for w in ("before", "start", "after")), 0.0)
    if target.size:  # otherwise neither the headers nor the map bring the images together
        moved = not np.array_equal(pair.moving_from_fixed, np.eye(4))
        middle = seen(placed(pair.moving_from_fixed)) if moved else first
        for when, image in (("before", first), ("start", middle), ("after", last)):
            same = when == "start" and not moved
            similarity[f"ncc_{when}"] = similarity["ncc_before"] if same else metrics.ncc(target, image)
            similarity[f"mi_{when}"] = similarity["mi_before"] if same else metrics.mutual_information(target, image)
    network = jacobian_determinant(network_vox) if network_vox.any() else np.ones(1, np.float32)
    total = jacobian_determinant(displacement, fixed.grid.world_from_vox)
    return {
        **similarity,
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


def compare_labels(fixed: Volume, moving: Volume, warped: Any, moving_from_fixed: Matrix) -> dict[str, Any]:
    """Dice and HD95 of label maps by the headers alone (before), after the initial alignment (start) and at the end.

    Args:
        warped: (X, Y, Z) the moving label map through the total map. moving_from_fixed: (4, 4) the initial alignment.
    """

    def placed(matrix: Matrix) -> Any:
        return resample(moving.data, moving.grid, fixed.grid, matrix, order=0)

    moved = not np.array_equal(moving_from_fixed, np.eye(4))
    seen = {"before": placed(np.eye(4)), **({"start": placed(moving_from_fixed)} if moved else {}), "after": warped}
    dice = {when: metrics.dice(fixed.data, labels) for when, labels in seen.items()}
    hd95 = {when: metrics.hd95_mm(fixed.data, labels, fixed.grid.spacing_mm) for when, labels in seen.items()}
    for of_labels in (dice, hd95):
        of_labels.setdefault("start", of_labels["before"])
    return {
        **{f"dice_{when}": metrics.mean(values) for when, values in dice.items()},
        "hd95_before_mm": metrics.mean(hd95["before"]),
        "hd95_start_mm": metrics.mean(hd95["start"]),
        "hd95_mm": metrics.mean(hd95["after"]),
        "dice_before_per_label": _by_text(dice["before"]),
        "dice_start_per_label": _by_text(dice["start"]),
        "dice_per_label": _by_text(dice["after"]),
        "hd95_mm_per_label": _by_text(hd95["after"]),
    }


def _by_text(values: dict[int, float]) -> dict[str, float]:
    return {str(label): value for label, value in values.items()}


def adds_nothing(
    numbers: dict[str, Any], energies: tuple[float, float] | None = None, across_contrasts: bool = False
) -> str | None:
    """What to say where what follows the initial alignment gains nothing over it; None where it does.

    Overlap of labels decides where it is known, else similarity: neither correlation nor mutual information rises.

    Args:
        energies: before and after steps on the pair.
        across_contrasts: of the images, in which case mutual information decides alone.
    """
    keys = ("dice",) if numbers.get("dice_start") is not None else ("mi",) if across_contrasts else ("ncc", "mi")
    gains = {key: numbers[f"{key}_after"] - numbers[f"{key}_start"] for key in keys}
    if max(gains.values()) > LEAST_GAIN:
        return None
    names = {"dice": "Dice", "ncc": "NCC", "mi": "mutual information"}
    figures = [f"{names[key]} {numbers[f'{key}_start']:.3f} -> {numbers[f'{key}_after']:.3f}" for key in keys]
    figures += [f"energy {energies[0]:.4g} -> {energies[1]:.4g}"] if energies else []
    return (
        f"no gain over the initial alignment ({', '.join(figures)}): compare with `model=none` and `refine=0`, or use "
        "another model"
    )
