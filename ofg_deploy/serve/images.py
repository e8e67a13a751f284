"""Images as registration reads them: nobody writes into them, and one that many pairs share is read once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path

from ofg_deploy.nifti import Volume, load_image, load_labels

MAX_BYTES = 512 * 2**20  # of voxels that are kept

Load = Callable[[Path, int], Volume]
Key = tuple[str, Path, int, int, int]


class Images:
    """Reads images and label maps; safe to use from several threads.

    Args:
        shared: files that are worth keeping, because several pairs name them. Others are read each time.
        max_bytes: of voxels kept; those that were used longest ago go first. A larger file is read each time.
    """

    def __init__(self, shared: Collection[Path] = (), max_bytes: int = MAX_BYTES) -> None:
        self._shared = frozenset(shared)
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, Future[Volume]] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, path: Path, max_voxels: int) -> Volume:
        """As ``nifti.load_image``, read-only."""
        return self._get(load_image, path, max_voxels)

    def channel(self, path: Path, max_voxels: int) -> Volume:
        """As ``image``, where one value everywhere will do."""
        return self._get(_any_image, path, max_voxels)

    def labels(self, path: Path, max_voxels: int) -> Volume:
        """As ``nifti.load_labels``, read-only."""
        return self._get(load_labels, path, max_voxels)

    def _get(self, load: Load, path: Path, max_voxels: int) -> Volume:
        if path not in self._shared:
            return _frozen(load(path, max_voxels))
        try:
            state = path.stat()
        except OSError:  # the reader says what is wrong
            return _frozen(load(path, max_voxels))
        key = (load.__name__, path, state.st_mtime_ns, state.st_size, max_voxels)
        with self._lock:
            found = self._kept.get(key)
            if ours := found is None:
                found = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if ours:  # others who want it meanwhile wait for it
            try:
                found.set_result(_frozen(load(path, max_voxels)))
            except BaseException as error:
                found.set_exception(error)
            self._forget()
        return found.result()

    def _forget(self) -> None:
        """Drop what failed, then the oldest beyond the limit. What is in use lives on with those who use it."""
        with self._lock:
            read = {key: future for key, future in self._kept.items() if future.done()}
            sizes = {key: 0 if future.exception() else future.result().data.nbytes for key, future in read.items()}
            total = sum(sizes.values())
            for key, size in sorted(
                sizes.items(), key=lambda item: item[1] <= self._max_bytes
            ):  # none fits beside those
                if size == 0 or total > self._max_bytes:
                    del self._kept[key]
                    total -= size


def _any_image(path: Path, max_voxels: int) -> Volume:
    return load_image(path, max_voxels, constant=True)


def _frozen(volume: Volume) -> Volume:
    volume.data.flags.writeable = False
    return volume
