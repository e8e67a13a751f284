"""The bytes of a NIfTI file, which may be damaged or hostile: header first, then exactly the voxels it promises.

Nothing is allocated or decompressed before the header's promise is known to fit the limit and the file, and nothing
past the promise is read. Header extensions are skipped, never parsed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib
from nibabel import imageglobals
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from ofg_deploy.errors import FormatError, InputError, SizeError
from ofg_deploy.outputs import sha256_file

MAX_VOXELS = 2 * 512**3  # 1 GiB of float32: twice the largest scans in daily use
MAX_OFFSET = 64 * 2**20  # bytes of header and extensions; those seen in the wild stay below a tenth of it
DEFLATE_RATIO = 1032  # no deflate stream expands further (zlib's technical notes): a promise beyond it is false
CHUNK_BYTES = 2**20  # decoded at once: memory stays at the result and this

NIFTI_NAME = re.compile(r"\.(nii|hdr|img)(\.gz)?$", flags=re.IGNORECASE)
_DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # an exception type in fact
_MENDING = threading.Lock()
_NAMES = "a NIfTI image (.nii or .nii.gz) is needed"


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """A NIfTI file whose header has been read and checked; its voxels have not.

    Attributes:
        path: the file as given.
        body: where the voxels are: ``path`` itself, or the ``.img`` of a pair.
        header: nibabel's, small faults mended.
        pixdim: (8,) float64, before any mending.
        shape: every axis, at least 1 voxel each.
        on_disk: voxel type in the file's byte order.
        offset: first byte of the voxels in ``body``, after decompression.
        repairs: what was mended in the header, in one line each.
    """

    path: Path
    body: Path
    header: Any
    pixdim: npt.NDArray[np.float64]
    shape: tuple[int, ...]
    on_disk: np.dtype[Any]
    offset: int
    repairs: tuple[str, ...]

    def read_hashed(self, dtype: np.dtype[Any] | None = None) -> tuple[npt.NDArray[Any], str]:
        """All voxels, as ``read``, and the sha256 of ``path``: of the very bytes the voxels came from."""
        digest = hashlib.sha256()
        voxels = self._read(dtype, digest if self.body == self.path else None)
        return voxels, digest.hexdigest() if self.body == self.path else sha256_file(self.path)

    def read(self, dtype: np.dtype[Any] | None = None) -> npt.NDArray[Any]:
        """All voxels in ``shape``, Fortran order as on disk, scaling (``scl_slope``) applied.

        Args:
            dtype: of the result; None keeps the type on disk, or what scaling makes of it.

        Raises:
            InputError: fewer or more bytes than promised, or a checksum that does not match.
        """
        return self._read(dtype, None)

    def volumes(self, dtype: np.dtype[Any] | None = None) -> Iterator[npt.NDArray[Any]]:
        """The (X, Y, Z) volumes of a series one after another, as ``read`` would have them; one is in memory at a time.

        Raises:
            InputError: as ``read``, where the damage is reached.
        """
        size = math.prod(self.shape[:3])
        with self._voxels(None) as stream:
            for number in range(math.prod(self.shape[3:])):
                with damage_is_one_line(self.body):
                    volume = self._next(stream, size, dtype)
                    if number == math.prod(self.shape[3:]) - 1:
                        self._check_end(stream)
                yield volume.reshape(self.shape[:3], order="F")

    def stored_as(self, dtype: np.dtype[Any] | None = None) -> np.dtype[Any]:
        """Type of what ``read`` gives for this ``dtype``."""
        scaled = apply_read_scaling(np.empty(0, self.on_disk), *_scaling(self)).dtype
        return np.dtype(dtype or scaled.newbyteorder("="))

    def _read(self, dtype: np.dtype[Any] | None, digest: hashlib._Hash | None) -> npt.NDArray[Any]:
        with damage_is_one_line(self.body), self._voxels(digest) as stream:
            flat = self._next(stream, math.prod(self.shape), dtype)
            self._check_end(stream)
        return flat.reshape(self.shape, order="F")

    @contextmanager
    def _voxels(self, digest: hashlib._Hash | None) -> Iterator[BinaryIO]:
        """The body, from its first voxel on."""
        with _open(self.body, digest) as stream:
            with damage_is_one_line(self.body):
                _skip(stream, self.offset)
            yield stream

    @np.errstate(all="ignore")  # what does not fit becomes infinite: callers refuse
    def _next(self, stream: BinaryIO, size: int, dtype: np.dtype[Any] | None) -> npt.NDArray[Any]:
        """The next so many voxels, scaled."""
        slope, inter = _scaling(self)
        wanted = self.stored_as(dtype)
        flat = np.empty(size, wanted)
        step = CHUNK_BYTES // self.on_disk.itemsize
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            stored = part if (wanted, slope, inter) == (self.on_disk, 1, 0) else np.empty(part.size, self.on_disk)
            _fill(stream, stored)
            scaled = apply_read_scaling(stored, slope, inter)
            part[...] = scaled.astype(np.promote_types(scaled.dtype, wanted), copy=False)
        return flat

    def _check_end(self, stream: BinaryIO) -> None:
        if stream.read(1):  # also reads to the end of a gzip stream, where its checksum is
            raise InputError(
                f"{self.body} is truncated or damaged: it goes on after the {math.prod(self.shape)} voxels its header "
                "promises; convert it again from its source"
            )


@np.errstate(all="ignore")  # a damaged number is judged as a number, and warns nobody on the way
def open_nifti(path: Path | str, max_voxels: int = MAX_VOXELS, components: int = 1, series: bool = False) -> NiftiFile:
    """Read and check the header of ``.nii``, ``.nii.gz`` or either file of a ``.hdr``/``.img`` pair.

    Args:
        series: the limit is that of one volume: the file is read volume by volume.

    Raises:
        InputError: not a regular file, not NIfTI, a header no reader could trust, more than ``max_voxels`` voxels of
            ``components`` numbers each, or a file too small for what the header promises.
    """
    path = Path(path)
    _check_file(path)
    if not NIFTI_NAME.search(path.name):
        raise FormatError(f"{path} cannot be read as NIfTI: by its name it is another format, {_NAMES}")
    head, body = _header_and_body(path)
    with damage_is_one_line(head, "cannot be read as NIfTI (truncated or another format)"):
        with _open(head) as stream:
            raw = stream.read(540)
        kind, size = _kind(head, raw)
        stored = kind(raw[:size], check=False)
        with _mended() as repairs:
            header = kind(raw[:size])
            shape = tuple(int(n) for n in header.get_data_shape())
            on_disk = header.get_data_dtype()
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(f"{path} has shape {shape}: a 3-D volume is needed, every axis at least 2 voxels")
    if math.prod(shape[:3] if series else shape) > max_voxels * components:
        limit = f"{max_voxels}{f' of {components} numbers' if components > 1 else ''}"
        raise SizeError(
            f"{path} has {'x'.join(map(str, shape))} voxels, more than `max_voxels` {limit}: is the header "
            "damaged? If not, raise the limit (ofg register, apply, check, eval)"
        )
    offset = _offset(path, stored, header.sizeof_hdr + 4 if head == body else 0)
    _check_size(body, offset, math.prod(shape) * on_disk.itemsize)
    lines = tuple(f"{path.name}: header mended while reading: {line}" for line in repairs)
    return NiftiFile(path, body, header, stored["pixdim"].astype(np.float64), shape, on_disk, offset, lines)


@contextmanager
def damage_is_one_line(path: Path, said: str = "is truncated or damaged") -> Iterator[None]:
    """Turn whatever damaged bytes make a reader raise into an InputError which names the file."""
    try:
        yield
    except InputError:
        raise
    except (HeaderDataError, OSError, EOFError, ValueError, OverflowError, _DAMAGED) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path} {said}: {' '.join(reason.split())}") from error


def _check_file(path: Path) -> None:
    """A device or a FIFO would hang a reader or never end."""
    try:
        kind = path.stat().st_mode
        allowed = os.access(path, os.R_OK)
    except FileNotFoundError as error:
        dangling = path.is_symlink()
        raise InputError(f"{path}{' is a link to a file that' if dangling else ''} does not exist") from error
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(kind):
        raise InputError(f"{path} is not a file: {_NAMES}")
    if not allowed:
        raise InputError(f"{path} cannot be read: permission denied")


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of an image: one, or header and voxels of a pair. Raises InputError where half a pair is missing."""
    return tuple(dict.fromkeys(_header_and_body(path))) if NIFTI_NAME.search(path.name) else (path,)


