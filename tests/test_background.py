"""What stands outside an image, and measures that no choice of it changes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.background import Background
from ofg_deploy.field import total_displacement_mm
from ofg_deploy.geometry import Grid, network_grid
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import Intensity, NetworkInput, PreparedPair, prepare_pair
from ofg_deploy.serve.measures import measure
from ofg_deploy.serve.options import Options
from ofg_deploy.serve.refinement import Refinement
from ofg_deploy.serve.registration import Clock, _refine

FAULTS = Path(__file__).resolve().parents[2] / "shared/faults"
SHAPE = (40, 44, 26)


def head(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) values of 100..1000 in an ellipsoid that the last face cuts, and where it is."""
    x, y, z = (np.arange(n) - n / 2 for n in SHAPE)
    inside = (x[:, None, None] / 15) ** 2 + (y[:, None] / 17) ** 2 + ((z - 4) / 14) ** 2 < 1
    return rng.uniform(100, 1000, SHAPE), inside


def scans() -> dict[str, tuple[np.ndarray, float, float]]:
    """Image, its background, and how close one can come to it."""
    rng = np.random.default_rng(4)
    tissue, inside = head(rng)
    noise = np.abs(rng.normal(0, 8, SHAPE))
    scores = (tissue - 550) / 260
    x, y = (np.arange(n) - n / 2 for n in SHAPE[:2])
    scanned = ((x[:, None] / 20) ** 2 + (y / 22) ** 2 < 1)[:, :, None]
    ct = np.where(inside, tissue / 5, -1000 + rng.normal(0, 15, SHAPE))
    return {
        "MR": (np.where(inside, tissue, 0), 0, 0),
        "MR with noise in the air": (np.where(inside, tissue, noise), 0, 0),
        "CT": (np.where(inside, tissue / 5, -1024), -1024, 0),
        "CT with noise in the air": (ct, -1000, 8),
        "CT padded around a round field of view": (np.where(scanned, ct, -3024), -3024, 0),
        "z-scored": (np.where(inside, scores, -2.25), -2.25, 0),
        "z-scored in a mask": (np.where(inside, scores, 0), 0, 0),
        "white background": (np.where(inside, 1100 - tissue, 4095), 4095, 0),
        "diffusivity in m2/s": (np.where(inside, tissue, 0) * 1e-12 + 3e-11, 3e-11, 0),
        "nothing but tissue, offset": (tissue + 3000, 3100, 5),
        "nothing but tissue, one dead voxel": (tissue, 100, 5),
    }


@pytest.mark.parametrize("name", scans())
def test_the_background_is_that_of_the_image_and_moves_with_it(name: str) -> None:
    image, expected, tolerance = scans()[name]
    if "dead" in name:
        image[20, 20, 13] = -4000
    found = Background.of(image.astype(np.float32))
    assert found.value == pytest.approx(expected, abs=max(tolerance, 1e-6 * abs(expected))), found
    assert found.found
    scale = float(np.ptp(image))
    moved = Background.of((image * 3 - 5 * scale).astype(np.float32))
    # Close to 0 means 0, and only there: noise in the air has a median of its own once it is not.
    assert moved.value == pytest.approx(found.value * 3 - 5 * scale, abs=0.05 * 3 * scale)


def test_a_bright_background_surrounds_both_images_on_the_network_s_grid(make_grid) -> None:
    grid = make_grid("oblique", SHAPE, (2, 2.5, 3))
    tissue, inside = head(np.random.default_rng(1))
    image = Volume(np.where(inside, tissue, 4095).astype(np.float32), grid, Path("white.nii.gz"))
    wanted = NetworkInput((60, 64, 40), (2.0, 2.5, 3.0), Intensity("minmax"), "none")
    pair = prepare_pair(image, image, wanted)
    assert pair.empty == (1.0, 1.0)
    for unit in (pair.fixed, pair.moving):
        assert (unit[[0, -1]] == 1).all()
        assert unit.min() < 1e-6
    assert pair.outside == 0


@pytest.fixture
def shifted(make_grid, world_image) -> tuple[Grid, Grid, np.ndarray, np.ndarray]:
    fixed = make_grid("oblique", (20, 24, 18), (3.6, 3.1, 4.0), (1.0, -2.0, 1.5))
    moving = make_grid("left-handed", (16, 15, 14), (3.5, 4.1, 3.3), (12.0, 1.0, -2.0))
    return fixed, moving, world_image(fixed) + 40, world_image(moving) + 40


def numbers_of(scene: tuple[Grid, Grid, np.ndarray, np.ndarray], offset: float, shift_mm: float) -> dict[str, float]:
    """Measures of a pair, the map of which moves all by so many mm."""
    fixed, moving, first, second = scene
    wanted = NetworkInput((14, 18, 16), (4.0, 4.0, 4.0), Intensity("minmax"), "none")
    a, b = (
        Volume((d + offset).astype(np.float32), g, Path(n)) for d, g, n in ((first, fixed, "f"), (second, moving, "m"))
    )
    pair = prepare_pair(a, b, wanted)
    field = np.zeros((3, 14, 18, 16), np.float32)
    field[0] = shift_mm / 4
    total = total_displacement_mm(field, network_grid(fixed, wanted.shape, wanted.spacing_mm), fixed, np.eye(4))
    from ofg_deploy.field import warp

    warped = warp(b.data, moving, fixed, total, fill=np.nan)
    inside = ~np.isnan(warped)
    return measure(pair, field, a, b, np.where(inside, warped, np.float32(12345)), inside, total)


