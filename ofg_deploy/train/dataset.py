"""Which pairs to train on, and their preparation: the same as in serving, done once and cached on disk."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy import affine
from ofg_deploy.appearance import Appearance, Look, thumbnail
from ofg_deploy.data.description import FILE_NAME, Dataset, Subject, is_dataset, read_dataset
from ofg_deploy.data.plan import plan_grid as plan_for
from ofg_deploy.data.scans import bad_scans, describe
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Grid, Shape, Spacing, canonical
from ofg_deploy.nifti import load_grid, load_image, load_labels
from ofg_deploy.outputs import sha256_file
from ofg_deploy.preprocess import CONTENT_OUTSIDE, LITTLE_OVERLAP, NetworkInput, PreparedPair, prepare_pair

DEFAULT_PAIRS = 400  # of all ordered pairs of a folder's images, which are far too many
CACHE_VERSION = 5  # raise it when preparation changes its result or what is kept of it
MAX_VALIDATION_PAIRS = 20
FEWEST = 4  # voxels of an image along an axis: with fewer there is no neighbourhood to compare
COLUMNS = ("fixed", "moving", "fixed_labels", "moving_labels")


@dataclass(frozen=True)
class PairFiles:
    """One pair on disk; label maps are optional. With labels for one image only it does not pass ``check_pairs``."""

    fixed: Path
    moving: Path
    fixed_labels: Path | None = None
    moving_labels: Path | None = None


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

    def to_record(self) -> dict[str, Any]:
        """JSON-ready; ``from_record`` is its inverse."""
        pairs = {
            split: [{k: str(v) for k, v in asdict(pair).items() if v} for pair in getattr(self, split)]
            for split in ("training", "validation")
        }
        return {**pairs, "evaluated": self.evaluated}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> PairList:
        """Read what ``to_record`` made (runs before 0.2 have no ``evaluated``)."""
        evaluated = record.get("evaluated")
        splits = (tuple(_pair(row, Path()) for row in record[s]) for s in ("training", "validation"))
        return cls(*splits, None if evaluated is None else tuple(int(n) for n in evaluated))


def find_dataset(source: Path) -> Dataset | None:
    """The ``dataset.json`` that ``source`` is, or has in it; None if it is a plain folder or a list of pairs.

    Raises:
        InputError: it is one, but cannot be read.
    """
    path = source / FILE_NAME if source.is_dir() else source
    return read_dataset(path) if is_dataset(path) else None


def find_pairs(source: Path, labels: Path | None, pairs: int | None, seed: int) -> PairList:
    """Pairs from a ``dataset.json``, a folder of NIfTI images, or a CSV or JSON list.

    A data set gives the pairs of its ``training`` and ``validation`` splits. A folder gives random ordered pairs; a
    tenth of the subjects (at least two) is kept for validation, with labels of the same file name in ``labels``. A
    list names its columns ``fixed``, ``moving`` and optionally ``fixed_labels``, ``moving_labels``, ``split``
    (``training`` or ``validation``; without any, the last tenth validates); its paths are relative to the list.

    Args:
        pairs: the most training pairs; None means 400 where pairs are random, and all where they are not.

    Raises:
        InputError: nothing usable there.
        UsageError: ``labels`` together with a data set or a list.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist: give dataset.json, a folder of NIfTI images, or a list of pairs")
    dataset = find_dataset(source)
    if dataset is None and source.is_dir():
        return _pairs_of_folder(source, labels, DEFAULT_PAIRS if pairs is None else pairs, seed)
    if labels is not None:
        raise UsageError("--labels goes with a plain folder; data sets and lists name their label files themselves")
    return _pairs_of_list(source, pairs, seed) if dataset is None else _pairs_of_dataset(dataset, source, pairs, seed)


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
        raise InputError(f"{describe(bad, of)}. Mend or remove them, or add --skip-bad")
    training = tuple(p for p in pairs.training if not is_bad(p))
    validation = tuple(p for p in pairs.validation if not is_bad(p))
    if not training or (pairs.validation and not validation):
        raise InputError(f"--skip-bad leaves no pair to train or to validate on: {describe(bad, of)}")
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
            "give a smaller --spacing"
        )


