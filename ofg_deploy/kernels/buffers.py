"""Working memory that outlives a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

VECTORS = "vectors"  # three numbers a voxel, for whoever needs them for the length of a call


class Buffers:
    """Uninitialised arrays by name, made once and handed out again while shape and type stay the same.

    For one caller at a time: whoever shares them between threads mixes up their numbers.
    """

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[Any]] = {}
        self._parts: dict[str, Buffers] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """The array of that name, with whatever was last written into it."""
        held = self._held.get(name)
        if held is None or held.shape != shape or held.dtype != dtype:
            self._held.pop(name, None)
            del held
            self._held[name] = held = np.empty(shape, dtype)
        return held

    def part(self, name: str) -> Buffers:
        """Buffers of their own, kept in these: for the same work on another grid."""
        return self._parts.setdefault(name, Buffers())

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(a.nbytes for a in self._held.values()) + sum(part.nbytes for part in self._parts.values())
