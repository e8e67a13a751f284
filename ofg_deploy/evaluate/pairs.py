"""Which pairs to evaluate: a CSV or JSON list, or a folder of ``ofg register`` with its sidecars."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofg_deploy import sidecar
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.image_folder import counterpart
from ofg_deploy.locations import located
from ofg_deploy.nifti import stem
from ofg_deploy.pair_list import called, read_rows
from ofg_deploy.sidecar import Sidecar

COLUMNS = ("fixed_labels", "moving_labels", "transform", "fixed", "moving", "fixed_points", "moving_points")
NEEDED = {"transform": "write identity where there is none"}
TOGETHER = (("fixed_labels", "moving_labels"), ("fixed_points", "moving_points"))


@dataclass(frozen=True)
class Pair:
    """One registration to evaluate.

    Attributes:
        name: how the outputs call it.
        transform: ``_Warp.nii.gz``, a list or whatever ``load_map`` reads; None for the identity (the headers alone).
        fixed_labels, moving_labels: label maps, both or neither.
        fixed_points, moving_points: landmark tables, both or neither.
        fixed, moving: the images; the fixed one gives the field of view where nothing else does.
        defect: why the pair cannot be evaluated, where that is known already.
        start: (4, 4) moving_from_fixed in mm, the initial alignment in ``transform``, where a sidecar has it.
    """

    name: str
    transform: Path | None = None
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_points: Path | None = None
    moving_points: Path | None = None
    fixed: Path | None = None
    moving: Path | None = None
    defect: str | None = None
    start: tuple[tuple[float, ...], ...] | None = None

    def files(self) -> dict[str, Path]:
        """Every file that is named, by role."""
        return {role: path for role, path in asdict(self).items() if isinstance(path, Path)}


def find_pairs(source: Path | str, labels: Path | str | None) -> list[Pair]:
    """Pairs of a list, or of a folder written by ``ofg register``.

    A list has the columns (CSV) or keys (JSON) ``COLUMNS`` and ``name``, of which ``transform`` must be there, empty
    or ``identity`` for the headers alone; its paths are relative to the list. Of other columns see
    ``pair_list.read_rows``.

    Args:
        source: the list or the folder.
        labels: folder of label maps named like the images, in place of what the sidecars of a folder name.

    Raises:
        InputError: not a list, not such a folder, or nothing in it. What is wrong with a single pair is said when its
            turn comes.
        UsageError: ``labels`` together with a list.
    """
    source, labels = Path(source), None if labels is None else Path(labels)
    if labels is not None and not labels.is_dir():
        raise InputError(f"`labels` {labels} is not a folder")
    if source.is_dir():
        found = _sidecars(source)
        return [_of_sidecar(name, path, labels) for name, path in zip(called(source, found), found, strict=True)]
    if not source.is_file():
        raise InputError(f"{source} does not exist: give a folder of ofg register, or a CSV or JSON list of pairs")
    if labels is not None:
        raise UsageError("`labels` goes with a folder; a list names its label maps in its own columns")
    return _numbered([_of_row(row, source.parent) for row in read_rows(source, COLUMNS, NEEDED)])


def _of_row(row: dict[str, str], base: Path) -> Pair:
    given = dict(row)
    if given.get("transform", "").lower() == "identity":
        del given["transform"]
    name = given.pop("name", "")
    files: dict[str, Any] = {column: (base / value).absolute() for column, value in given.items()}
    return _checked(Pair(name, **files))


def _sidecars(folder: Path) -> list[Path]:
    found = sidecar.find(folder, broken=False)
    if not found:
        raise InputError(f"{folder} holds no sidecar of ofg register (*.json): give its `out` folder or a list")
    return found


def _of_sidecar(name: str, path: Path, labels: Path | None) -> Pair:
    try:
        record = Sidecar.read(path)
    except InputError as error:
        return Pair(name, defect=error.marked)
    files: dict[str, Any] = {}
    for role in (role for role in COLUMNS if role in record.inputs):
        if (given := record.inputs[role].path) is None:
            return Pair(name, defect=f"the {role} image of {path} was given in memory: there is no file to evaluate")
        files[role] = located(given, path.parent)
    if labels is not None:
        files |= {f"{role}_labels": counterpart(labels, files[role]) for role in ("fixed", "moving")}
    # A name, not a path: a sidecar must not lead anywhere else.
    files["transform"] = path.parent / Path(record.outputs["transform"]).name
    if "fixed_labels" not in files:  # moving labels alone were warped, not compared
        files.pop("moving_labels", None)
    return _checked(Pair(name, start=record.start.moving_from_fixed, **files))


def _checked(pair: Pair) -> Pair:
    files = pair.files()
    for fixed, moving in TOGETHER:
        if (fixed in files) != (moving in files):
            return replace(pair, defect=f"{fixed} and {moving} come in twos: give both")
    if not {"transform", "fixed_labels", "fixed_points"} & files.keys():
        return replace(pair, defect="nothing to evaluate: neither transform nor labels nor points")
    return pair


def _numbered(pairs: list[Pair]) -> list[Pair]:
    """Every pair with a name of its own: given, or made of its files; a number is added where two are alike."""
    named = [replace(pair, name=pair.name or _name(pair)) for pair in pairs]
    often = Counter(pair.name for pair in named)
    return [
        replace(pair, name=f"{pair.name}#{number}") if often[pair.name] > 1 else pair
        for number, pair in enumerate(named, start=1)
    ]


def _name(pair: Pair) -> str:
    files = pair.files()
    for fixed, moving in (("fixed", "moving"), *TOGETHER):
        if fixed in files and moving in files:
            return f"{stem(files[moving])}_to_{stem(files[fixed])}"
    return stem(files["transform"]) if "transform" in files else "pair"
