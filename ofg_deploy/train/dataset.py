"""Which pairs to train on, and their preparation: the same as in serving, done once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy import affine
from ofg_deploy.appearance import Appearance, Look, thumbnail
from ofg_deploy.child import apart
from ofg_deploy.data.description import FILE_NAME, Dataset, Subject, is_dataset, read_dataset
from ofg_deploy.data.plan import plan_grid as plan_for
from ofg_deploy.data.scans import bad_scans, describe
from ofg_deploy.errors import DAMAGED, InputError, UsageError
from ofg_deploy.geometry import Grid, Shape, Spacing, canonical
from ofg_deploy.image_folder import counterpart, look_into
from ofg_deploy.locations import located, portable
from ofg_deploy.nifti import load_grid, load_image, load_labels
from ofg_deploy.nifti_file import files_of
from ofg_deploy.outputs import sha256_file
from ofg_deploy.pair_list import read_rows
from ofg_deploy.preprocess import CONTENT_OUTSIDE, LITTLE_OVERLAP, Init, NetworkInput, PreparedPair, Start, prepare_pair
from ofg_deploy.train import starts
from ofg_deploy.train.starts import align_with_frame, composed, images_of, start_file

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

    def to_record(self, folder: Path) -> dict[str, Any]:
        """For a record in ``folder``, whose files are named from there; ``from_record`` is its inverse."""
        pairs = {
            split: [{k: portable(v, folder) for k, v in asdict(pair).items() if v} for pair in getattr(self, split)]
            for split in ("training", "validation")
        }
        return {**pairs, "evaluated": self.evaluated}

    @classmethod
    def from_record(cls, record: dict[str, Any], folder: Path) -> PairList:
        """Read what ``to_record`` made (runs before 0.2 have no ``evaluated``)."""
        evaluated = record.get("evaluated")
        splits = (tuple(_pair(row, folder) for row in record[s]) for s in ("training", "validation"))
        return cls(*splits, None if evaluated is None else tuple(int(n) for n in evaluated))


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
    list names its columns ``fixed``, ``moving`` and optionally ``fixed_labels``, ``moving_labels``, ``split``
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
        raise UsageError("--labels goes with a plain folder; data sets and lists name their label files themselves")
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
    frame: Path | None = None,
) -> list[Path]:
    """Prepare every pair that is not in the cache yet, in ``workers`` processes; return their cache files in order.

    Args:
        advance: called once for each pair, and with a frame once for each image before.
        failed: takes the pairs that cannot be used, and why; their cache files do not exist then.
        frame: an image through whose space the starts are composed (``starts``); None aligns each pair by itself.

    Raises:
        InputError, GeometryError: the first pair that cannot be used (without ``failed``), or too little disk space.
    """
    try:
        return _prepare_all(pairs, expects, cache_dir, workers, advance, failed, frame)
    except OSError as error:
        raise InputError(f"cannot write into the cache {cache_dir}: {error.strerror or error}") from error


def _prepare_all(
    pairs: list[PairFiles],
    expects: NetworkInput,
    cache_dir: Path,
    workers: int,
    advance: Callable[[], None],
    failed: dict[PairFiles, str] | None,
    frame: Path | None,
) -> list[Path]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    files = [cache_dir / f"{_key(pair, expects, frame)}.npz" for pair in pairs]
    todo = {file: pair for pair, file in zip(pairs, files, strict=True) if not _is_whole(file, expects)}
    need = len(todo) * 2 * 4 * int(np.prod(expects.shape))
    if need > shutil.disk_usage(cache_dir).free * 0.95:
        raise InputError(f"the cache {cache_dir} needs {need / 1e9:.1f} GB for {len(todo)} pairs: too little space")
    found: dict[Path, Path] = {}
    if frame is not None:
        found = _align_all(pairs, todo, frame, expects.init, cache_dir, workers, advance, failed)
    for _ in range(len(files) - len(todo)):
        advance()
    todo = {file: pair for file, pair in todo.items() if not failed or pair not in failed}
    jobs = {}
    for file, pair in todo.items():
        through = (found[pair.fixed], found[pair.moving]) if frame is not None else None
        jobs[file] = partial(_prepare, pair, expects, file, through)
    for file, error in _each(jobs, workers):
        if error:
            _note(todo[file], error, failed)
        advance()
    return _with_twins(pairs, files, failed)


def _align_all(
    pairs: list[PairFiles],
    todo: dict[Path, PairFiles],
    frame: Path,
    init: Init,
    cache_dir: Path,
    workers: int,
    advance: Callable[[], None],
    failed: dict[PairFiles, str] | None,
) -> dict[Path, Path]:
    """Align the images of ``todo`` with the frame; where each alignment lies. Pairs of images that cannot be fail."""
    origin = file_digest(frame)
    found = {i: start_file(file_digest(i), origin, init, cache_dir) for i in images_of([*todo.values()])}
    unknown = {image: file for image, file in found.items() if not file.exists()}
    for _ in range(len(images_of(pairs)) - len(unknown)):
        advance()
    bad: dict[Path, InputError] = {}
    jobs = {image: partial(align_with_frame, image, frame, init, file) for image, file in unknown.items()}
    for image, error in _each(jobs, workers):
        if error:
            bad[image] = error
            if failed is None:
                raise error
        advance()
    for pair in todo.values():
        for image in (pair.fixed, pair.moving):
            if image in bad:
                _note(pair, bad[image], failed)
    return found


def _each(jobs: dict[Path, Callable[[], None]], workers: int) -> Iterator[tuple[Path, InputError | None]]:
    """Do all of it, in processes where there are several; the key of each that is done, and what went wrong with it."""
    if workers <= 1 or len(jobs) <= 2:
        for key, job in jobs.items():
            yield key, _outcome(job)
        return
    # Spawned, not forked: a fork of a process with running torch threads can hang.
    context = multiprocessing.get_context("spawn")
    with apart():  # also the first submission, and with it the processes
        pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        running = {pool.submit(job): key for key, job in jobs.items()}
    with pool:
        try:
            for future in as_completed(running):
                yield running[future], _outcome(future.result)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _outcome(work: Callable[[], None]) -> InputError | None:
    try:
        work()
    except InputError as error:
        return error
    return None


def _note(pair: PairFiles, error: InputError, failed: dict[PairFiles, str] | None) -> None:
    if failed is None:
        raise error
    failed[pair] = str(error)


def _with_twins(pairs: list[PairFiles], files: list[Path], failed: dict[PairFiles, str] | None) -> list[Path]:
    """Pairs of equal content share a cache file, and so a failure."""
    if failed:
        reasons = {file: failed[pair] for pair, file in zip(pairs, files, strict=True) if pair in failed}
        failed.update({p: reasons[file] for p, file in zip(pairs, files, strict=True) if file in reasons})
    return files


KEPT = ("fixed", "moving", "world_from_vox", "moving_from_fixed", "overlap", "outside", "stripped", "thumbnail")


def _is_whole(file: Path, expects: NetworkInput) -> bool:
    """Whether a pair is in the cache, by what can be seen without reading its voxels; a damaged one is made again."""
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            least = 4 * int(np.prod(expects.shape))
            if any(sizes[f"{name}.npy"] < least for name in ("fixed", "moving")):
                return False
            with np.load(file, allow_pickle=False) as stored:  # whose checksums are looked at
                return all(np.all(stored[name] is not None) for name in KEPT[2:])
    except (*DAMAGED, KeyError):
        return False


def load_cached(file: Path) -> PreparedPair:
    """Read a pair that ``prepare_all`` wrote.

    Raises:
        InputError: the file was damaged since; it is removed then, so that it is made again.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            fixed = stored["fixed"]
            if fixed.ndim != 3 or fixed.dtype != np.float32 or stored["moving"].shape != fixed.shape:
                raise ValueError("not two images on one grid")
            return PreparedPair(
                fixed=fixed,
                moving=stored["moving"],
                grid=Grid(fixed.shape, stored["world_from_vox"]),
                moving_from_fixed=stored["moving_from_fixed"],
                overlap=float(stored["overlap"]),
                outside=float(stored["outside"]),
            )
    except (*DAMAGED, KeyError, TypeError) as error:
        file.unlink(missing_ok=True)
        raise InputError(
            f"{file} in the cache was missing or damaged: start again (ofg train --resume), and it is made anew"
        ) from error


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