def _header_and_body(path: Path) -> tuple[Path, Path]:
    """Both files of a pair, whichever is given; a single file twice."""
    found = cast("re.Match[str]", NIFTI_NAME.search(path.name))
    if found[1].lower() == "nii":
        return path, path
    stem = path.name[: found.start()]
    pair = []
    for ending in ("hdr", "img"):
        names = [f"{stem}.{e}" for e in (ending, ending.upper(), f"{ending}.gz")]
        there = [path] if found[1].lower() == ending else [p for n in names if (p := path.with_name(n)).exists()]
        if not there:
            raise InputError(f"{path} is one of a pair and {stem}.{ending} is not beside it: give both, or a .nii.gz")
        _check_file(there[0])
        pair.append(there[0])
    return pair[0], pair[1]


def _kind(head: Path, raw: bytes) -> tuple[Any, int]:
    """Header class by magic bytes, and its size. The name must agree: a header taken for voxels shifts the image."""
    paired = not re.search(r"\.nii(\.gz)?$", head.name, flags=re.IGNORECASE)
    if raw[344:348] in (b"n+1\0", b"ni1\0"):
        kinds, size, magic = (nib.Nifti1Image, nib.Nifti1Pair), 348, raw[344:346]
    elif raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and raw[4:8] in (b"n+2\0", b"ni2\0") and len(raw) == 540:
        kinds, size, magic = (nib.Nifti2Image, nib.Nifti2Pair), 540, raw[4:6]
    elif paired and raw[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        raise FormatError(f"{head} is Analyze 7.5, which knows no orientation: convert the original scan to .nii.gz")
    else:
        raise FormatError(f"{head} cannot be read as NIfTI (truncated or another format): no NIfTI header in it")
    if paired != (magic == b"ni"):
        belongs = "a .hdr beside an .img" if magic == b"ni" else "a single .nii"
        raise InputError(f"{head} holds the header of {belongs} by its content, not by its name: rename or convert it")
    return kinds[paired].header_class, size


def _offset(path: Path, stored: Any, least: int) -> int:
    offset = float(stored["vox_offset"])
    if not least <= offset <= MAX_OFFSET or offset != int(offset):  # NaN compares false
        raise InputError(
            f"{path} cannot be read as NIfTI: its voxels start at byte {offset:g}, expected {least} to {MAX_OFFSET}"
        )
    return int(offset)


def _scaling(nifti: NiftiFile) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the header has none (slope 0 or NaN, as the standard has it)."""
    stored = float(nifti.header["scl_slope"]), float(nifti.header["scl_inter"])
    try:
        if math.isinf(stored[0]):
            raise HeaderDataError("infinite scl_slope")
        slope, inter = nifti.header.get_slope_inter()
    except HeaderDataError as error:
        raise InputError(
            f"{nifti.path} cannot be read as NIfTI: scl_slope {stored[0]:g} and scl_inter {stored[1]:g} make no scaling"
        ) from error
    return (1.0, 0.0) if slope is None else (slope, inter)


def _check_size(body: Path, offset: int, promised: int) -> None:
    """Refuse what cannot be true before reading: a small file is never decompressed or waited for in vain."""
    there = body.stat().st_size
    with damage_is_one_line(body), body.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    if there * (DEFLATE_RATIO if compressed else 1) < offset + promised:
        raise InputError(
            f"{body} is truncated or damaged: its header promises {offset + promised} bytes, which {there} "
            f"{'compressed ones ' if compressed else ''}cannot hold"
        )


@contextmanager
def _open(path: Path, digest: hashlib._Hash | None = None) -> Iterator[BinaryIO]:
    """Decompressed if it is gzip by content: names lie, and a wrong guess reads compressed bytes as voxels.

    ``digest`` is fed the file's own bytes, all of them once the end has been read.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source = cast("BinaryIO", file if digest is None else io.BufferedReader(_Hashed(file, digest), CHUNK_BYTES))
        if not compressed:
            yield source
            return
        with igzip.IGzipFile(fileobj=source) as stream:  # type: ignore[no-untyped-call]
            yield cast("BinaryIO", stream)


class _Hashed(io.RawIOBase):
    """A file whose bytes go through a digest as they are read."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As ``io.RawIOBase``."""
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._digest.update(memoryview(buffer)[:count])
        return int(count)


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, CHUNK_BYTES))):
        count -= len(block)


def _fill(stream: BinaryIO, target: npt.NDArray[Any]) -> None:
    view = memoryview(target.view(np.uint8))  # type: ignore[arg-type]
    at = 0
    while at < len(view):
        if not (count := stream.readinto(view[at:])):  # type: ignore[attr-defined]
            raise EOFError("the voxels end before the header's promise")
        at += count


@contextmanager
def _mended() -> Iterator[list[str]]:
    """Collect what nibabel says about a header; left alone, it prints that to stderr without naming the file.

    One header at a time: the logger does not know whose header it speaks of.
    """
    lines: list[str] = []

    reader = threading.get_ident()

    def collect(record: logging.LogRecord) -> bool:
        if record.thread != reader:  # another file's, and its reader's
            return True
        if record.levelno >= logging.WARNING:
            lines.append(record.getMessage())
        return False

    with _MENDING:
        imageglobals.logger.addFilter(collect)
        try:
            yield lines
        finally:
            imageglobals.logger.removeFilter(collect)
