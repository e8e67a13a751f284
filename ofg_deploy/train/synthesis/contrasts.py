"""How bright each label is: like a T1, T2 or FLAIR by FreeSurfer's numbers, or at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import UsageError

Contrast = Literal["t1", "t2", "flair", "random"]
Means = npt.NDArray[np.float32]

# T1-like means of FreeSurfer's structures, 1 about as bright as fat: rounded, as they are in T1 scans (MPRAGE) that are
# normalised to white matter. Both sides are alike (``RIGHT``).
_T1 = {
    0.12: (24,),  # fluid around the brain
    0.15: (4, 5, 14, 15, 72),  # ventricles
    0.25: (30, 31),  # vessels, choroid plexus
    0.50: (77, 80),  # lesions of the white matter
    0.54: (3, 8, 17, 18),  # cortex, cerebellar cortex, hippocampus, amygdala
    0.58: (11, 26),  # caudate, accumbens
    0.63: (12,),  # putamen
    0.69: (10,),  # thalamus
    0.73: (13, 28),  # pallidum, ventral diencephalon
    0.77: (16, 85),  # brain stem, optic chiasm
    0.81: (7,),  # cerebellar white matter
    0.85: (2, 251, 252, 253, 254, 255),  # white matter, corpus callosum
}
T1 = {number: mean for mean, numbers in _T1.items() for number in numbers}
RIGHT = {
    **{41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 58: 26, 60: 28},
    **{62: 30, 63: 31, 78: 77, 79: 77},
}
# What a tissue with this T1-like mean has in other contrasts: fluid, cortex, white matter; in between by the share of
# both neighbours, as in a mixture. Wrong for the pallidum in T2, whose iron makes it darker.
TISSUES = (0.15, 0.54, 0.85)
OTHERS: dict[Contrast, tuple[float, float, float]] = {"t2": (1.0, 0.55, 0.35), "flair": (0.12, 0.72, 0.55)}
PARCELS = {1: 3, 2: 3, 3: 2, 4: 2}  # thousands of FreeSurfer's parcels: cortex and the white matter below it
VARIES = 0.03  # standard deviation between scans of the mean of a structure
DARKEST = 0.08  # of what is not air; noise is cut off below half of it where the head was removed


def is_outer(number: int) -> bool:
    """Whether FreeSurfer's or SynthSeg's number is that of something around the brain: skin, bone, eyes, muscle."""
    return 118 <= number <= 135 or number == 165 or 257 <= number <= 265 or 500 <= number <= 599


def structure(number: int) -> int:
    """One number for both sides of a structure, and for all parcels of a tissue."""
    if 1000 <= number < 5000:
        return PARCELS[number // 1000]
    return RIGHT.get(number, number)


def is_freesurfer(numbers: npt.NDArray[np.integer]) -> bool:
    """Whether labels are numbered as FreeSurfer's: white matter of both sides, and cortex.

    Maps that number their labels from 1 would otherwise be taken for what they are not.
    """
    found = {int(n) for n in numbers}
    return {2, 41} <= found and ({3, 42} <= found or any(1000 <= n < 3000 for n in found))


def t1_means(numbers: npt.NDArray[np.integer]) -> Means:
    """(N,) T1-like means, the same for everybody; of a structure that is not known it is drawn by its number.

    Args:
        numbers: (N,) label numbers; 0 is air.
    """
    known = T1 if is_freesurfer(numbers) else {}
    means = [0.0 if n == 0 else known.get(structure(n), _drawn(structure(n))) for n in map(int, numbers)]
    return np.array(means, np.float32)


def draw_means(numbers: npt.NDArray[np.integer], contrast: Contrast, rng: np.random.Generator) -> Means:
    """(N,) means of one scan.

    Like a T1, T2 or FLAIR they vary by ``VARIES``; at random, each structure has any. Structures that are not known,
    and what is around the brain, have random ones in every contrast.
    """
    structures = {n: structure(n) for n in map(int, numbers)}
    anything = {n: rng.uniform(DARKEST, 1) for n in sorted(set(structures.values()))}
    spread = {n: VARIES * rng.standard_normal() for n in sorted(set(structures.values()))}
    if contrast == "random" or not is_freesurfer(numbers):
        means = [anything[structures[n]] for n in map(int, numbers)]
    else:
        means = []
        for s in (structures[n] for n in map(int, numbers)):
            if s not in T1:
                means.append(anything[s])
                continue
            mean = T1[s] if contrast == "t1" else float(np.interp(T1[s], TISSUES, OTHERS[contrast]))
            means.append(max(DARKEST, mean + spread[s]))
    return np.where(np.asarray(numbers) == 0, 0, means).astype(np.float32)


def _drawn(number: int) -> float:
    return float(np.random.default_rng(abs(number)).uniform(0.2, 1))


@dataclass(frozen=True)
class Contrasts:
    """Which contrasts scans have, and how often.

    Attributes:
        shares: by name; they sum up to 1.
    """

    shares: tuple[tuple[Contrast, float], ...]

    @classmethod
    def parse(cls, text: str) -> Contrasts:
        """From ``t1``, ``t1,t2`` (equal shares) or ``t1:0.7,random:0.3``. Raises UsageError: none of these."""
        shares: dict[Contrast, float] = {}
        for part in text.split(","):
            name, _, share = (piece.strip() for piece in part.partition(":"))
            if name not in get_args(Contrast):
                raise UsageError(f"`contrasts` {text!r}: {name!r} is unknown: use {', '.join(get_args(Contrast))}")
            if name in shares:
                raise UsageError(f"`contrasts` {text!r} names {name} twice: give one share for each contrast")
            try:
                shares[name] = float(share or 1)  # type: ignore[index]
            except ValueError as error:
                raise UsageError(f"`contrasts` {text!r}: the share {share!r} of {name} is not a number") from error
        if not all(np.isfinite(s) and s >= 0 for s in shares.values()) or sum(shares.values()) <= 0:
            raise UsageError(f"`contrasts` {text!r}: give shares of 0 or more that are not all 0")
        total = sum(shares.values())
        return cls(tuple((name, share / total) for name, share in shares.items()))

    def draw(self, rng: np.random.Generator) -> Contrast:
        """One of them."""
        at = np.searchsorted(np.cumsum([share for _, share in self.shares]), rng.random(), side="right")
        return self.shares[min(int(at), len(self.shares) - 1)][0]
