"""``ofg register`` without a network: a grid planned from the images, bounded memory, nothing but the base package."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from batches import results, statuses

from ofg_deploy.geometry import Grid, network_grid
from ofg_deploy.serve import no_network
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.no_network import FEWEST, NoNetwork, WithoutNetwork, plan_grid
from ofg_deploy.serve.refinement import Refinement
from ofg_deploy.serve.register import register

PLENTY = 10**12


def grid(shape: tuple[int, ...], spacing: tuple[float, ...], codes: str = "RAS") -> Grid:
    axes = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([axes[code] for code in codes], float).T * spacing
    return Grid(shape, matrix)  # type: ignore[arg-type]


def moved(points: np.ndarray) -> np.ndarray:
    """(3, ...) fixed mm -> moving mm: smooth, up to 5 mm, no symmetry; invertible."""
    x, y, z = points
    return points + np.array(
        [3.5 * np.sin(y / 14 + 0.4) + 1.0, 2.5 * np.cos(z / 12) - 1.5, 3.0 * np.sin(x / 16 - 0.3) * np.cos(y / 25)]
    )


@pytest.fixture
def bent(tmp_path: Path, make_grid: Callable[..., Grid], write_nifti: Callable[..., Path]) -> tuple[Path, Path]:
    """Fixed and moving image of one anatomy, bent by ``moved``, on two oblique grids."""
    from conftest import _anatomy, _world_points

    moving = make_grid("left-handed", (40, 36, 42), (1.9, 2.1, 1.8), (1.0, 0.0, -1.0))
    fixed = make_grid("oblique-permuted", (36, 40, 34), (2.0, 1.9, 2.2), (1.0, -2.0, 1.5))
    a, b = _anatomy(moved(_world_points(fixed))), _anatomy(_world_points(moving))
    return (
        write_nifti(tmp_path / "fix.nii.gz", a.astype(np.float32), fixed.world_from_vox),
        write_nifti(tmp_path / "mov.nii.gz", b.astype(np.float32), moving.world_from_vox),
    )


def test_the_grid_is_the_fixed_image_s_own_where_nothing_speaks_against_it() -> None:
    fixed = grid((40, 30, 50), (1.0, 1.5, 1.2), "SLP")
    planned = plan_grid(fixed, grid((60, 61, 62), (0.8, 0.8, 0.8)), PLENTY)
    assert planned.coarser == 1
    assert planned.shape == (30, 50, 40)  # RAS: from L, P, S
    np.testing.assert_allclose(planned.spacing_mm, (1.5, 1.2, 1.0))
    lattice = network_grid(fixed, planned.shape, planned.spacing_mm)
    index = fixed.vox_from_world @ lattice.world_from_vox @ np.array([3.0, 4, 5, 1])
    np.testing.assert_allclose(index, index.round(), atol=1e-9)  # voxels coincide


def test_a_coarser_moving_image_makes_it_coarser_along_its_own_axes_and_at_most_by_two() -> None:
    fixed = grid((100, 100, 100), (1.0, 1.0, 1.0))
    # The moving image's thick slices lie along A, which is its first axis.
    planned = plan_grid(fixed, grid((20, 60, 60), (5.0, 1.4, 0.9), "ASR"), PLENTY)
    np.testing.assert_allclose(planned.spacing_mm, (2.8 ** (1 / 3),) * 3)  # 1 x 2 x 1.4 mm as a cube
    assert planned.shape == (71, 71, 71)
    planned = plan_grid(fixed, grid((60, 60, 60), (1.45, 1.3, 0.9), "ASR"), PLENTY)
    np.testing.assert_allclose(planned.spacing_mm, (1.0, 1.45, 1.3))
    assert planned.shape == (100, 69, 77)
    # Turned by 45 degrees about z, the resolution along x is that of both of its axes together.
    turned = np.eye(4)
    turned[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2) * np.array([1.0, 3.0])
    planned = plan_grid(fixed, Grid((60, 60, 60), turned), PLENTY)
    np.testing.assert_allclose(planned.spacing_mm, (np.sqrt(2 / (1 + 1 / 9)),) * 2 + (1.0,))


def test_thick_slices_make_cubes_of_the_same_volume_and_few_slices_are_divided() -> None:
    planned = plan_grid(grid((256, 256, 30), (0.8, 0.8, 6.0)), grid((256, 256, 30), (0.8, 0.8, 6.0)), PLENTY)
    np.testing.assert_allclose(planned.spacing_mm, ((0.8 * 0.8 * 6) ** (1 / 3),) * 3)
    assert planned.shape == (131, 131, 115)
    planned = plan_grid(grid((256, 256, 3), (1.1, 1.1, 6.0)), grid((256, 256, 9), (1.1, 1.1, 6.0)), PLENTY)
    np.testing.assert_allclose(planned.spacing_mm, (1.1, 1.1, 1.5))
    assert planned.shape == (256, 256, FEWEST)
    planned = plan_grid(grid((4, 5, 2), (3.0, 3.0, 3.0)), grid((4, 5, 6), (3.0, 3.0, 3.0)), PLENTY)
    np.testing.assert_allclose(planned.spacing_mm, (0.625 ** (1 / 3), 0.625 ** (1 / 3), 0.5))  # 1 x 1.25 x 0.5 mm
    assert planned.shape == (15, 18, FEWEST)


@pytest.mark.parametrize("shape", [(513, 511, 383), (160, 192, 224), (31, 64, 17)])
def test_a_grid_that_does_not_fit_is_made_coarser_over_the_same_field_of_view(shape: tuple[int, ...]) -> None:
    fixed = grid(shape, (0.7, 0.6, 0.8))
    whole = plan_grid(fixed, fixed, PLENTY)
    each = no_network.BYTES_PER_GRID_VOXEL + (no_network.BYTES_OF_DESCRIPTORS if min(whole.shape) < 64 else 0)
    images = whole.need_bytes - each * int(np.prod(whole.shape))
    planned = plan_grid(fixed, fixed, images + (whole.need_bytes - images) // 5)
    assert planned.coarser == 2.0
    assert planned.need_bytes <= images + (whole.need_bytes - images) // 5
    covered = np.array(planned.shape) * planned.spacing_mm
    extent = np.array(shape) * fixed.spacing_mm
    assert np.all(covered >= extent - 1e-6)
    assert np.all(covered < extent + planned.spacing_mm)
    assert min(planned.shape) >= FEWEST


def test_the_map_of_two_oblique_grids_is_found(bent, tmp_path, run_cli) -> None:
    """Against the known map at points in the world, through SimpleITK's reading of the file."""
    fixed, moving = bent
    out = tmp_path / "out"
    code, printed, err = run_cli(["register", fixed, moving, "-m", "none", "-o", out, "--threads", "1"])
    assert (code, err) == (0, "")
    assert "quality default" in printed
    assert "36x40x34" not in printed  # in the order of RAS
    record = json.loads((out / "mov_to_fix.json").read_text())
    assert record["model"]["network"] == "none"
    assert record["model"]["sha256"] is None
    assert record["model"]["expects"]["shape"] == record["network_grid"]["shape"] == [40, 34, 36]
    assert record["runtime"]["name"] == "none"
    assert record["init"] == "affine"
    assert record["options"]["quality"] == "default"
    assert record["metrics"]["folding_percent"] == 0

    rng = np.random.default_rng(1)
    points = rng.uniform(-22, 22, (3, 400))  # where there is anatomy
    wanted = moved(points)
    lps = np.diag([-1.0, -1, 1])
    transform = sitk.DisplacementFieldTransform(
        sitk.ReadImage(str(out / "mov_to_fix_Warp.nii.gz"), sitk.sitkVectorFloat64)
    )
    found = lps @ np.array([transform.TransformPoint((lps @ p).tolist()) for p in points.T]).T
    affine = sitk.ReadTransform(str(out / "mov_to_fix_0GenericAffine.mat"))
    start = lps @ np.array([affine.TransformPoint((lps @ p).tolist()) for p in points.T]).T
    errors = [np.linalg.norm(a - wanted, axis=0).mean() for a in (points, start, found)]
    assert errors[0] > 3.4
    assert errors[2] < 1.5
    assert errors[2] < 0.9 * errors[1]  # blobs without texture, of which the steps see little


