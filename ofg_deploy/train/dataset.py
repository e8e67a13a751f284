"""The preparation of pairs for training: the same as in serving, done once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy import affine
from ofg_deploy.appearance import Appearance, Look, thumbnail
from ofg_deploy.child import Children
from ofg_deploy.errors import DAMAGED, InputError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import load_image
from ofg_deploy.nifti_file import files_of
from ofg_deploy.outputs import sha256_file
from ofg_deploy.preprocess import CONTENT_OUTSIDE, LITTLE_OVERLAP, Init, NetworkInput, PreparedPair, Start, prepare_pair
from ofg_deploy.train import starts
from ofg_deploy.train.pairs import PairFiles
from ofg_deploy.train.starts import align_with_frame, composed, images_of, start_file

CACHE_VERSION = 5  # raise it when preparation changes its result or what is kept of it


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
    for file, error in each(jobs, workers):
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
    for image, error in each(jobs, workers):
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


def each(jobs: dict[Path, Callable[[], None]], workers: int) -> Iterator[tuple[Path, InputError | None]]:
    """Do all of it, in processes where there are several; the key of each that is done, and what went wrong with it."""
    if workers <= 1 or len(jobs) <= 2:
        for key, job in jobs.items():
            yield key, _outcome(job)
        return
    children = Children("that prepares pairs", workers)
    waiting = ThreadPoolExecutor(workers)  # a thread for each process
    try:
        running = {waiting.submit(children.call, job): key for key, job in jobs.items()}
        for future in as_completed(running):
            yield running[future], _outcome(future.result)
    finally:
        waiting.shutdown(cancel_futures=True)  # what is under way is written
        children.close()


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
    with cached(file) as stored:
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


@contextmanager
def cached(file: Path) -> Iterator[Any]:
    """The arrays of a file of the cache, by name, while they are read.

    Raises:
        InputError: the file is missing or was damaged since; it is removed then, so that it is made again.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            yield stored
    except (*DAMAGED, KeyError, TypeError) as error:
        file.unlink(missing_ok=True)
        raise InputError(
            f"{file} in the cache was missing or damaged: start again (resume the run), and it is made anew"
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
            f"{outside[worst]:.0%} of {worst.fixed}: use a larger `grid` or `spacing`"
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