def _pairs_of_dataset(dataset: Dataset, source: Path, most: int | None, seed: int, at_random: int) -> PairList:
    def files(pair: tuple[Subject, Subject]) -> PairFiles:
        fixed, moving = pair
        return PairFiles(fixed.image, moving.image, fixed.labels, moving.labels)

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
        raise InputError(f"--labels {labels} is not a folder")
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
        kept = sorted(random.Random(seed).sample(range(len(training)), most))
        training = tuple(training[n] for n in kept)
    return PairList(training, validation)


def _pair(row: dict[str, Any], base: Path) -> PairFiles:
    paths = {c: base / str(row[c]) for c in COLUMNS if row.get(c)}
    if ("fixed_labels" in paths) != ("moving_labels" in paths):
        raise InputError(f"the pair {row['fixed']} / {row['moving']} has labels for one image only")
    return PairFiles(**{c: located(str(path), Path()) for c, path in paths.items()})


def _prepare(pair: PairFiles, expects: NetworkInput, file: Path, through: tuple[Path, Path] | None = None) -> None:
    """``through``: alignments of both images with a common frame, to compose the start of."""
    fixed = load_image(pair.fixed)
    start = Start(expects.init, matrix=composed(*through)) if through else None
    prepared = prepare_pair(fixed, load_image(pair.moving), expects, start)
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


def _key(pair: PairFiles, expects: NetworkInput, frame: Path | None = None) -> str:
    what = [CACHE_VERSION, affine.VERSION, file_digest(pair.fixed), file_digest(pair.moving), asdict(expects)]
    if frame is not None:
        what += [starts.VERSION, file_digest(frame)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@cache
def file_digest(path: Path) -> str:
    """sha256 of a file, read once; of both files of an .img/.hdr pair. Raises InputError if it cannot be read."""
    try:
        digests = [sha256_file(file) for file in files_of(path)]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