def test_measures_do_not_depend_on_the_offset_and_losing_overlap_is_no_gain(shifted) -> None:
    at_zero, as_ct, away = (numbers_of(shifted, *how) for how in ((0, 3), (-1064, 3), (0, 60)))
    for key in ("ncc_before", "ncc_after", "mi_before", "mi_after"):
        assert at_zero[key] == pytest.approx(as_ct[key], abs=5e-3)
    assert 0 < away["ncc_after"] + 1 < away["ncc_before"] + 1 - 0.3  # most of the moving image is out of view
    assert away["mi_after"] < away["mi_before"]
    assert away["compared_percent"] > 20


@pytest.mark.parametrize("also", [False, True])
def test_a_ct_is_filled_with_its_own_air(
    tmp_path, run_cli, tiny_model, shifted, write_nifti, sitk_resample, also
) -> None:
    fixed, moving, first, second = shifted
    ct = second - 40 - 1024
    paths = [
        write_nifti(tmp_path / "fix.nii.gz", (first - 1064).astype(np.float32), fixed.world_from_vox),
        write_nifti(tmp_path / "mov.nii.gz", ct.astype(np.float32), moving.world_from_vox),
    ]
    write_nifti(tmp_path / "mr.nii.gz", (second - 40).astype(np.float32), moving.world_from_vox)
    line = ["register", *paths, "-m", tiny_model(init="none").path, "-o", tmp_path / "out", "--overwrite"]
    extra = ["--also", tmp_path / "mr.nii.gz"] if also else []
    code, out, err = run_cli([*line, *extra])
    assert code == 0, err
    record = json.loads((tmp_path / "out/mov_to_fix.json").read_text())
    assert record["options"]["fill"] == "auto"
    fill = record["fill"]["moving"]
    assert fill["value"] == pytest.approx(-1024, abs=12)
    assert f"{fill['value']:g} ({fill['found']})" in out
    transform = sitk.DisplacementFieldTransform(
        sitk.ReadImage(str(tmp_path / "out/mov_to_fix_Warp.nii.gz"), sitk.sitkVectorFloat64)
    )
    pair = [sitk.ReadImage(str(path)) for path in (paths[1], paths[0])]
    warped = nib.load(tmp_path / "out/mov_to_fix_warped.nii.gz").get_fdata()
    expected = sitk_resample(*pair, transform, fill=fill["value"])
    np.testing.assert_allclose(warped, expected, atol=1)
    assert (warped == np.float32(fill["value"])).mean() > 0.2
    if also:
        assert record["fill"]["also"]["value"] == 0
        other = nib.load(tmp_path / "out/mov_to_fix_warped_mr.nii.gz").get_fdata()
        assert (other == 0).mean() > 0.2
        return
    code, out, _ = run_cli([*line, "--fill", "5"])
    again = json.loads((tmp_path / "out/mov_to_fix.json").read_text())
    assert (code, again["fill"]["moving"]) == (0, {"value": 5.0, "found": "given"})
    same = {key: value for key, value in record["metrics"].items() if key.startswith(("ncc", "mi_"))}
    assert {key: again["metrics"][key] for key in same} == same


@pytest.mark.skipif(not FAULTS.is_dir(), reason="../shared/faults is not here")
def test_the_ct_of_a_pair_measures_as_its_mr(run_cli, tmp_path, tiny_model) -> None:
    folder, numbers = FAULTS / "ct_pair", {}
    model = tiny_model(init="header").path
    for kind in ("mr", "ct"):
        pair = [folder / f"{name}_{kind}.nii.gz" for name in ("fixed", "moving")]
        code, _, err = run_cli(["register", *pair, "-m", model, "-o", tmp_path / kind])
        assert code == 0, err
        record = json.loads(next((tmp_path / kind).glob("*_to_*.json")).read_text())
        assert record["fill"]["moving"]["value"] == (0 if kind == "mr" else -1024)
        numbers[kind] = record["metrics"]
    for key in ("ncc_before", "ncc_after", "mi_before", "mi_after"):
        assert numbers["ct"][key] == pytest.approx(numbers["mr"][key], abs=1e-5)


def test_refinement_sees_a_bright_background_as_it_sees_a_dark_one(make_grid, world_image) -> None:
    """Inverted images, white around: their local correlation is the same, so the field is, at the faces too."""
    grid = make_grid("RAS", (18, 20, 16), (4, 4, 4))
    unit = world_image(grid) / 1500
    other = np.roll(unit, 1, axis=0)
    field = np.zeros((3, *grid.shape), np.float32)
    options = Options(refinement=Refinement.at_most(3, 1))
    found = []
    for pair in (
        PreparedPair(unit, other, grid, np.eye(4), 1.0, 0.0),
        PreparedPair(1 - unit, 1 - other, grid, np.eye(4), 1.0, 0.0, empty=(1.0, 1.0)),
    ):
        all_of_it = SimpleNamespace(grid=grid)
        inputs = SimpleNamespace(moving=all_of_it, fixed=all_of_it)
        prepared = SimpleNamespace(options=options, inputs=inputs, pair=pair, clock=Clock())
        prepared.expects = SimpleNamespace(spacing_mm=(4, 4, 4))
        refined = _refine(prepared, field)
        assert refined is not None
        found.append(refined.field)
    assert np.abs(found[0]).max() > 0.2
    np.testing.assert_allclose(found[1], found[0], atol=5e-3)
