"""The sidecar of a registration, the JSON beside its files: what it holds, how it is written and how it is read."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix
from ofg_deploy.nifti_space import FARTHEST_MM
from ofg_deploy.outputs import parse_json, read_json, read_text, sha256_file, to_json
from ofg_deploy.records import fitted

SCHEMA = 1
TOOL = "ofg_deploy"
MOST = 1e30  # of any measure: beyond it differences and sums would be infinite
PER_LABEL = "_per_label"  # what the names of tables in ``metrics`` end with
DAMAGED = "is a damaged sidecar"
ONLY_WHERE = ("interpolation", "refinement", "points", "inverse", "landmarks")  # left out where there is nothing

Row = tuple[float, float, float, float]


class Input(msgspec.Struct):
    """An image that was read.

    Attributes:
        path: relative to the sidecar's folder (``locations.located``); None for what was given in memory.
        sha256: of the file, or of the voxels in memory.
        shape: voxels (X, Y, Z).
        spacing_mm: voxel size along the array's axes.
        orientation: anatomical directions of the array's axes, as ``RAS``.
        world_from_vox: (4, 4), RAS mm.
    """

    path: str | None
    sha256: str
    shape: list[int] = []
    spacing_mm: list[float] = []
    orientation: str = ""
    world_from_vox: list[list[float]] = []


class Points(msgspec.Struct):
    """A table of points that was carried to the other image.

    Attributes:
        path, sha256: as of ``Input``.
        frame: of its coordinates, ``ras`` or ``lps``.
        direction: in words.
        points: how many; unknown: of them, where the transform is not known.
    """

    path: str
    sha256: str
    frame: str = ""
    direction: str = ""
    points: int = 0
    unknown: int = 0


class Start(msgspec.Struct, omit_defaults=True):
    """The initial alignment.

    Attributes:
        moving_from_fixed: (4, 4), RAS mm, maps fixed points to moving points.
        path, sha256: of the file that it was given in.
        asked, kept: which kind of alignment, where it was computed.
        mutual_information: by kind, what the choice went by.
        bounds_reached: parameters at the end of their range.
    """

    moving_from_fixed: tuple[Row, Row, Row, Row]
    path: str | None = None
    sha256: str | None = None
    asked: str | None = None
    kept: str | None = None
    mutual_information: dict[str, Any] | None = None
    bounds_reached: list[str] | None = None


class NetworkGrid(msgspec.Struct):
    """The grid that the pair was brought to: shape in voxels, spacing in mm."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


class Fill(msgspec.Struct):
    """What stands outside of a warped image, in its own units, and how that was found."""

    value: float
    found: str


class Resampling(msgspec.Struct, omit_defaults=True):
    """How an ``also`` image was interpolated, why so if it was not asked for, and the volumes of a series."""

    method: str
    found: str | None
    volumes: int | None = None


class Runtime(msgspec.Struct):
    """What ran the network: the runtime's name, its provider, and the machine's architecture."""

    name: str
    provider: str
    machine: str = ""


class Inverse(msgspec.Struct):
    """The inverse transform: on which grid, voxels (%) where there is none, and how far there and back leads (mm)."""

    method: str = ""
    grid: str = ""
    without_percent: float = 0.0
    consistency_mm: dict[str, float] = {}


class Landmarks(msgspec.Struct):
    """How rows of the two tables were matched."""

    matched_by: str | None


class Written(msgspec.Struct):
    """Size in bytes and digest of an output, by which it is known again."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Written:
        """Raises OSError."""
        return cls(path.stat().st_size, sha256_file(path))

    def is_still(self, path: Path) -> bool:
        """Whether this is the very file, and no link to one."""
        try:
            status = path.lstat()
            same = stat.S_ISREG(status.st_mode) and status.st_size == self.bytes
            return same and sha256_file(path) == self.sha256
        except (OSError, ValueError):  # a NUL in a name
            return False


class Named(msgspec.Struct, kw_only=True):
    """What any sidecar says of its files, of whatever schema and however damaged otherwise.

    Attributes:
        outputs: file name by role; they lie beside the sidecar.
        written: by role, what each was when it was written.
    """

    outputs: dict[str, str]
    written: dict[str, Written] = {}

    @classmethod
    def read(cls, path: Path) -> Named | None:
        """None for what is no such file, or another tool's."""
        try:
            content = read_json(path)
            ours = isinstance(content, dict) and content.get("tool") == TOOL
            return fitted(content, cls, f"{path} {DAMAGED}") if ours else None
        except InputError:
            return None

    def unchanged(self, folder: Path) -> list[Path]:
        """Outputs that lie in this folder, and nowhere else, as they were written."""
        plain = {role: name for role, name in self.outputs.items() if Path(name).name == name not in ("", ".", "..")}
        known = [(folder / name, self.written[role]) for role, name in plain.items() if role in self.written]
        return [path for path, file in known if file.is_still(path)]


