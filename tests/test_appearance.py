"""What training images look like: recorded with the weights, and compared by ``ofg check``."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.appearance import EDGE, Appearance, likeness, thumbnail
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import Intensity, NetworkInput

SPACING = (3.9, 4.3, 3.6)
EXPECTS = NetworkInput((24, 20, 22), SPACING, Intensity("minmax"), "none")


@pytest.fixture
def volume(make_grid, world_image, tmp_path):
    """(name of an orientation) -> the anatomy there, its field of view larger than the network's."""

    def make(orientation: str, shape=(40, 36, 38)) -> Volume:
        grid = make_grid(orientation, shape, (3.0, 3.3, 3.1), (2.0, -1.0, 3.0))
        return Volume(world_image(grid), grid, tmp_path / orientation)

    return make


def test_a_thumbnail_is_block_means_in_the_world(volume, to_sitk):
    """Against SimpleITK: resampled onto the network's axes, then averaged over blocks by hand."""
    image = volume("RAS")
    found = thumbnail(image, replace(EXPECTS, shape=(24, 16, 40)))
    unit = (image.data - image.data.min()) / np.ptp(image.data)
    # Voxels of the network's grid coincide with none of the image's: its centre is that of the field of view.
    centre = (
        image.grid.world_from_vox[:3, :3] @ ((np.array(image.grid.shape) - 1) / 2) + image.grid.world_from_vox[:3, 3]
    )
    reference = sitk.Image(24, 16, 40, sitk.sitkFloat32)
    first = centre - (np.array([24, 16, 40]) - 1) / 2 * SPACING
    reference.SetSpacing(SPACING)
    reference.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    reference.SetOrigin((-first[0], -first[1], first[2]))
    seen = sitk.Resample(to_sitk(unit, image.grid), reference, sitk.Transform(), sitk.sitkLinear)
    blocks = sitk.GetArrayFromImage(seen).transpose(2, 1, 0).reshape(8, 3, 8, 2, 8, 5).mean(axis=(1, 3, 5))
    known = np.isfinite(found)
    assert known[:, :, 1:7].all()
    assert not known[:, :, [0, 7]].any(), "the grid reaches beyond the image along z"
    inner = (slice(1, 7), slice(1, 7), slice(2, 6))
    assert found[inner] == pytest.approx(blocks[inner], abs=2e-3)


@pytest.mark.parametrize("orientation", ["LPS", "oblique-permuted", "left-handed"])
def test_thumbnails_do_not_depend_on_how_a_file_lies(volume, orientation):
    there = thumbnail(volume(orientation), EXPECTS)
    assert likeness(thumbnail(volume("RAS"), EXPECTS), there) > (0.99 if orientation == "LPS" else 0.5)
    image = volume(orientation)
    inverted = replace(image, data=image.data.max() - image.data)
    assert likeness(there, thumbnail(inverted, EXPECTS)) < -0.9


def test_what_is_not_known_is_no_likeness():
    some = np.full((EDGE,) * 3, np.nan, np.float32)
    assert np.isnan(likeness(some, some))
    some[:4] = 0.5
    assert np.isnan(likeness(some, some)), "nothing varies"


def test_a_record_reads_back_to_half_a_step():
    rng = np.random.default_rng(3)
    thumbnails = rng.uniform(0, 1, (7, EDGE, EDGE, EDGE)).astype(np.float32)
    thumbnails[:5, 2] = np.nan  # most of them show nothing there
    thumbnails[:2, 5] = np.nan
    known = Appearance.of(np.array([True, False, True, True, True, True, True]), thumbnails)
    read = Appearance.from_record(json.loads(json.dumps(known.to_record())))
    assert read is not None
    assert read.stripped == pytest.approx(6 / 7, abs=1e-4)
    assert np.isnan(read.mean[2]).all()
    assert read.mean[5] == pytest.approx(thumbnails[2:, 5].mean(axis=0), abs=0.5 / 254)
    one_by_one = [
        np.corrcoef(t[np.isfinite(t + known.mean)], known.mean[np.isfinite(t + known.mean)])[0, 1] for t in thumbnails
    ]
    assert read.likeness == pytest.approx((np.mean(one_by_one), np.std(one_by_one)), abs=1e-4)


@pytest.mark.parametrize("record", [None, {}, "text", {"stripped": 0, "mean": "AAAA", "likeness": [1, 0]}])
def test_models_without_it_are_fine(record):
    assert Appearance.from_record(record) is None


def test_check_compares_with_the_training_images(volume, tiny_model, write_nifti, run_cli, tmp_path):
    trained = [volume(name) for name in ("RAS", "LAS", "LPS", "oblique")]
    seen = Appearance.of(np.zeros(4, bool), np.array([thumbnail(v, EXPECTS) for v in trained]))
    model = tiny_model(EXPECTS.shape, SPACING, training={"images": seen.to_record()}).path
    image = volume("oblique", (41, 35, 37))
    noise = np.random.default_rng(5).uniform(1, 30, image.grid.shape).astype(np.float32)
    kinds = {
        "alike": image.data + noise,
        "inverted": image.data.max() - image.data + noise,
        "stripped": np.where(image.data > 250, image.data, 0),
    }
    files = [write_nifti(tmp_path / f"{kind}.nii.gz", data, image.grid.world_from_vox) for kind, data in kinds.items()]
    said = {}
    for file in files:
        code, out, _ = run_cli(["check", "--json", "-m", model, file])
        assert code == 0
        abouts = [f["about"] for f in json.loads(out)["files"][0]["findings"]]
        said[file.name] = [about for about in abouts if about != "grid"]  # the noise reaches beyond it
    assert said == {"alike.nii.gz": [], "inverted.nii.gz": ["contrast"], "stripped.nii.gz": ["skull"]}
