"""Corrected copies: in the world where the originals were, checked before they get their name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ofg_deploy.check.examine import Examined, examine
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.nifti import save_volume
from ofg_deploy.outputs import staged

MOVED_MM, MOVED_VOX = 0.01, 0.01  # float32 headers round; more than either would be another place


def mendable(file: Examined) -> bool:
    """Whether a copy would be better and can be written without guessing: no answer of the user is missing."""
    asked = any(f.severity == "error" and not f.mended and f.about in ("units", "voxels") for f in file.findings)
    return not asked and file.grid is not None and file.data is not None and any(f.mended for f in file.findings)


def write_copies(
    files: Sequence[Examined], folder: Path, max_voxels: int, names: Mapping[Path, str]
) -> dict[Path, Path]:
    """A copy of each file that can be mended, all of them or none: original -> copy.

    Values are the originals'; scaled ones become float32, as they are read. Free text and extensions are not copied.

    Args:
        names: of the copies, by file, without ending.

    Raises:
        InputError: a copy exists already, cannot be written, or is not where the original was.
        UsageError: two files of one name.
    """
    chosen = [file for file in files if mendable(file)]
    copies = {file.path: folder / f"{names[file.path]}.nii.gz" for file in chosen}
    if len(set(copies.values())) < len(copies):
        raise UsageError(
            f"two of the files have one name: check them one at a time, or with other folders than {folder}"
        )
    if not chosen:
        return {}
    with staged(list(copies.values()), overwrite=False) as partial:
        for file, path in zip(chosen, partial, strict=True):
            _write(file, path)
            _verify(file, examine(path, max_voxels))
    return copies


def _write(file: Examined, path: Path) -> None:
    assert file.data is not None
    assert file.grid is not None
    data = file.data
    if data.dtype.kind == "f":
        data = data.astype(np.float32)
    elif data.dtype.itemsize == 8:  # few tools read 64-bit integers
        fits = np.iinfo(np.int32).min <= data.min() and data.max() <= np.iinfo(np.int32).max
        data = data.astype(np.int32 if fits else np.float64)
    save_volume(path, data, file.grid, file.code, "mm" if file.in_mm else "unknown")


def _verify(file: Examined, copy: Examined) -> None:
    assert file.grid is not None
    left = [f.found for f in copy.findings if f.mended]
    if copy.grid is None or left:
        raise InputError(f"{file.path}: its copy would still have: {'; '.join(left)}; mend it by hand")
    gap = float(np.abs(copy.grid.corners_mm() - file.grid.corners_mm()).max())
    if copy.grid.shape != file.grid.shape or gap > min(MOVED_MM, MOVED_VOX * min(file.grid.spacing_mm)):
        raise InputError(f"{file.path}: its copy would lie {gap:.3g} mm away; mend it by hand")