class Sidecar(msgspec.Struct, kw_only=True):
    """One registration.

    Earlier versions had fewer entries: those with a default may be absent, and entries that are not known are ignored.

    Attributes:
        schema, tool: of this record, and what wrote it.
        version: of ofg_deploy.
        created: UTC, ISO 8601, to the second.
        command: as typed, with paths relative to the folder.
        options: what decides the results beside inputs, start and model.
        inputs: images by role.
        outputs: file name by role; they lie beside the sidecar.
        transform: the conventions of the transform file.
        model: the contract of the network (``model_file.Contract``), ``sha256`` of its file (null without one), and
            why it was chosen, where it was.
        network_grid: where the pair met the network.
        fill: by role of the moving image or channel.
        interpolation: by role of the channel.
        init: which initial alignment, or the path of its file.
        start: what that was.
        runtime: what ran the network.
        metrics: numbers by name, unit in the name (``_mm``, ``_percent``); ``..._per_label`` are tables of labels.
        seconds: by stage.
        warnings: one line each.
        refinement: steps on the pair, as ``serve.refinement`` records them.
        points: by role.
        inverse, landmarks: where there are some.
        written: by role, what each output was when it was written.
    """

    schema: int = SCHEMA
    tool: str = TOOL
    version: str = ""
    created: str = ""
    command: list[str] = []
    options: dict[str, Any] = {}
    inputs: dict[str, Input]
    outputs: dict[str, str]
    transform: dict[str, Any]
    model: dict[str, Any] = {}
    network_grid: NetworkGrid | None = None
    fill: dict[str, Fill] = {}
    interpolation: dict[str, Resampling] = {}
    init: str = ""
    start: Start
    runtime: Runtime | None = None
    metrics: dict[str, Any]
    seconds: dict[str, float]
    warnings: list[str] = []
    refinement: dict[str, Any] | None = None
    points: dict[str, Points] = {}
    inverse: Inverse | None = None
    landmarks: Landmarks | None = None
    written: dict[str, Written] = {}

    def __post_init__(self) -> None:
        for part, roles in (("inputs", ("fixed", "moving")), ("outputs", ("transform",))):
            if missing := [role for role in roles if role not in getattr(self, part)]:
                raise ValueError(f"{part}.{missing[0]} is missing")
        for name, value in self.metrics.items():
            if name.endswith(PER_LABEL):
                if not isinstance(value, dict):
                    raise ValueError(f"metrics.{name} is {repr(value)[:40]}, expected a table of labels")
                for label, one in value.items():
                    _check_number(f"metrics.{name}.{label}", one)
            else:
                _check_number(f"metrics.{name}", value)
        for stage, value in self.seconds.items():
            _check_number(f"seconds.{stage}", value)
        matrix = self.moving_from_fixed
        if not ((np.abs(matrix) <= FARTHEST_MM).all() and np.linalg.det(matrix)):
            raise ValueError("start.moving_from_fixed is not a 4x4 matrix of an initial alignment")

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read one strictly.

        Raises:
            InputError: missing, not JSON, not a sidecar of this schema, or damaged: says which entry, what it holds
                and what was expected.
        """
        text = read_text(path)
        try:
            content = parse_json(text)
        except ValueError as error:
            raise InputError(f"{path} is not a readable sidecar of ofg register: {error}") from error
        if not is_sidecar(content) or content.get("schema") != SCHEMA:
            raise InputError(f"{path} is not a sidecar this version reads ({TOOL}, schema {SCHEMA})")
        return fitted(content, cls, f"{path} {DAMAGED}")

    @property
    def moving_from_fixed(self) -> Matrix:
        """(4, 4) RAS mm of the initial alignment: fixed points to moving points."""
        return np.array(self.start.moving_from_fixed, dtype=np.float64)

    def per_label(self, measure: str) -> dict[str, float | None]:
        """A measure by label, empty where it was not taken: ``dice_before``, ``dice_start``, ``dice``, ``hd95_mm``."""
        table: dict[str, float | None] = self.metrics.get(f"{measure}{PER_LABEL}", {})
        return table

    def to_record(self) -> dict[str, Any]:
        """As JSON has it."""
        every = msgspec.to_builtins(self, enc_hook=lambda value: value.item())  # a number of numpy
        return {name: value for name, value in every.items() if value or name not in ONLY_WHERE}

    def to_json(self) -> str:
        """The file's content. Raises ValueError for numbers that are not finite."""
        return to_json(self.to_record())


def is_sidecar(content: Any) -> bool:
    """Whether JSON is a sidecar of ``ofg register``, of whatever schema; records of batches and other tools are not."""
    return isinstance(content, dict) and content.get("tool") == TOOL and "transform" in content


def find(folder: Path, broken: bool) -> list[Path]:
    """Sidecars in a folder, then those of named pairs in a folder each. What begins with a dot is unfinished.

    Args:
        broken: take a JSON file that cannot be parsed for a broken sidecar.
    """
    inner = sorted(path for path in folder.glob("*/") if path.is_dir() and not path.name.startswith("."))
    every = (path for each in (folder, *inner) for path in sorted(each.glob("*.json")))
    return [path for path in every if not path.name.startswith(".") and _is_one(path, broken)]


def _is_one(path: Path, broken: bool) -> bool:
    try:
        return is_sidecar(read_json(path))
    except InputError:
        return broken


def _check_number(name: str, value: Any) -> None:
    """Finite, so that differences and sums are, too; null where it is not known."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and abs(value) <= MOST):
        raise ValueError(f"{name} is {repr(value)[:40]}, no finite number")
