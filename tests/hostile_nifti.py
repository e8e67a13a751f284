"""Files that try to break the reader: valid ones mutated, those kept that reach new lines of it. All from one seed.

``python tests/hostile_nifti.py --runs 100000 --seed 1`` goes on for longer than the tests do.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import signal
import struct
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import nibabel as nib
import numpy as np

from ofg_deploy import nifti, nifti_file, nifti_space
from ofg_deploy.errors import InputError

SHAPE = (5, 7, 4)
MAX_VOXELS = 2**22  # of these tests; with it no file may cost more than
MAX_PEAK_BYTES = (
    48 * 2**20
)  # 16 MiB of float32, a mask to find NaN, 1 MiB decoded at once, nibabel's reading as a check
GZIP = b"\x1f\x8b"
HANG_S = 60  # a guard that ends a hang, not a measure of speed

# Offset and layout of every NIfTI-1 header field that a reader could trust.
FIELDS = [
    *((at, "i") for at in (0, 352, 356)),
    *((at, "h") for at in (40, 42, 44, 46, 48, 50, 52, 54, 68, 70, 72, 252, 254)),
    *((at, "f") for at in (76, 80, 84, 88, 108, 112, 116, *range(256, 328, 4))),
    *((at, "B") for at in (123, 348)),
]
VALUES = {
    "B": [0, 1, 2, 3, 7, 10, 255],
    "h": [0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2304, -1, -32768, 32767],
    "i": [0, 8, 16, 348, 540, -1, -(2**31), 2**31 - 1],
    "f": [0, -0.0, 1, -1, 0.5, 3, 352, 368, 352.5, -16, 1e9, 1e30, -1e38, 3.4e38, 1e-40, np.nan, np.inf, -np.inf],
}


@cache
def seeds() -> tuple[bytes, ...]:
    """Valid files: both versions and byte orders, several types, scaling, one with an extension; one RGB, one 4-D."""
    rng = np.random.default_rng(11)
    affine = np.array([[0, 2.0, 0, -7], [0, 0, 3.1, 4], [1.5, 0, 0, 12], [0, 0, 0, 1]])
    found = []
    for cls, endian, kind in itertools.product(
        (nib.Nifti1Image, nib.Nifti2Image), "<>", ("u1", "i2", "f4", "f8", "i8")
    ):
        data = rng.integers(0, 100, SHAPE).astype(kind)
        image = cls(data, affine, cls.header_class(endianness=endian), dtype=kind)
        image.set_sform(affine, 1)
        image.set_qform(affine, 2)
        if kind == "i2":
            image.header.set_slope_inter(0.5, -3)
        if kind == "u1":
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"words" * 7))
        found.append(image.to_bytes())
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    others = (rgb, np.ones((*SHAPE, 2), np.int16), np.arange(140, dtype=np.int16).reshape(*SHAPE, 1))
    return (*found, *(nib.Nifti1Image(data, affine).to_bytes() for data in others))


def mutate(rng: np.random.Generator, content: bytes) -> bytes:
    """One change: a header field, a byte or bit, a cut, something appended or repeated; maybe compressed first."""
    data = bytearray(content)
    choice = rng.choice(
        ["field", "field", "field", "byte", "cut", "append", "insert", "double", "gzip", "swap", "bomb"]
    )
    at = int(rng.integers(max(1, len(data))))
    if choice == "field":
        offset, layout = FIELDS[rng.integers(len(FIELDS))]
        layout = rng.choice(["<", "<", "<", ">"]) + layout
        if offset + struct.calcsize(layout) <= len(data):
            struct.pack_into(layout, data, offset, VALUES[layout[1]][rng.integers(len(VALUES[layout[1]]))])
    elif choice == "byte" and data:
        data[at] = rng.choice([data[at] ^ (1 << int(rng.integers(8))), int(rng.integers(256))])
    elif choice == "cut":
        del data[at:]
    elif choice == "append":
        data += bytes(int(rng.integers(1, 400))) if rng.random() < 0.5 else rng.bytes(int(rng.integers(1, 400)))
    elif choice == "insert":
        data[at:at] = rng.bytes(int(rng.integers(1, 20)))
    elif choice == "double":
        data += bytes(data)
    elif choice == "gzip":
        return gzip.compress(content, compresslevel=1, mtime=0)
    elif choice == "swap":
        data[:348] = (
            nib.Nifti1Header(bytes(data[:348]), check=False).as_byteswapped().binaryblock if len(data) > 348 else b""
        )
    elif choice == "bomb" and len(data) < 2**20:
        size = int(rng.choice([2**18, 2**21]))
        return gzip.compress(bytes(data) + bytes(size), compresslevel=1, mtime=0)
    return bytes(data)


class Coverage:
    """Which steps from line to line of the reader one call took."""

    FILES = (nifti.__file__, nifti_file.__file__, nifti_space.__file__)

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, int]] = set()

    @contextmanager
    def __call__(self) -> Iterator[set[tuple[str, int, int]]]:
        taken: set[tuple[str, int, int]] = set()

        def local(name: str) -> Any:
            last = 0

            def step(frame: FrameType, event: str, argument: Any) -> Any:
                nonlocal last
                taken.add((name, last, -1 if event == "exception" else frame.f_lineno))
                last = frame.f_lineno
                return step

            return step

        def enter(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename in self.FILES:
                return local(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
            return None

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            yield taken
        finally:
            sys.settrace(before)


def examine(path: Path) -> str:
    """Read one file in every way. What it led to, for counting; whatever must never happen raises AssertionError."""
    outcomes = [_outcome(load, path) for load in (nifti.load_image, nifti.load_labels)]
    volume = outcomes[0]
    if isinstance(volume, nifti.Volume):
        _same_as_nibabel(volume)
    return "/".join("read" if isinstance(o, nifti.Volume) else type(o).__name__ for o in outcomes)


def _outcome(load: Any, path: Path) -> nifti.Volume | InputError:
    try:
        return load(path, MAX_VOXELS)
    except InputError as error:
        refused = error
    assert "\n" not in str(refused), refused
    assert path.name in str(refused), refused
    return refused


def _same_as_nibabel(volume: nifti.Volume) -> None:
    content = volume.path.read_bytes()
    content = gzip.decompress(content) if content[:2] == GZIP else content
    cls, end = (nib.Nifti1Image, 348) if content[344:347] == b"n+1" else (nib.Nifti2Image, 540)
    content = content[:end] + b"\0" + content[end + 1 :]  # nibabel gives up on a damaged extension, which nobody needs
    nib.imageglobals.logger.disabled = True  # it prints what it mends
    try:
        image = cls.from_bytes(content)
        with np.errstate(all="ignore"):
            expected = image.get_fdata(dtype=np.float32)
    finally:
        nib.imageglobals.logger.disabled = False
    np.testing.assert_array_equal(volume.data, expected.reshape(volume.data.shape))
    np.testing.assert_array_equal(volume.grid.world_from_vox, image.affine)


@contextmanager
def no_hang() -> Iterator[None]:
    """Raise where a reader waits for ever."""

    def ring(*_: object) -> None:
        raise AssertionError(f"no answer within {HANG_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def hunt(folder: Path, runs: int, seed: int) -> tuple[Counter[str], list[bytes], int]:
    """Mutate, read, keep what took a new step; how often each outcome came, what was kept, and steps seen."""
    rng = np.random.default_rng(seed)
    corpus, coverage, outcomes = [*seeds()], Coverage(), Counter[str]()
    fresh = len(corpus)
    tracemalloc.start()
    try:
        for run in range(runs):
            content = corpus[int(rng.integers(len(corpus)))]
            for _ in range(int(rng.integers(1, 4))):
                content = mutate(rng, content)
            path = folder / (f"{run}.nii.gz" if content[:2] == GZIP else f"{run}.nii")
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with no_hang(), coverage() as taken:
                outcome = examine(path)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < MAX_PEAK_BYTES, (path, peak)
            outcomes[outcome] += 1
            if taken - coverage.seen:
                coverage.seen |= taken
                corpus.append(content)
            path.unlink()
    finally:
        tracemalloc.stop()
    return outcomes, corpus[fresh:], len(coverage.seen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kept = Path(tempfile.mkdtemp(prefix="hostile-"))
    print(f"a file that breaks the reader stays in {kept}")
    counted, found, steps = hunt(kept, options.runs, options.seed)
    print(f"{options.runs} files, {len(found)} kept, {steps} steps of the reader seen: {dict(counted)}")
