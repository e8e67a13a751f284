"""Whether an image is a label map: by its header, its name, or what its voxels look like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

INTENTS = {1002: "NIFTI_INTENT_LABEL", 1003: "NIFTI_INTENT_NEURONAME"}
BIDS_NAME = re.compile(r"_(dseg|mask)\.(nii|hdr|img)(\.gz)?$", flags=re.IGNORECASE)
FEWEST = 4  # so many different values are labels, however they are scattered
MOST = 2048  # labels; atlases with more say so in their header or name
SLAB = 2**20  # voxels looked at in one go
ALIKE = 0.4  # of neighbouring voxels beside the background: label maps have 0.55 and more, images 0.15 and less


def label_map_by(path: Path, intent: int, data: npt.NDArray[Any]) -> str:
    """What shows that an image is a label map, in words; empty where it is not one.

    All voxels have to be whole numbers. Then the first of these that applies:

    1. The header's intent is that of labels.
    2. The file name ends in ``_dseg`` or ``_mask``, as in BIDS; a ``_mask`` with more than ``FEWEST`` values is judged
       by these: it may be an image that somebody has masked.
    3. No value is negative, and there are at most ``FEWEST`` different ones; or at most ``MOST``, and of all pairs of
       neighbouring voxels that are not both background (the most frequent value) ``ALIKE`` or more are equal.

    Args:
        path: for its name. intent: NIfTI code. data: (X, Y, Z).
    """
    if data.dtype.kind == "f" and not all(np.array_equal(part, np.round(part)) for part in _slabs(data)):  # also of NaN
        return ""
    if intent in INTENTS:
        return f"intent {INTENTS[intent]}"
    named = BIDS_NAME.search(path.name)
    if meant_as_labels(path, intent):
        return "whole numbers, and the name ends in _dseg"
    most = FEWEST if named else MOST
    few = _counts(data[:: max(1, data.shape[0] // 32)], most)  # some planes rule most images out
    if few is None or (len(few) > FEWEST and _alike(data, max(few, key=few.__getitem__)) < ALIKE):
        return ""
    every = _counts(data, most)
    if every is None or (len(few) <= FEWEST < len(every) and _alike(data, max(every, key=every.__getitem__)) < ALIKE):
        return ""
    return f"whole numbers, {'and the name ends in _mask' if named else f'{len(every)} different values'}"


def _slabs(data: npt.NDArray[Any], overlap: int = 0) -> Iterator[npt.NDArray[Any]]:
    """(X, Y, n) views one after another, so that what is computed of one takes little memory beside the whole."""
    step = max(1, SLAB // max(1, data.shape[0] * data.shape[1]))
    for start in range(0, data.shape[2], step):
        yield data[:, :, start : start + step + overlap]


def _counts(data: npt.NDArray[Any], most: int) -> dict[Any, int] | None:
    """How often each value occurs; None where one is negative or there are more than ``most``."""
    found: dict[Any, int] = {}
    for part in _slabs(data):
        values, counts = np.unique(part, return_counts=True)
        if values[0] < 0:
            return None
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            found[value] = found.get(value, 0) + count
        if len(found) > most:
            return None
    return found


def meant_as_labels(path: Path, intent: int) -> bool:
    """Whether the header or the name calls it a label map, whatever it holds."""
    named = BIDS_NAME.search(path.name)
    return intent in INTENTS or bool(named and named[1].lower() == "dseg")


def _alike(data: npt.NDArray[Any], background: Any) -> float:
    """Share of equal values among pairs of neighbours of which at least one is not background."""
    equal = pairs = 0
    for axis in range(3):
        for part in _slabs(data, overlap=1 if axis == 2 else 0):
            planes = np.moveaxis(part, axis, 0)
            first, second = planes[:-1], planes[1:]
            content = (first != background) | (second != background)
            pairs += int(np.count_nonzero(content))
            equal += int(np.count_nonzero(content & (first == second)))
    return equal / pairs if pairs else 1.0
