"""Take NIfTI, JSON and CSV files out of a zip that may be hostile."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from ofg_deploy.errors import DAMAGED_ZIP, InputError
from ofg_deploy.outputs import staged

MAX_FILES = 100_000
MAX_FILE_BYTES = 4 * 1024**3
MAX_TOTAL_BYTES = 500 * 1024**3
MAX_RATIO = 200  # .nii.gz inside a zip does not shrink at all, plain .nii by 100 at most
WANTED = (".nii", ".nii.gz", ".json", ".csv")

Each = Callable[[list[zipfile.ZipInfo]], Iterable[zipfile.ZipInfo]]


def extract(source: Path, folder: Path, each: Each, since: float = float("inf")) -> None:
    """Files ending in ``WANTED`` to ``folder``, under their own paths.

    Args:
        since: files written after this time stay if they have their full size.

    Raises:
        InputError: not a zip, damaged, encrypted, or with a member that leaves ``folder``, is a link, or is larger
            than the limits or than the disk allows. Nothing is extracted then, unless the damage shows while reading.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            _check(source, members)
            wanted = [i for i in members if i.filename.lower().endswith(WANTED) and not _hidden(i.filename)]
            if sum(i.file_size for i in wanted) > 0.95 * shutil.disk_usage(_existing(folder)).free:
                raise InputError(f"{source} needs more space than there is in {folder}")
            for info in each(wanted):
                _extract(archive, info, folder / info.filename, since)
    except DAMAGED_ZIP as error:
        raise InputError(f"{source} is not a readable zip (truncated, damaged or encrypted): {error}") from error
    except OSError as error:
        raise InputError(f"{source} cannot be extracted: {error.strerror or error}") from error


def _check(source: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_FILES or sum(i.file_size for i in members) > MAX_TOTAL_BYTES:
        raise InputError(f"{source} is refused: more than {MAX_FILES} files or {MAX_TOTAL_BYTES / 1e9:.0f} GB inside")
    seen = set()
    for info in members:
        path, where = PurePosixPath(info.filename), f"{source} is refused: its member {info.filename!r}"
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
            raise InputError(f"{where} would be written outside the output folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{where} is a link")
        if info.file_size > MAX_FILE_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 1024):
            raise InputError(f"{where} claims {info.file_size} bytes from {info.compress_size}: a zip bomb?")
        if path in seen:
            raise InputError(f"{where} is there twice")
        seen.add(path)


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, since: float) -> None:
    if path.is_file() and path.stat().st_size == info.file_size and path.stat().st_mtime >= since:
        return
    with staged([path], overwrite=True) as [partial], archive.open(info) as stream, partial.open("wb") as out:
        left = info.file_size
        while block := stream.read(min(1 << 20, left + 1)):
            left -= len(block)
            if left < 0:
                raise InputError(f"{info.filename!r} is larger than the zip says: a zip bomb?")
            out.write(block)


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _existing(folder: Path) -> Path:
    return next(f for f in (folder, *folder.parents) if f.exists())
