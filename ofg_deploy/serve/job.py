"""What to register, and where its files go."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ofg_deploy.errors import UsageError, check_choice
from ofg_deploy.locations import as_paths
from ofg_deploy.options.words import Dialect
from ofg_deploy.outputs import unfinished
from ofg_deploy.preprocess import Init
from ofg_deploy.serve import learn2reg
from ofg_deploy.serve.names import Names
from ofg_deploy.serve.no_network import Promise
from ofg_deploy.serve.options import Begin, Options, check_masks
from ofg_deploy.sidecar import Named
from ofg_deploy.transform.dialects import LINEAR_ENDINGS
from ofg_deploy.transform.tables import ending

DIALECTS: tuple[Dialect, ...] = ("ants", "itk-h5", "fsl", "l2r", "voxelmorph")  # beside itk; the roles of their files
ONE_FILE = ("fixed_labels", "fixed_mask", "moving_mask", "fixed_points", "moving_points")


@dataclass(frozen=True)
class Job(Options):
    """What to register, how, and where to put it.

    Attributes:
        fixed, moving: NIfTI images.
        out: folder of the outputs, made if needed.
        moving_labels: label maps on the moving image, warped too.
        fixed_labels: label map on the fixed image; only compared (Dice, HD95) with the first of ``moving_labels``.
        fixed_mask, moving_mask: label maps on their images; what is 0 there does not count for the start.
        also: more images in the moving image's space, on any grid, warped like it.
        fixed_points, moving_points: tables of points, carried to the other image's space.
        overwrite: replace outputs of an earlier run.
        command: recorded in the sidecar.
        field_format: write the transform in this form as well; the one of ITK is always there.
        model_choice: why ``-m auto`` took the model it took, or none; recorded in the sidecar.

    Raises:
        UsageError: options that make no sense together, or a ``fill`` that is not a number.
    """

    fixed: Path
    moving: Path
    out: Path
    moving_labels: tuple[Path, ...] = ()
    fixed_labels: Path | None = None
    overwrite: bool = False
    command: list[str] = field(default_factory=list)
    field_format: Dialect = "itk"
    model_choice: str | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    also: tuple[Path, ...] = ()
    fixed_points: Path | None = None
    moving_points: Path | None = None

    def __post_init__(self) -> None:
        as_paths(self, ("fixed", "moving", "out", *ONE_FILE, "moving_labels", "also"))
        if isinstance(self.init, str):
            object.__setattr__(self, "init", parse_init(self.init))
        if self.fixed_labels and not self.moving_labels:
            raise UsageError("`fixed_labels` is compared with the warped `moving_labels`: give both")
        check_choice("format", self.field_format, get_args(Dialect))
        if self.field_format == "l2r":
            learn2reg.field_name(self.fixed, self.moving)
        super().__post_init__()
        if self.init is not None:
            check_masks(self.init, self.masked)
        often = Counter(self.outputs("affine").values()).most_common(1)[0]
        if often[1] > 1:
            raise UsageError(
                f"{often[1]} outputs would be called {often[0].name}: rename the label maps or `also` images"
            )

    @property
    def masked(self) -> bool:
        """Whether one of the images has a mask."""
        return self.fixed_mask is not None or self.moving_mask is not None

    def options(self, contract: Promise) -> dict[str, Any]:
        """What decides the results with this model beside the inputs and the start; as JSON has it."""
        return {
            "fill": "auto" if self.fill is None else self.fill,
            "interpolation": self.interpolation or "auto",
            "format": self.field_format,
            "refine": self.refinement.optimiser.steps if self.refinement else 0,
            "quality": self.quality,
            "similarity": self.similarity,
            "grid": list(self.grid) if self.grid else None,
            "passes": contract.passes_asked(self.passes),
            "label_interpolation": self.label_interpolation,
            "points_frame": self.points_frame or "ras",
            "inverse": self.inverse,
        }

    def inputs(self) -> dict[str, Path]:
        """Every image and table that is read, by its role in the sidecar."""
        given = {
            "fixed": self.fixed,
            "moving": self.moving,
            **{numbered("moving_labels", n): path for n, path in enumerate(self.moving_labels, start=1)},
            **{numbered("also", n): path for n, path in enumerate(self.also, start=1)},
            **{role: getattr(self, role) for role in ONE_FILE},
        }
        return {role: path for role, path in given.items() if path is not None}

    def reads(self) -> list[Path]:
        """All files that are read, the start among them."""
        return [*self.inputs().values(), *([self.init] if isinstance(self.init, Path) else [])]

    def outputs(self, init: Begin) -> dict[str, Path]:
        """Final path of each output; the sidecar comes last because it marks the set as complete."""
        absent: dict[str, bool] = {
            "affine": init == "none",
            "inverse": not self.inverse,
            "warped_labels": len(self.moving_labels) != 1,
            "fixed_points": self.fixed_points is None,
            "moving_points": self.moving_points is None,
            **{dialect: self.field_format != dialect for dialect in DIALECTS},
        }
        every = {role: path for role, path in self._every_output().items() if not absent.get(role)}
        sidecar = every.pop("sidecar")
        names = Names(self.fixed, self.moving)
        labels = self.moving_labels if len(self.moving_labels) > 1 else ()
        for kind, paths in (("warped_labels", labels), ("warped_also", self.also)):
            for number, path in enumerate(paths, start=1):
                every[numbered(kind, number)] = self.out / names.companion(path)
        return {**every, "sidecar": sidecar}

    def obsolete(self, init: Begin) -> list[Path]:
        """Files of earlier registrations of this pair that this one does not write, and that nobody has changed since.

        Only what a sidecar of this pair proves: that it was written as it is now. A sidecar that a killed process had
        ready counts, too.
        """
        sidecar, wanted = self._every_output()["sidecar"], set(self.outputs(init).values())
        return sorted({path for each in (sidecar, *unfinished(sidecar)) for path in _proven(each, self.out, wanted)})

    def unproven(self, init: Begin) -> list[Path]:
        """Files called as outputs of this pair that are not this job's and that nothing shows to be ours: they stay."""
        if Names(self.fixed, self.moving).by_bids:  # labels of T1w and T2w are called alike: they may be another pair's
            return []
        gone = {*self.outputs(init).values(), *self.obsolete(init)}
        return sorted(path for path in self._every_output().values() if path not in gone and path.exists())

    def _every_output(self) -> dict[str, Path]:
        every = {role: self.out / name for role, name in Names(self.fixed, self.moving).every()}
        for role in ("fixed_points", "moving_points"):  # in the form they came in
            if given := getattr(self, role):
                every[role] = every[role].with_name(every[role].name.removesuffix(".csv") + ending(given))
        if learn2reg.is_named(self.fixed, self.moving):
            every = {"l2r": self.out / learn2reg.field_name(self.fixed, self.moving), **every}
        return every


def numbered(role: str, number: int) -> str:
    """Role of the first, second, ... file of a kind: ``warped_labels``, ``warped_labels_2``."""
    return role if number == 1 else f"{role}_{number}"


def parse_fill(text: str) -> float | None:
    """What ``fill`` means; None for ``auto``. Raises UsageError for what is not a number."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"`fill` {text}: a finite number is needed, or auto") from error


def parse_init(text: str | None) -> Init | Path | None:
    """What ``init`` means. Raises UsageError for neither a kind of start nor the name of a linear transform."""
    if text is None or text in get_args(Init):
        return text  # type: ignore[return-value]
    if not text.lower().endswith(LINEAR_ENDINGS):
        kinds = ", ".join(get_args(Init))
        raise UsageError(f"`init` {text}: use one of {kinds}, or a linear transform ({', '.join(LINEAR_ENDINGS)})")
    return Path(text)


def _proven(sidecar: Path, folder: Path, but: set[Path]) -> list[Path]:
    """Files in this folder that a sidecar of ours names, each as it was written, but for these."""
    named = Named.read(sidecar)
    return [path for path in named.unchanged(folder) if path not in but] if named else []
