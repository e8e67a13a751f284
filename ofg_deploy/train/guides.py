"""Guides of training pairs: other images of the same subjects, which are compared where the network sees the images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ofg_deploy import metrics
from ofg_deploy.errors import InputError
from ofg_deploy.field import resample
from ofg_deploy.nifti import load_image
from ofg_deploy.outputs import staged
from ofg_deploy.preprocess import NetworkInput, normalised
from ofg_deploy.train.dataset import cached, each, file_digest, load_cached
from ofg_deploy.train.pairs import PairFiles, PairList

Guide = npt.NDArray[np.float32]

VERSION = 1  # of what is kept; raise it when that changes
# A guide has to agree better with its own image than with the other one of a pair, in this share of its pairs: that of
# another subject does so in about half of them, the right one in all but a few.
OWN = 0.75
MOST_COMPARED = 40  # pairs that are looked at, spread over all


def have_guides(pairs: Sequence[PairFiles]) -> bool:
    """Whether these pairs have guides (all or none, after ``check_pairs``)."""
    return any(pair.fixed_guide is not None and pair.moving_guide is not None for pair in pairs)


def without_guides(pairs: PairList) -> PairList:
    """The same pairs, for a run that compares none."""
    training, validation = (
        tuple(replace(pair, fixed_guide=None, moving_guide=None) for pair in split)
        for split in (pairs.training, pairs.validation)
    )
    return replace(pairs, training=training, validation=validation)


def prepare_guides(
    pairs: Sequence[PairFiles],
    prepared: Sequence[Path],
    expects: NetworkInput,
    workers: int,
    failed: dict[PairFiles, str] | None = None,
) -> list[Path]:
    """Both guides of every pair on the network's grid, cached beside the prepared pairs; the files in order.

    A guide is carried with its image: by the world coordinates of its own header, and by the start of the pair. Its
    intensities go through the same recipe.

    Args:
        failed: takes the pairs whose guides cannot be used, and why; those in it already are left out.

    Raises:
        InputError: the first guide that cannot be used, without ``failed``.
    """
    files = [_file(pair, on, expects) for pair, on in zip(pairs, prepared, strict=True)]
    whole = {file: (pair, on) for file, pair, on in zip(files, pairs, prepared, strict=True)}
    todo = {f: two for f, two in whole.items() if not f.exists() and (failed is None or two[0] not in failed)}
    jobs: dict[Path, Callable[[], None]] = {f: partial(_prepare, *two, expects, f) for f, two in todo.items()}
    for file, error in each(jobs, workers):
        if error is not None:
            if failed is None:
                raise error
            failed[todo[file][0]] = str(error)
    return files


def load_guides(file: Path) -> list[Guide]:
    """Moving and fixed guide (X, Y, Z) as ``prepare_guides`` wrote them."""
    with cached(file) as stored:
        return [stored["moving"], stored["fixed"]]


def check_own(pairs: Sequence[PairFiles], prepared: Sequence[Path], guides: Sequence[Path]) -> None:
    """Refuse guides that are those of other subjects, by what they show on the network's grid.

    In a pair, the guide of an image must share more information with it than the other image's guide, whatever their
    contrasts; both are in the same place there.

    Raises:
        InputError: names the guide that fares worst.
    """
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_COMPARED)).round().astype(int))
    asked: Counter[tuple[Path, Path | None]] = Counter()
    won: Counter[tuple[Path, Path | None]] = Counter()
    for n in chosen:
        pair, on = pairs[n], load_cached(prepared[n])
        moving_guide, fixed_guide = load_guides(guides[n])
        sides = ((pair.fixed, pair.fixed_guide, on.fixed), (pair.moving, pair.moving_guide, on.moving))
        if pair.fixed == pair.moving:
            continue
        for (image, guide, seen), own, other in zip(
            sides, (fixed_guide, moving_guide), (moving_guide, fixed_guide), strict=True
        ):
            key = (image, guide)
            asked[key] += 1
            won[key] += metrics.mutual_information(seen, own) > metrics.mutual_information(seen, other)
    shares = {key: won[key] / asked[key] for key in asked}
    if wrong := [key for key, share in shares.items() if share < OWN]:
        image, guide = min(wrong, key=lambda key: (shares[key], str(key)))
        raise InputError(
            f"{len(wrong)} of {len(shares)} guides agree with their images no better than those of other subjects do, "
            f"first {guide} with {image}: name the guide of the same subject, in the same world, or add `guides=False`"
        )


def _file(pair: PairFiles, prepared: Path, expects: NetworkInput) -> Path:
    digests = [None if g is None else file_digest(g) for g in (pair.fixed_guide, pair.moving_guide)]
    what = [VERSION, *digests, asdict(expects)]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return prepared.with_name(f"{prepared.stem}-guides-{digest[:16]}.npz")


def _prepare(pair: PairFiles, prepared: Path, expects: NetworkInput, file: Path) -> None:
    on = load_cached(prepared)
    carried = []
    for path, start in ((pair.moving_guide, on.moving_from_fixed), (pair.fixed_guide, np.eye(4))):
        assert path is not None
        guide = load_image(path)
        unit, empty, _ = normalised(guide, expects.intensity)
        carried.append(resample(unit, guide.grid, on.grid, start, fill=empty))
    with staged([file], overwrite=True) as [partial_file]:
        np.savez(partial_file, moving=carried[0], fixed=carried[1])
