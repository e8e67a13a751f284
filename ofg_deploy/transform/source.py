"""An image, a label map or a series of either that is to be seen on another grid: how it is interpolated and filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ofg_deploy.background import OF_LABELS as ZERO
from ofg_deploy.background import Background
from ofg_deploy.errors import InputError, UsageError, check_choice
from ofg_deploy.geometry import Grid, Matrix, transform_points
from ofg_deploy.image import AnyImage, in_memory
from ofg_deploy.label_map import label_map_by, meant_as_labels
from ofg_deploy.nifti import Volume, as_labels, check_finite, label_type, load_image, load_labels
from ofg_deploy.nifti_file import NiftiFile, open_nifti
from ofg_deploy.nifti_space import check_real, space_of
from ofg_deploy.nifti_write import Time, write
from ofg_deploy.options.words import Interpolation
from ofg_deploy.transform.maps import Inside
from ofg_deploy.transform.resample import OF_LABELS, at_index

Load = Callable[[Path, int], Volume]
OF_VECTORS = {1005, 1006, 1007, 2006, 2007, 2008, 2009, 2016}  # intents of what turns with the map: tensors and vectors


@dataclass(frozen=True, eq=False)
class Source:
    """What is carried, and how.

    Attributes:
        path, grid, space_code, warnings, sha256: as ``nifti.Volume``.
        interpolation: that is used. by: what decided for it, in words; empty where it is the usual one.
        fill: the value outside of it.
        dtype: of its values when carried.
        time: the fourth axis of a series; None for a single volume.
        volumes: reads them one after another, each (X, Y, Z).
        volume: the single one, or the first.
    """

    path: Path
    grid: Grid
    space_code: int
    warnings: tuple[str, ...]
    sha256: str | None
    interpolation: Interpolation
    by: str
    fill: Background
    dtype: np.dtype[Any]
    time: Time | None
    volumes: Callable[[], Iterator[npt.NDArray[Any]]]
    volume: Volume | None = None

    def save(self, path: Path, points: Matrix, known: Inside | None, reference: Grid, space_code: int) -> None:
        """Carry it to the reference grid and write it, each volume sampled once and one in memory at a time.

        Args:
            points: (3, X, Y, Z) where each voxel of the reference lies in the world of the image, RAS mm.
            known: (X, Y, Z) where the map is known, everywhere if None; ``fill`` elsewhere.

        Raises:
            InputError: a volume of a series that cannot be used. OSError: it cannot be written.
        """
        index = transform_points(self.grid.vox_from_world, points)

        def seen() -> Iterator[npt.NDArray[Any]]:
            for data in self.volumes():
                values = at_index(data, index, self.interpolation, self.fill.value)
                if known is not None:
                    values[~known] = self.fill.value
                yield values

        more = (self.time.volumes,) if self.time else ()
        write(path, seen(), (*reference.shape, *more), self.dtype, reference, space_code, time=self.time)

    def lines(self) -> list[str]:
        """What a user should know of the choices that were made."""
        name = self.path.name
        said = [f"{name}: interpolation {self.interpolation}, as for a label map ({self.by})"] if self.by else []
        if self.fill.value and self.fill.found != "given":
            said.append(f"{name}: {self.fill.value:g} outside of it, {self.fill.found}")
        return said


def open_source(
    path: Path,
    interpolation: Interpolation | None,
    fill: float | None,
    max_voxels: int,
    image: Load | None = None,
    labels: Load | None = None,
) -> Source:
    """An image, a label map, or a 4-D series (X, Y, Z, T), of which only the first volume is read now.

    Args:
        interpolation: None for ``nearest`` where it is a label map (``label_map_by``; of a series its first volume),
            and ``linear`` otherwise.
        fill: None for the background of the image (of a series that of its first volume), 0 for label maps.
        max_voxels: of one volume.
        image, labels: what reads a single volume.

    Raises:
        InputError, GeometryError: a file that cannot be used.
        UsageError: a fill that a label map cannot hold.
    """
    nifti = open_nifti(path, max_voxels, series=True)
    series = len(nifti.shape) > 3 and nifti.shape[3] > 1 and not set(nifti.shape[4:]) - {1}
    intent = int(nifti.header["intent_code"])
    if series and intent in OF_VECTORS:
        raise InputError(
            f"{path} has shape {nifti.shape} and intent {intent}: vectors or tensors, which turn with the map; give "
            "images, label maps or series of them"
        )
    volume = _first_volume(nifti) if series else (image or _any_image)(path, max_voxels)
    source = _source(volume, intent, interpolation, fill, lambda: (labels or load_labels)(path, max_voxels), series)
    if not series:
        return source
    dtype = label_type(nifti.stored_as()) if source.interpolation in OF_LABELS else source.dtype
    if source.interpolation in OF_LABELS:
        _check_fill(path, source.fill.value, dtype)
    return replace(source, dtype=dtype, time=_time(nifti), volumes=lambda: _series(nifti, dtype))


def source_in_memory(image: AnyImage, role: str, interpolation: Interpolation | None, fill: float | None) -> Source:
    """As ``open_source``, of an image or a label map that a caller has in memory."""
    volume = in_memory(image, role, constant=True)
    intent = int(getattr(image, "header", {}).get("intent_code", 0))
    return _source(volume, intent, interpolation, fill, lambda: in_memory(image, role, labels=True))


def _source(
    volume: Volume,
    intent: int,
    interpolation: Interpolation | None,
    fill: float | None,
    labels: Callable[[], Volume],
    first_of_series: bool = False,
) -> Source:
    """How an image is seen on another grid; ``labels`` gives it as a label map, if it is to be one."""
    if interpolation is not None:
        check_choice("interpolation", interpolation, get_args(Interpolation))
    path = volume.path
    by = "" if interpolation else label_map_by(path, intent, volume.data)
    chosen: Interpolation = interpolation or ("nearest" if by else "linear")
    if chosen not in OF_LABELS:
        background = Background.of(volume.data) if fill is None else Background.given(fill)
    else:
        background = ZERO if fill is None else Background.given(fill)
        if not first_of_series:
            volume = labels()
            _check_fill(path, background.value, volume.data.dtype)
    warnings = volume.warnings
    if not (by or interpolation) and meant_as_labels(path, intent):
        line = f"{path.name}: a label map by name or intent, but with fractions: taken for an image"
        warnings = (*warnings, line)
    about = (path, volume.grid, volume.space_code, warnings, volume.sha256)
    return Source(*about, chosen, by, background, volume.data.dtype, None, lambda: iter((volume.data,)), volume)


def _any_image(path: Path, max_voxels: int) -> Volume:
    return load_image(path, max_voxels, constant=True)


def _first_volume(nifti: NiftiFile) -> Volume:
    if min(nifti.shape[:3]) < 2:
        raise InputError(f"{nifti.path} has shape {nifti.shape}: every axis of a volume needs at least 2 voxels")
    check_real(nifti)
    grid, code, warnings = space_of(nifti)
    return Volume(next(_series(nifti, np.dtype(np.float32))), grid, nifti.path, code, warnings)


def _series(nifti: NiftiFile, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    if dtype.kind == "f":
        for data in nifti.volumes(dtype):
            check_finite(data, nifti.path)
            yield data
    else:
        for data in nifti.volumes():
            yield as_labels(data, nifti.path)


def _time(nifti: NiftiFile) -> Time:
    unit = int(nifti.header["xyzt_units"]) & 0x38  # NIfTI: bits 3 to 5
    return Time(nifti.shape[3], float(nifti.pixdim[4]), unit, float(nifti.header["toffset"]))


def _check_fill(path: Path, fill: float, dtype: np.dtype[Any]) -> None:
    """Numpy or numba would take another number for one that the type does not hold."""
    limits = np.iinfo(dtype)
    if fill != int(fill):
        raise UsageError(f"`fill` {fill:g}: {path} is a label map, which needs a whole number")
    if not limits.min <= fill <= limits.max:
        raise UsageError(f"`fill` {fill:g}: {path} is {dtype}, which holds {limits.min} to {limits.max}")
