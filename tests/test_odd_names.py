"""Names that hold bytes which are no text, and letters that the locale does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from batches import write_subjects

from ofg_deploy.errors import InputError
from ofg_deploy.transform import itk
from ofg_deploy.transform.dialects import load_linear

ROOT = Path(__file__).parents[1]
LATIN = os.fsdecode(b"M\xfcller")  # as an old scanner writes Mueller with two dots
UTF_8 = os.fsdecode("Jörg".encode())
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # ASCII is all there is


def ofg(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    code = "from ofg_deploy.cli import main; main()"
    line = [sys.executable, "-c", code, *(os.fsencode(str(each)) for each in arguments)]
    given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(line, capture_output=True, check=False, env=given, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def scans(tmp_path, make_grid, world_image) -> Path:
    """Three scans in a folder: of an odd name, one in letters of UTF-8, a plain one."""
    folder = write_subjects(tmp_path / LATIN / "images", 4, make_grid, world_image)
    for number, name in enumerate((LATIN, UTF_8)):
        (folder / f"s{number}.nii.gz").rename(folder / f"{name}.nii.gz")
    (folder / "s2.nii.gz").rename(folder.parent / "atlas.nii.gz")
    return folder


@pytest.mark.parametrize("locale", [{}, PLAIN_C], ids=["UTF-8", "C"])
def test_a_batch_and_all_that_follows(tmp_path, scans, tiny_model, locale) -> None:
    out, atlas = tmp_path / LATIN / "out", scans.parent / "atlas.nii.gz"
    line = ["register", atlas, scans, "-m", tiny_model().path, "-o", out, "--init", "centre", "--format", "itk-h5"]
    done = ofg(*line, "--report", **locale)
    assert done.returncode == 0, done.stderr
    names = {LATIN, UTF_8, "s3"}
    written = {path.name for path in out.iterdir()}
    for name in names:
        base = f"{name}_to_atlas"
        made = {f"{base}{end}" for end in (".json", "_warped.nii.gz", "_Warp.nii.gz", "_0GenericAffine.mat")}
        assert {*made, f"{base}_Composite.h5"} <= written, sorted(map(os.fsencode, written))
        record = json.loads((out / f"{base}.json").read_text(encoding="ascii"))
        assert all((out / each).is_file() for each in record["outputs"].values()) or locale
    again = ofg(*line, "--resume", **locale)
    assert again.returncode == 0, again.stderr
    assert b"3 done before" in again.stdout
    assert ofg("report", out, "-o", tmp_path / "r.html", **locale).returncode == 0
    for name in ("_0GenericAffine.mat", "_Composite.h5"):
        transform, carried = out / f"{LATIN}_to_atlas{name}", tmp_path / f"{LATIN}{name}.nii.gz"
        done = ofg("apply", scans / f"{LATIN}.nii.gz", "-r", atlas, "-t", transform, "-o", carried, **locale)
        assert done.returncode == 0, done.stderr
    warped = nib.load(out / f"{LATIN}_to_atlas_warped.nii.gz").get_fdata()
    np.testing.assert_allclose(nib.load(carried).get_fdata(), warped, atol=0.02 * warped.max())
    table = tmp_path / "pairs.csv"
    labels = tmp_path / LATIN / f"{LATIN}.nii.gz"
    image = nib.load(atlas)
    nib.save(nib.Nifti1Image((image.get_fdata() > 300).astype(np.uint8), image.affine), labels)
    table.write_bytes(b"fixed_labels,moving_labels\n" + os.fsencode(f"{labels},{labels}\n"))
    done = ofg("eval", table, "-o", tmp_path / LATIN / "eval", **locale)
    assert done.returncode == 3, done.stderr  # a list is UTF-8
    assert b"is not a text file" in done.stderr
    assert ofg("check", scans / f"{LATIN}.nii.gz", scans / f"{UTF_8}.nii.gz", **locale).returncode == 0


def test_itk_files_of_any_name(tmp_path, some_affine, sitk_affine) -> None:
    for name in (LATIN, UTF_8, "plain"):
        path = tmp_path / name / f"{name}.mat"
        path.parent.mkdir()
        itk.save_affine(path, some_affine)
        np.testing.assert_allclose(load_linear(path), some_affine, atol=1e-12)
        sitk.WriteTransform(sitk_affine(some_affine), str(tmp_path / "theirs.mat"))
        assert path.read_bytes() == (tmp_path / "theirs.mat").read_bytes()


@pytest.mark.parametrize("value", ["abc", "1 2 3 x 5 6 7 8 9 10 11 12", "nan"])
def test_a_composite_of_text_that_ends_its_reader(tmp_path, value) -> None:
    """SimpleITK 2.5 ends in signal 11 where a composite's part has a value that is no number."""
    path = tmp_path / "start.tfm"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: CompositeTransform_double_3_3\n#Transform 1\n"
        f"Transform: AffineTransform_double_3_3\nParameters: {value}\nFixedParameters: 0 0 0\n"
    )
    with pytest.raises(InputError, match=r"start\.tfm"):
        load_linear(path)


def test_logs_of_a_run_of_any_name(tmp_path) -> None:
    """TensorBoard takes names for UTF-8 as well; a whole run under such a name was tried by hand."""
    pytest.importorskip("torch", reason="training needs torch")
    from training_runs import tiny_config

    from ofg_deploy.train.logs import Logs
    from ofg_deploy.train.run import EpochRecord, Run

    row = EpochRecord(1, 1e-3, 0.5, 0.4, 0.1, 0.0, None, None, None, 1.0)
    with Logs(Run(tmp_path / LATIN), tiny_config(picture_every=0), 0, True) as logs:
        logs.epoch(row, lambda: None)
    [events] = (tmp_path / LATIN / "tensorboard").iterdir()
    assert events.stat().st_size > 100
