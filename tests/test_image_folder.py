"""Which files of a folder are images, and which columns a list has: one rule for register, train, data and eval."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.data.folder import describe_folder
from ofg_deploy.data.plan import Memory
from ofg_deploy.errors import InputError
from ofg_deploy.evaluate.pair import evaluate
from ofg_deploy.evaluate.pairs import Pair
from ofg_deploy.image_folder import counterpart, look_into
from ofg_deploy.metrics import dice, hd95_mm
from ofg_deploy.train.dataset import file_digest
from ofg_deploy.train.pairs import find_pairs

IMAGES = ("a.nii", "b.nii.gz", "C.NII.GZ", "d.img", "e.Nii")


@pytest.fixture
def folder(tmp_path, make_grid, world_image) -> Path:
    """Five images as people have them, and what lies beside them."""
    grid = make_grid("oblique", (17, 19, 16), (3.1, 2.6, 3.3))
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(IMAGES):
        data = (world_image(grid) + number).astype(np.float32)
        if name.endswith(".img"):
            nib.save(nib.Nifti1Pair(data, grid.world_from_vox), images / name)
        else:
            plain = images / f"tmp{'.nii.gz' if name.lower().endswith('gz') else '.nii'}"
            nib.save(nib.Nifti1Image(data, grid.world_from_vox), plain)
            plain.rename(images / name)
    for name in ("._a.nii", "._b.nii.gz", ".DS_Store", "a.json", "notes.txt", "alone.img", "half.hdr"):
        (images / name).write_bytes(b"\0\5\26\7 no image")
    (images / "more").mkdir()
    return images


def names(paths) -> set[str]:
    return {Path(path).name for path in paths}


def test_every_verb_takes_the_same_images(folder):
    found = look_into(folder)
    assert names(found.images.values()) == set(IMAGES)
    pairs = find_pairs(folder, None, 400, seed=0)
    assert names(p.fixed for p in (*pairs.training, *pairs.validation)) == set(IMAGES)
    dataset, bad = describe_folder(folder, None, 0, Memory(32 * 1024**3, "RAM"), skip_bad=False)
    assert names(s.image for s in dataset.subjects()) == set(IMAGES)
    assert not bad
    assert any("left out" in note for note in dataset.notes)


def test_what_is_left_out_is_said(folder, tmp_path, tiny_model, run_cli):
    remark = look_into(folder).remark()
    assert f"{folder}: 5 images taken, left out: 3 hidden files (the first: .DS_Store)" in remark
    assert "2 files of other kinds (the first: a.json)" in remark
    assert "1 .img files without their .hdr (the first: alone.img)" in remark
    assert "1 .hdr files without their .img (the first: half.hdr)" in remark
    assert "1 folders (the first: more)" in remark
    fixed = shutil.copy(folder / "a.nii", tmp_path / "fixed.nii")
    model = tiny_model(init="none").path
    code, _, err = run_cli(["register", fixed, folder, "-m", model, "-o", tmp_path / "out"])
    assert code == 0, err
    assert err.count(remark) == 1
    moved = {path.name for path in (tmp_path / "out").glob("*_warped.nii.gz")}
    assert moved == {f"{stem}_to_fixed_warped.nii.gz" for stem in ("a", "b", "C", "d", "e")}
    code, _, err = run_cli(["data", "folder", folder, tmp_path / "set"])
    assert code == 0, err
    for path in folder.iterdir():
        if not path.is_dir() and path.name not in IMAGES[:2]:
            path.unlink()
    code, _, err = run_cli(["train", folder, "-o", tmp_path / "run"])
    assert (code, err.count("\n")) == (3, 1)
    assert "holds 2 NIfTI images" in err


def test_two_of_one_name_are_refused_everywhere(folder):
    shutil.copy(folder / "a.nii", folder / "d.nii")
    for take in (
        lambda: look_into(folder),
        lambda: find_pairs(folder, None, 4, seed=0),
        lambda: describe_folder(folder, None, 0, Memory(2**35, "RAM"), skip_bad=True),
    ):
        with pytest.raises(InputError, match=r"both d\.img and d\.nii"):
            take()


def test_labels_may_have_another_ending(folder, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("a.nii.gz", "b.nii", "b.nii.gz", "C.nii.gz", "d.nii"):
        (labels / name).touch()
    found = {name: counterpart(labels, folder / name).name for name in IMAGES}
    assert found == {
        "a.nii": "a.nii.gz",
        "b.nii.gz": "b.nii.gz",
        "C.NII.GZ": "C.nii.gz",
        "d.img": "d.nii",
        "e.Nii": "e.Nii",
    }


def test_a_pair_of_files_is_known_by_both(folder):
    """Two headers may be the same byte for byte, and the cache of a training goes by the digest."""
    before = file_digest(folder / "d.img"), file_digest(folder / "d.hdr")
    assert before[0] == before[1]
    file_digest.cache_clear()
    header = bytearray((folder / "d.hdr").read_bytes())
    header[280] ^= 1  # srow_x
    (folder / "d.hdr").write_bytes(header)
    assert file_digest(folder / "d.img") != before[0]
    file_digest.cache_clear()


@pytest.mark.parametrize("ending", ["csv", "json"])
@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("fixed_label", "'fixed_labels'"),
        ("Fixed_Labels", "'fixed_labels'"),
        ("moving-labels", "'moving_labels'"),
        ("moving_lables", "'moving_labels'"),
        ("fixed_image", "'fixed'"),
    ],
)
def test_a_misspelt_column_is_refused_by_every_verb(tmp_path, tiny_model, run_cli, ending, column, meant) -> None:
    row = {"fixed": "a.nii", "moving": "b.nii", "transform": "", column: "c.nii"}
    source = tmp_path / f"pairs.{ending}"
    for line, without in (
        (["register", "--pairs", source, "-m", tiny_model().path, "-o", tmp_path / "out"], "transform"),
        (["train", source, "-o", tmp_path / "run"], "transform"),
        (["eval", source, "-o", tmp_path / "scores"], None),
    ):
        given = {key: value for key, value in row.items() if key != without}
        text = json.dumps([given]) if ending == "json" else ",".join(given) + "\n" + ",".join(given.values()) + "\n"
        source.write_text(text)
        code, _, err = run_cli(line)
        assert (code, err.count("\n")) == (3, 1), err
        assert f"has the column {column!r}" in err
        assert meant in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name]


def test_lists_with_spaces_and_a_comma_at_the_end(tmp_path):
    (tmp_path / "p.csv").write_text(" fixed , moving,split,\na.nii, b.nii,training,\nb.nii,a.nii,validation,\n")
    found = find_pairs(tmp_path / "p.csv", None, None, seed=0)
    assert [p.moving.name for p in found.training] == ["b.nii"]


def test_labels_below_zero_count(tmp_path, make_grid, write_nifti):
    """Against SimpleITK, which knows signed labels."""
    grid = make_grid("oblique-permuted", (17, 19, 16), (3.1, 2.6, 3.3))
    rng = np.random.default_rng(0)
    fixed = np.zeros(grid.shape, np.int16)
    fixed[3:9, 4:12, 2:9], fixed[10:14, 3:15, 5:12] = -5, 7
    moving = np.roll(fixed, 1, axis=1)
    moving[rng.random(grid.shape) < 0.02] = -5
    files = {
        "fixed_labels": write_nifti(tmp_path / "f.nii.gz", fixed, grid.world_from_vox),
        "moving_labels": write_nifti(tmp_path / "m.nii.gz", moving, grid.world_from_vox),
    }
    found = evaluate(Pair("p", None, **files), None, None)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(a.astype(np.int32)) for a in (fixed, moving)))
    assert {s.label: s.dice for s in found.labels} == pytest.approx(
        {label: overlap.GetDiceCoefficient(label) for label in (-5, 7)}
    )
    assert found.labels[0].hd95_mm == pytest.approx(hd95_mm((fixed == -5) * 1, (moving == -5) * 1, grid.spacing_mm)[1])
    assert dice(fixed, moving).keys() == {-5, 7}
