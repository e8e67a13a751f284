"""Small files read; results written: under their final name only when complete, replacing none unasked."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ofg_deploy.claims import is_dead, living, place, place_folder
from ofg_deploy.errors import InputError

MAX_BYTES = 64 * 1024**2  # of a list, a sidecar, a table of landmarks: far more than anybody writes
FORMULA = ("=", "+", "-", "@", "\t", "\r")
LONGEST_NAME = 255  # bytes, on all common file systems
MAX_ROWS = 10**6  # of a table; in memory a row is many times its bytes


def check_writable(paths: list[Path], overwrite: bool) -> None:
    """Refuse early, before any work, what could not be written at the end.

    Raises:
        InputError: a path exists already (without ``overwrite``), is a folder, or lies under something that is not
            a writable folder.
    """
    for path in paths:
        _check_writable(path, overwrite)


def check_inputs_stay(paths: Iterable[Path], inputs: Sequence[Path]) -> None:
    """Refuse to replace or remove what is read. Raises InputError."""
    for path in paths:
        if path.exists() and any(given.exists() and path.samefile(given) for given in inputs):
            raise InputError(f"{path} is an input, and would be lost: choose another output")


def _check_writable(path: Path, overwrite: bool) -> None:
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
    except OSError:  # its place says what is wrong
        pass
    _check_place(path, overwrite)


def _check_place(path: Path, overwrite: bool) -> None:
    """Of a file or a folder."""
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        size = len(os.fsencode(path.name))
        raise InputError(
            f"cannot write {path}: its name is too long, {size} bytes where {LONGEST_NAME} are possible: give the "
            "images shorter names"
        )
    try:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already: choose another output or add `overwrite=True`")
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: {folder} is not a writable folder")


@contextmanager
def staged(paths: list[Path], overwrite: bool, obsolete: Callable[[], Iterable[Path]] = tuple) -> Iterator[list[Path]]:
    """Yield one temporary path per final path; on success all get their final names in order.

    All final paths share one folder, which is made if needed. If the body fails nothing is left. Put the file that
    marks completeness (a sidecar) last: an older one goes first, so that it never stands beside a mixture. Of two
    processes that write the same without ``overwrite`` one is refused; with it the set of one of them is there.

    Args:
        obsolete: files of an older set that the new one does not have; with ``overwrite`` they go too. Asked for when
            no other process can change them any more.

    Raises:
        InputError: see ``check_writable``; also a name that another process took meanwhile, a full disk or any other
            failure to write.
    """
    check_writable(paths, overwrite)
    folder = paths[0].parent
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        _sweep_dead(paths[-1])
        scratch = _make_scratch(folder, _scratch(paths[-1]))
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error
    alive = living(scratch)
    try:
        yield [scratch / path.name for path in paths]
        place([(scratch / path.name, path) for path in paths], overwrite, obsolete)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if alive is not None:
            os.close(alive)
        for made in missing:  # innermost first; only folders we made and left empty go
            with suppress(OSError):
                made.rmdir()


def check_folder(folder: Path, overwrite: bool) -> None:
    """The same as ``check_writable`` for a folder that is written as a whole. Raises InputError."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"cannot write {folder}: it is not a folder")
    _check_place(folder, overwrite)


@contextmanager
def staged_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes ``folder`` as a whole on success; if the body fails nothing is left.

    With ``overwrite`` what is there is replaced with all it holds: look at it first.

    Raises:
        InputError: see ``check_folder``; also a name that another process took meanwhile, or any failure to write.
    """
    check_folder(folder, overwrite)
    missing = [each for each in folder.parents if not each.exists()]
    alive = scratch = None
    try:
        _sweep_dead(folder)
        scratch = _make_scratch(folder.parent, _scratch(folder))
        alive = living(scratch)
        partial = scratch / folder.name
        partial.mkdir()
        yield partial
        place_folder(partial, folder, scratch / "replaced" if overwrite else None)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if alive is not None:
            os.close(alive)
        for made in missing:  # innermost first; only folders we made and left empty go
            with suppress(OSError):
                made.rmdir()


def _make_scratch(folder: Path, prefix: str) -> Path:
    for attempt in range(10):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        except FileNotFoundError:  # another process made the folder, failed, and took it away
            if attempt == 9:
                raise
    raise AssertionError


def _scratch(last: Path) -> str:
    return f".partial-{hashlib.sha256(os.fsencode(last.name)).hexdigest()[:12]}-"


def _sweep_dead(last: Path) -> None:
    """Remove what killed processes left half-written of this set; what a living one writes stays."""
    for scratch in last.parent.glob(f"{_scratch(last)}*"):
        if is_dead(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


def unfinished(last: Path) -> list[Path]:
    """What killed processes, and those that still write, have of the file that ends this set."""
    return [found for scratch in last.parent.glob(f"{_scratch(last)}*") if (found := scratch / last.name).is_file()]


def sweep(last: Path) -> None:
    """Remove what a killed process left half-written of the set that ends with this path. Nobody else may write it."""
    for scratch in last.parent.glob(f"{_scratch(last)}*"):
        shutil.rmtree(scratch, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace one file of our own atomically (run folders, caches)."""
    with staged([path], overwrite=True) as [partial]:
        partial.write_bytes(content)


