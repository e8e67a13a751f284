"""What moves with the images: label maps, more channels, points; and the masks that say what counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ofg_deploy.errors import GeometryError, InputError
from ofg_deploy.geometry import Matrix, lattice, same_grid, transform_points
from ofg_deploy.locations import portable
from ofg_deploy.nifti import Volume, save_volume
from ofg_deploy.options.words import Interpolation
from ofg_deploy.outputs import sha256_file
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job, numbered
from ofg_deploy.transform.inverse import InverseMap
from ofg_deploy.transform.landmarks import Landmarks, match
from ofg_deploy.transform.maps import FieldMap
from ofg_deploy.transform.points import CarriedPoints, Points, carry, load_points, save_points
from ofg_deploy.transform.resample import at
from ofg_deploy.transform.source import Source, open_source


@dataclass(frozen=True, eq=False)
class Companions:
    """As read; none of them has moved yet."""

    labels: tuple[Volume, ...] = ()
    channels: tuple[Source, ...] = ()
    fixed_labels: Volume | None = None
    fixed_mask: Volume | None = None
    moving_mask: Volume | None = None
    fixed_points: Points | None = None
    moving_points: Points | None = None

    @property
    def masked(self) -> bool:
        """Whether one of the images has a mask."""
        return self.fixed_mask is not None or self.moving_mask is not None

    def check(self, fixed: Volume, moving: Volume) -> Companions:
        """These, unless a label map or a mask is unusable.

        Raises:
            GeometryError: one on another grid than its image. InputError: a mask without a voxel that counts.
        """
        for image, maps in ((fixed, (self.fixed_labels, self.fixed_mask)), (moving, (*self.labels, self.moving_mask))):
            for volume in maps:
                if volume is not None:
                    _check_on_grid(volume, image)
        for mask in (self.fixed_mask, self.moving_mask):
            if mask is not None and not mask.data.any():
                raise InputError(f"{mask.path} is 0 everywhere: a mask is needed that marks what counts")
        return self

    def landmarks(self) -> tuple[Landmarks | None, str | None]:
        """Both tables as corresponding points; or why they are not, where both were given."""
        if self.fixed_points is None or self.moving_points is None:
            return None, None
        try:
            return match(self.fixed_points, self.moving_points), None
        except InputError as error:
            return None, f"no landmark error: {error}"

    def matched_by(self) -> str | None:
        """How corresponding landmarks were found: by ``label`` or by ``row``."""
        landmarks, _ = self.landmarks()
        return landmarks.matched_by if landmarks else None

    def volumes(self) -> dict[str, Volume | Source]:
        """Every image among them, by its role in the sidecar."""
        given: dict[str, Volume | Source | None] = {
            **{numbered("moving_labels", n): volume for n, volume in enumerate(self.labels, start=1)},
            **{numbered("also", n): volume for n, volume in enumerate(self.channels, start=1)},
            "fixed_labels": self.fixed_labels,
            "fixed_mask": self.fixed_mask,
            "moving_mask": self.moving_mask,
        }
        return {role: volume for role, volume in given.items() if volume is not None}


@dataclass(frozen=True, eq=False)
class Moved:
    """The same in the other image's space.

    Attributes:
        volumes: label maps by role of their output.
        channels: images and series by role of theirs, sampled while they are written at ``places``: (3, X, Y, Z) where
            the fixed voxels lie in the moving world, RAS mm; None where there is nothing to sample.
        points: tables, with what to say of them.
    """

    volumes: dict[str, npt.NDArray[Any]]
    channels: dict[str, Source]
    places: Matrix | None
    points: dict[str, CarriedPoints]

    def save(self, paths: dict[str, Path], fixed: Volume) -> None:
        """Write each to the path of its role. Raises OSError, and InputError for a series with unusable volumes."""
        for role, data in self.volumes.items():
            save_volume(paths[role], data, fixed.grid, fixed.space_code)
        for role, source in self.channels.items():
            assert self.places is not None
            source.save(paths[role], self.places, None, fixed.grid, fixed.space_code)
        for role, carried in self.points.items():
            save_points(paths[role], carried)

    def record(self, folder: Path) -> dict[str, Any]:
        """For the sidecar in ``folder``: the way the points went, their frame, how many the transform does not know."""
        ways = {"fixed_points": "fixed to moving, forward", "moving_points": "moving to fixed, by the inverse"}
        return {
            role: {
                "path": portable(carried.source.path, folder),
                "sha256": sha256_file(carried.source.path),
                "frame": carried.source.frame,
                "direction": ways[role],
                "points": int(carried.inside.size),
                "unknown": int((~carried.inside).sum()),
            }
            for role, carried in self.points.items()
        }

    def warnings(self) -> list[str]:
        """One line for each table with points that are not known."""
        return [line for carried in self.points.values() for line in carried.warnings()]


def load(job: Job, fixed: Volume, moving: Volume, images: Images) -> Companions:
    """Read all that the job names.

    Raises:
        GeometryError: a label map or mask on another grid than its image. InputError: files that cannot be used.
    """

    def labels(path: Path | None) -> Volume | None:
        return images.labels(path, job.max_voxels) if path else None

    return Companions(
        tuple(images.labels(path, job.max_voxels) for path in job.moving_labels),
        tuple(
            open_source(path, job.interpolation, job.fill, job.max_voxels, images.channel, images.labels)
            for path in job.also
        ),
        labels(job.fixed_labels),
        labels(job.fixed_mask),
        labels(job.moving_mask),
        load_points(job.fixed_points, job.points_frame) if job.fixed_points else None,
        load_points(job.moving_points, job.points_frame) if job.moving_points else None,
    ).check(fixed, moving)


def move(
    companions: Companions, label_interpolation: Interpolation, fixed: Volume, forward: FieldMap, affine: Matrix
) -> Moved:
    """Labels onto the fixed grid, images and series when they are written, one interpolation each; points to the
    other side.

    Args:
        forward: the total map on the fixed grid; affine: (4, 4) the affine part in it.
    """
    volumes: dict[str, npt.NDArray[Any]] = {}
    points = None
    if companions.labels or companions.channels:
        points = transform_points(fixed.grid.world_from_vox, lattice(fixed.grid.shape)) + forward.field
        for number, volume in enumerate(companions.labels, start=1):
            volumes[numbered("warped_labels", number)] = at(volume, points, label_interpolation, 0)
    carried = {}
    if companions.fixed_points:
        carried["fixed_points"] = carry(companions.fixed_points, forward)
    if companions.moving_points:
        carried["moving_points"] = carry(companions.moving_points, InverseMap(forward, affine))
    channels = {numbered("warped_also", number): source for number, source in enumerate(companions.channels, start=1)}
    return Moved(volumes, channels, points, carried)


def _check_on_grid(labels: Volume, image: Volume) -> None:
    if not same_grid(labels.grid, image.grid, 0.1):
        raise GeometryError(
            f"{labels.path} {labels.grid.shape} lies on another grid than its image {image.path} "
            f"{image.grid.shape}: resample the labels onto the image first"
        )
