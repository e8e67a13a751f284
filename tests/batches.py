"""What the tests of batches share: subjects in files, and results compared but for what may differ."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ofg_deploy.batch.pairs import Pair, from_folders
from ofg_deploy.batch.work import Means
from ofg_deploy.batch_record import BatchRecord
from ofg_deploy.geometry import Grid
from ofg_deploy.serve.job import Job

GAINS = {"gain_moving": (1.5, -0.7, 0.9), "gain_fixed": (-0.4, 1.1, 0.6)}  # the field depends on both images
MAY_DIFFER = ("created", "seconds", "command")  # between two runs of the same


def write_subjects(folder: Path, count: int, make_grid: Callable[..., Grid], world_image: Callable[..., Any]) -> Path:
    """``count`` images of one anatomy, each shifted by its own amount and on its own oblique grid: s0.nii.gz, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    orientations = ("oblique", "left-handed", "LPS", "oblique-permuted")
    for number in range(count):
        grid = make_grid(orientations[number % 4], (18 + number % 3, 17, 16), (3.5, 4.1, 3.8), (1.0, -2.0, number % 5))
        shift = np.eye(4)
        shift[:3, 3] = (number % 7 - 3, 2 - number % 5, 0.5 * number)
        nib.save(nib.Nifti1Image(world_image(grid, shift), grid.world_from_vox), folder / f"s{number}.nii.gz")
    return folder


def results(out: Path) -> dict[str, Any]:
    """Every file below a folder by relative path: bytes, or the record without what may differ; no batch record."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or name.startswith(("batch", "failures")):
            continue
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            record.get("refinement", {}).pop("seconds", None)
            found[name] = {k: v for k, v in record.items() if k not in MAY_DIFFER}
        else:
            found[name] = path.read_bytes()
    return found


def batch_record(out: Path) -> dict[str, Any]:
    path = out / "batch.json"
    record: dict[str, Any] = json.loads(path.read_text())
    assert BatchRecord.read(path).to_record() == record, "what is read is what was written"
    return record


def statuses(out: Path) -> dict[str, str]:
    return {pair["name"]: pair["status"] for pair in batch_record(out)["pairs"]}


def means(model: Path, out: Path, workers: int = 2, **more: Any) -> Means:
    return Means(model, "cpu", 1, None, "onnxruntime", workers, out=out, **{"batch_size": 1, **more})


def pairs_of(atlas: Path, images: Path, out: Path) -> list[Pair]:
    return from_folders(atlas, images, out, Job, {})


def children() -> list[int]:
    """Processes of ``ofg_deploy.child`` that this one started and that have not ended; Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            ours = b"ofg_deploy.child" in path.with_name("cmdline").read_bytes()
            if int(parent) == os.getpid() and state != "Z" and ours:
                found.append(int(path.parent.name))
    return found