@contextmanager
def plainly_named(path: Path) -> Iterator[str]:
    """A name of this file or folder that means the same to libraries which take all names for UTF-8.

    Bytes of a name that are no UTF-8 end the process in some of them, and where the locale has other bytes for its
    letters they write to another place. Such a file needs another name while it is in use: a link.

    Raises:
        InputError: there is no place for such a link.
    """
    if _is_plain(str(path)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="ofg-") as folder:
        link = Path(folder, f"link{path.suffix if _is_plain(path.suffix) else ''}")
        if not _is_plain(str(link)):
            raise InputError(f"{path} needs a second name in letters that UTF-8 has: set TMPDIR to a folder of such")
        link.symlink_to(path.absolute())
        yield str(link)


def _is_plain(name: str) -> bool:
    return os.fsencode(name) == name.encode("utf-8", "surrogatepass")


def cell(text: str) -> str:
    """A text as a table's cell: one that a spreadsheet would take for a formula gets the quote that it needs there."""
    return f"'{text}" if text[:1] in FORMULA else text


def from_cell(text: str) -> str:
    """The inverse of ``cell``."""
    return text[1:] if text[:1] == "'" and text[1:2] in FORMULA and len(text) > 1 else text


def to_json(record: Any) -> str:
    """Readable JSON with a final newline; refuses NaN, which other readers do not parse."""
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def read_text(path: Path) -> str:
    """A small text file. Raises InputError if it is missing, no file (a pipe never ends), too large or not text."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} cannot be read: it is not a file")
        if status.st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes: is it the right file?")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file") from error


def read_json(path: Path) -> Any:
    """What a small JSON file holds. Raises InputError as ``read_text``, or if it is none."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error


def parse_json(text: str | bytes) -> Any:
    """As ``json.loads``. Raises ValueError for whatever it cannot read, lists in lists a thousand deep among it."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too many lists or objects in each other") from error


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a small CSV, as many cells in each; blank rows are left out and short ones filled up.

    Where the header has tabs and no comma the cells are separated by tabs.

    Raises:
        InputError: as ``read_text``; a column that is named twice (upper and lower case alike), a row longer than the
            header, too many rows.
    """
    return parse_csv(read_text(path), path)


def parse_csv(text: str, path: Path) -> tuple[list[str], list[list[str]]]:
    """The same of a text; ``path`` is where it came from."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    comma = "\t" if "\t" in first and "," not in first else ","
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=comma
    )  # it splits lines itself, because cells may hold some
    rows: list[list[str]] = []
    header: list[str] = []
    try:
        for row in reader:
            while len(row) > len(header) > 0 and not row[-1].strip():
                row.pop()
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = row
            elif len(row) > len(header) or len(rows) == MAX_ROWS:
                limit = f"more than {MAX_ROWS} rows" if len(rows) == MAX_ROWS else "more cells than the header"
                raise InputError(f"{path}, line {reader.line_num}: {limit}")
            else:
                rows.append(row + [""] * (len(header) - len(row)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    often = Counter(name.strip().lower() for name in header if name.strip())
    if twice := [name for name, count in often.items() if count > 1][:1]:
        raise InputError(f"{path} has the column {twice[0]!r} twice")
    return header, rows


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes. Raises OSError where it cannot be read, or is no file: a device never ends."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
