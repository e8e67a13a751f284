"""What an evaluation leaves behind: tables, a JSON record and a box plot, all or nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy.errors import plain
from ofg_deploy.evaluate.pair import Evaluation
from ofg_deploy.evaluate.picture import draw_dice
from ofg_deploy.locations import portable, portable_command
from ofg_deploy.options.words import PointsFrame
from ofg_deploy.outputs import cell, staged, to_json
from ofg_deploy.version import __version__

SCHEMA = 1
LABEL_COLUMNS = ["pair", "label", "name", "dice", "hd95_mm", "hd95_l2r"]
FILES = ("results.csv", "labels.csv", "failures.csv", "boxplot.png", "results.json")
# Column of results.csv -> what it is. The record carries these, so that a table can be read without this program.
MEASURES = {
    "dice": "mean over labels of 2|A and B| / (|A| + |B|); a label in one of both maps only counts as 0",
    "dice_before": "the same by the headers alone",
    "dice_start": "the same after the initial alignment; of folders of ofg register",
    "hd95_mm": "mean over labels in both maps: larger of the two directed 95th percentiles of surface distances, mm",
    "hd95_before_mm": "the same by the headers alone",
    "hd95_start_mm": "the same after the initial alignment; of folders of ofg register",
    "hd95_l2r": "the same as Learn2Reg computes it: surface elements weighted by area, in voxels instead of mm",
    "labels": "labels evaluated: those other than 0 in either map, and among the labels asked for where some were",
    "labels_in_one_map": "of these, in the fixed or the warped map only: Dice 0, HD95 undefined and left out",
    "outside_percent": "fixed foreground voxels outside the transform's grid, in percent: no moving label there",
    "folding_percent": "voxels with a Jacobian determinant <= 0 by central differences, in percent; total map in mm",
    "non_diffeomorphic_percent": "volume of folded tetrahedra (Liu et al. 2024), in percent of the field of view",
    "min_jacobian": "smallest Jacobian determinant of the total map",
    "sdlogj": "standard deviation of log(J), J clipped to 1e-9..1e9; the affine part is a constant in it",
    "sdlogj_l2r": "the same as Learn2Reg computes it: log(J + 3) without the outer two voxels; not free of the affine",
    "landmarks": "landmarks evaluated",
    "landmarks_outside": "landmarks outside the fixed field of view: left out",
    "tre_mean_mm": "mean distance of mapped fixed landmarks to their moving ones, mm",
    "tre_median_mm": "median of the same",
    "tre_p95_mm": "95th percentile of the same",
    "tre_max_mm": "largest of the same",
    "tre_before_mean_mm": "mean by the headers alone",
    "tre_before_median_mm": "median by the headers alone",
    "tre_before_p95_mm": "95th percentile by the headers alone",
    "tre_before_max_mm": "largest by the headers alone",
    "tre_start_mean_mm": "mean after the initial alignment; of folders of ofg register",
    "tre_start_median_mm": "median after the initial alignment",
    "tre_start_p95_mm": "95th percentile after the initial alignment",
    "tre_start_max_mm": "largest after the initial alignment",
    "seconds": "time of the evaluation",
}
# What people call the same, with its unit, where there is room for a few words.
TITLES = {
    "dice": "Dice",
    "dice_before": "Dice before",
    "dice_start": "Dice initial",
    "hd95_mm": "HD95 (mm)",
    "hd95_before_mm": "HD95 before (mm)",
    "hd95_start_mm": "HD95 initial (mm)",
    "hd95_l2r": "HD95 Learn2Reg",
    "labels": "labels",
    "labels_in_one_map": "labels in one map",
    "outside_percent": "outside (%)",
    "folding_percent": "folding (%)",
    "non_diffeomorphic_percent": "folded volume (%)",
    "min_jacobian": "min Jacobian",
    "sdlogj": "SDlogJ",
    "sdlogj_l2r": "SDlogJ Learn2Reg",
    "landmarks": "landmarks",
    "landmarks_outside": "landmarks outside",
    **{
        f"tre_{when}{key}_mm": f"TRE {word}{name} (mm)"
        for when, word in (("", ""), ("before_", "before, "), ("start_", "initial, "))
        for key, name in (("mean", "mean"), ("median", "median"), ("p95", "95 %"), ("max", "max"))
    },
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Failure:
    """A pair that could not be evaluated, and why; parameters are marked (see ``errors``)."""

    pair: str
    error: str

    def record(self) -> dict[str, str]:
        """For the files."""
        return {"pair": self.pair, "error": plain(self.error)}


def outputs(folder: Path) -> list[Path]:
    """Every file an evaluation may write; ``results.json`` comes last and marks the set as complete."""
    return [folder / name for name in FILES]


def write(
    folder: Path,
    source: Path,
    evaluations: Sequence[Evaluation],
    failures: Sequence[Failure],
    space: PointsFrame | None,
    overwrite: bool,
    command: list[str],
) -> list[Path]:
    """Write the tables, the record and the picture; what does not apply (no failure, no label) is not there.

    Raises:
        InputError: files exist (without ``overwrite``) or cannot be written; then nothing is.
    """
    rows = [{"pair": e.pair.name, **{m: e.numbers.get(m) for m in MEASURES}} for e in evaluations]
    labels = [{"pair": e.pair.name, **asdict(score)} for e in evaluations for score in e.labels]
    record = _record(folder, source, evaluations, failures, space, command)
    content: dict[str, Callable[[Path], object]] = {
        "results.csv": lambda path: path.write_bytes(table(rows, ["pair", *MEASURES])),
        "labels.csv": lambda path: path.write_bytes(table(labels, LABEL_COLUMNS)),
        "failures.csv": lambda path: path.write_bytes(table([f.record() for f in failures], ["pair", "error"])),
        "boxplot.png": lambda path: draw_dice(path, evaluations),
        "results.json": lambda path: path.write_text(to_json(record)),
    }
    absent = {"labels.csv": not labels, "boxplot.png": not labels, "failures.csv": not failures}
    kept = [path for path in outputs(folder) if not absent.get(path.name)]
    obsolete = [path for path in outputs(folder) if absent.get(path.name)]
    with staged(kept, overwrite, lambda: obsolete) as paths:
        for path in paths:
            content[path.name](path)
    return kept


def summary(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float | int]]:
    """Mean and standard deviation of every measure over the pairs that have it, and how many those are."""
    found = {m: [v for e in evaluations if (v := e.numbers.get(m)) is not None] for m in MEASURES}
    return {
        measure: {"mean": float(np.mean(values)), "sd": float(np.std(values)), "pairs": len(values)}
        for measure, values in found.items()
        if values
    }


def _record(
    folder: Path,
    source: Path,
    evaluations: Sequence[Evaluation],
    failures: Sequence[Failure],
    space: PointsFrame | None,
    command: list[str],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tool": "ofg_deploy",
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": portable_command(command, folder),
        "source": portable(source, folder),
        "points_space": space or "ras",
        "measures": MEASURES,
        "means": summary(evaluations),
        "pairs": [
            {
                "pair": e.pair.name,
                "inputs": {
                    role: {**file, "path": portable(Path(file["path"]), folder)} for role, file in e.inputs.items()
                },
                "transform": "given" if e.pair.transform else "identity",
                **e.numbers,
                "per_label": [asdict(score) for score in e.labels],
                "warnings": list(e.warnings),
            }
            for e in evaluations
        ],
        "failures": [f.record() for f in failures],
    }


def table(rows: Sequence[dict[str, Any]], columns: list[str]) -> bytes:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: cell(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")  # bytes of a name that are no text are shown as such