def test_without_a_runtime_and_without_options(bent, tmp_path) -> None:
    """As typed, in a folder, in a process where nothing beyond the base package can be imported."""
    code = (
        "import sys\n"
        "absent = ('torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'cuda', 'matplotlib',\n"
        "          'lightning_fabric', 'tensorboard', 'filelock', 'ray', 'onnxscript')\n"
        "sys.modules.update({name: None for name in absent})\n"
        "from ofg_deploy.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "register", "fix.nii.gz", "mov.nii.gz"],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(Path(no_network.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "model auto: no network: no model is packaged or added" in done.stdout
    names = {"mov_to_fix_warped.nii.gz", "mov_to_fix_Warp.nii.gz", "mov_to_fix_0GenericAffine.mat", "mov_to_fix.json"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"fix.nii.gz", "mov.nii.gz"}
    record = json.loads((tmp_path / "mov_to_fix.json").read_text())
    assert record["model"]["chosen_by"] == "auto"
    assert "no model is packaged or added" in record["model"]["reason"]
    assert record["metrics"]["ncc_after"] > record["metrics"]["ncc_start"] + 0.005


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--runtime", "onnxruntime"], "--runtime"),
        (["--runtime", "auto"], "--runtime"),
        (["--device", "cuda"], "--device"),
        (["--grid", "32", "32", "32"], "--grid"),
        (["--rebuild"], "--rebuild"),
        (["--batch-size", "2"], "--batch-size"),
    ],
)
@pytest.mark.parametrize("model", ["none", "auto"])
def test_options_of_a_runtime_are_usage_errors_that_name_them(bent, tmp_path, run_cli, options, named, model) -> None:
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "list.csv").write_text("fixed,moving\nfix.nii.gz,mov.nii.gz\n")
    images = ["--pairs", tmp_path / "list.csv"] if named == "--batch-size" else bent
    code, _, err = run_cli(["register", *images, "-m", model, "-o", tmp_path / "out", *options])
    assert code == 2
    assert err.startswith(f"ofg: error: {named}: there is no network")
    assert err.count("\n") == 1
    (tmp_path / "list.csv").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_one_way_to_say_how_many_steps(bent, tmp_path, run_cli) -> None:
    arguments = ["register", *bent, "-m", "none", "-o", tmp_path / "out"]
    code, _, err = run_cli([*arguments, "--refine", "5", "--quality", "fast"])
    assert (code, "give one of them" in err) == (2, True)
    code, out, _ = run_cli([*arguments, "--refine", "0"])
    assert code == 0
    assert "the result is the initial alignment" in out
    record = json.loads((tmp_path / "out/mov_to_fix.json").read_text())
    assert "refinement" not in record
    # The transform is the affine: SimpleITK reads both files.
    lps = sitk.ReadImage(str(tmp_path / "out/mov_to_fix_Warp.nii.gz"), sitk.sitkVectorFloat64)
    affine = sitk.ReadTransform(str(tmp_path / "out/mov_to_fix_0GenericAffine.mat"))
    for index in ((0, 0, 0), (7, 30, 11), (35, 39, 33)):
        point = lps.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(
            np.array(point) + lps.GetPixel(*index), affine.TransformPoint(point), atol=2e-5, rtol=0
        )
    assert run_cli([*arguments, "--overwrite", "--refine", "3"])[0] == 0
    record = json.loads((tmp_path / "out/mov_to_fix.json").read_text())
    assert record["options"]["refine"] == record["refinement"]["optimiser"]["steps"] == 3


