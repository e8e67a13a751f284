"""Images that a caller has in memory, read by the same rules as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeGuard, Union

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix
from ofg_deploy.nifti import Volume, as_image, as_labels
from ofg_deploy.nifti_space import check_real, grid_of, space_of

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage


@dataclass(frozen=True, eq=False)
class Image:
    """A 3-D image or label map in memory.

    Attributes:
        array: (X, Y, Z) real numbers; whole ones for a label map. It is copied when it is used.
        affine: (4, 4) voxel index -> world, RAS+ mm, as nibabel has it.
        name: what messages and the files of results call it; ``fixed``, ``moving`` and the like if empty.
    """

    array: npt.NDArray[Any]
    affine: Matrix
    name: str = ""


AnyImage = Union[str, Path, "SpatialImage", Image]  # what every function of the API takes for an image


def is_file(given: AnyImage) -> TypeGuard[str | Path]:
    """Whether an image is given by its path."""
    return isinstance(given, str | Path)


def in_memory(given: AnyImage, role: str, labels: bool = False, constant: bool = False) -> Volume:
    """A nibabel image or an ``Image`` as registration reads it.

    Args:
        role: what it is called where it has no name.
        labels: whether it is a label map; then its type stays, floating-point ones become int32.
        constant: whether one value everywhere will do.

    Raises:
        InputError: neither, not one 3-D volume of real numbers, NaN or infinite voxels, a constant image, a label map
            with fractions. GeometryError: its affine is missing, singular or sheared.
    """
    code, warnings = 1, tuple[str, ...]()
    if isinstance(given, Image):
        data, name = np.asarray(given.array), given.name
        path = Path(Path(name).name or role)
        _check(data, path)
        grid = grid_of(path, data.shape, np.asarray(given.affine, dtype=np.float64))
    elif hasattr(given, "dataobj") and hasattr(given, "header"):
        file = given.get_filename() if hasattr(given, "get_filename") else None
        path = Path(Path(file).name if file else role)
        data = np.asanyarray(given.dataobj)
        data = data.reshape(data.shape[:3]) if data.ndim > 3 and set(data.shape[3:]) == {1} else data
        _check(data, path)
        if hasattr(given.header, "get_sform"):
            header = SimpleNamespace(
                path=path, header=given.header, shape=data.shape, repairs=(), on_disk=data.dtype,
                pixdim=np.asarray(given.header["pixdim"], dtype=np.float64),
            )  # fmt: skip
            grid, code, warnings = space_of(header)
        else:
            grid = grid_of(path, data.shape, np.asarray(getattr(given, "affine"), dtype=np.float64))  # noqa: B009
    else:
        raise InputError(
            f"the {role} image is a {type(given).__name__}: give a path, a nibabel image or ofg_deploy.Image(array, "
            "affine)"
        )
    # A copy: what the caller does to the array afterwards must not change a registration.
    values = as_labels(np.array(data, order="F"), path) if labels else as_image(
        np.array(data, dtype=np.float32, order="F"), path, constant
    )  # fmt: skip
    values.flags.writeable = False
    return Volume(values, grid, path, code, warnings, in_memory=True)


def _check(data: npt.NDArray[Any], path: Path) -> None:
    if data.ndim != 3 or min(data.shape) < 2:
        raise InputError(f"{path} has shape {data.shape}: one 3-D volume is needed, every axis at least 2 voxels")
    check_real(SimpleNamespace(path=path, on_disk=data.dtype))
