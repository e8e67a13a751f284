"""What the tests share: grids in every orientation, one anatomy defined in the world, and a network made without torch.

Nothing here calls the code under test except to make a model file (contract and seal), which no other tool can make.
"""

from __future__ import annotations

import locale
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation
from whole_run import (  # noqa: F401 - pytest finds its hooks here
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_unconfigure,
)

import ofg_deploy.cli  # noqa: F401 - for what it does to the environment, undone below
from ofg_deploy.geometry import Grid
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, seal
from ofg_deploy.preprocess import Intensity, NetworkInput

if TYPE_CHECKING:
    from ofg_deploy.serve.engine import Engine

LOCALE = locale.setlocale(locale.LC_CTYPE)

# Small volumes: more threads cost more than they save, above all beside other work. Read when torch is first loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Models that somebody added on this machine would be chosen by -m auto; there is no such folder.
os.environ["OFG_MODELS"] = str(Path(__file__).with_name("no-models"))

# The command line sets it for the processes that it starts; tests also start scripts that import their neighbours.
os.environ.pop("PYTHONSAFEPATH", None)

# A script's background job starts with Ctrl-C ignored, which this process and what it starts would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def locale_as_started() -> None:
    """A library that some tests load sets the C locale, and what processes say would be read as ASCII."""
    locale.setlocale(locale.LC_CTYPE, LOCALE)


