"""What the viewer shows of a registration: every image on one grid, computed by the code that registers.

The grid is that of the fixed image with its axes in the order of RAS (permuted and flipped, never interpolated) and,
for images above ``MOST_VOXELS``, every second or third voxel of it. The browser gets clean NIfTI files on this grid and
interpolates nothing across grids: what a header means is decided here, as everywhere.
"""

from __future__ import annotations

import io
import threading
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from ofg_deploy.background import Background
from ofg_deploy.errors import InputError
from ofg_deploy.field import jacobian_determinant, resample
from ofg_deploy.geometry import Grid, canonical, transform_points
from ofg_deploy.nifti import Volume, load_image, load_labels, load_transform
from ofg_deploy.outputs import sha256_file
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.view import Window

MOST_VOXELS = 320**3  # that a browser is given of an image
MOST_OF_FIELD = 128**3  # lines of the deformation grid need no more
TITLES = {
    "fixed": "Fixed",
    "moving": "Moving, before registration",
    "warped": "Warped",
    "jacobian": "Jacobian determinant",
    "fixed_labels": "Labels of the fixed image",
    "warped_labels": "Warped labels",
}
LABEL_COLOURS = 254  # label maps are shown by the rank of each value; the colours begin again after so many


class Scene:
    """The images of one registration for a browser. Safe to be asked by several threads.

    Attributes:
        registration: on disk.
        grid: what is shown lies on it; its axes are RAS.
        notes: sentences about what is missing.
    """

    def __init__(self, registration: Registration) -> None:
        """Look at what is there; voxels are read when they are asked for.

        Raises:
            InputError: the sidecar, the transform or the warped image is missing, damaged or not as it was written.
        """
        self.registration = registration
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._check_outputs()
        self.roles = ["warped", "jacobian", "deformation"]
        self.roles += [role for role in ("fixed", "moving", "fixed_labels") if self._has_input(role)]
        self.roles += [role for role in ("warped_labels",) if role in registration.record.outputs]
        warped = load_image(registration.file("warped"), constant=True)
        self._fixed_grid = warped.grid
        self._step = _step(warped.grid, MOST_VOXELS)
        self.grid = _thinned(canonical(warped.grid), self._step)
        self._windows = {"warped": _window(warped.data)}
        if self._step > 1:
            self.notes.append(f"The images are large: every voxel number {self._step} along each axis is shown.")

    @property
    def titles(self) -> dict[str, str]:
        """What is shown as an image: title by role, in the order of the page."""
        return {role: title for role, title in TITLES.items() if role in self.roles}

    def volume(self, role: str) -> bytes:
        """A NIfTI file on ``grid``, or for ``deformation`` the bare numbers of ``field_grid``.

        float32; label maps as uint8, see ``label_values``. The deformation is (3, X, Y, Z) in C order: where the voxel
        lies after the registration, without the initial alignment A: A^-1 (x + u) - x, in mm along the axes of the
        grid.

        Raises:
            InputError: there is no such image, or its file is damaged.
        """
        if role not in self.roles:
            raise InputError(f"there is no image {role!r} in this registration")
        with self._lock:  # one after another: each takes as much memory as the registration's largest image
            return self._made(role)

    def window(self, role: str) -> tuple[float, float]:
        """Intensities that are black and white, as in the report. Raises InputError as ``volume``."""
        # The warped image is compared with the moving one: it has the same window.
        role = "moving" if role == "warped" and "moving" in self.roles else role
        with self._lock:
            if role not in self._windows:
                data = load_image(self.registration.file(role), constant=True).data
                self._windows[role] = _window(data)
            return self._windows[role]

    @cached_property
    def label_values(self) -> list[int]:
        """The label that each number of a label map stands for, from 1 on, in both maps alike."""
        found: set[int] = set()
        for role in ("fixed_labels", "warped_labels"):
            if role in self.roles:
                found |= {int(value) for value in np.unique(load_labels(self.registration.file(role)).data)}
        return sorted(found - {0})

    @cached_property
    def field_grid(self) -> Grid:
        """Of the deformation: coarser than ``grid`` where that has more voxels than lines of a grid need."""
        return _thinned(canonical(self._fixed_grid), _step(self._fixed_grid, MOST_OF_FIELD))

    def _made(self, role: str) -> bytes:
        if role in ("jacobian", "deformation"):
            total, grid, _ = load_transform(self.registration.file("transform"))
            self._check(total.shape[1:], "transform")
            if role == "jacobian":
                return self._nifti(self._upright(jacobian_determinant(total, grid.world_from_vox)))
            return self._deformation(total)
        if role.endswith("labels"):
            labels = load_labels(self.registration.file(role))
            self._check(labels.data.shape, role)
            rank = np.searchsorted(self.label_values, labels.data) % LABEL_COLOURS + 1
            return self._nifti(self._upright(np.where(labels.data == 0, 0, rank).astype(np.uint8)))
        image = load_image(self.registration.file(role), constant=True)
        if role == "moving":
            return self._nifti(self._before(image))
        self._check(image.data.shape, role)
        return self._nifti(self._upright(image.data))

    def _before(self, moving: Volume) -> npt.NDArray[Any]:
        """The moving image where its header puts it, on ``grid``."""
        empty = Background.of(moving.data).value
        return resample(moving.data, moving.grid, self.grid, np.eye(4), fill=empty)

    def _deformation(self, total: npt.NDArray[np.float32]) -> bytes:
        grid = self.field_grid
        step = _step(self._fixed_grid, MOST_OF_FIELD)
        thin = np.stack([self._upright(component, step) for component in total]).astype(np.float64)
        points = transform_points(grid.world_from_vox, np.indices(grid.shape, dtype=np.float64))
        back = np.linalg.inv(self.registration.moving_from_fixed).astype(np.float64)
        away = transform_points(back, points + thin) - points
        directions = grid.world_from_vox[:3, :3] / np.array(grid.spacing_mm)
        return np.tensordot(directions.T, away, axes=1).astype("<f4").tobytes()

    def _upright(self, data: npt.NDArray[Any], step: int = 0) -> npt.NDArray[Any]:
        """(X, Y, Z) on the fixed grid -> in the order of RAS, thinned."""
        turn = ornt_transform(io_orientation(self._fixed_grid.world_from_vox), axcodes2ornt("RAS"))
        upright = apply_orientation(data, turn)
        step = step or self._step
        return np.asarray(upright[::step, ::step, ::step])

    def _nifti(self, data: npt.NDArray[Any]) -> bytes:
        image = nib.Nifti1Image(data, self.grid.world_from_vox)
        image.set_sform(self.grid.world_from_vox, 1)
        image.set_qform(self.grid.world_from_vox, 1)
        image.header.set_xyzt_units("mm")
        if data.dtype == np.uint8:
            image.header.set_intent("label")  # the viewer then neither interpolates nor windows it
        stream = io.BytesIO()
        image.to_stream(stream)
        return stream.getvalue()

    def _check(self, shape: tuple[int, ...], role: str) -> None:
        if tuple(shape) != self._fixed_grid.shape:
            raise InputError(
                f"{self.registration.file(role)} has the shape {tuple(shape)}, the warped image has "
                f"{self._fixed_grid.shape}: register again"
            )

    def _has_input(self, role: str) -> bool:
        """Whether an input can be shown; why one cannot becomes a note."""
        try:
            self.registration.file(role)
        except InputError as error:
            if role in self.registration.record.inputs:
                self.notes.append(f"The page goes without an image: {error}.")
            return False
        return True

    def _check_outputs(self) -> None:
        record = self.registration.record
        for role in ("transform", "warped"):
            if role not in record.outputs:
                raise InputError(f"{self.registration.sidecar} names no {role}: register again")
        for role in (role for role in ("transform", "warped", "warped_labels") if role in record.outputs):
            path = self.registration.file(role)
            if not path.is_file():
                raise InputError(f"{path}, the {role} of {self.registration.sidecar.name}, is missing: register again")
            if role in record.written and sha256_file(path) != record.written[role].sha256:
                raise InputError(f"{path} has changed since {self.registration.sidecar} was written: register it again")


def _window(data: npt.NDArray[Any]) -> tuple[float, float]:
    window = Window(data)
    low, high = float(window.low), float(window.high)
    return (low, high) if high > low else (low, max(float(data.max()), low + 1.0))


def _step(grid: Grid, most: int) -> int:
    """Every which voxel along each axis leaves at most about so many; axes keep two voxels."""
    needed = int(np.ceil((np.prod(grid.shape, dtype=float) / most) ** (1 / 3)))
    return max(1, min(needed, (min(grid.shape) + 1) // 2))


def _thinned(grid: Grid, step: int) -> Grid:
    """Every ``step``-th voxel of a grid, from the first on."""
    x, y, z = (-(-count // step) for count in grid.shape)
    return Grid((x, y, z), grid.world_from_vox @ np.diag([step, step, step, 1.0]))