def prepare_all(
    pairs: list[PairFiles],
    expects: NetworkInput,
    cache_dir: Path,
    workers: int,
    advance: Callable[[], None],
    failed: dict[PairFiles, str] | None = None,
) -> list[Path]:
    """Prepare every pair that is not in the cache yet, in ``workers`` processes; return their cache files in order.

    Args:
        failed: takes the pairs that cannot be used, and why; their cache files do not exist then.

    Raises:
        InputError, GeometryError: the first pair that cannot be used (without ``failed``), or too little disk space.
    """
    try:
        return _prepare_all(pairs, expects, cache_dir, workers, advance, failed)
    except OSError as error:
        raise InputError(f"cannot write into the cache {cache_dir}: {error.strerror or error}") from error


def _prepare_all(
    pairs: list[PairFiles],
    expects: NetworkInput,
    cache_dir: Path,
    workers: int,
    advance: Callable[[], None],
    failed: dict[PairFiles, str] | None,
) -> list[Path]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    files = [cache_dir / f"{_key(pair, expects)}.npz" for pair in pairs]
    todo = {file: pair for pair, file in zip(pairs, files, strict=True) if not file.exists()}
    need = len(todo) * 2 * 4 * int(np.prod(expects.shape))
    if need > shutil.disk_usage(cache_dir).free * 0.95:
        raise InputError(f"the cache {cache_dir} needs {need / 1e9:.1f} GB for {len(todo)} pairs: too little space")
    for _ in range(len(files) - len(todo)):
        advance()
    if workers <= 1 or len(todo) <= 2:
        for file, pair in todo.items():
            _finish(pair, partial(_prepare, pair, expects, file), failed)
            advance()
        return _with_twins(pairs, files, failed)
    # Spawned, not forked: a fork of a process with running torch threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        jobs = {pool.submit(_prepare, pair, expects, file): pair for file, pair in todo.items()}
        try:
            for job in as_completed(jobs):
                _finish(jobs[job], job.result, failed)
                advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return _with_twins(pairs, files, failed)


def _with_twins(pairs: list[PairFiles], files: list[Path], failed: dict[PairFiles, str] | None) -> list[Path]:
    """Pairs of equal content share a cache file, and so a failure."""
    if failed:
        reasons = {file: failed[pair] for pair, file in zip(pairs, files, strict=True) if pair in failed}
        failed.update({p: reasons[file] for p, file in zip(pairs, files, strict=True) if file in reasons})
    return files


def _finish(pair: PairFiles, work: Callable[[], None], failed: dict[PairFiles, str] | None) -> None:
    try:
        work()
    except InputError as error:
        if failed is None:
            raise
        failed[pair] = str(error)


