"""ITK's transform files that hold numbers alone (``.txt``, ``.tfm``, ``.mat``): parsed here, strictly, never by ITK.

ITK's own reader takes a transform that ends before its parameters for the identity, SimpleITK returns the first of
several, and numbers that are none crash it. What is parsed here has a known class and as many numbers as that needs.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix

MAX_BYTES = 64 * 2**20  # a B-spline or a small field as text; a list of affines has a few kilobytes
MAX_TRANSFORMS = 10_000
MATLAB_TYPES = {0: "<f8", 10: "<f4", 100: "<f8", 110: "<f4"}  # of a matrix of Matlab 4; little-endian ones
COMPOSITE = "CompositeTransform"
HEADER = "#Insight Transform File"
NAME = re.compile(r"(?P<kind>[A-Za-z0-9]+)_(?:double|float)_(?P<source>\d+)_(?P<target>\d+)(?:_(?P<order>\d+))?")
NUMBERS = re.compile(r"[0-9eE+\-.\s]*")

# Class -> how many parameters, and how many fixed ones.
COUNTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "IdentityTransform": (0, (0,)),
    "TranslationTransform": (3, (0,)),
    "ScaleTransform": (3, (3,)),
    "ScaleLogarithmicTransform": (3, (3,)),
    "AffineTransform": (12, (3,)),
    "MatrixOffsetTransformBase": (12, (3,)),
    "Rigid3DTransform": (12, (3,)),
    "CenteredAffineTransform": (15, (0, 3)),
    "Euler3DTransform": (6, (3, 4)),  # the fourth: in which order the angles turn
    "VersorTransform": (3, (3,)),
    "VersorRigid3DTransform": (6, (3,)),
    "QuaternionRigidTransform": (7, (3,)),
    "Similarity3DTransform": (7, (3,)),
    "ScaleVersor3DTransform": (9, (3,)),
    "ScaleSkewVersor3DTransform": (15, (3,)),
}
ON_LATTICES = ("BSplineTransform", "BSplineDeformableTransform", "DisplacementFieldTransform")
LATTICE_NUMBERS = 18  # size, origin, spacing, direction


@dataclass(frozen=True, eq=False)
class Listed:
    """One transform of a file, its numbers checked against its class.

    Attributes:
        kind: ITK's class.
        parameters, fixed: its numbers.
        order: of a B-spline.
    """

    kind: str
    parameters: Matrix
    fixed: Matrix
    order: int = 3


def read_list(path: Path) -> list[Listed]:
    """The transforms of a file in its order: ITK applies the last one first. A composite's name is not among them.

    Raises:
        InputError: missing, not such a file, cut, too large, or a transform that is not three-dimensional or not read.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes: keep such a transform as .h5 or _Warp.nii.gz")
    content = path.read_bytes()
    parts = _of_matlab(path, content) if path.name.lower().endswith(".mat") else _of_text(path, content)
    if len(parts) > MAX_TRANSFORMS:
        raise InputError(f"{path} lists {len(parts)} transforms, more than {MAX_TRANSFORMS}: is it damaged?")
    if parts and _named(path, parts[0][0])[0] == COMPOSITE:
        parts = parts[1:]
    if not parts:
        raise InputError(f"{path} lists no transform")
    return [checked(path, *part) for part in parts]


def without_identities(listed: list[Listed]) -> list[Listed]:
    """Those that move anything."""
    linear = ("AffineTransform", "MatrixOffsetTransformBase")
    still = [
        each.kind == "IdentityTransform"
        or (each.kind in linear and np.array_equal(each.parameters, [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]))
        for each in listed
    ]
    return [each for each, identity in zip(listed, still, strict=True) if not identity]


Part = tuple[str, Matrix | None, Matrix | None]  # name, parameters, fixed parameters


