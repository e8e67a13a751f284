"""Saved transforms on images, label maps and points: ``ofg apply``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy.errors import GeometryError, UsageError
from ofg_deploy.geometry import Grid, Matrix, lattice, transform_points
from ofg_deploy.locations import as_paths, portable, portable_command
from ofg_deploy.nifti import load_space, stem
from ofg_deploy.nifti_file import MAX_VOXELS
from ofg_deploy.options.words import Form, Interpolation, PointsFrame
from ofg_deploy.outputs import check_inputs_stay, check_writable, sha256_file, staged, to_json
from ofg_deploy.serve.names import ENDINGS
from ofg_deploy.sidecar import Named
from ofg_deploy.transform.dialects import OF_BOTH_IMAGES, check_images, load_map
from ofg_deploy.transform.inverse import invert
from ofg_deploy.transform.maps import Chain, Inside, on_grid
from ofg_deploy.transform.points import carry, load_points, save_points
from ofg_deploy.transform.resample import OF_LABELS, outside_warning
from ofg_deploy.transform.source import Source, open_source
from ofg_deploy.transform.tables import ending
from ofg_deploy.version import __version__

SCHEMA = 1
INVERTED = re.compile(r"\[(?P<path>.+),\s*(?P<inverted>[01])\]")  # as antsApplyTransforms has it


@dataclass(frozen=True)
class Step:
    """One transform of a chain, perhaps backwards."""

    path: Path
    inverted: bool = False

    @classmethod
    def parse(cls, text: str) -> Step:
        """``FILE``, or ``[FILE,1]`` for its inverse."""
        found = INVERTED.fullmatch(text.strip())
        return cls(Path(found["path"].strip()), found["inverted"] == "1") if found else cls(Path(text))


@dataclass(frozen=True)
class Application:
    """What to carry through which transforms.

    Attributes:
        steps: in the order of antsApplyTransforms: the last one acts first on the image; a point of the reference
            meets the first one first.
        out: the file to write; a JSON of its name goes beside it.
        image: to be seen on the grid of ``reference``; a series volume by volume.
        fixed_points: table in the space of the reference, carried forward. moving_points: in the space of the image,
            carried backwards by the inverse of the whole chain.
        points_frame: world of the tables that do not say it themselves; RAS if None.
        interpolation: ``nearest`` and ``genericlabel`` take label maps; None for ``nearest`` where the image is one,
            and ``linear`` otherwise.
        dialect: form of the transforms.
        fill: value where the map is unknown or leaves the image; None for the image's background, 0 for label maps.
        max_voxels: larger images (of a series: volumes), references and displacement fields are refused before their
            voxels are read.
        overwrite: replace an existing file.
        command: recorded in the sidecar.

    Raises:
        UsageError: options that make no sense together.
    """

    steps: tuple[Step, ...]
    out: Path
    image: Path | None = None
    reference: Path | None = None
    fixed_points: Path | None = None
    moving_points: Path | None = None
    points_frame: PointsFrame | None = None
    interpolation: Interpolation | None = None
    dialect: Form = "itk"
    fill: float | None = None
    max_voxels: int = MAX_VOXELS
    overwrite: bool = False
    command: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        as_paths(self, ("out", "image", "reference", "fixed_points", "moving_points"))
        steps = (step if isinstance(step, Step) else Step.parse(str(step)) for step in self.steps)
        object.__setattr__(self, "steps", tuple(steps))
        if sum(given is not None for given in (self.image, self.fixed_points, self.moving_points)) != 1:
            raise UsageError("give one thing to transform: `image`, `fixed_points` or `moving_points`")
        if not self.steps:
            raise UsageError("no transform: name it by -t")
        if self.image is not None and self.reference is None:
            raise UsageError("an image needs `reference`, on whose grid it will lie")
        if self.dialect in OF_BOTH_IMAGES and (len(self.steps) > 1 or self.image is None):
            raise UsageError(
                f"`format` {self.dialect} speaks of both images' voxels: one transform alone, on an image; for a "
                "chain or points use the form of ITK, which ofg register always writes"
            )
        if self.fill is not None and (
            not np.isfinite(self.fill) or (self.interpolation in OF_LABELS and self.fill != int(self.fill))
        ):
            raise UsageError(f"`fill` {self.fill}: a finite number is needed, for label maps a whole one, or auto")
        points = self.fixed_points or self.moving_points
        endings = (".nii", ".nii.gz") if points is None else (ending(points),)
        if not self.out.name.lower().endswith(endings):
            raise UsageError(f"`out` {self.out}: a name that ends in {' or '.join(endings)} is needed")

    def reads(self) -> list[Path]:
        """All files that are read."""
        given = (self.image, self.reference, self.fixed_points, self.moving_points)
        return [*(path for path in given if path is not None), *(step.path for step in self.steps)]

    @property
    def sidecar(self) -> Path:
        """Where the record goes."""
        if self.image is not None:
            return self.out.with_name(f"{stem(self.out)}.json")
        kind = ending(self.out)
        name = self.out.name[: -len(kind)]
        return self.out.with_name(f"{name}_apply.json" if kind == ".json" else f"{name}.json")


def apply(job: Application) -> dict[str, Any]:
    """Carry it and write it; returns the sidecar's content.

    Raises:
        InputError, GeometryError: files that cannot be used or do not belong together; nothing is written then.
        UsageError: a transform whose own sidecar names another form.
    """
    check_writable([job.out, job.sidecar], job.overwrite)
    check_inputs_stay([job.out, job.sidecar], job.reads())
    if job.image is not None and job.reference is not None:
        save, about = _image(job, job.image, job.reference)
    else:
        save, about = _points(job)
    given = {"source": job.image or job.fixed_points or job.moving_points, "reference": job.reference}
    record = {
        "schema": SCHEMA,
        "tool": "ofg_deploy apply",
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": portable_command(job.command, job.out.parent),
        "inputs": {role: _describe(path, job.out.parent) for role, path in given.items() if path},
        "transforms": [{**_describe(step.path, job.out.parent), "inverted": step.inverted} for step in job.steps],
        "format": job.dialect,
        "output": job.out.name,
        **about,
    }
    with staged([job.out, job.sidecar], job.overwrite) as [partial, sidecar]:
        save(partial)
        sidecar.write_text(to_json(record))
    return record


Save = Callable[[Path], None]


def _image(job: Application, source: Path, target: Path) -> tuple[Save, dict[str, Any]]:
    """How to write the image on the grid of the reference, and what to say of it."""
    image = open_source(source, job.interpolation, job.fill, job.max_voxels)
    reference, space_code, warnings = load_space(target, job.max_voxels)
    if job.dialect == "fsl":
        check_images("fsl", target, reference, source, image.grid, job.max_voxels)
    chain = load_chain(job.steps, job.dialect, reference, image.grid, job.max_voxels)
    points, inside, about_map = seen_through(chain, image, reference, target)
    unknown = 100.0 * float((~inside).mean())
    warnings = (*image.warnings, *warnings, *about_map)
    about = {
        "interpolation": image.interpolation,
        "interpolation_found": image.by or None,
        "fill": image.fill.value,
        "fill_found": image.fill.found,
        **({"volumes": image.time.volumes} if image.time else {}),
        "unknown_percent": unknown,
        "notes": image.lines(),
        "warnings": list(warnings),
    }
    return lambda path: image.save(path, points, inside, reference, space_code), about


def seen_through(chain: Chain, image: Source, reference: Grid, called: Path) -> tuple[Matrix, Inside, tuple[str, ...]]:
    """Where each voxel of the reference, which is ``called`` so, lies in the world of the image.

    Returns:
        (3, X, Y, Z) RAS mm; (X, Y, Z) whether the map is known there; warnings.

    Raises:
        GeometryError: it is known nowhere.
    """
    displacement, inside = on_grid(chain, reference)
    points = transform_points(reference.world_from_vox, lattice(reference.shape)) + displacement
    warnings = (*chain.warnings, *outside_warning(displacement, inside, reference, image.grid))
    unknown = 100.0 * float((~inside).mean())
    if unknown == 100:
        raise GeometryError(f"the transform is known nowhere on {called}: do they belong together?")
    if unknown:
        line = (
            f"the transform is unknown at {unknown:.3g} % of the reference's voxels: {image.fill.value:g} stands there"
        )
        warnings = (*warnings, line)
    return points, inside, warnings


def _points(job: Application) -> tuple[Save, dict[str, Any]]:
    """The same for a table of points."""
    chain = load_chain(job.steps, job.dialect, None, None, job.max_voxels)
    path = job.fixed_points or job.moving_points
    assert path is not None
    points = load_points(path, job.points_frame)
    if job.fixed_points:
        carried = carry(points, chain)
        direction = "reference to image, forward"
    else:
        carried = carry(points, invert(chain))
        direction = "image to reference, by the inverse"
    about = {
        "points": int(carried.inside.size),
        "unknown": int((~carried.inside).sum()),
        "direction": direction,
        "frame": points.frame,
        "warnings": [*chain.warnings, *carried.warnings()],
    }
    return lambda path: save_points(path, carried), about


def load_chain(
    steps: Sequence[Step], dialect: Form, reference: Grid | None, image: Grid | None, max_voxels: int = MAX_VOXELS
) -> Chain:
    """Transforms one after another, as ``Application`` has them. Raises InputError, GeometryError, UsageError."""
    maps = []
    for step in steps:
        _check_sidecar(step.path, dialect)
        fixed, moving = (image, reference) if step.inverted else (reference, image)
        loaded = load_map(step.path, dialect, fixed, moving, max_voxels)
        maps.append(invert(loaded) if step.inverted else loaded)
    return Chain(tuple(maps))


def _check_sidecar(path: Path, dialect: Form) -> None:
    """What ``ofg register`` said of a file when it wrote it must not be another form than the one it is read as."""
    names = {path.name.removesuffix(ending) for ending in ENDINGS.values() if path.name.endswith(ending)}
    for name in (*names, stem(path)):
        sidecar = Named.read(path.with_name(f"{name}.json"))
        role = sidecar and {file: role for role, file in sidecar.outputs.items()}.get(path.name)
        if role is None:
            continue
        form, read_as = (name if name in OF_BOTH_IMAGES else "itk" for name in (role, dialect))
        if role != "affine" and form != read_as:
            raise UsageError(
                f"{path} was written in the form of {form}, as its sidecar says: read it by `format` {form}"
            )


def _describe(path: Path, folder: Path) -> dict[str, str]:
    return {"path": portable(path, folder), "sha256": sha256_file(path)}