@pytest.fixture(autouse=True)
def exporter_with_its_table() -> None:
    if "torch.onnx._internal.exporter._registration" in sys.modules:
        from traced import keep_the_exporters_table

        keep_the_exporters_table()


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers with each kind of layer, but fewer of them: tracing one takes a third of the time.

    ViT-V-Net has 2 of its 12 layers, the small TransMorph 5 of its 10. ``test_export_sizes`` traces both networks
    whole, ``test_golden`` runs them whole.
    """
    from ofg_deploy.train.networks import vit_v_net
    from ofg_deploy.train.networks.transmorph import TransMorphSmall

    monkeypatch.setattr(vit_v_net, "LAYERS", 2)
    monkeypatch.setattr(TransMorphSmall, "depths", (2, 1, 1, 1))


WORLD_AXES = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}

# Name -> axis codes and rotation in degrees. "left-handed" has a negative determinant and permuted axes besides.
ORIENTATIONS = {
    "RAS": ("RAS", (0, 0, 0)),
    "LAS": ("LAS", (0, 0, 0)),
    "LPS": ("LPS", (0, 0, 0)),
    "oblique": ("RAS", (11, -17, 24)),
    "oblique-permuted": ("SLP", (-9, 14, 21)),
    "left-handed": ("PIL", (7, 12, -15)),
}


def _grid(
    orientation: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Grid:
    codes, degrees = ORIENTATIONS[orientation]
    directions = np.array([WORLD_AXES[code] for code in codes], dtype=float).T
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ directions * spacing_mm
    matrix[:3, 3] = np.array(centre_mm) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix)


@pytest.fixture(scope="session")
def make_grid() -> Callable[..., Grid]:
    """(name in ORIENTATIONS, shape, spacing_mm, centre_mm) -> Grid whose field of view is centred there."""
    return _grid


def _world_points(grid: Grid) -> np.ndarray:
    index = np.indices(grid.shape, dtype=float)
    return np.einsum("ij,jxyz->ixyz", grid.world_from_vox[:3, :3], index) + grid.world_from_vox[:3, 3].reshape(
        3, 1, 1, 1
    )


def _anatomy(points: np.ndarray) -> np.ndarray:
    """Smooth blobs within about 40 mm of the origin, no two alike: (3, ...) world mm -> intensities of 0..~1000."""
    rng = np.random.default_rng(20)
    values = np.zeros(points.shape[1:])
    for _ in range(45):
        centre = rng.uniform([-33, -29, -25], [31, 33, 27]).reshape(3, *[1] * (points.ndim - 1))
        width = rng.uniform(4.5, 9.0)
        values += rng.uniform(60, 260) * np.exp(-((points - centre) ** 2).sum(axis=0) / (2 * width**2))
    return values


@pytest.fixture(scope="session")
def world_image() -> Callable[..., np.ndarray]:
    """(grid, anatomy_from_world=eye) -> float32 image of one analytic anatomy on any grid."""

    def make(grid: Grid, anatomy_from_world: np.ndarray | None = None) -> np.ndarray:
        matrix = np.eye(4) if anatomy_from_world is None else anatomy_from_world
        points = np.einsum("ij,jxyz->ixyz", matrix[:3, :3], _world_points(grid)) + matrix[:3, 3].reshape(3, 1, 1, 1)
        return _anatomy(points).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def world_labels() -> Callable[[Grid], np.ndarray]:
    """Grid -> int16 label map: three ellipsoids (3, 7, 12) of different size off the centre."""

    def make(grid: Grid) -> np.ndarray:
        x, y, z = _world_points(grid)
        labels = np.zeros(grid.shape, dtype=np.int16)
        labels[(x / 24) ** 2 + (y / 30) ** 2 + (z / 19) ** 2 < 1] = 3
        labels[((x - 9) / 8) ** 2 + ((y + 7) / 11) ** 2 + ((z - 3) / 9) ** 2 < 1] = 7
        labels[((x + 12) / 6) ** 2 + ((y - 10) / 7) ** 2 + ((z + 4) / 8) ** 2 < 1] = 12
        return labels

    return make


@pytest.fixture(scope="session")
def write_nifti() -> Callable[..., Path]:
    """(path, data, affine, sform=1, qform=1, cls=Nifti1Image) -> path, through nibabel alone. Code 0 leaves one out."""

    def write(
        path: Path, data: np.ndarray, affine: np.ndarray, sform: int = 1, qform: int = 1, cls: Any = nib.Nifti1Image
    ) -> Path:
        image = cls(data, affine)
        image.set_sform(affine, sform)
        image.set_qform(affine, qform)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        return path

    return write


def _lps(matrix: np.ndarray) -> np.ndarray:
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ matrix @ flip


@pytest.fixture(scope="session")
def to_sitk() -> Callable[[np.ndarray, Grid], sitk.Image]:
    """(data, grid) -> SimpleITK image, its geometry worked out here and in LPS."""

    def convert(data: np.ndarray, grid: Grid) -> sitk.Image:
        image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
        lps_from_vox = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.world_from_vox
        spacing = np.sqrt((lps_from_vox[:3, :3] ** 2).sum(axis=0))
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps_from_vox[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps_from_vox[:3, 3].tolist())
        return image

    return convert


@pytest.fixture(scope="session")
def sitk_affine() -> Callable[[np.ndarray], sitk.AffineTransform]:
    """(4, 4) RAS mm -> the same map as SimpleITK has it, in LPS mm."""

    def convert(matrix: np.ndarray) -> sitk.AffineTransform:
        lps = _lps(matrix)
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(lps[:3, :3].ravel().tolist())
        transform.SetTranslation(lps[:3, 3].tolist())
        return transform

    return convert


@pytest.fixture(scope="session")
def sitk_resample() -> Callable[..., np.ndarray]:
    """(image, reference, transform, nearest=False, fill=0) -> (X, Y, Z) array by SimpleITK's own resampler."""

    def resample(
        image: sitk.Image, reference: sitk.Image, transform: sitk.Transform, nearest: bool = False, fill: float = 0.0
    ) -> np.ndarray:
        interpolator = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
        return sitk.GetArrayFromImage(sitk.Resample(image, reference, transform, interpolator, fill)).transpose(2, 1, 0)

    return resample


@pytest.fixture(scope="session")
def foreign() -> Callable[[str], ModuleType]:
    """Import another tool or skip; what it warns of while importing is not our business."""

    def load(name: str) -> ModuleType:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip(name)

    return load


