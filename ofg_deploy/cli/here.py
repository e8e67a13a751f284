"""What ``ofg train`` and ``ofg export`` take from the current folder where nothing is named: data, the newest run."""

from __future__ import annotations

from pathlib import Path

from ofg_deploy.data.description import FILE_NAME
from ofg_deploy.errors import InputError, UsageError

IMAGES, LABELS, RUN = "images", "labels", "run"


def data_in(folder: Path) -> tuple[Path, Path | None]:
    """``dataset.json``, or ``images`` with ``labels`` if they are there: what to train on, and its label maps.

    Raises:
        UsageError: neither is there.
    """
    if (folder / FILE_NAME).is_file():
        return folder / FILE_NAME, None
    if (folder / IMAGES).is_dir():
        return folder / IMAGES, folder / LABELS if (folder / LABELS).is_dir() else None
    raise UsageError(
        f"nothing to train on is named, and {folder.absolute()} has neither {FILE_NAME} nor a folder {IMAGES}: name a "
        f"folder of NIfTI images (ofg train FOLDER), or make {FILE_NAME} with ofg data folder FOLDER . (or continue a "
        "run with --resume)"
    )


def newest_run(folder: Path) -> Path:
    """``run``, or the newest run in it, by its best checkpoint.

    Raises:
        UsageError: there is no run. InputError: none has finished an epoch.
    """
    place = folder / RUN
    runs = [path for path in (place, *sorted(place.glob("*"))) if (path / "config.json").is_file()]
    if not runs:
        raise UsageError(
            f"nothing to export is named, and {place.absolute()} neither is a run of ofg train nor holds one: train "
            "first (ofg train), or name a run folder, a checkpoint or a model"
        )
    finished = [run for run in runs if (run / "best.pt").is_file()]
    if not finished:
        raise InputError(f"{runs[0]} has not finished an epoch yet: continue it with ofg train -o {runs[0]} --resume")
    return max(finished, key=lambda run: (run / "best.pt").stat().st_mtime_ns)
