"""What ``ofg check`` does not guess but asks for, and the command lines it names."""

from __future__ import annotations

import json
import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.errors import InputError, without_addresses

SHARED = Path(__file__).resolve().parents[2] / "shared/faults"
MICRONS = {"um": 1e-3, "mm": 1.0, "m": 1e3}


def findings(run_cli, *arguments: object) -> tuple[int, dict]:
    code, out, _ = run_cli(["check", "--json", *arguments])
    return code, json.loads(out)["files"][0]


def scan(path: Path, world_image, grid, code: int, scale: float = 1.0) -> Path:
    """A header in another unit, which it names by this code."""
    affine = np.diag([scale, scale, scale, 1]) @ grid.world_from_vox
    image = nib.Nifti1Image(world_image(grid), affine)
    image.set_qform(affine, 1)
    image.header["xyzt_units"] = code
    nib.save(image, path)
    return path


@pytest.fixture
def grid(make_grid):
    return make_grid("oblique", (24, 20, 17), (2.4, 3.1, 3.6), (5.0, -4.0, 3.0))


@pytest.mark.parametrize("code", [0, 1, 3, 7])
def test_a_doubtful_unit_is_asked_for_and_never_guessed(tmp_path, grid, world_image, run_cli, code) -> None:
    """mm in a header that names no unit, or metres, microns or an unknown one: sizes that nobody has."""
    path = scan(tmp_path / "it's a scan.nii.gz", world_image, grid, code)
    status, record = findings(run_cli, path, "--fix", tmp_path / "fixed")
    [unit] = [f for f in record["findings"] if f["about"] == "units"]
    assert (record["copy"], unit["mended"], status) == (None, False, 0 if code == 0 else 3)
    line = shlex.split(unit["command"])
    assert line[:4] == ["ofg", "check", str(path), "--unit"]
    for name, factor in MICRONS.items():
        folder = tmp_path / name
        status, record = findings(run_cli, path, "--unit", name, "--fix", folder)
        assert status == 0, record
        copy = nib.load(record["copy"])
        np.testing.assert_allclose(copy.affine, np.diag([factor] * 3 + [1]) @ grid.world_from_vox, rtol=1e-5, atol=1e-5)
        assert copy.header.get_xyzt_units()[0] == "mm"
        size = sitk.ReadImage(record["copy"]).GetSpacing()
        np.testing.assert_allclose(size, np.array(grid.spacing_mm) * factor, rtol=1e-5)


def test_another_fault_is_mended_without_stating_a_unit(tmp_path, grid, world_image, run_cli) -> None:
    path = scan(tmp_path / "a.nii", world_image, grid, 0)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<h", raw, 252, 0)  # qform_code
    path.write_bytes(raw)
    status, record = findings(run_cli, path, "--fix", tmp_path / "fixed")
    assert status == 0
    assert nib.load(record["copy"]).header.get_xyzt_units()[0] == "unknown"
    path = scan(tmp_path / "b.nii", world_image, grid, 3)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<h", raw, 252, 0)
    path.write_bytes(raw)
    assert findings(run_cli, path, "--fix", tmp_path / "more")[1]["copy"] is None


def test_a_unit_that_makes_a_usual_size_is_believed(tmp_path, grid, world_image, run_cli) -> None:
    path = scan(tmp_path / "a.nii.gz", world_image, grid, 3, 1e3)
    status, record = findings(run_cli, path, "--fix", tmp_path / "fixed")
    assert status == 0
    np.testing.assert_allclose(nib.load(record["copy"]).affine, grid.world_from_vox, atol=1e-4)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/faults is not here")
def test_a_fly_s_brain_stays_a_fly_s(tmp_path, run_cli) -> None:
    path = SHARED / "micrometre_header/confocal.nii.gz"
    status, out, _ = run_cli(["check", path, "--fix", tmp_path / "guessed"])
    assert status == 3
    assert f"ofg check {path} --unit um --fix corrected" in out.splitlines()
    assert not (tmp_path / "guessed").exists()
    status, record = findings(run_cli, path, "--unit", "um", "--fix", tmp_path / "fixed")
    assert status == 0
    image = sitk.ReadImage(record["copy"])
    assert image.GetSize()[0] * image.GetSpacing()[0] == pytest.approx(0.624, rel=1e-4)