def is_text(content: bytes) -> bool:
    """Whether it begins as ITK's text files do."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(HEADER.encode())


def _of_text(path: Path, content: bytes) -> list[Part]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as an ITK transform: it is not text") from error
    if not is_text(content):
        raise InputError(f"{path} cannot be read as an ITK transform: its first line is not {HEADER} V1.0")
    parts: list[Part] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, colon, value = line.partition(":")
        match key.strip() if colon else "":
            case "Transform":
                parts.append((value.strip(), None, None))
            case "Parameters" if parts and parts[-1][1] is None:
                parts[-1] = (parts[-1][0], _numbers(path, number, value), parts[-1][2])
            case "FixedParameters" if parts and parts[-1][2] is None:
                parts[-1] = (*parts[-1][:2], _numbers(path, number, value))
            case _:
                raise InputError(f"{path} cannot be read as an ITK transform: line {number} is not a part of one")
    return parts


def _numbers(path: Path, line: int, text: str) -> Matrix:
    try:
        if not NUMBERS.fullmatch(text):
            raise ValueError
        return np.fromiter(map(float, text.split()), np.float64)
    except ValueError as error:
        raise InputError(f"{path} cannot be read as an ITK transform: line {line} holds more than numbers") from error


def _of_matlab(path: Path, content: bytes) -> list[Part]:
    """Matrices of Matlab 4, in pairs: one named as the class, then ``fixed``. Nothing is allocated unseen."""
    matrices: list[tuple[str, Matrix]] = []
    at = 0
    while at < len(content):
        kind, rows, columns, imaginary, letters = struct.unpack("<5i", content[at : at + 20].ljust(20, b"\0"))
        sound = kind in MATLAB_TYPES and rows >= 0 and columns in (0, 1) and not imaginary and 0 < letters <= 256
        start = at + 20 + max(letters, 0)
        at = start + np.dtype(MATLAB_TYPES.get(kind, "u1")).itemsize * rows * columns
        if not sound or at > len(content):
            raise InputError(f"{path} cannot be read as an ITK transform: not one in the form of Matlab 4")
        name = content[start - letters : start].split(b"\0")[0].decode("ascii", "replace")
        values = np.frombuffer(content[start:at], MATLAB_TYPES[kind]).astype(np.float64)
        matrices.append((name, values))
    if any(name != "fixed" for name, _ in matrices[1::2]) or len(matrices) % 2:
        raise InputError(f"{path} cannot be read as an ITK transform: a transform without its fixed parameters")
    return [(name, values, matrices[2 * n + 1][1]) for n, (name, values) in enumerate(matrices[::2])]


def _named(path: Path, name: str) -> tuple[str, int]:
    """Class and order of a three-dimensional transform."""
    if not (found := NAME.fullmatch(name)):
        raise InputError(f"{path} cannot be read as an ITK transform: {name[:60]!r} is not the name of one")
    if (found["source"], found["target"]) != ("3", "3"):
        raise InputError(f"{path} is not a 3-D transform: {name}")
    return found["kind"], int(found["order"] or 3)


def checked(path: Path, name: str, parameters: Matrix | None, fixed: Matrix | None) -> Listed:
    """A transform by ITK's name of its class. Raises InputError as ``read_list``."""
    kind, order = _named(path, name)
    if kind == COMPOSITE:
        raise InputError(f"{path} lists a {COMPOSITE} that is not at its start: write its parts one after another")
    if kind not in COUNTS and kind not in ON_LATTICES:
        raise InputError(
            f"{path} holds a {kind}: linear maps, B-splines and displacement fields are read; sample it as a field "
            "on the reference's grid (3D Slicer: Transforms, Convert; SimpleITK: TransformToDisplacementField)"
        )
    if parameters is None or fixed is None:
        missing = "Parameters" if parameters is None else "FixedParameters"
        raise InputError(f"{path} is truncated: its {kind} has no {missing} line")
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        raise InputError(f"{path} holds a {kind} with numbers that are not finite")
    if kind in COUNTS:
        count, among = COUNTS[kind]
        if parameters.size != count or fixed.size not in among:
            raise InputError(
                f"{path} is truncated or damaged: its {kind} has {parameters.size} and {fixed.size} (fixed) numbers, "
                f"expected {count} and {' or '.join(map(str, among))}"
            )
        return Listed(kind, parameters, fixed)
    if fixed.size != LATTICE_NUMBERS or (fixed[:3] != np.round(fixed[:3])).any() or not (fixed[:3] >= 1).all():
        raise InputError(f"{path} is truncated or damaged: its {kind} has no size, origin, spacing and direction")
    if parameters.size != 3 * fixed[:3].prod():
        raise InputError(
            f"{path} is truncated or damaged: its {kind} has {parameters.size} numbers, expected "
            f"{3 * fixed[:3].prod():g} for {'x'.join(f'{n:g}' for n in fixed[:3])} points"
        )
    return Listed(kind, parameters, fixed, order)
