"""Names of columns in people's tables: which one a name may have been meant for."""

from __future__ import annotations

import re
from collections.abc import Sequence

ENDINGS = re.compile(r"_(image|img|file|path|nii|map)s?$")
# What people call what is called labels, mask and points here.
SAME = {"seg": "labels", "segmentation": "labels", "label": "labels", "landmarks": "points", "brainmask": "mask"}


def meant(column: str, known: Sequence[str]) -> str | None:
    """The known column that a name looks like a misspelling of; None where it is rather something else.

    A name does that if it is written in another way (``Fixed``, ``fixed-labels``), has a word more (``fixed_image``) or
    less (``labels``), has another word for the same (``moving_seg``), or is one slip of the fingers away from a known
    name, two from one of eight letters or more.
    """
    plain = re.sub(r"[\s-]+", "_", column.strip().lower())
    shorter = ENDINGS.sub("", plain)
    translated = "_".join(SAME.get(word, word) for word in shorter.split("_"))
    for candidate in (plain, shorter, translated):
        if candidate in known:
            return candidate
    for name in known:
        if "_" in name and translated in (name.split("_")[-1], name.replace("_", "")):
            return name
    slips = {name: edit_distance(plain, name) for name in known}
    near = [name for name in known if slips[name] <= (2 if len(name) >= 8 else 1)]
    return min(near, key=slips.__getitem__, default=None)


def edit_distance(a: str, b: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour (each letter once) to make ``b`` of ``a``."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