def load_cached(file: Path) -> PreparedPair:
    """Read a pair that ``prepare_all`` wrote. Raises InputError if the file was damaged since."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            fixed = stored["fixed"]
            return PreparedPair(
                fixed=fixed,
                moving=stored["moving"],
                grid=Grid(fixed.shape, stored["world_from_vox"]),
                moving_from_fixed=stored["moving_from_fixed"],
                overlap=float(stored["overlap"]),
                outside=float(stored["outside"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} in the cache is missing or damaged: delete it and start again") from error


def misfits(pairs: list[PairFiles], files: list[Path]) -> list[str]:
    """What a user should know about prepared pairs as a whole, one line each; reads no voxels."""
    outside, apart, other = {}, {}, {}
    for pair, file in zip(pairs, files, strict=True):
        with np.load(file, allow_pickle=False) as stored:
            if (share := float(stored["outside"])) > CONTENT_OUTSIDE:
                outside[pair] = share
            if (share := float(stored["overlap"])) < LITTLE_OVERLAP:
                apart[pair] = share
            if said := str(stored["start"]):
                other[pair] = said
    lines = []
    if outside:
        worst = max(outside, key=outside.__getitem__)
        lines.append(
            f"{len(outside)} of {len(files)} pairs have content outside the network's grid, "
            f"{outside[worst]:.0%} of {worst.fixed}: use a larger --grid or --spacing"
        )
    if apart:
        worst = min(apart, key=apart.__getitem__)
        lines.append(
            f"{len(apart)} of {len(files)} pairs hardly overlap, {worst.fixed} and {worst.moving} by {apart[worst]:.0%}"
        )
    if other:
        pair, said = next(iter(other.items()))
        lines.append(f"{len(other)} of {len(files)} pairs start otherwise, {pair.fixed} and {pair.moving}: {said}")
    return lines


def appearance(files: list[Path]) -> Appearance:
    """What the fixed images of prepared pairs look like; reads no voxels."""
    stripped, thumbnails = [], []
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            stripped.append(stored["stripped"])
            thumbnails.append(stored["thumbnail"])
    return Appearance.of(np.array(stripped), np.array(thumbnails))


def _pairs_of_dataset(dataset: Dataset, source: Path, most: int | None, seed: int) -> PairList:
    def files(pair: tuple[Subject, Subject]) -> PairFiles:
        fixed, moving = pair
        return PairFiles(fixed.image, moving.image, fixed.labels, moving.labels)

    at_random = dataset.rule == "random" and not (dataset.pairs or {}).get("training")
    training = dataset.pairs_of("training", DEFAULT_PAIRS if most is None and at_random else most, seed)
    listed = (dataset.pairs or {}).get("validation")
    validation = dataset.pairs_of("validation", None if listed else MAX_VALIDATION_PAIRS, seed)
    if not training or not validation:
        raise InputError(
            f"{source} has {len(training)} training and {len(validation)} validation pairs: both are needed"
        )
    evaluated = tuple(sorted(dataset.labels)) if dataset.labels else None
    return PairList(tuple(map(files, training)), tuple(map(files, validation)), evaluated)


def _pairs_of_folder(folder: Path, labels: Path | None, count: int, seed: int) -> PairList:
    images = sorted(p for p in folder.iterdir() if p.name.endswith((".nii", ".nii.gz")) and p.name[0] != ".")
    if len(images) < 4:
        raise InputError(
            f"{folder} holds {len(images)} NIfTI images: at least 4 are needed (2 to train, 2 to validate)"
        )
    if labels is not None and not labels.is_dir():
        raise InputError(f"--labels {labels} is not a folder")
    shuffled = random.Random(seed).sample(images, len(images))
    kept = max(2, len(images) // 10)

    def pairs(subjects: list[Path], most: int) -> tuple[PairFiles, ...]:
        every = [(a, b) for a in subjects for b in subjects if a != b]
        chosen = random.Random(seed).sample(every, min(most, len(every)))
        return tuple(PairFiles(a, b, *(labels / p.name if labels else None for p in (a, b))) for a, b in chosen)

    return PairList(pairs(sorted(shuffled[kept:]), count), pairs(sorted(shuffled[:kept]), MAX_VALIDATION_PAIRS))


def _pairs_of_list(source: Path, most: int | None, seed: int) -> PairList:
    try:
        text = source.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if source.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{source} is not a readable CSV or JSON list of pairs ({error})") from error
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(r, dict) and r.get("fixed") and r.get("moving") for r in rows)
    ):
        raise InputError(f"{source} must list at least one pair, with 'fixed' and 'moving'")
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
        kept = sorted(random.Random(seed).sample(range(len(training)), most))
        training = tuple(training[n] for n in kept)
    return PairList(training, validation)


def _pair(row: dict[str, Any], base: Path) -> PairFiles:
    paths = {c: base / str(row[c]) for c in COLUMNS if row.get(c)}
    if ("fixed_labels" in paths) != ("moving_labels" in paths):
        raise InputError(f"the pair {row['fixed']} / {row['moving']} has labels for one image only")
    return PairFiles(**{c: path.absolute() for c, path in paths.items()})


def _prepare(pair: PairFiles, expects: NetworkInput, file: Path) -> None:
    fixed = load_image(pair.fixed)
    prepared = prepare_pair(fixed, load_image(pair.moving), expects)
    unfinished = file.with_name(f".{os.getpid()}-{file.name}")  # ends in .npz, or numpy would append it
    try:
        np.savez(
            unfinished,
            fixed=prepared.fixed,
            moving=prepared.moving,
            world_from_vox=prepared.grid.world_from_vox,
            moving_from_fixed=prepared.moving_from_fixed,
            overlap=prepared.overlap,
            outside=prepared.outside,
            start="; ".join(prepared.alignment.warnings() if prepared.alignment else []),
            stripped=Look.of(fixed.data).stripped,
            thumbnail=thumbnail(fixed, expects),
        )
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _key(pair: PairFiles, expects: NetworkInput) -> str:
    what = [CACHE_VERSION, affine.VERSION, file_digest(pair.fixed), file_digest(pair.moving), asdict(expects)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@cache
def file_digest(path: Path) -> str:
    """sha256 of a file, read once. Raises InputError if it cannot be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
