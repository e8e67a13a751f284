"""Who is rendered: label maps found, checked, and prepared once in the cache, each aligned with a common frame."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ofg_deploy import affine
from ofg_deploy.appearance import Look, thumbnail
from ofg_deploy.data.description import Dataset
from ofg_deploy.data.plan import plan_grid
from ofg_deploy.data.scans import describe
from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid, Matrix, Shape, Spacing
from ofg_deploy.image_folder import look_into
from ofg_deploy.preprocess import NetworkInput, Start
from ofg_deploy.train.dataset import cached, each, file_digest
from ofg_deploy.train.pairs import MAX_VALIDATION_PAIRS, PairFiles, PairList
from ofg_deploy.train.synthesis.label_maps import Coded, Looked, coded, inside_centre_mm, look, scored, small_image

VERSION = 1  # of what is kept of a person; raise it when that changes


@dataclass(frozen=True, eq=False)
class Person:
    """A label map that is ready to be rendered.

    Attributes:
        coded: its voxels.
        own_from_frame: (4, 4) world mm of the common frame -> its own.
        centre_mm: (3,) the middle of the brain in its own world.
    """

    coded: Coded
    own_from_frame: Matrix
    centre_mm: Matrix

    @property
    def frame_from_own(self) -> Matrix:
        """The inverse of ``own_from_frame``."""
        return np.asarray(np.linalg.inv(self.own_from_frame), dtype=np.float64)


def find_people(
    source: Path, dataset: Dataset | None, seed: int, skip_bad: bool
) -> tuple[PairList, list[Looked], str | None]:
    """Label maps of a folder or a data set, as pairs whose images are the label maps themselves.

    Each training map is the fixed one of one pair: they say who takes part. A tenth of a folder, at least two, is kept
    for validation, where every ordered pair, or ``MAX_VALIDATION_PAIRS`` of them, is rendered once.

    Returns:
        The pairs, what the training maps hold, and a line about what was left out (only with ``skip_bad``).

    Raises:
        InputError: no label maps there, or one that cannot be rendered (the first five are named) without ``skip_bad``.
    """
    if dataset is not None:
        members = {s: [p.labels or p.image for p in dataset.splits.get(s, ())] for s in ("training", "validation")}
        training, validation = members["training"], members["validation"]
    elif source.is_dir():
        images = list(look_into(source).images.values())
        shuffled = random.Random(seed).sample(images, len(images))
        kept = max(2, len(images) // 10)
        training, validation = sorted(shuffled[kept:]), sorted(shuffled[:kept])
    else:
        raise InputError(f"{source} is a file: `synthesise` renders a folder of label maps or a dataset.json")
    if min(len(training), len(validation)) < 2:
        raise InputError(
            f"{source} has {len(training)} label maps to train and {len(validation)} to validate on: at least 2 "
            "of each are needed, of different people"
        )
    looked, bad = _look_at([*training, *validation])
    if bad and not skip_bad:
        advice = "give a folder of label maps, or add `skip_bad=True`"
        raise InputError(f"{describe(bad, len(training) + len(validation))}: {advice}")
    training, validation = ([p for p in split if p in looked] for split in (training, validation))
    if min(len(training), len(validation)) < 2:
        why = describe(bad, len(bad) + len(looked))
        raise InputError(f"{source} leaves fewer than 2 label maps to train or to validate on: {why}")
    every = [(a, b) for a in validation for b in validation if a != b]
    held = random.Random(0).sample(every, min(MAX_VALIDATION_PAIRS, len(every)))
    evaluated = tuple(sorted(dataset.labels)) if dataset and dataset.labels else scored([looked[p] for p in validation])
    if not evaluated:
        raise InputError(f"{source}: no label occurs in all maps of the validation split: Dice cannot be taken")
    pairs = PairList(
        tuple(PairFiles(a, b) for a, b in zip(training, [*training[1:], training[0]], strict=True)),
        tuple(PairFiles(a, b, a, b) for a, b in held),
        evaluated,
    )
    left_out = f"{describe(bad, len(bad) + len(looked))}; left out" if bad else None
    return pairs, [looked[p] for p in training], left_out


def _look_at(paths: Sequence[Path]) -> tuple[dict[Path, Looked], dict[Path, str]]:
    looked, bad = {}, {}

    def try_one(path: Path) -> Looked | InputError:
        try:
            return look(path)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        for path, found in zip(paths, threads.map(try_one, paths), strict=True):
            if isinstance(found, Looked):
                looked[path] = found
            else:
                bad[path] = str(found)
    return looked, bad


def plan_people(looked: list[Looked], divisor: int, spacing: Spacing | None, axes: str) -> tuple[Shape, Spacing]:
    """Grid and spacing that hold what lies inside of each map, with a margin; as ``pairs.plan_grid``."""
    return plan_grid([one.content for one in looked], divisor, spacing, axes)


def prepare_people(
    people: Sequence[Path],
    frame: Path | None,
    expects: NetworkInput,
    shell: bool,
    cache: Path,
    workers: int,
    advance: Callable[[], None],
) -> list[Path]:
    """Prepare every label map that is not in the cache yet; their files there, in order.

    Args:
        frame: the label map with which the others are aligned, as ``expects.init`` says; None trusts the headers.
        shell: see ``label_maps.coded``.
        advance: called once for each.

    Raises:
        InputError: one cannot be prepared.
    """
    cache.mkdir(parents=True, exist_ok=True)
    files = [cache / f"{_key(path, frame, expects, shell)}.person.npz" for path in people]
    todo = {file: path for file, path in zip(files, people, strict=True) if not file.exists()}
    for _ in range(len(files) - len(todo)):
        advance()
    jobs: dict[Path, Callable[[], None]] = {
        file: partial(_prepare, path, frame, expects, shell, file) for file, path in todo.items()
    }
    for _, error in each(jobs, workers):
        if error:
            raise error
        advance()
    return files


def load_person(file: Path) -> Person:
    """Read what ``prepare_people`` wrote. Raises InputError: the file was damaged since; it is removed then."""
    with cached(file) as stored:
        codes = stored["codes"]
        grid = Grid(codes.shape, stored["world_from_vox"])
        return Person(Coded(codes, stored["numbers"], grid), stored["own_from_frame"], stored["centre_mm"])


def _prepare(path: Path, frame: Path | None, expects: NetworkInput, shell: bool, file: Path) -> None:
    one = coded(path, shell)
    image, own_from_frame = small_image(one, path), np.eye(4)
    if frame is not None and frame != path:
        fixed = small_image(coded(frame, shell=False), frame)
        own_from_frame = Start(expects.init).align(fixed, image).moving_from_fixed
    unfinished = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        np.savez(
            unfinished,
            codes=one.codes,
            numbers=one.numbers,
            world_from_vox=one.grid.world_from_vox,
            own_from_frame=own_from_frame,
            centre_mm=inside_centre_mm(one),
            stripped=Look.of(image.data).stripped,
            thumbnail=thumbnail(image, expects),
        )
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _key(path: Path, frame: Path | None, expects: NetworkInput, shell: bool) -> str:
    other = None if frame is None else file_digest(frame)
    what = [VERSION, affine.VERSION, file_digest(path), other, asdict(expects), shell]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
