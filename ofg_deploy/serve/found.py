"""What ``Model.register`` returns: a registration that one can look at, apply to other images, and save."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import InputError, OfgError, UsageError, plain
from ofg_deploy.geometry import Grid, Matrix, lattice, transform_points
from ofg_deploy.image import AnyImage, is_file
from ofg_deploy.nifti import Volume
from ofg_deploy.nifti_file import MAX_VOXELS
from ofg_deploy.options.words import Dialect, Interpolation
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.options import Options
from ofg_deploy.serve.registration import Result
from ofg_deploy.serve.saving import save
from ofg_deploy.transform.inverse import InverseMap, inverse_field
from ofg_deploy.transform.maps import FieldMap, Inside, WorldMap
from ofg_deploy.transform.resample import at_index
from ofg_deploy.transform.source import Source, open_source, source_in_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from nibabel.nifti1 import Nifti1Image

    from ofg_deploy.report.panels import Panel

Direction = Literal["fixed_to_moving", "moving_to_fixed"]


@dataclass(frozen=True, eq=False)
class Registration:
    """A pair that was registered. Nothing is on disk until ``save``.

    ``ok`` is True; a pair of ``Model.register_many`` that could not be registered is a ``Failure``, whose ``ok`` is
    False.
    """

    _result: Result
    _model_choice: str | None = None
    ok = True

    @property
    def warped(self) -> Nifti1Image:
        """The moving image on the fixed grid, (X, Y, Z) float32, in its own intensities."""
        return self._image(self._result.warped)

    @property
    def warped_labels(self) -> tuple[Nifti1Image, ...]:
        """Each of ``moving_labels`` on the fixed grid."""
        return tuple(map(self._image, self._result.moved.volumes.values()))

    @property
    def displacement_mm(self) -> npt.NDArray[np.float32]:
        """(X, Y, Z, 3) on the fixed grid, world RAS mm: a fixed point x lies at x + displacement in the moving image.

        The total map, initial alignment included. A view: do not write into it.
        """
        return np.moveaxis(self._result.forward.field, 0, -1)

    @property
    def moving_from_fixed(self) -> Matrix:
        """(4, 4) the initial alignment alone, fixed world -> moving world, RAS mm."""
        return self._result.prepared.pair.moving_from_fixed.copy()

    @property
    def measures(self) -> dict[str, Any]:
        """How good it is, as in the sidecar: NCC and MI before, at the start and after; folding in percent, SDlogJ,
        largest displacement in mm; Dice and HD95 in mm where labels of both images were given, errors of landmarks.
        """
        return dict(self._result.measures)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What to know of this registration, one sentence each; empty if there is nothing."""
        return tuple(map(plain, self._result.warnings()))

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by stage."""
        return dict(self._result.prepared.clock.seconds)

    def warp(
        self, image: AnyImage, interpolation: Interpolation | None = None, fill: float | None = None
    ) -> Nifti1Image:
        """Another image or label map of the moving side on the fixed grid, interpolated once.

        Args:
            image: on any grid in the moving image's world; a file may be a series (X, Y, Z, T).
            interpolation: ``linear``, ``nearest``, ``genericlabel`` (the label of the largest linear weight) or
                ``bspline``; None for nearest where it is a label map and linear otherwise.
            fill: value outside of it; None for its own background, 0 for label maps.

        Raises:
            InputError, GeometryError: an image that cannot be used. UsageError: a fill that a label map cannot hold.
        """
        return self._onto(self._fixed.grid, self._result.forward, image, interpolation, fill, self._fixed.space_code)

    def points(self, points: Any, direction: Direction = "fixed_to_moving") -> npt.NDArray[np.float64]:
        """Points of one image in the other one.

        Args:
            points: (N, 3) world RAS mm, or a file of points (CSV, 3D Slicer's).
            direction: from the fixed image to the moving one, or back (by the inverse of the transform).

        Returns:
            (N, 3) world RAS mm, NaN where the transform is not known.

        Raises:
            InputError: not such points, or a file that cannot be read. UsageError: another direction.
        """
        if direction not in ("fixed_to_moving", "moving_to_fixed"):
            raise UsageError(f"direction {direction!r}: use fixed_to_moving or moving_to_fixed")
        if isinstance(points, str | Path):
            from ofg_deploy.transform.points import load_points

            world = load_points(Path(points), None).world
        else:
            try:
                world = np.atleast_2d(np.asarray(points, dtype=np.float64)).T
            except (TypeError, ValueError) as error:
                raise InputError(f"points: expected an (N, 3) array of numbers ({error})") from error
            if world.ndim != 2 or world.shape[0] != 3:
                raise InputError(f"points have shape {np.shape(points)}: expected (N, 3), in mm")
        way: WorldMap = self._result.forward if direction == "fixed_to_moving" else self._back
        moved = np.full(world.shape, np.nan)
        defined = np.isfinite(world).all(axis=0)
        displacement, known = way.displacement_mm(world[:, defined])
        moved[:, defined] = np.where(known, world[:, defined] + displacement, np.nan)
        return moved.T

    def inverse(self) -> Inverse:
        """The map from the moving image to the fixed one, on the moving grid; computed when it is asked for."""
        result = self._result
        moving = result.prepared.inputs.moving
        found = result.inverse or inverse_field(result.forward, result.prepared.pair.moving_from_fixed, moving.grid)
        return Inverse(self, found.field, found.without_percent, found.consistency_mm)

    def save(self, folder: str | Path, format: Dialect = "itk", overwrite: bool = False) -> dict[str, Path]:
        """Write what ``ofg register`` writes, by the same code: warped images, transform, sidecar.

        Args:
            folder: made if needed. format: an additional form of the transform beside that of ITK and ANTs.
            overwrite: replace files of an earlier registration of this pair.

        Returns:
            The path of each file, by its role.

        Raises:
            InputError: files that exist or cannot be written. ParityError: a transform that reads back as another one.
                Nothing is written then.
        """
        inputs, beside = self._result.prepared.inputs, self._result.prepared.inputs.beside
        given = self._result.prepared.options
        options = {field.name: getattr(given, field.name) for field in fields(Options)}
        job = Job(
            inputs.fixed.path,
            inputs.moving.path,
            Path(folder),
            moving_labels=tuple(labels.path for labels in beside.labels),
            fixed_labels=beside.fixed_labels.path if beside.fixed_labels else None,
            overwrite=overwrite,
            command=["ofg_deploy (Python)"],
            field_format=format,
            model_choice=self._model_choice,
            fixed_mask=beside.fixed_mask.path if beside.fixed_mask else None,
            moving_mask=beside.moving_mask.path if beside.moving_mask else None,
            also=tuple(source.path for source in beside.channels),
            fixed_points=beside.fixed_points.path if beside.fixed_points else None,
            moving_points=beside.moving_points.path if beside.moving_points else None,
            **options,
        )
        return save(self._result, job).outputs

    def figure(self) -> Figure:
        """Fixed, moving and warped image, differences, deformation and Jacobian determinant, by matplotlib.

        Raises:
            DeviceError: matplotlib is not installed.
        """
        from ofg_deploy.report.figure import draw

        return draw([("", self._shown())])

    def _repr_html_(self) -> str:
        """For notebooks: the same panels as SVG, no package needed."""
        from ofg_deploy.report.svg import inline

        return inline(self._shown())

    def __repr__(self) -> str:
        inputs = self._result.prepared.inputs
        return f"<Registration of {inputs.moving.path.name} to {inputs.fixed.path.name}>"

    @property
    def _fixed(self) -> Volume:
        return self._result.prepared.inputs.fixed

    @cached_property
    def _back(self) -> InverseMap:
        return InverseMap(self._result.forward, self._result.prepared.pair.moving_from_fixed)

    def _shown(self) -> list[Panel]:
        from ofg_deploy.report.panels import Shown, panels_of

        result, inputs = self._result, self._result.prepared.inputs
        labels = None
        if inputs.beside.fixed_labels:
            labels = inputs.beside.fixed_labels.data, result.moved.volumes["warped_labels"]
        start = result.prepared.pair.moving_from_fixed
        shown = Shown(inputs.fixed, inputs.moving, result.warped, result.forward.field, start, self.measures, labels)
        return panels_of(shown, one_plane=True)

    def _image(self, data: npt.NDArray[Any]) -> Nifti1Image:
        return image_on(data, self._fixed.grid, self._fixed.space_code)

    def _onto(
        self,
        grid: Grid,
        way: FieldMap,
        image: AnyImage,
        interpolation: Interpolation | None,
        fill: float | None,
        space_code: int,
    ) -> Nifti1Image:
        points = transform_points(grid.world_from_vox, lattice(grid.shape)) + way.field
        return image_on(carried(source_of(image, "image", interpolation, fill), points), grid, space_code)


@dataclass(frozen=True, eq=False)
class Inverse:
    """The way back, on the moving image's grid.

    Attributes:
        field: (3, X, Y, Z) RAS mm, from a moving point to its fixed point.
        without_percent: share of the moving voxels within reach at which the transform has no inverse.
        consistency_mm: inverse consistency error of the fixed voxels: mean, 99th percentile, largest.
    """

    registration: Registration
    field: npt.NDArray[np.float32]
    without_percent: float
    consistency_mm: dict[str, float]

    @property
    def displacement_mm(self) -> npt.NDArray[np.float32]:
        """(X, Y, Z, 3) on the moving grid, world RAS mm: a moving point x lies at x + displacement in the fixed one."""
        return np.moveaxis(self.field, 0, -1)

    def warp(
        self, image: AnyImage, interpolation: Interpolation | None = None, fill: float | None = None
    ) -> Nifti1Image:
        """An image or label map of the fixed side on the moving grid; as ``Registration.warp``."""
        moving = self.registration._result.prepared.inputs.moving
        way = FieldMap(self.field, moving.grid)
        return self.registration._onto(moving.grid, way, image, interpolation, fill, moving.space_code)


@dataclass(frozen=True)
class Failure:
    """A pair of ``Model.register_many`` that could not be registered.

    Attributes:
        number: which pair, from 0.
        error: why; its text is one sentence, its ``exit_code`` that of ``ofg register``.
    """

    number: int
    error: OfgError
    ok = False

    def __str__(self) -> str:
        return f"pair {self.number} failed: {self.error}"


def source_of(
    image: AnyImage, role: str, interpolation: Interpolation | None, fill: float | None, max_voxels: int = MAX_VOXELS
) -> Source:
    """What is to be carried, from a file or from memory; raises as ``transform.source.open_source``."""
    if is_file(image):
        return open_source(Path(image), interpolation, fill, max_voxels)
    return source_in_memory(image, role, interpolation, fill)


def carried(source: Source, points: Matrix, known: Inside | None = None) -> npt.NDArray[Any]:
    """(X, Y, Z) values at world points (3, X, Y, Z), of a series (X, Y, Z, T); ``known``: where the map is."""
    index = transform_points(source.grid.vox_from_world, points)
    volumes = []
    for data in source.volumes():
        values = at_index(data, index, source.interpolation, source.fill.value)
        if known is not None:
            values[~known] = source.fill.value
        volumes.append(values)
    return np.stack(volumes, axis=-1) if source.time else volumes[0]


def image_on(data: npt.NDArray[Any], grid: Grid, space_code: int = 1) -> Nifti1Image:
    """Voxels on a grid as a nibabel image; sform and qform say the same."""
    import nibabel

    image = nibabel.Nifti1Image(data, grid.world_from_vox)
    image.set_sform(grid.world_from_vox, space_code)
    image.set_qform(grid.world_from_vox, space_code)
    image.header.set_xyzt_units("mm")
    return image
