"""What is a label map, and what becomes of it and of 4-D series in ``ofg apply`` and ``--also``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree

from ofg_deploy.label_map import label_map_by
from ofg_deploy.transform import itk

SHARED = Path(__file__).resolve().parents[2] / "shared"
SHAPE = (36, 30, 33)
X = Path("x.nii.gz")


def smooth(seed: int = 0) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2.5)
    return (field - field.min()) / np.ptp(field)


def parcels(count: int) -> np.ndarray:
    """Regions nearest to one of so many seeds, in an ellipsoid; numbers with gaps."""
    rng = np.random.default_rng(count)
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    nearest = cKDTree(rng.uniform(0, SHAPE, (count, 3))).query(index)[1]
    inside = (((index - np.array(SHAPE) / 2) / (np.array(SHAPE) / 2.2)) ** 2).sum(axis=-1) < 1
    return np.where(inside, 1000 + 7 * nearest, 0)


def images() -> dict[str, tuple[np.ndarray, bool]]:
    grey = smooth()
    mask = (grey > 0.5).astype(np.uint8)
    return {
        "mask": (mask, True),
        "mask of 255": (mask * np.uint8(255), True),
        "scattered, three labels": (np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.int16), True),
        "parcels as float": (parcels(60).astype(np.float32), True),
        "parcels": (parcels(40).astype(np.int16), True),
        "all 0": (np.zeros(SHAPE, np.uint8), True),
        "eight bits": ((grey * 255).astype(np.uint8), False),
        "six bits": ((grey * 63).astype(np.uint8), False),
        "CT": ((grey * 2000 - 1000).astype(np.int16), False),
        "CT, mostly air": (np.where(grey > 0.7, grey * 2000, -1024).astype(np.int16), False),
        "two values, one negative": (np.where(mask, 1000, -1000).astype(np.int16), False),
        "counts": (np.random.default_rng(0).poisson(3, SHAPE).astype(np.int16), False),
        "probabilities": (grey.astype(np.float32), False),
        "fractions of a mask": (gaussian_filter(mask.astype(np.float32), 1), False),
    }


@pytest.mark.parametrize("name", images())
def test_what_is_a_label_map(name: str) -> None:
    data, labels = images()[name]
    assert bool(label_map_by(X, 0, data)) == labels
    assert bool(label_map_by(X, 0, data.astype(np.float32))) == labels


def test_header_and_name_decide_where_all_are_whole_numbers() -> None:
    image, fractions = images()["six bits"][0], images()["probabilities"][0]
    assert label_map_by(X, 1002, image) == "intent NIFTI_INTENT_LABEL"
    assert label_map_by(X, 1003, image) == "intent NIFTI_INTENT_NEURONAME"
    assert "_dseg" in label_map_by(Path("sub-01_desc-aseg_dseg.nii.gz"), 0, image)
    assert "_mask" in label_map_by(Path("sub-01_mask.nii"), 0, images()["mask"][0])
    assert not label_map_by(Path("T1_mask.nii.gz"), 0, image)  # an image in a mask
    for path, intent in ((X, 1002), (Path("a_dseg.nii.gz"), 0)):
        assert not label_map_by(path, intent, fractions)
    assert not label_map_by(X, 1005, image)


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="../shared/data is not here")
def test_every_fourth_hippocampus_and_some_brains_are_judged_right() -> None:
    """By their voxels alone, under a name that says nothing."""
    judged = 0
    for folder, labels in (("images", False), ("labels", True)):
        for path in sorted((SHARED / "data/hippocampus" / folder).glob("*.nii.gz"))[::4]:
            assert bool(label_map_by(X, 0, np.asarray(nib.load(path).dataobj))) == labels, path
            judged += 1
    for path in sorted((SHARED / "data/brain_label_maps").glob("*.nii.gz"))[:2]:
        assert label_map_by(X, 0, np.asarray(nib.load(path).dataobj)[::2, ::2, ::2])
    for name, labels in (("seg", True), ("vol", False)):
        data = np.asarray(nib.load(SHARED / f"data/brain_t1/test_scan_{name}.nii.gz").dataobj)
        assert bool(label_map_by(X, 0, data[40:-40])) == labels
    assert judged > 50


class Scene:
    """A reference, an affine, and how SimpleITK carries an image through it."""

    def __init__(self, folder: Path, make_grid, world_image, write_nifti, affine: np.ndarray) -> None:
        self.folder, self.affine, self.out = folder, folder / "a.mat", folder / "out.nii.gz"
        self.moving = make_grid("left-handed", SHAPE, (2.1, 2.6, 2.3), (3.0, 1.0, -2.0))
        fixed = make_grid("oblique", (19, 22, 17), (3.6, 3.1, 4.0), (1.0, -2.0, 1.5))
        self.fixed = write_nifti(folder / "fix.nii.gz", world_image(fixed), fixed.world_from_vox)
        itk.save_affine(self.affine, affine)

    def save(self, name: str, data: np.ndarray, step: float = 0.0, intent: int = 0) -> Path:
        image = nib.Nifti1Image(data, self.moving.world_from_vox)
        image.set_sform(self.moving.world_from_vox, 1)
        image.set_qform(self.moving.world_from_vox, 1)
        image.header.set_xyzt_units("mm", "msec" if step else None)
        if step:
            image.header["pixdim"][4], image.header["toffset"] = step, 120.5
        image.header["intent_code"] = intent
        nib.save(image, self.folder / name)
        return self.folder / name

    def line(self, image: Path, *more: object) -> list[object]:
        return ["apply", image, "-t", self.affine, "-r", self.fixed, "-o", self.out, "--overwrite", *more]

    def expected(self, data: np.ndarray, to_sitk, nearest: bool, fill: float = 0.0) -> np.ndarray:
        method = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
        arguments = (sitk.ReadImage(str(self.fixed)), sitk.ReadTransform(str(self.affine)), method, fill)
        return sitk.GetArrayFromImage(sitk.Resample(to_sitk(data, self.moving), *arguments)).transpose(2, 1, 0)

    def result(self) -> np.ndarray:
        return np.asarray(nib.load(self.out).dataobj)

    def record(self) -> dict:
        return json.loads(self.out.with_name("out.json").read_text())


@pytest.fixture
def scene(tmp_path, make_grid, world_image, write_nifti, some_affine) -> Scene:
    return Scene(tmp_path, make_grid, world_image, write_nifti, some_affine)


def test_a_label_map_is_not_interpolated_unless_asked(scene, run_cli, to_sitk) -> None:
    data = parcels(12).astype(np.int16)
    image = scene.save("atlas.nii.gz", data)
    code, out, err = run_cli(scene.line(image))
    assert (code, err) == (0, "")
    assert "atlas.nii.gz: interpolation nearest, as for a label map (whole numbers, 12 different values)" in out
    np.testing.assert_array_equal(scene.result(), scene.expected(data, to_sitk, True))
    assert scene.result().dtype == np.int16
    record = scene.record()
    assert (record["interpolation"], record["fill"]) == ("nearest", 0)
    assert record["interpolation_found"].startswith("whole numbers")
    assert run_cli(scene.line(image, "--interpolation", "linear"))[0] == 0
    linear = scene.expected(data.astype(np.float64), to_sitk, False)
    np.testing.assert_allclose(scene.result(), linear, atol=0.5)
    assert np.unique(scene.result()).size > 300
    assert scene.record()["interpolation_found"] is None


def test_a_named_label_map_with_fractions_is_said(scene, run_cli) -> None:
    image = scene.save("a_dseg.nii.gz", smooth().astype(np.float32))
    code, _, err = run_cli(scene.line(image))
    assert code == 0
    assert "a_dseg.nii.gz: a label map by name or intent, but with fractions: taken for an image" in err
    assert scene.record()["interpolation"] == "linear"


def series(dtype: type) -> np.ndarray:
    return np.stack([(smooth(n) * 900 + 40 * n).astype(dtype) for n in range(4)], axis=-1)


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_a_series_goes_volume_by_volume(scene, run_cli, to_sitk, kind) -> None:
    data = series(np.float32)
    if kind == "labels":
        data = np.stack([np.roll(parcels(9), n, axis=1) for n in range(4)], axis=-1).astype(np.uint16)
    image = scene.save("series.nii.gz", data, step=2150.0)
    code, out, err = run_cli(scene.line(image, "--fill", "7"))
    assert (code, err) == (0, "")
    found = nib.load(scene.out)
    assert found.shape == (19, 22, 17, 4)
    assert found.header.get_zooms()[3] == 2150.0
    assert found.header.get_xyzt_units() == ("mm", "msec")
    assert float(found.header["toffset"]) == 120.5
    np.testing.assert_allclose(found.affine, nib.load(scene.fixed).affine, atol=1e-5)
    for n in range(4):
        expected = scene.expected(data[..., n], to_sitk, kind == "labels", 7)
        np.testing.assert_allclose(scene.result()[..., n], expected, atol=0 if kind == "labels" else 0.05)
    assert ("interpolation nearest" in out) == (kind == "labels")
    assert scene.record()["volumes"] == 4
    assert scene.result().dtype == data.dtype


def test_a_series_is_read_one_volume_at_a_time(scene, run_cli, monkeypatch) -> None:
    """The limit is that of a volume, and no more than one is ever asked for."""
    from ofg_deploy.nifti_file import NiftiFile

    asked, next_voxels = [], NiftiFile._next
    monkeypatch.setattr(
        NiftiFile, "_next", lambda self, s, size, d: asked.append(size) or next_voxels(self, s, size, d)
    )
    image = scene.save("series.nii.gz", series(np.int16), step=1)
    size = int(np.prod(SHAPE))
    assert run_cli(scene.line(image, "--max-voxels", size))[0] == 0
    assert asked == [size] * 5  # the first one also decides how all are treated
    code, _, err = run_cli(scene.line(image, "--max-voxels", size - 1))
    assert code == 3
    assert "more than --max-voxels" in err


def test_series_that_cannot_be_carried(scene, run_cli) -> None:
    good = series(np.float32)
    holed = good.copy()
    holed[3, 4, 5, 2] = np.nan
    labels = np.stack([parcels(9), parcels(9) * 0.5], axis=-1)
    colours = np.zeros((*SHAPE, 3), [(c, "u1") for c in "RGB"])
    for name, data, intent, said in (
        ("five", good[:, :, :, None, :], 0, "one 3-D volume"),
        ("holed", holed, 0, "1 NaN or infinite voxels"),
        ("half", labels, 0, "fractional values"),
        ("warp", good[..., :3], 2006, "turn with the map"),
        ("colours", colours, 0, "scalar image"),
    ):
        image = scene.save(f"{name}.nii.gz", data, intent=intent)
        code, _, err = run_cli(scene.line(image))
        assert (code, len(err.splitlines())) == (3, 1), name
        assert said in err
        assert not scene.out.exists()
    whole = scene.save("whole.nii.gz", good, step=1)
    cut = scene.folder / "cut.nii"
    cut.write_bytes(nib.Nifti1Image.from_filename(whole).to_bytes()[:-99])
    code, _, err = run_cli(scene.line(cut))
    assert (code, len(err.splitlines())) == (3, 1)
    assert "truncated" in err
    assert not scene.out.exists()


def test_what_goes_along_with_a_registration(tmp_path, files, tiny_model, run_cli, write_nifti, sitk_resample) -> None:
    """A series and an atlas by ``--also``; the images themselves stay single volumes."""
    fixed, moving, _, grid = files
    one = nib.load(moving).get_fdata()
    bold = np.stack([one + 9 * n for n in range(3)], axis=-1).astype(np.float32)
    atlas = (zoom(one, 1, order=0) // 300).astype(np.int16)
    image = nib.Nifti1Image(bold, grid.world_from_vox)
    image.set_qform(grid.world_from_vox, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 1.75
    nib.save(image, tmp_path / "bold.nii.gz")
    write_nifti(tmp_path / "atlas.nii.gz", atlas, grid.world_from_vox)
    model, out = tiny_model(init="header").path, tmp_path / "out"
    line = ["register", fixed, moving, "-m", model, "-o", out, "--fill", "0", "--overwrite"]
    code, said, err = run_cli([*line, "--also", tmp_path / "bold.nii.gz", "--also", tmp_path / "atlas.nii.gz"])
    assert code == 0, err
    assert "atlas.nii.gz: interpolation nearest" in said
    found = nib.load(out / "mov_to_fix_warped_bold.nii.gz")
    assert found.header.get_zooms()[3] == 1.75
    assert found.header.get_xyzt_units() == ("mm", "sec")
    warp = sitk.ReadImage(str(out / "mov_to_fix_Warp.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(warp)
    reference = sitk.ReadImage(str(fixed))
    stack = sitk.ReadImage(str(tmp_path / "bold.nii.gz"))
    for n in range(3):
        volume = sitk.Extract(stack, [*stack.GetSize()[:3], 0], [0, 0, 0, n])
        expected = sitk_resample(volume, reference, transform)
        np.testing.assert_allclose(found.get_fdata()[..., n], expected, atol=0.5)
    expected = sitk_resample(sitk.ReadImage(str(tmp_path / "atlas.nii.gz")), reference, transform, nearest=True)
    np.testing.assert_array_equal(np.asarray(nib.load(out / "mov_to_fix_warped_atlas.nii.gz").dataobj), expected)
    record = json.loads((out / "mov_to_fix.json").read_text())
    assert record["interpolation"]["also"] == {"method": "linear", "found": None, "volumes": 3}
    assert record["interpolation"]["also_2"]["method"] == "nearest"
    assert run_cli([*line, "--also", tmp_path / "atlas.nii.gz", "--interpolation", "linear"])[0] == 0
    assert np.unique(nib.load(out / "mov_to_fix_warped_atlas.nii.gz").get_fdata()).size > 50
    shutil.rmtree(out)
    for pair in ((tmp_path / "bold.nii.gz", moving), (fixed, tmp_path / "bold.nii.gz")):
        code, _, err = run_cli(["register", *pair, "-m", model, "-o", out])
        assert (code, len(err.splitlines())) == (3, 1)
        assert "one 3-D volume is needed" in err
