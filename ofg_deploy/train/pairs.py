"""Which pairs to train and to validate on: from a data set, a folder or a list, checked before anything long starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ofg_deploy.data.description import FILE_NAME, Dataset, Subject, is_dataset, read_dataset
from ofg_deploy.data.plan import plan_grid as plan_for
from ofg_deploy.data.scans import bad_guides, bad_scans, describe
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Grid, Shape, Spacing, canonical
from ofg_deploy.image_folder import counterpart, look_into
from ofg_deploy.locations import located, portable
from ofg_deploy.nifti import load_grid, load_labels
from ofg_deploy.pair_list import read_rows

DEFAULT_PAIRS = 400  # of all ordered pairs of a folder's images, which are far too many
MAX_VALIDATION_PAIRS = 20
FEWEST = 4  # voxels of an image along an axis: with fewer there is no neighbourhood to compare
GUIDES = ("fixed_guide", "moving_guide")
COLUMNS = ("fixed", "moving", "fixed_labels", "moving_labels", *GUIDES)


@dataclass(frozen=True)
class PairFiles:
    """One pair on disk; label maps and guides are optional. With those of one image only it does not pass
    ``check_pairs``."""

    fixed: Path
    moving: Path
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_guide: Path | None = None
    moving_guide: Path | None = None


class PairRow(msgspec.Struct):
    """Files of a pair, as ``locations.portable`` has them."""

    fixed: str
    moving: str
    fixed_labels: str | None = None
    moving_labels: str | None = None
    fixed_guide: str | None = None
    moving_guide: str | None = None


class PairRecord(msgspec.Struct):
    """``PairList.to_record`` as JSON has it; runs before 0.2 have no ``evaluated``."""

    training: list[PairRow]
    validation: list[PairRow]
    evaluated: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PairList:
    """What to train and what to validate on.

    Attributes:
        training, validation: the pairs.
        evaluated: label numbers that count in the validation Dice; None means all that occur.
    """

    training: tuple[PairFiles, ...]
    validation: tuple[PairFiles, ...]
    evaluated: tuple[int, ...] | None = None

    def to_record(self, folder: Path) -> dict[str, Any]:
        """For a record in ``folder``, whose files are named from there; ``from_record`` is its inverse."""
        pairs = {
            split: [{k: portable(v, folder) for k, v in asdict(pair).items() if v} for pair in getattr(self, split)]
            for split in ("training", "validation")
        }
        return {**pairs, "evaluated": self.evaluated}

    @classmethod
    def from_record(cls, record: PairRecord, folder: Path) -> PairList:
        """Read what ``to_record`` made. Raises InputError: a pair that has labels for one image only."""
        splits = (
            tuple(_pair(msgspec.structs.asdict(row), folder) for row in rows)
            for rows in (record.training, record.validation)
        )
        return cls(*splits, record.evaluated)


def find_dataset(source: Path) -> Dataset | None:
    """The ``dataset.json`` that ``source`` is, or has in it; None if it is a plain folder or a list of pairs.

    Raises:
        InputError: it is one, but cannot be read.
    """
    path = source / FILE_NAME if source.is_dir() else source
    return read_dataset(path) if is_dataset(path) else None


def find_pairs(
    source: Path | str, labels: Path | str | None, pairs: int | None, seed: int, at_random: int = DEFAULT_PAIRS
) -> PairList:
    """Pairs from a ``dataset.json``, a folder of NIfTI images, or a CSV or JSON list.

    A data set gives the pairs of its ``training`` and ``validation`` splits. A folder gives random ordered pairs; a
    tenth of the subjects (at least two) is kept for validation, with labels of the same file name in ``labels``. A
    list names its columns ``fixed``, ``moving`` and optionally ``fixed_labels``, ``moving_labels``, ``fixed_guide``,
    ``moving_guide``, ``split``
    (``training`` or ``validation``; without any, the last tenth validates); its paths are relative to the list.

    Args:
        pairs: the most training pairs; None means ``at_random`` where pairs are random, and all where they are not.
        at_random: see ``pairs``.

    Raises:
        InputError: nothing usable there.
        UsageError: ``labels`` together with a data set or a list.
    """
    source, labels = Path(source), None if labels is None else Path(labels)
    if not source.exists():
        raise InputError(f"{source} does not exist: give dataset.json, a folder of NIfTI images, or a list of pairs")
    dataset = find_dataset(source)
    if dataset is None and source.is_dir():
        return _pairs_of_folder(source, labels, at_random if pairs is None else pairs, seed)
    if labels is not None:
        raise UsageError("`labels` goes with a plain folder; data sets and lists name their label files themselves")
    if dataset is None:
        return _pairs_of_list(source, pairs, seed)
    return _pairs_of_dataset(dataset, source, pairs, seed, at_random)


def check_pairs(pairs: PairList, skip_bad: bool) -> tuple[PairList, str | None]:
    """Check every scan before anything long starts: headers, label grids, and labels missing for part of a split.

    Returns:
        The pairs that can be used, and a line about what was left out (only with ``skip_bad``).

    Raises:
        InputError: something cannot be used (the first five are named) without ``skip_bad``, or nothing is left.
    """
    scans: dict[Path, Path | None] = {}
    for pair in (*pairs.training, *pairs.validation):
        for image, labels in ((pair.fixed, pair.fixed_labels), (pair.moving, pair.moving_labels)):
            scans[image] = labels or scans.get(image)
    bad = bad_scans(scans.items())
    for split in (pairs.training, pairs.validation):
        unlabelled = [p for p in split if p.fixed_labels is None or p.moving_labels is None]
        for pair in unlabelled if len(unlabelled) < len(split) else []:
            for image in (pair.fixed, pair.moving):
                if scans[image] is None:
                    bad.setdefault(image, f"{image} has no labels and others have")
    for split in (pairs.training, pairs.validation):
        given = {image: guide for p in split for image, guide in ((p.fixed, p.fixed_guide), (p.moving, p.moving_guide))}
        bad = bad_guides(given) | bad
    return _without(pairs, lambda p: p.fixed in bad or p.moving in bad, bad, len(scans), skip_bad)


def check_labels(pairs: tuple[PairFiles, ...]) -> dict[PairFiles, str]:
    """Pairs whose label maps cannot be read to the last voxel, and why."""
    found: dict[PairFiles, str] = {}
    read: dict[Path, str | None] = {}
    for pair in pairs:
        for path in (pair.fixed_labels, pair.moving_labels):
            if path is not None and path not in read:
                try:
                    load_labels(path)
                    read[path] = None
                except InputError as error:
                    read[path] = str(error)
            if path is not None and (reason := read[path]) is not None:
                found[pair] = reason
    return found


def without_failed(pairs: PairList, failed: dict[PairFiles, str], skip_bad: bool) -> tuple[PairList, str | None]:
    """The same for pairs whose voxels turned out to be unusable while they were prepared."""
    reasons = {Path(str(n)): reason for n, reason in enumerate(dict.fromkeys(failed.values()))}
    images = {p for pair in (*pairs.training, *pairs.validation) for p in (pair.fixed, pair.moving)}
    return _without(pairs, lambda p: p in failed, reasons, len(images), skip_bad)


def _without(
    pairs: PairList, is_bad: Callable[[PairFiles], bool], bad: dict[Path, str], of: int, skip_bad: bool
) -> tuple[PairList, str | None]:
    if not bad:
        return pairs, None
    if not skip_bad:
        raise InputError(f"{describe(bad, of)}. Mend or remove them, or add `skip_bad=True`")
    training = tuple(p for p in pairs.training if not is_bad(p))
    validation = tuple(p for p in pairs.validation if not is_bad(p))
    if not training or (pairs.validation and not validation):
        raise InputError(f"`skip_bad=True` leaves no pair to train or to validate on: {describe(bad, of)}")
    left_out = len(pairs.training) + len(pairs.validation) - len(training) - len(validation)
    return replace(pairs, training=training, validation=validation), f"{describe(bad, of)}; {left_out} pairs left out"


def plan_grid(pairs: PairList, divisor: int, spacing: Spacing | None, axes: str = "RAS") -> tuple[Shape, Spacing]:
    """The given or median spacing of the fixed images, and the smallest multiple of ``divisor`` that holds each.

    Raises:
        UsageError: a spacing that is none, or one that leaves fewer than 4 voxels along an axis, and fewer than half of
            those it has.
    """
    grids = [load_grid(path) for path in sorted({p.fixed for p in pairs.training})]
    shape, step = plan_for(grids, divisor, spacing, axes)
    if spacing is not None:
        _check_not_too_coarse([canonical(g, axes) for g in grids], step)
    return shape, step


def _check_not_too_coarse(grids: Sequence[Grid], spacing: Spacing) -> None:
    voxels = np.max([g.shape for g in grids], axis=0)
    extent = np.max([np.array(g.shape) * g.spacing_mm for g in grids], axis=0)
    left = extent / spacing
    if np.any((left < FEWEST) & (left < voxels / 2)):  # a slab may have few slices of its own
        mm, there, told = (" ".join(f"{n:.3g}" for n in of) for of in (extent, left, spacing))
        raise UsageError(
            f"spacing {told} mm: of images of {mm} mm it leaves {there} voxels, {FEWEST} along each axis are needed: "
            "give a smaller `spacing`"
        )


def _pairs_of_dataset(dataset: Dataset, source: Path, most: int | None, seed: int, at_random: int) -> PairList:
    def files(pair: tuple[Subject, Subject]) -> PairFiles:
        fixed, moving = pair
        return PairFiles(fixed.image, moving.image, fixed.labels, moving.labels, fixed.guide, moving.guide)

    drawn = dataset.rule == "random" and not (dataset.pairs or {}).get("training")
    training = dataset.pairs_of("training", at_random if most is None and drawn else most, seed)
    listed = (dataset.pairs or {}).get("validation")
    validation = dataset.pairs_of("validation", None if listed else MAX_VALIDATION_PAIRS, seed)
    if not training or not validation:
        raise InputError(
            f"{source} has {len(training)} training and {len(validation)} validation pairs: both are needed"
        )
    evaluated = tuple(sorted(dataset.labels)) if dataset.labels else None
    return PairList(tuple(map(files, training)), tuple(map(files, validation)), evaluated)


def _pairs_of_folder(folder: Path, labels: Path | None, count: int, seed: int) -> PairList:
    found = look_into(folder)
    images = list(found.images.values())
    if len(images) < 4:
        more = f"; {remark}" if (remark := found.remark()) else ""
        raise InputError(
            f"{folder} holds {len(images)} NIfTI images: at least 4 are needed (2 to train, 2 to validate){more}"
        )
    if labels is not None and not labels.is_dir():
        raise InputError(f"`labels` {labels} is not a folder")
    shuffled = random.Random(seed).sample(images, len(images))
    kept = max(2, len(images) // 10)

    def pairs(subjects: list[Path], most: int) -> tuple[PairFiles, ...]:
        every = [(a, b) for a in subjects for b in subjects if a != b]
        chosen = random.Random(seed).sample(every, min(most, len(every)))
        return tuple(PairFiles(a, b, *(counterpart(labels, p) if labels else None for p in (a, b))) for a, b in chosen)

    return PairList(pairs(sorted(shuffled[kept:]), count), pairs(sorted(shuffled[:kept]), MAX_VALIDATION_PAIRS))


def _pairs_of_list(source: Path, most: int | None, seed: int) -> PairList:
    rows = read_rows(source, (*COLUMNS, "split"), {column: "every pair has both" for column in ("fixed", "moving")})
    for number, row in enumerate(rows, start=1):
        if missing := {"fixed", "moving"} - row.keys():
            raise InputError(f"{source}, row {number} has no {min(missing)} image: every pair has both")
    splits = [r.get("split") or "" for r in rows]
    if unknown := set(splits) - {"", "training", "validation"}:
        raise InputError(f"{source} has split {sorted(unknown)[0]!r}: use 'training' or 'validation'")
    if "training" in splits and "validation" not in splits:
        raise InputError(f"{source} has split 'training' and no 'validation': name both, or leave the column out")
    if "validation" not in splits:
        kept = max(1, len(rows) // 10)
        splits = ["training"] * (len(rows) - kept) + ["validation"] * kept
    pairs = [_pair(row, source.parent) for row in rows]
    validation = tuple(p for p, split in zip(pairs, splits, strict=True) if split == "validation")
    training = tuple(p for p, split in zip(pairs, splits, strict=True) if split != "validation")
    if not training:
        raise InputError(f"{source} leaves no pair to train on")
    if most is not None and most < len(training):
        drawn: list[int] = sorted(random.Random(seed).sample(range(len(training)), most))
        training = tuple(training[n] for n in drawn)
    return PairList(training, validation)


def _pair(row: dict[str, Any], base: Path) -> PairFiles:
    paths = {c: base / str(row[c]) for c in COLUMNS if row.get(c)}
    for what, (one, other) in {"labels": COLUMNS[2:4], "a guide": GUIDES}.items():
        if (one in paths) != (other in paths):
            raise InputError(f"the pair {row['fixed']} / {row['moving']} has {what} for one image only")
    return PairFiles(**{c: located(str(path), Path()) for c, path in paths.items()})