def test_memory_that_does_not_suffice(bent, tmp_path, run_cli, monkeypatch) -> None:
    arguments = ["register", *bent, "-m", "none", "--init", "none", "-o", tmp_path / "out", "--quality", "fast"]
    need = (
        36
        * 40
        * 34
        * (no_network.BYTES_PER_IMAGE_VOXEL + (no_network.BYTES_PER_GRID_VOXEL + no_network.BYTES_OF_DESCRIPTORS) / 4)
    )
    monkeypatch.setattr(no_network, "free_ram", lambda: int(need / no_network.SHARE))
    code, _, err = run_cli(arguments)
    assert code == 0
    assert "memory is short" in err
    assert "2 times coarser" in err
    record = json.loads((tmp_path / "out/mov_to_fix.json").read_text())
    assert record["network_grid"]["shape"] == [20, 17, 18]
    assert any("memory is short" in line for line in record["warnings"])

    monkeypatch.setattr(no_network, "free_ram", lambda: 10**6)
    arguments[arguments.index(tmp_path / "out")] = tmp_path / "none"
    code, _, err = run_cli(arguments)
    assert code == 3
    assert err.count("\n") == 1
    assert "fix.nii.gz (36x40x34 voxels) needs about" in err
    assert not (tmp_path / "none").exists()


