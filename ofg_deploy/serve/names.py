"""What the files of a registration are called: plainly, or by BIDS where both images are named by it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ofg_deploy.nifti import stem

ENDINGS = {
    "warped": "_warped.nii.gz",
    "transform": "_Warp.nii.gz",
    "inverse": "_InverseWarp.nii.gz",
    "affine": "_0GenericAffine.mat",
    "ants": "_1Warp.nii.gz",
    "itk-h5": "_Composite.h5",
    "fsl": "_fslwarp.nii.gz",
    "voxelmorph": "_voxelmorph.npz",
    "warped_labels": "_warped_labels.nii.gz",
    "fixed_points": "_fixed_points_in_moving.csv",
    "moving_points": "_moving_points_in_fixed.csv",
    "sidecar": ".json",
}

# Entities of the raw and derivative standard (BIDS 1.10, "Entities"), in the order in which a name has them.
ENTITIES = [
    "tpl",
    "sub",
    "cohort",
    "ses",
    "sample",
    "task",
    "tracksys",
    "acq",
    "nuc",
    "voi",
    "ce",
    "trc",
    "stain",
    "rec",
    "dir",
    "run",
    "mod",
    "echo",
    "flip",
    "inv",
    "mt",
    "part",
    "proc",
    "hemi",
    "space",
    "split",
    "recording",
    "chunk",
    "seg",
    "scale",
    "res",
    "den",
    "label",
    "desc",
]
NAME = re.compile(r"(?P<entities>(?:[a-z]+-[A-Za-z0-9]+_)+)(?P<suffix>[A-Za-z0-9]+)\.nii(?:\.gz)?")


@dataclass(frozen=True)
class BidsName:
    """A file name taken apart: entities in their order, and the suffix."""

    entities: tuple[tuple[str, str], ...]
    suffix: str

    @classmethod
    def parse(cls, path: Path) -> BidsName | None:
        """None unless the whole name is one: known entities, each once and in order, ``sub`` or ``tpl`` first."""
        found = NAME.fullmatch(path.name)
        if found is None:
            return None
        entities = tuple(tuple(part.split("-")) for part in found["entities"].rstrip("_").split("_"))
        keys = [key for key, _ in entities]
        order = [ENTITIES.index(key) if key in ENTITIES else -1 for key in keys]
        if keys[0] not in ("sub", "tpl") or -1 in order or order != sorted(set(order)):
            return None
        return cls(entities, found["suffix"])

    @property
    def label(self) -> str:
        """What ``space-``, ``from-`` and ``to-`` call this image: a template by its name, else all of its own name."""
        for key, value in self.entities:
            if key == "tpl":
                return value
        return "".join(f"{key}{value}" for key, value in self.entities) + self.suffix

    def derivative(self, more: str, suffix: str, ending: str) -> str:
        """This image's own entities but ``space`` and ``desc``, then these."""
        own = "_".join(f"{key}-{value}" for key, value in self.entities if key not in ("space", "desc"))
        return f"{own}_{more}_{suffix}{ending}"


@dataclass(frozen=True)
class Names:
    """Names of the outputs for one pair.

    Attributes:
        fixed, moving: the images.
    """

    fixed: Path
    moving: Path

    def every(self) -> Iterator[tuple[str, str]]:
        """Role and name of each output that has one name."""
        fixed, moving = BidsName.parse(self.fixed), BidsName.parse(self.moving)
        for role, ending in ENDINGS.items():
            if fixed and moving:
                yield role, self._bids(role, ending, fixed, moving)
            else:
                yield role, f"{stem(self.moving)}_to_{stem(self.fixed)}{ending}"

    def companion(self, path: Path) -> str:
        """Name of the warped form of one of several files that lie in the moving image's space."""
        fixed, moving = BidsName.parse(self.fixed), BidsName.parse(self.moving)
        if not (fixed and moving):
            return f"{stem(self.moving)}_to_{stem(self.fixed)}_warped_{stem(path)}.nii.gz"
        if own := BidsName.parse(path):
            return own.derivative(f"space-{fixed.label}_desc-warped", own.suffix, ".nii.gz")
        described = re.sub(r"[^A-Za-z0-9]", "", stem(path))
        return moving.derivative(f"space-{fixed.label}_desc-warped{described}", moving.suffix, ".nii.gz")

    @staticmethod
    def _bids(role: str, ending: str, fixed: BidsName, moving: BidsName) -> str:
        extension = ending[ending.index(".") :]
        there, back = f"from-{moving.label}_to-{fixed.label}", f"from-{fixed.label}_to-{moving.label}"
        if role == "warped":
            return moving.derivative(f"space-{fixed.label}_desc-warped", moving.suffix, extension)
        if role == "warped_labels":
            return moving.derivative(f"space-{fixed.label}_desc-warped", "dseg", extension)
        if role.endswith("_points"):
            way = there if role == "moving_points" else back
            return moving.derivative(way, "points", extension)
        if role == "inverse":
            return moving.derivative(f"{back}_mode-image", "xfm", extension)
        described = "" if role in ("transform", "sidecar") else f"_desc-{role.replace('-', '')}"
        return moving.derivative(f"{there}_mode-image{described}", "xfm", extension)
