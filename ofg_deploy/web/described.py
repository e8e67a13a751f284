"""What the page says of a registration: names, measures, warnings and files, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofg_deploy.report.limits import Limits
from ofg_deploy.report.measures import GAINS, MEASURES, minus
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import judge
from ofg_deploy.web.scene import Scene

# Measures in one line, each at its stages. What a gain says can be read off them.
STAGED = {
    "Dice": ("dice_before", "dice_start", "dice_after", ".3f"),
    "HD95 (mm)": ("hd95_before_mm", "hd95_start_mm", "hd95_mm", ".2f"),
    "NCC": ("ncc_before", "ncc_start", "ncc_after", ".3f"),
    "mutual information": ("mi_before", "mi_start", "mi_after", ".3f"),
}
PER_LABEL = {"dice_before": ".3f", "dice": ".3f", "hd95_mm": ".2f"}


def described(scene: Scene) -> dict[str, Any]:
    """The registration as the page reads it; addresses are relative to that of this description.

    Raises:
        InputError: an image that is to be shown is damaged.
    """
    registration = scene.registration
    row = judge([registration], Limits())[0]
    grid, field = scene.grid, scene.field_grid
    return {
        "name": registration.name,
        "about": registration.about,
        "status": row.status,
        "reasons": list(row.reasons),
        "notes": scene.notes,
        "shape": grid.shape,
        "spacing_mm": grid.spacing_mm,
        "world_from_vox": grid.world_from_vox.tolist(),
        "images": [_image(scene, role, title) for role, title in scene.titles.items()],
        "deformation": {
            "address": "volumes/deformation",
            "shape": field.shape,
            "spacing_mm": field.spacing_mm,
        },
        "labels": scene.label_values,
        "measures": _measures(registration.numbers),
        "per_label": _per_label(registration),
        "files": [
            {"role": role, "name": path.name, "bytes": path.stat().st_size, "address": f"files/{role}"}
            for role, path in files(registration).items()
        ],
    }


def files(registration: Registration) -> dict[str, Path]:
    """What can be downloaded: the outputs that are there, and the sidecar, by role.

    Raises:
        InputError: the sidecar is damaged.
    """
    found = {role: registration.file(role) for role in registration.record.outputs}
    found["sidecar"] = registration.sidecar
    return {role: path for role, path in found.items() if path.is_file()}


def _image(scene: Scene, role: str, title: str) -> dict[str, Any]:
    labels = role.endswith("labels")
    image = {"role": role, "title": title, "address": f"volumes/{role}", "labels": labels}
    if role in ("fixed", "moving", "warped"):
        image["window"] = scene.window(role)
    return image


def _measures(numbers: Mapping[str, float | None]) -> list[dict[str, Any]]:
    limits, found, staged = Limits(), [], set(GAINS)
    for title, (*keys, form) in STAGED.items():
        staged |= set(keys)
        values = [numbers.get(key) for key in keys]
        if any(value is not None for value in values):
            shown = ["" if value is None else minus(format(value, form)) for value in values]
            found.append({"title": title, "shown": shown, "verdict": limits.judge(keys[-1], values[-1])})
    for measure in MEASURES:
        value = numbers.get(measure.key)
        if measure.key not in staged and value is not None:
            verdict = limits.judge(measure.key, value)
            shown = [measure.show(value)]
            found.append({"title": measure.title, "about": measure.about, "shown": shown, "verdict": verdict})
    return found


def _per_label(registration: Registration) -> dict[str, Any]:
    table = registration.per_label
    kept = {key: form for key, form in PER_LABEL.items() if any(key in row for row in table.values())}
    rows = [
        [label, *("" if (value := row.get(key)) is None else minus(format(value, form)) for key, form in kept.items())]
        for label, row in table.items()
    ]
    titles = {"dice_before": "Dice before", "dice": "Dice after", "hd95_mm": "HD95 after (mm)"}
    return {"columns": ["label", *(titles[key] for key in kept)], "rows": rows}