def test_a_registration_takes_no_more_memory_than_planned(tmp_path, write_nifti, world_image) -> None:
    """What numpy allocates at its peak; the planned bytes hold that, and not more than twice that."""
    spaces = (grid((76, 70, 72), (1.1, 1.2, 1.2)), grid((70, 72, 76), (1.2, 1.2, 1.1)))
    files = []
    for name, space in zip("ab", spaces, strict=True):
        matrix = space.world_from_vox.copy()
        matrix[:3, 3] = -40
        files.append(write_nifti(tmp_path / f"{name}.nii.gz", world_image(Grid(space.shape, matrix)), matrix))
    tracemalloc.start()
    try:
        register(
            Job(*files, out=tmp_path / "out", init="none", refinement=Refinement.at_most(2)),
            WithoutNetwork(NoNetwork(PLENTY)),
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    planned = plan_grid(*spaces, PLENTY).need_bytes
    assert planned / 2 < peak < planned


def test_machines_with_enough_memory_are_alike() -> None:
    """Ray refuses nodes whose facts differ."""
    assert NoNetwork(10**9) == NoNetwork(10**10)


@pytest.mark.parametrize("init", ["none", "centre"])
@pytest.mark.parametrize("slices", [2, 3, 5])
def test_few_slices(tmp_path, world_image, write_nifti, run_cli, slices, init) -> None:
    for name, place in (("fix", 0.0), ("mov", 2.0)):
        space = grid((40, 37, slices), (2.1, 2.3, 7.0))
        matrix = space.world_from_vox.copy()
        matrix[:3, 3] = (-40 + place, -41 - place, -7 * (slices - 1) / 2)
        shift = np.eye(4)
        shift[:3, 3] = (3 * place, place, 0)
        write_nifti(tmp_path / f"{name}.nii.gz", world_image(Grid(space.shape, matrix), shift), matrix)
    arguments = ["register", tmp_path / "fix.nii.gz", tmp_path / "mov.nii.gz", "-o", tmp_path / "out", "--init", init]
    code, _, err = run_cli([*arguments, "--threads", "1"])
    assert code == 0, err
    found = json.loads((tmp_path / "out/mov_to_fix.json").read_text())
    assert found["metrics"]["ncc_after"] > max(0.97, found["metrics"]["ncc_start"])
    assert found["metrics"]["folding_percent"] == 0
    assert nib.load(tmp_path / "out/mov_to_fix_warped.nii.gz").shape == (40, 37, slices)


def test_one_slice_is_refused_in_one_line(tmp_path, write_nifti, run_cli) -> None:
    flat = write_nifti(tmp_path / "flat.nii.gz", np.random.default_rng(0).random((20, 21, 1), np.float32), np.eye(4))
    code, _, err = run_cli(["register", flat, flat, "-o", tmp_path / "out"])
    assert (code, err.count("\n")) == (3, 1)
    assert "flat.nii.gz has shape (20, 21, 1)" in err


def test_an_image_that_is_nearly_all_background(tmp_path, write_nifti, run_cli) -> None:
    """Both percentiles of the usual recipe are the background: the extremes are taken instead."""
    grid_points = np.indices((40, 44, 42), dtype=float)
    for name, centre in (("fix", (20, 21, 19)), ("mov", (21, 20, 20))):
        r = np.linalg.norm(grid_points - np.reshape(centre, (3, 1, 1, 1)), axis=0)
        data = np.where(r < 3.4, 100 + 20 * r, 0).astype(np.float32)
        assert np.percentile(data, 99.5) == 0
        write_nifti(tmp_path / f"{name}.nii.gz", data, np.eye(4))
    files = (tmp_path / "fix.nii.gz", tmp_path / "mov.nii.gz")
    code, _, err = run_cli(["register", *files, "-o", tmp_path, "--init", "none"])
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "mov_to_fix.json").read_text())
    assert record["model"]["expects"]["intensity"]["kind"] == "minmax"
    assert record["metrics"]["ncc_after"] > record["metrics"]["ncc_before"] + 0.1


def test_a_batch_gives_what_single_commands_give_each_on_its_own_grid(tmp_path, images, atlas, run_cli) -> None:
    common = ["-m", "none", "--init", "none", "--refine", "2", "--threads", "1"]
    batch = ["register", images, images, "-o", tmp_path / "batch", *common]
    code, out, err = run_cli([*batch, "--workers", "3"])
    assert (code, err) == (0, "")
    assert "at most 2 optimisation steps" in out
    for image in sorted(images.iterdir()):
        assert run_cli(["register", image, image, "-o", tmp_path / "single", *common])[0] == 0
    found = results(tmp_path / "batch")
    assert found == results(tmp_path / "single")
    grids = {json.dumps(r["network_grid"]["shape"]) for n, r in found.items() if n.endswith(".json")}
    assert len(grids) > 1

    assert run_cli([*batch, "--resume"])[0] == 0
    assert set(statuses(tmp_path / "batch").values()) == {"skipped"}
    code, _, err = run_cli([*batch, "--resume", "--quality", "fast"])
    assert code == 2  # both --refine and --quality
    batch[batch.index("--refine") : batch.index("--refine") + 2] = ["--quality", "fast"]
    code, _, err = run_cli([*batch, "--resume"])
    assert code == 6
    assert "another option" in err


def test_a_batch_takes_fewer_at_once_before_it_takes_coarser_grids(tmp_path, images, run_cli, monkeypatch) -> None:
    need = 22 * 17 * 16 * 200
    monkeypatch.setattr(no_network, "free_ram", lambda: 2 * need)
    arguments = ["register", images, images, "-m", "none", "--init", "none", "--refine", "1", "-o", tmp_path / "out"]
    code, _, err = run_cli([*arguments, "--workers", "9"])
    assert code == 2
    assert "--workers 9: the largest pair needs" in err
    code, _, err = run_cli(arguments)
    assert (code, err) == (0, "")
    for name, record in results(tmp_path / "out").items():
        assert not name.endswith(".json") or not any("memory" in line for line in record["warnings"])
