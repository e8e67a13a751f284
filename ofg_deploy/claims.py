"""Names taken on disk so that of two processes that want the same exactly one gets it, and sets of files never mix."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ofg_deploy.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: names are claimed there, too, but sets may be replaced by two at once
    fcntl = None  # type: ignore[assignment]

LOCK = ".ofg-lock"
ALIVE = ".alive"  # in a folder of unfinished files, locked by who writes them
FORGOTTEN_S = 24 * 3600.0  # after that an unmarked folder is nobody's
PATIENCE_S = 60.0  # a set is moved into place in milliseconds
POLL_S = 0.02
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


def place(moves: Sequence[tuple[Path, Path]], overwrite: bool, obsolete: Callable[[], Iterable[Path]]) -> None:
    """Give complete files their final names, all in one folder, in order; the last one marks the set as complete.

    Everything is on the disk before the last file gets its name, so that after a power failure, too, a set with its
    mark is whole. Nobody else places files there meanwhile.

    Args:
        moves: (file, final name).
        overwrite: replace what is there. Otherwise a name that somebody else took meanwhile undoes all.
        obsolete: what goes with ``overwrite``; asked for when nobody else can change it any more.

    Raises:
        InputError: a name was taken, or another process does not let go of the folder. OSError: as it came.
    """
    last, folder = moves[-1][1], moves[-1][1].parent
    for file, _ in moves:
        _sync(file)
    with held(folder / LOCK, PATIENCE_S, f"another process is writing into {folder} and does not come to an end"):
        if not overwrite:
            _claim(moves)
            return
        gone = list(obsolete())
        if len(moves) > 1:  # an old mark of completeness must not stand beside a mixture of old and new files
            last.unlink(missing_ok=True)
        for path in gone:
            path.unlink(missing_ok=True)
        for file, final in moves:
            if final == last:
                _sync(folder)
            file.replace(final)
        _sync(folder)


def place_folder(made: Path, final: Path, replaced: Path | None) -> None:
    """Give a complete folder its final name, beside it on the same disk.

    Args:
        replaced: where a folder of that name goes; None takes the name only if nobody has it.

    Raises:
        InputError: the name was taken, or another process does not let go of the folder. OSError: as it came.
    """
    for path in sorted(made.rglob("*")):
        _sync(path)
    with held(final.parent / LOCK, PATIENCE_S, f"another process is writing into {final.parent} and does not end"):
        if final.exists():
            if replaced is None:
                raise InputError(
                    f"{final} exists already, another process has just written it: choose another output or add "
                    "`overwrite=True`"
                )
            final.rename(replaced)
        try:
            made.rename(final)
        except OSError:
            if replaced is not None and replaced.exists():
                replaced.rename(final)
            raise
        _sync(final.parent)


def _claim(moves: Sequence[tuple[Path, Path]]) -> None:
    claimed: list[tuple[Path, Path]] = []
    try:
        for file, final in moves:
            if final == moves[-1][1]:
                _sync(final.parent)
            try:
                _take(file, final)
            except FileExistsError as error:
                raise InputError(
                    f"{final} exists already, another process has just written it: choose another output or add "
                    "`overwrite=True`"
                ) from error
            claimed.append((file, final))
        _sync(moves[-1][1].parent)
    except BaseException:
        for _, final in reversed(claimed):
            final.unlink(missing_ok=True)
        raise


def _take(file: Path, final: Path) -> None:
    """Raises FileExistsError where the name is taken: a rename would replace it."""
    try:
        os.link(file, final)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in NO_LINKS:
            raise
        final.touch(exist_ok=False)  # no links on this kind of disk: the name first, then the content
        file.replace(final)


@contextmanager
def held(lock: Path, patience_s: float, refusal: str) -> Iterator[None]:
    """Hold a lock file, which is there while somebody does; it goes with the process, however that ends.

    Raises:
        InputError: ``refusal``, if somebody else holds it longer than ``patience_s``; it cannot be made.
    """
    if fcntl is None:
        yield
        return
    handle = _lock(lock, time.monotonic() + patience_s, refusal)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def _lock(lock: Path, until: float, refusal: str) -> int:
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise InputError(f"cannot write {lock}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(lock)):  # noqa: PTH116
                return handle  # and not one that its holder has removed meanwhile
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOENT):
                return handle  # a disk without locks
            if error.errno != errno.ENOENT and time.monotonic() > until:
                os.close(handle)
                raise InputError(refusal) from error
            time.sleep(POLL_S if error.errno != errno.ENOENT else 0)
        os.close(handle)


def living(folder: Path) -> int | None:
    """Mark a folder of unfinished files as in use until the handle is closed, at the latest by the process' end."""
    if fcntl is None:
        return None
    unlocked = folder / f"{ALIVE}-unlocked"
    try:
        handle = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(folder / ALIVE)  # only now: a mark that is there and not locked means a dead process
    return handle


def is_dead(folder: Path) -> bool:
    """Whether whoever made a folder of unfinished files has ended. False where that cannot be known."""
    if fcntl is None:
        return False
    try:
        handle = os.open(folder / ALIVE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # no mark: it was made a moment ago, or by an earlier version
        with suppress(OSError):
            return time.time() - folder.stat().st_mtime > FORGOTTEN_S
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
    else:
        return True
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """On the disk, as far as it can be told to."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
