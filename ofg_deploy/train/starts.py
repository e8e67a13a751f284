"""Starts of training pairs through a common frame: every subject is aligned once, and a pair's start is composed.

With T_s the map from the frame to subject s, the start of a pair is T_moving after the inverse of T_fixed. So 400 pairs
of 50 subjects take 50 alignments. Such a start is as good as one found for the pair itself, and not the same (how far
apart they are: docs/architecture.md, "Decisions"). ``ofg register`` aligns its pair itself, and so do validation pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ofg_deploy import affine
from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix
from ofg_deploy.nifti import load_grid, load_image
from ofg_deploy.preprocess import Init, Start

if TYPE_CHECKING:
    from ofg_deploy.train.pairs import PairFiles

VERSION = 1  # part of every cache key: raise it when what is composed changes
COMPOSED: tuple[Init, ...] = ("rigid", "affine")
PAYS_FROM = 1.5  # pairs for each subject; below it a pair's own alignment costs no more


def choose_frame(pairs: Sequence[PairFiles], init: Init, always: bool = False) -> Path | None:
    """The image whose field of view is the most usual among these pairs'; None where a common frame saves nothing.

    Args:
        always: choose one even then.
    """
    images = sorted(images_of(pairs))
    if init not in COMPOSED or (len(pairs) < PAYS_FROM * len(images) and not always):
        return None
    extents = np.array([np.sort(np.array((g := load_grid(p)).shape) * g.spacing_mm) for p in images])
    unusual = np.abs(np.log(extents / np.median(extents, axis=0))).sum(axis=1)
    return images[int(np.argmin(unusual))]


def images_of(pairs: Sequence[PairFiles]) -> list[Path]:
    """Every image once."""
    return list(dict.fromkeys(image for pair in pairs for image in (pair.fixed, pair.moving)))


def start_file(image_sha256: str, frame_sha256: str, init: Init, cache: Path) -> Path:
    """Where the alignment of an image with the frame is kept."""
    what = [VERSION, affine.VERSION, init, frame_sha256, image_sha256]
    return cache / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]}.start.npy"


def align_with_frame(image: Path, frame: Path, init: Init, file: Path) -> None:
    """Find image_from_frame and keep it. Raises InputError, GeometryError as ``Start.align``."""
    matrix = np.eye(4) if image == frame else Start(init).align(load_image(frame), load_image(image)).moving_from_fixed
    unfinished = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        np.save(unfinished, matrix)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def composed(fixed: Path, moving: Path) -> Matrix:
    """(4, 4) moving_from_fixed from the files of two ``align_with_frame``. Raises InputError: a damaged file."""
    matrices = []
    for file in (fixed, moving):
        try:
            matrix = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{file} in the cache is missing or damaged: delete it and start again") from error
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise InputError(f"{file} in the cache is damaged: delete it and start again")
        matrices.append(matrix)
    return np.asarray(matrices[1] @ np.linalg.inv(matrices[0]), dtype=np.float64)
