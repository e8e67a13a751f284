"""elastix: ``TransformParameters.N.txt``, LPS mm, and the chain of initial transforms behind it.

Its transforms are ITK's; a file is turned into what an ITK file would list.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix
from ofg_deploy.transform import itk
from ofg_deploy.transform.itk_list import MAX_BYTES, Listed, checked
from ofg_deploy.transform.maps import Chain, WorldMap

ENTRY = re.compile(r"^[ \t]*\((?P<key>\w+)\s+(?P<value>.*)\)[ \t\r]*(?://.*)?$", flags=re.MULTILINE)
INITIAL = tuple(f"InitialTransformParameter{kind}" for kind in ("sFileName", "FileName", "FileNames"))  # over the years
LONGEST = 50  # chain of files
LATTICE = ("GridSize", "GridOrigin", "GridSpacing", "GridDirection")
SPLINES = ("BSplineTransform", "RecursiveBSplineTransform")
LINEAR = {
    "EulerTransform": "Euler3DTransform",
    "AffineTransform": "AffineTransform",
    "SimilarityTransform": "Similarity3DTransform",
    "TranslationTransform": "TranslationTransform",
}
Entries = dict[str, str]


def is_elastix(content: bytes) -> bool:
    """Whether it is a parameter file with a transform."""
    for line in content.split(b"\n"):
        if line.strip().startswith(b"(Transform "):
            return True
        if line.strip() and not line.strip().startswith((b"//", b"(")):
            return False
    return False


def load_elastix(path: Path) -> WorldMap:
    """Read a file and its initial transforms: those act on a point of the fixed image first.

    Raises:
        InputError: missing, damaged, of other classes, added instead of composed, or for other dimensions.
        GeometryError: a matrix that is singular.
    """
    maps: list[WorldMap] = []
    seen: list[Path] = []
    here: Path | None = path
    while here is not None:
        if here.resolve() in seen or len(seen) == LONGEST:
            raise InputError(f"{path}: its initial transforms never end, or are more than {LONGEST}")
        seen.append(here.resolve())
        entries = _read(here)
        maps.append(itk.to_map(_listed(entries, here), here))
        following = _initial(entries, here)
        if following is not None and entries.get("HowToCombineTransforms", "Compose").strip('"') != "Compose":
            raise InputError(f"{here} adds its initial transform, it does not compose it: {_command()}")
        here = following
    return maps[0] if len(maps) == 1 else Chain(tuple(reversed(maps)))


def _command() -> str:
    return "transformix -def all -tp FILE -out FOLDER makes a displacement field, read if ResultImageFormat is nii.gz"


def _read(path: Path) -> Entries:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes: {_command()}")
    text = path.read_bytes().decode("latin1")
    entries = {found["key"]: found["value"].strip() for found in ENTRY.finditer(text)}
    if "Transform" not in entries:
        raise InputError(f"{path} is no transform of elastix: it has no (Transform ...)")
    return entries


def _initial(entries: Entries, path: Path) -> Path | None:
    """The file that it begins with; where its path is of another place, the one of its name beside ``path``."""
    for key in INITIAL:
        value = entries.get(key, "").strip()
        if value.count('"') > 2:
            raise InputError(f"{path} has several initial transforms: {_command()}")
        name = value.strip('"')
        if name and name != "NoInitialTransform":
            given = path.parent / name
            return given if given.is_file() else path.parent / re.split(r"[/\\]", name)[-1]
    return None


def _numbers(entries: Entries, key: str, path: Path) -> Matrix:
    try:
        return np.fromiter(map(float, entries[key].split()), np.float64)
    except KeyError as error:
        raise InputError(f"{path} is truncated or damaged: an elastix transform without {key}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {key} holds more than numbers") from error


def _listed(entries: Entries, path: Path) -> Listed:
    kind = entries["Transform"].strip('"')
    flags = {key: entries.get(key, "").strip('"').lower() for key in ("UseDirectionCosines", "UseCyclicTransform")}
    binary = entries.get("UseBinaryFormatForTransformationParameters", "").strip('"').lower() == "true"
    if kind not in (*LINEAR, *SPLINES) or flags["UseDirectionCosines"] == "false" or binary:
        why = "a binary one" if binary else "without direction cosines" if kind in (*LINEAR, *SPLINES) else f"a {kind}"
        raise InputError(f"{path} is a transform of elastix that is not read ({why}): {_command()}")
    if entries.get("FixedImageDimension", "3") != "3" or entries.get("MovingImageDimension", "3") != "3":
        raise InputError(f"{path} is not a 3-D transform: elastix made it for other dimensions")
    parameters = _numbers(entries, "TransformParameters", path)
    if kind in SPLINES:
        if flags["UseCyclicTransform"] == "true" or _numbers({"GridIndex": "0 0 0"} | entries, "GridIndex", path).any():
            raise InputError(f"{path} is a cyclic B-spline, or its grid does not begin at 0: {_command()}")
        size, origin, spacing, direction = (_numbers(entries, key, path) for key in LATTICE)
        if direction.size == 9:  # column by column in elastix, row by row in ITK
            direction = direction.reshape(3, 3).T.ravel()
        order = entries.get("BSplineTransformSplineOrder", "3")
        name = (
            f"BSplineTransform_double_3_3_{order}" if order in ("1", "2", "3") else f"BSplineTransform of order {order}"
        )
        return checked(path, name, parameters, np.concatenate([size, origin, spacing, direction]))
    fixed = np.empty(0) if kind == "TranslationTransform" else _numbers(entries, "CenterOfRotationPoint", path)
    if kind == "EulerTransform":
        fixed = np.append(fixed, entries.get("ComputeZYX", "").strip('"').lower() == "true")
    return checked(path, f"{LINEAR[kind]}_double_3_3", parameters, fixed)
