"""The header doctor: each finding on a file made for it, each copy against SimpleITK and nibabel."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hostile_nifti import GZIP, mutate, no_hang, seeds

from ofg_deploy.check.examine import examine
from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import load_image, save_volume
from ofg_deploy.nifti_file import MAX_VOXELS
from ofg_deploy.preprocess import Intensity

SHAPE = (24, 20, 17)


@pytest.fixture
def grid(make_grid):
    return make_grid("oblique-permuted", SHAPE, (2.4, 3.1, 3.6), (3.0, -2.0, 5.0))


@pytest.fixture
def path(tmp_path, grid, world_image, write_nifti) -> Path:
    """A file with nothing wrong, uncompressed, to be damaged."""
    return write_nifti(tmp_path / "image.nii", np.round(world_image(grid)).astype(np.int16), grid.world_from_vox)


def patch(path: Path, offset: int, layout: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(content)
    return path


def check(run_cli, *arguments: object) -> tuple[int, list[dict], str]:
    """Exit code, the records of the files and stderr of ``ofg check --json``."""
    code, out, err = run_cli(["check", "--json", *arguments])
    return code, json.loads(out)["files"], err


def found(record: dict, about: str) -> dict:
    matching = [f for f in record["findings"] if f["about"] == about]
    assert len(matching) == 1, record["findings"]
    return matching[0]


def world_of(path: Path) -> np.ndarray:
    """Of some voxels, by SimpleITK, in RAS mm."""
    image = sitk.ReadImage(str(path))
    corners = [(0, 0, 0), (SHAPE[0] - 1, 0, 0), (0, SHAPE[1] - 1, 0), (3, 4, SHAPE[2] - 1)]
    return np.array([image.TransformIndexToPhysicalPoint(c) for c in corners]) * [-1, -1, 1]


def test_a_good_file_has_no_findings(path, grid, run_cli):
    code, [record], err = check(run_cli, path)
    assert (code, err) == (0, "")
    assert record["findings"] == []
    assert record["shape"] == list(SHAPE)
    assert record["orientation"] == grid.orientation
    assert record["copy"] is None


SROW, CODES, UNITS, PIXDIM, QUATERN = 280, 252, 123, 80, 256


def shifted(path: Path) -> Path:
    return patch(path, 268, "<f", struct.unpack_from("<f", path.read_bytes(), 268)[0] + 5.0)  # qoffset_x


HEADERS = {
    "forms disagree": (shifted, "orientation", "warning", "disagree by up to 5.00 mm", True),
    "neither form": (lambda p: patch(p, CODES, "<2h", 0, 0), "orientation", "error", "neither sform nor qform", False),
    "qform alone": (lambda p: patch(p, CODES, "<2h", 1, 0), "sform", "note", "only the qform", True),
    "sform alone": (lambda p: patch(p, CODES, "<2h", 0, 1), "qform", "note", "only the sform", True),
    "singular sform": (lambda p: patch(p, SROW, "<12f", *[0] * 12), "sform", "error", "singular", True),
    "NaN in sform": (lambda p: patch(p, SROW, "<f", np.nan), "sform", "error", "finite", True),
    "damaged qform": (lambda p: patch(p, QUATERN, "<f", 7.0), "qform", "error", "damaged orientation", True),
    "no unit": (lambda p: patch(p, UNITS, "<B", 0), "units", "note", "no unit", False),
    "metres": (lambda p: patch(p, UNITS, "<B", 1), "units", "error", "metres", False),
    "microns": (lambda p: patch(p, UNITS, "<B", 3), "units", "error", "microns", False),
    "unknown unit": (lambda p: patch(p, UNITS, "<B", 7), "units", "error", "unknown unit", False),
    "pixdim": (lambda p: patch(p, PIXDIM, "<3f", 1, 1, 1), "spacing", "warning", "pixdim says", True),
    "huge slope": (lambda p: patch(p, 112, "<f", 1e9), "scaling", "warning", "scl_slope", False),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-9]) and p, "file", "error", "truncated", False),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_fault_is_found_and_mended_where_that_is_safe(path, tmp_path, run_cli, name):
    damage, about, severity, said, mended = HEADERS[name]
    before = world_of(path)
    values = load_image(path).data
    damage(path)
    code, [record], err = check(run_cli, path)
    finding = found(record, about) if name != "pixdim" else found(record, "spacing")
    assert (finding["severity"], finding["mended"]) == (severity, mended)
    assert said in finding["found"]
    assert finding["fix"]
    assert code == (3 if severity == "error" else 0)
    assert len(err.splitlines()) == (severity == "error")
    original = path.read_bytes()
    code, [record], err = check(run_cli, path, "--fix", tmp_path / "fixed")
    assert path.read_bytes() == original
    copy = tmp_path / "fixed" / "image.nii.gz"
    if not mended:
        assert record["copy"] is None
        assert not (tmp_path / "fixed").exists()
        return
    assert (code, err, record["copy"]) == (0, "", str(copy))
    if name != "pixdim":  # SimpleITK's voxel sizes come from there without complaint
        np.testing.assert_allclose(world_of(copy), before, atol=2e-4)
    np.testing.assert_array_equal(nib.load(copy).get_fdata(), values)
    header = nib.load(copy).header
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)
    code, [record], err = check(run_cli, copy)
    assert (code, record["findings"], err) == (0, [], "")


def test_metres_that_are_metres_are_converted(tmp_path, grid, world_image, run_cli):
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ grid.world_from_vox
    image = nib.Nifti1Image(world_image(grid), metres)
    image.set_qform(metres, 1)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "metres.nii.gz")
    code, [record], _ = check(run_cli, tmp_path / "metres.nii.gz", "--fix", tmp_path / "fixed")
    assert code == 0
    assert "write mm: 62 mm long" in found(record, "units")["fix"]
    np.testing.assert_allclose(nib.load(tmp_path / "fixed/metres.nii.gz").affine, grid.world_from_vox, atol=1e-4)


def test_a_shear_is_somebodys_registration_and_is_not_dropped(path, grid, tmp_path, run_cli):
    sheared = grid.world_from_vox.copy()
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    patch(path, SROW, "<12f", *sheared[:3].ravel())
    code, [record], _ = check(run_cli, path, "--fix", tmp_path / "fixed")
    assert code == 3
    assert "sheared" in found(record, "sform")["found"]
    assert record["copy"] is None


def test_a_shear_within_tolerance_is_a_warning_and_no_conflict(tmp_path, run_cli):
    """And the copy that is written for another reason is published: no qform holds a shear."""
    sheared = np.eye(4)
    sheared[0, 2] = 9e-4
    image = nib.Nifti1Image(np.arange(300 * 48, dtype=np.float32).reshape(6, 8, 300), sheared)
    image.set_qform(sheared, 1)
    image.header["qform_code"] = 0
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "image.nii.gz")
    code, [record], _ = check(run_cli, tmp_path / "image.nii.gz", "--fix", tmp_path / "fixed")
    assert code == 0
    assert {f["about"] for f in record["findings"]} >= {"qform", "directions"}
    assert "orientation" not in {f["about"] for f in record["findings"]}
    warning = [f for f in record["findings"] if f["severity"] == "warning" and f["about"] == "directions"]
    assert len(warning) == 1
    assert "up to 0.13 voxel elsewhere" in warning[0]["found"]
    assert "resample_to_output" in warning[0]["command"]
    assert (tmp_path / "fixed/image.nii.gz").exists()


def test_left_handed_axes_are_a_note(tmp_path, make_grid, world_image, write_nifti, run_cli):
    left = make_grid("left-handed", SHAPE, (2.4, 3.1, 3.6))
    code, [record], _ = check(run_cli, write_nifti(tmp_path / "l.nii.gz", world_image(left), left.world_from_vox))
    assert code == 0
    assert found(record, "directions")["severity"] == "note"
    assert left.orientation in found(record, "directions")["found"]


@pytest.mark.parametrize(
    ("spacing", "about", "said"),
    [
        ((1, 1, 6.5), "spacing", "strongly anisotropic"),
        ((0.05, 0.05, 0.06), "extent", "1.2 mm"),
        ((90, 90, 99), "extent", "2160 mm"),
    ],
)
def test_implausible_sizes(tmp_path, make_grid, world_image, write_nifti, run_cli, spacing, about, said):
    grid = make_grid("oblique", SHAPE, spacing)
    noise = np.random.default_rng(0).normal(50, 9, SHAPE).astype(np.float32)
    _, [record], _ = check(run_cli, write_nifti(tmp_path / "x.nii.gz", noise, grid.world_from_vox))
    assert said in found(record, about)["found"]
    assert found(record, about)["severity"] == "warning"


def test_voxel_faults(tmp_path, grid, world_image, write_nifti, run_cli):
    holes = world_image(grid)
    holes[3, 4, 5], holes[1, 1, 1] = np.nan, -np.inf
    affine = grid.world_from_vox
    rgb = np.zeros(SHAPE, [(c, "u1") for c in "RGB"])
    faults = [
        ("holes", holes, "voxels", "2 of 8160 voxels", False),
        ("flat", np.full(SHAPE, 4, np.int16), "voxels", "every voxel is 4", False),
        ("fmri", np.ones((*SHAPE, 3), np.int16), "shape", "24x20x17x3", False),
        ("rgb", rgb, "file", "scalar image", False),
        ("sub-1_labels", np.full(SHAPE, 0.5), "labels", "no whole numbers", False),
    ]
    for name, data, about, said, mended in faults:
        path = write_nifti(tmp_path / f"{name}.nii.gz", data, affine)
        code, [record], _ = check(run_cli, path, "--fix", tmp_path / "fixed" / path.name)
        finding = found(record, about)
        assert said in finding["found"]
        assert finding["severity"] == "error"
        assert finding["mended"] == mended
        assert code == (0 if mended else 3)
    code, [record], _ = check(run_cli, tmp_path / "holes.nii.gz", "--nan", "-7.5", "--fix", tmp_path / "mended")
    assert code == 0
    mended = nib.load(tmp_path / "mended/holes.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(mended, np.where(np.isfinite(holes), holes, -7.5))
    assert run_cli(["check", tmp_path / "holes.nii.gz", "--nan", "inf"])[0] == 2


def test_a_trailing_axis_goes_and_scaled_values_stay(tmp_path, grid, run_cli):
    data = np.random.default_rng(1).integers(0, 99, (*SHAPE, 1)).astype(np.int16)
    image = nib.Nifti1Image(data, grid.world_from_vox)
    image.set_qform(grid.world_from_vox, 1)
    image.header.set_slope_inter(0.25, -3)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "one.nii.gz")
    code, [record], _ = check(run_cli, tmp_path / "one.nii.gz", "--fix", tmp_path / "fixed")
    assert code == 0
    assert "24x20x17x1" in found(record, "shape")["found"]
    copy = nib.load(tmp_path / "fixed/one.nii.gz")
    assert copy.shape == SHAPE
    np.testing.assert_array_equal(copy.get_fdata(), nib.load(tmp_path / "one.nii.gz").get_fdata()[..., 0])


def test_copies_never_replace_anything(path, tmp_path, run_cli):
    shifted(path)
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed/image.nii.gz").write_text("mine")
    code, _, err = run_cli(["check", path, "--fix", tmp_path / "fixed"])
    assert code == 3
    assert "exists already" in err
    assert [p.read_text() for p in (tmp_path / "fixed").iterdir()] == ["mine"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/image.nii").write_bytes(path.read_bytes())
    assert run_cli(["check", path, tmp_path / "other/image.nii", "--fix", tmp_path / "new"])[0] == 2
    assert not (tmp_path / "new").exists()


def test_a_copy_that_lies_elsewhere_is_not_published(path, tmp_path, run_cli, monkeypatch):
    def shifted_writer(target, data, grid, code, units):
        world = grid.world_from_vox.copy()
        world[0, 3] += 0.05
        save_volume(target, data, Grid(grid.shape, world), code)

    monkeypatch.setattr("ofg_deploy.check.repair.save_volume", shifted_writer)
    shifted(path)
    code, _, err = run_cli(["check", path, "--fix", tmp_path / "fixed"])
    assert code == 3
    assert "its copy would lie 0.05 mm away" in err
    assert not (tmp_path / "fixed").exists()


def test_files_are_compared_with_the_first(tmp_path, make_grid, world_image, world_labels, write_nifti, run_cli):
    grid = make_grid("oblique", (40, 36, 32), (3, 3.5, 3.8))
    other = make_grid("left-handed", (32, 38, 40), (3.4, 3.3, 3.0), (2, -3, 1))
    rng = np.random.default_rng(3)

    def save(name: str, data: np.ndarray, where=other) -> Path:
        return write_nifti(tmp_path / f"{name}.nii.gz", data.astype(np.float32), where.world_from_vox)

    def head(where) -> np.ndarray:
        return world_image(where) + np.abs(rng.normal(20, 5, where.shape))

    def cut(where) -> np.ndarray:
        image = world_image(where)
        inside = np.zeros(where.shape, bool)
        inside[4:-4, 4:-4, 4:-4] = image[4:-4, 4:-4, 4:-4] > 60
        return np.where(inside, image, 0)

    far = other.world_from_vox.copy()
    far[0, 3] += 500
    little = other.world_from_vox.copy()
    little[0, 3] += 95
    files = [
        save("first", head(grid), grid),
        save("same", head(other)),
        save("stripped", cut(other)),
        save("inverse", 1600 - head(other)),
        save("ct", head(other) - 1024),
        write_nifti(tmp_path / "far.nii.gz", head(other).astype(np.float32), far),
        write_nifti(tmp_path / "little.nii.gz", head(other).astype(np.float32), little),
    ]
    labels = world_labels(other).astype(np.float32)
    files += [save("seg", labels), save("unnamed", labels)]
    code, records, err = check(run_cli, *files)
    assert code == 3
    assert "far.nii.gz" in err
    said = {Path(r["path"]).name.split(".")[0]: {(f["about"], f["severity"]) for f in r["findings"]} for r in records}
    assert ("skull", "warning") in said["stripped"]
    assert ("contrast", "warning") in said["inverse"]
    assert ("contrast", "warning") in said["ct"]
    assert said["far"] >= {("overlap", "error")}
    assert said["little"] >= {("overlap", "warning")}
    assert not {about for about, _ in said["first"] | said["same"] | said["seg"] | said["unnamed"]} & {
        "skull",
        "contrast",
        "overlap",
    }


def test_content_outside_the_models_grid_is_known_beforehand(tmp_path, make_grid, tiny_model, write_nifti, run_cli):
    """The share that ``ofg register`` warns about, counted here: a bright box, half of it beyond the grid."""
    model = tiny_model(shape=(14, 18, 16), spacing_mm=(4.0, 4.5, 5.0))
    half = [n * s / 2 for n, s in zip((14, 18, 16), (4.0, 4.5, 5.0), strict=True)]
    grid = make_grid("LPS", (60, 62, 64), (2.0, 2.1, 2.2))
    centres = np.indices(grid.shape, dtype=float) - (np.array(grid.shape)[:, None, None, None] - 1) / 2
    inside = np.all([abs(c * s) < h for c, s, h in zip(centres, grid.spacing_mm, half, strict=True)], axis=0)
    content = np.zeros(grid.shape, np.float32)
    content[20:40, 20:42, 4:60] = np.random.default_rng(0).uniform(50, 100, (20, 22, 56))
    path = write_nifti(tmp_path / "long.nii.gz", content, grid.world_from_vox)
    share = ((content > 0) & ~inside).sum() / (content > 0).sum()
    assert 0.1 < share < 0.5
    code, [record], _ = check(run_cli, path, "-m", model.path)
    assert code == 0
    said = found(record, "grid")["found"]
    assert f" {share:.0%} of its content" in said


def test_a_model_is_compared_by_its_recipe_and_grid(path, tiny_model, run_cli):
    ct = tiny_model(intensity=Intensity("window", -900, 100)).path
    code, [record], _ = check(run_cli, path, "-m", ct)
    abouts = [f["found"] for f in record["findings"] if f["about"] == "model"]
    assert code == 0
    assert any("CT numbers" in text for text in abouts)
    fine = tiny_model(spacing_mm=(1.0, 1.0, 1.0)).path
    _, [record], _ = check(run_cli, path, "-m", fine)
    assert "3.6 times" in found(record, "model")["found"]
    _, [record], _ = check(run_cli, path, "-m", tiny_model().path)
    assert record["findings"] == []
    nothing = tiny_model(intensity=Intensity("window", 50_000, 60_000)).path
    code, [record], _ = check(run_cli, path, "-m", nothing)
    assert code == 3
    assert "constant within" in found(record, "model")["found"]


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_file_a_line_and_what_to_do_below(path, run_cli, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))  # of no consequence: nobody looks at a terminal
    patch(path, UNITS, "<B", 1)
    code, out, err = run_cli(["check", path, path.parent / "none.nii"])
    assert code == 3
    lines = out.splitlines()
    assert lines[0].split() == ["error", "24x20x17", "voxels", "of", "2400x3100x3600", "mm,", "SLP", str(path)]
    for words in ("geometry in metres", "--unit", "does not exist"):
        assert any(words in line for line in lines[1:])
    assert lines[-1] == "2 files: 2 error"
    assert err.startswith("ofg: error: 2 of 2 files")
    assert len(err.splitlines()) == 1


def test_a_folder_is_checked_file_by_file(tmp_path, make_grid, world_image, write_nifti, run_cli):
    grids = {name: make_grid("RAS", (9 + n, 12, 10), (2.0, 2.5, 3.0)) for n, name in enumerate("abc")}
    for name, grid in grids.items():
        (tmp_path / "scans" / name).mkdir(parents=True)
        image = world_image(grid).astype(np.float32)
        if name == "b":
            image[3] = np.nan
        write_nifti(tmp_path / "scans" / name / "T1.nii.gz", image, grid.world_from_vox)
    (tmp_path / "scans/notes.txt").write_text("nothing")
    code, out, err = run_cli(["check", tmp_path / "scans"])
    assert code == 3
    status = {line.split()[-1]: line.split()[0] for line in out.splitlines() if line.endswith(".nii.gz")}
    assert status == {str(tmp_path / f"scans/{name}/T1.nii.gz"): "error" if name == "b" else "ok" for name in grids}
    assert out.splitlines()[-1] == "3 files: 1 error, 2 ok"
    code, out, _ = run_cli(["check", "--json", "--nan", 0, "--fix", tmp_path / "fixed", tmp_path / "scans"])
    records = json.loads(out)["files"]
    assert code == 0
    # Images of other sizes are no fault: those of a folder are not compared with each other.
    assert {Path(r["path"]).parent.name: r["status"] for r in records} == {"a": "ok", "b": "error", "c": "ok"}
    assert (tmp_path / "fixed/b_T1.nii.gz").is_file()
    assert not np.isnan(nib.load(tmp_path / "fixed/b_T1.nii.gz").get_fdata()).any()
    assert run_cli(["check", tmp_path / "scans/a", "--quiet"]) == (0, "", "")
    (tmp_path / "empty").mkdir()
    code, out, err = run_cli(["check", tmp_path / "empty"])
    assert code == 3
    assert out.splitlines()[0].startswith("error")
    assert str(tmp_path / "empty") in err


def test_what_the_reader_refuses_is_an_error_and_hostile_files_are_only_findings(tmp_path):
    """Both rules agree: no file passes the check that cannot be read, and none fails it that can."""
    rng = np.random.default_rng(12)
    passed = 0
    for number in range(500):
        content = seeds()[int(rng.integers(len(seeds())))]
        for _ in range(int(rng.integers(1, 3))):
            content = mutate(rng, content)
        path = tmp_path / (f"{number}.nii.gz" if content[:2] == GZIP else f"{number}.nii")
        path.write_bytes(content)
        with no_hang():
            file = examine(path, MAX_VOXELS)
        errors = [f for f in file.findings if f.severity == "error"]
        try:
            load_image(path)
            readable = True
        except InputError:
            readable = False
        assert readable == (not errors), (path, errors)
        passed += readable
    assert passed > 30
