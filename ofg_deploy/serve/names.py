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
    *("tpl", "sub", "cohort", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec"),
    *("dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording"),
    *("chunk", "seg", "scale", "res", "den", "label", "desc"),
]
# Those of a transform, as derivatives have them, go before space.
ORDER = [name for key in ENTITIES for name in (("from", "to", "mode", key) if key == "space" else (key,))]
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
        return self.template or "".join(f"{key}{value}" for key, value in self.entities) + self.suffix

    def derivative(self, suffix: str, ending: str, **more: str) -> str:
        """This image's own entities but ``desc`` and those of its grid, with these, in the standard's order."""
        own = {key: value for key, value in self.entities if key not in ("space", "res", "den", "desc")}
        ordered = sorted({**own, **more}.items(), key=lambda entity: ORDER.index(entity[0]))
        return "".join(f"{key}-{value}_" for key, value in ordered) + f"{suffix}{ending}"

    @property
    def space(self) -> dict[str, str]:
        """Entities of what lies on this image's grid; a template's label leaves its resolution out."""
        return {"space": self.label, **{key: value for key, value in self.entities if key == "res" and self.template}}

    @property
    def template(self) -> str | None:
        """Name of the template, if it is one."""
        return dict(self.entities).get("tpl")


@dataclass(frozen=True)
class Names:
    """Names of the outputs for one pair.

    Attributes:
        fixed, moving: the images.
    """

    fixed: Path
    moving: Path

    @property
    def by_bids(self) -> bool:
        """Whether both images are named by it, and so the outputs."""
        return None not in (BidsName.parse(self.fixed), BidsName.parse(self.moving))

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
            return own.derivative(own.suffix, ".nii.gz", **fixed.space, desc="warped")
        described = re.sub(r"[^A-Za-z0-9]", "", stem(path))
        return moving.derivative(moving.suffix, ".nii.gz", **fixed.space, desc=f"warped{described}")

    @staticmethod
    def _bids(role: str, ending: str, fixed: BidsName, moving: BidsName) -> str:
        extension = ending[ending.index(".") :]
        there, back = ({"from": a.label, "to": b.label} for a, b in ((moving, fixed), (fixed, moving)))
        if role in ("warped", "warped_labels"):
            suffix = moving.suffix if role == "warped" else "dseg"
            return moving.derivative(suffix, extension, **fixed.space, desc="warped")
        if role.endswith("_points"):
            return moving.derivative("points", extension, **(there if role == "moving_points" else back))
        if role == "inverse":
            return moving.derivative("xfm", extension, **back, mode="image")
        described = {} if role in ("transform", "sidecar") else {"desc": role.replace("-", "")}
        return moving.derivative("xfm", extension, **there, mode="image", **described)