def other_formats(folder: Path, image: sitk.Image) -> dict[str, Path]:
    """The same image as other tools write it; as DICOM in a folder of slices."""
    found = {}
    for name in ("it's.nrrd", "a b.mha", "c.mhd"):
        found[name] = folder / name
        sitk.WriteImage(image, str(folder / name))
    mgz = nib.MGHImage(np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0)), np.eye(4))
    nib.save(mgz, folder / "d.mgz")
    slices = folder / "slices"
    slices.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for n in range(image.GetDepth()):
        plane = sitk.Cast(image[:, :, n], sitk.sitkInt16)
        position = "\\".join(f"{v:.6f}" for v in image.TransformIndexToPhysicalPoint((0, 0, n)))
        cosines = "\\".join(f"{direction[i]:.9f}" for i in (0, 3, 6, 1, 4, 7))
        tags = {"0008|0060": "MR", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0020|0032": position}
        tags |= {"0020|0037": cosines, "0020|0013": str(n), "0008|0018": f"1.2.3.4.{n + 1}", "0020|0052": "1.2.9"}
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(slices / f"{n:03d}.dcm"))
        writer.Execute(plane)
    (slices / "000.dcm").rename(slices / "IM0")  # as scanners name them
    return {**found, "d.mgz": folder / "d.mgz", "slice": slices / "IM0", "slices": slices}


def test_the_commands_for_other_formats_work(tmp_path, grid, world_image, to_sitk, run_cli) -> None:
    image = sitk.Cast(to_sitk(world_image(grid), grid), sitk.sitkInt16)
    (tmp_path / "in").mkdir()
    for name, path in other_formats(tmp_path / "in", image).items():
        status, out, _ = run_cli(["check", path])
        assert status == 3
        [line] = [line for line in out.splitlines() if line.startswith("python -c ")]
        command = shlex.split(line)
        assert len(command) == 3
        folder = tmp_path / f"out {name}"
        folder.mkdir()
        done = subprocess.run([sys.executable, *command[1:]], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, done.stderr)
        found = nib.load(folder / "volume.nii.gz")
        expected = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        if name == "d.mgz":
            np.testing.assert_array_equal(found.dataobj, expected)
            continue
        # A reader of slices may order them the other way round: the world decides.
        back = sitk.Resample(sitk.ReadImage(str(folder / "volume.nii.gz")), image, sitk.Transform(), sitk.sitkLinear)
        np.testing.assert_allclose(
            sitk.GetArrayFromImage(back).transpose(2, 1, 0)[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=2
        )


def test_commands_are_whole_on_a_narrow_terminal(tmp_path, run_cli, monkeypatch, write_nifti, grid) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("long name " * 8)
    folder.mkdir()
    path = write_nifti(folder / "bold.nii.gz", np.ones((24, 20, 17, 3), np.int16), grid.world_from_vox)
    _, out, _ = run_cli(["check", path])
    [line] = [line for line in out.splitlines() if line.startswith("python -c ")]
    command = shlex.split(line)
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, env=environment)
    assert nib.load(tmp_path / "volume.nii.gz").shape == (24, 20, 17)


def test_no_message_names_a_place_in_memory() -> None:
    for text, expected in (
        ("read <_io.BytesIO object at 0x7f1c9a3b> twice", "read <_io.BytesIO object> twice"),
        ("ITK ERROR: NiftiImageIO(0x55d3f2a8e0): no", "ITK ERROR: NiftiImageIO: no"),
        ("scan_0x7f1c9a3b.nii and 0x7f1c9a3b.nii at 0x7f1c", "scan_0x7f1c9a3b.nii and 0x7f1c9a3b.nii at 0x7f1c"),
    ):
        assert without_addresses(text) == expected
        assert str(InputError(text)) == expected