@pytest.fixture(scope="session")
def some_affine() -> np.ndarray:
    """(4, 4) RAS mm, about: 10 degrees, 6 mm, unequal scales; nothing in it symmetric."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (6, -8, 10), degrees=True).as_matrix() @ np.diag([1.06, 0.95, 1.02])
    matrix[:3, 3] = (4.0, -3.0, 2.5)
    return matrix


@dataclass(frozen=True)
class TinyModel:
    """A sealed model file, the constant part of the field it predicts (3, X, Y, Z) and what it expects."""

    path: Path
    field: np.ndarray
    expects: NetworkInput


def _smooth_field(shape: tuple[int, int, int]) -> np.ndarray:
    """Up to about 2 voxels, each component its own function of all three axes, no symmetry."""
    a, b, c = (axis / n for axis, n in zip(np.indices(shape, dtype=float), shape, strict=True))
    field = [
        1.7 * np.sin(2.9 * a + 0.4) * np.cos(2.1 * b) + 0.6 * c,
        -1.2 * np.cos(3.3 * b - 0.7) + 0.9 * a * c - 0.3,
        0.8 * np.sin(2.5 * c + 1.9 * a) - 1.1 * b**2,
    ]
    return np.array(field, dtype=np.float32)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Factory of sealed ONNX models made without torch.

    The field is ``field + gain_moving * moving + gain_fixed * fixed``, one gain for each component; by default a known
    smooth one which ignores the images.
    """
    onnx = pytest.importorskip("onnx", reason="making a model file needs onnx (pip install ofg-deploy[train])")
    folder = tmp_path_factory.mktemp("models")

    def make(
        shape: tuple[int, int, int] = (14, 18, 16),
        spacing_mm: tuple[float, float, float] = (4.4, 3.9, 4.1),
        init: str = "none",
        intensity: Intensity | None = None,
        field: np.ndarray | None = None,
        gain_moving: tuple[float, float, float] = (0.0, 0.0, 0.0),
        gain_fixed: tuple[float, float, float] = (0.0, 0.0, 0.0),
        axes: str = "RAS",
        training: dict[str, Any] | None = None,
        passes: int = 1,
    ) -> TinyModel:
        expects = NetworkInput(shape, spacing_mm, intensity or Intensity("minmax"), init, axes)
        field = _smooth_field(shape) if field is None else np.asarray(field, dtype=np.float32)
        constants = {"known": field[None], "gain_moving": gain_moving, "gain_fixed": gain_fixed}
        constants = {
            k: np.asarray(v, dtype=np.float32).reshape(1, 3, *np.shape(v)[2:] or (1, 1, 1))
            for k, v in constants.items()
        }
        h = onnx.helper
        tensor = [
            h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", channels, *shape])
            for name, channels in (("moving", 1), ("fixed", 1), ("field", 3))
        ]
        nodes = [
            h.make_node("Mul", ["moving", "gain_moving"], ["from_moving"]),
            h.make_node("Mul", ["fixed", "gain_fixed"], ["from_fixed"]),
            h.make_node("Add", ["from_moving", "from_fixed"], ["from_images"]),
            h.make_node("Add", ["from_images", "known"], ["field"]),
        ]
        stored = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = h.make_graph(nodes, "tiny", tensor[:2], tensor[2:], stored)
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        contract = Contract(
            "tiny",
            expects,
            divisor=2,
            weights_sha256="ab" * 32,
            training=training or {"guidance": "none"},
            passes=passes,
        )
        h.set_model_props(model, {CONTRACT_KEY: contract.to_json(), SEAL_KEY: UNSEALED})
        path = folder / f"model{len(list(folder.iterdir()))}.onnx"
        path.write_bytes(seal(model.SerializeToString()))
        return TinyModel(path, field, expects)

    return make


@pytest.fixture
def files(tmp_path, make_grid, world_image, write_nifti) -> tuple[Path, Path, Grid, Grid]:
    """Fixed and moving file on different oblique grids, and those grids."""
    fixed = make_grid("oblique-permuted", (19, 22, 17), (3.6, 3.1, 4.0), (1.0, -2.0, 1.5))
    moving = make_grid("left-handed", (20, 18, 21), (3.5, 4.1, 3.3), (3.0, 1.0, -2.0))
    return (
        write_nifti(tmp_path / "fix.nii.gz", world_image(fixed), fixed.world_from_vox),
        write_nifti(tmp_path / "mov.nii.gz", world_image(moving), moving.world_from_vox),
        fixed,
        moving,
    )


@pytest.fixture
def images(tmp_path, make_grid, world_image) -> Path:
    """A folder of five subjects."""
    from batches import write_subjects

    return write_subjects(tmp_path / "images", 5, make_grid, world_image)


@pytest.fixture
def atlas(images) -> Path:
    """One of the five, taken out of the folder."""
    return (images / "s0.nii.gz").rename(images.parent / "atlas.nii.gz")


@pytest.fixture
def engine(tiny_model) -> Engine:
    """The tiny model's, on the CPU."""
    from ofg_deploy.serve.engine import open_engine

    return open_engine(tiny_model().path, "cpu")


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[Sequence[object]], tuple[int, str, str]]:
    """Run ``ofg`` with these arguments in this process: (exit code, stdout, stderr)."""
    from ofg_deploy.cli import main

    def call(arguments: Sequence[object]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ofg", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capfd.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call
