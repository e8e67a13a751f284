"""What a registration leaves behind: the sidecar, complete sets of files, and nothing at all when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest

from ofg_deploy.errors import GeometryError, InputError, UsageError
from ofg_deploy.locations import portable
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register
from ofg_deploy.version import __version__


@pytest.mark.parametrize("init", ["none", "affine"])
def test_the_sidecar_says_what_was_read_run_and_written(tmp_path, files, tiny_model, world_labels, write_nifti, init):
    fixed, moving, *grids = files
    fixed_labels, moving_labels = (
        write_nifti(tmp_path / f"{name}_seg.nii.gz", world_labels(grid), grid.world_from_vox)
        for name, grid in zip(("fix", "mov"), grids, strict=True)
    )
    job = Job(fixed, moving, tmp_path / "out", moving_labels=(moving_labels,), fixed_labels=fixed_labels)
    result = register(job, open_engine(tiny_model(init=init).path, "cpu"))
    record = json.loads(result.outputs["sidecar"].read_text())
    assert record == json.loads(json.dumps(result.sidecar))
    for role, name in record["outputs"].items():
        content = (tmp_path / "out" / name).read_bytes()
        assert record["written"][role] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(record) == {
        "schema", "tool", "version", "created", "command", "inputs", "outputs", "transform", "model", "network_grid",
        "init", "runtime", "metrics", "seconds", "warnings", "start", "options", "fill", "written",
    }  # fmt: skip
    assert (record["schema"], record["tool"], record["version"]) == (1, "ofg_deploy", __version__)
    given = {"fixed": fixed, "moving": moving, "moving_labels": moving_labels, "fixed_labels": fixed_labels}
    assert set(record["inputs"]) == set(given)
    for role, path in given.items():
        entry, image = record["inputs"][role], nib.load(path)
        assert entry["path"] == portable(path, tmp_path / "out")
        assert not Path(entry["path"]).is_absolute()
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["shape"] == list(image.shape)
        assert entry["orientation"] == "".join(nib.aff2axcodes(image.affine))
        np.testing.assert_allclose(entry["spacing_mm"], image.header.get_zooms(), rtol=1e-5)
        np.testing.assert_allclose(entry["world_from_vox"], image.affine, atol=1e-6)
    written = {p.name for p in result.outputs["sidecar"].parent.iterdir()}
    assert {*record["outputs"].values(), "mov_to_fix.json"} == written
    assert record["transform"] == {
        "unit": "mm",
        "frame": "LPS",
        "intent": 1007,
        "maps": "fixed_to_moving",
        "grid": "fixed",
    }
    assert record["runtime"] == {
        "name": f"onnxruntime {onnxruntime.__version__}",
        "provider": "CPUExecutionProvider",
        "machine": platform.machine(),
    }
    assert record["init"] == record["model"]["expects"]["init"] == init
    assert record["model"]["weights_sha256"] == "ab" * 32
    assert set(record["seconds"]) == {"read", "prepare", "network", "transform", "warp", "measure", "write"}
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert any("outside the network's grid" in line for line in record["warnings"])


def test_the_jobs_init_wins_over_the_models(tmp_path, files, tiny_model):
    fixed, moving, _, _ = files
    engine = open_engine(tiny_model(init="affine").path, "cpu")
    result = register(Job(fixed, moving, tmp_path / "out", init="none"), engine)
    assert "affine" not in result.outputs
    assert result.sidecar["init"] == "none"
    assert result.sidecar["model"]["expects"]["init"] == "affine"


def test_the_sidecar_is_the_last_file_to_appear(tmp_path, files, engine, monkeypatch):
    moved = []
    original = os.link
    monkeypatch.setattr(os, "link", lambda file, target: moved.append(target.name) or original(file, target))
    register(Job(*files[:2], tmp_path / "out"), engine)
    assert moved == ["mov_to_fix_warped.nii.gz", "mov_to_fix_Warp.nii.gz", "mov_to_fix.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("stage", ["serve.saving.save_volume", "transform.dialects.save_transform", "sidecar.to_json"])
def test_a_run_stopped_while_writing_leaves_nothing(tmp_path, files, engine, monkeypatch, stage, error):
    def stop(*arguments: object) -> None:
        if isinstance(arguments[0], Path):
            arguments[0].write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"ofg_deploy.{stage}", stop)
        with pytest.raises((KeyboardInterrupt, InputError)):
            register(Job(*files[:2], tmp_path / "new" / "out"), engine)
        assert not (tmp_path / "new").exists()

    first = register(Job(*files[:2], tmp_path / "out"), engine)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(before) == set(first.outputs.values())
    monkeypatch.setattr(f"ofg_deploy.{stage}", stop)
    with pytest.raises((KeyboardInterrupt, InputError)):
        register(Job(*files[:2], tmp_path / "out", overwrite=True), engine)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_inputs_are_not_touched(tmp_path, files, engine):
    before = {path: path.read_bytes() for path in files[:2]}
    register(Job(*files[:2], tmp_path), engine)  # into their own folder
    assert {path: path.read_bytes() for path in files[:2]} == before


def test_two_images_of_the_same_name_and_an_image_with_itself(tmp_path, files, engine):
    fixed, moving, _, _ = files
    twin = tmp_path / "sub-2" / "fix.nii.gz"
    twin.parent.mkdir()
    twin.write_bytes(moving.read_bytes())
    result = register(Job(fixed, twin, tmp_path / "twins"), engine)
    assert result.outputs["warped"].name == "fix_to_fix_warped.nii.gz"
    assert result.sidecar["inputs"]["moving"]["sha256"] == hashlib.sha256(moving.read_bytes()).hexdigest()
    itself = register(Job(fixed, fixed, tmp_path / "itself"), engine)
    assert itself.sidecar["metrics"]["ncc_before"] == pytest.approx(1)
    assert itself.sidecar["metrics"]["ncc_after"] < 0.99


def test_labels_must_lie_on_their_images_grid(tmp_path, files, engine, world_labels, write_nifti, make_grid):
    fixed, moving, _, grid = files
    shifted = grid.world_from_vox.copy()
    shifted[:3, 3] += 0.2 * grid.world_from_vox[:3, 0]
    shorter = np.zeros((19, 18, 21), np.int16)
    for name, data, affine in (("shifted", world_labels(grid), shifted), ("shorter", shorter, grid.world_from_vox)):
        labels = write_nifti(tmp_path / f"{name}.nii.gz", data, affine)
        with pytest.raises(GeometryError, match=f"{name}.nii.gz .* lies on another grid than its image .*mov.nii.gz"):
            register(Job(fixed, moving, tmp_path / "out", moving_labels=(labels,)), engine)
    rounded = write_nifti(tmp_path / "rounded.nii.gz", world_labels(grid), np.round(grid.world_from_vox, 3))
    assert (
        register(Job(fixed, moving, tmp_path / "out", moving_labels=(rounded,)), engine)
        .outputs["warped_labels"]
        .exists()
    )


@pytest.mark.parametrize("options", [{"fixed_labels": Path("x.nii")}, {"fill": float("nan")}, {"fill": float("inf")}])
def test_options_that_make_no_sense_are_refused_when_built(options):
    with pytest.raises(UsageError):
        Job(Path("f.nii"), Path("m.nii"), Path("out"), **options)


def test_a_network_gone_wrong_writes_nothing(tmp_path, files, tiny_model):
    field = np.zeros((3, 14, 18, 16))
    field[1, 2, 3, 4] = np.nan
    with pytest.raises(InputError, match="not finite or not on its grid"):
        register(Job(*files[:2], tmp_path / "out"), open_engine(tiny_model(field=field).path, "cpu"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [[], ["--refine", 2, "--threads", 1], ["--inverse"]])
@pytest.mark.parametrize("far_vox", [3e5, 3e38])
def test_a_network_that_leads_further_than_a_kilometre(tmp_path, files, tiny_model, run_cli, extra, far_vox):
    fixed, moving, *_ = files
    field = np.zeros((3, 14, 18, 16))
    field[1, 4:9, 5:9, 6:9] = far_vox  # times 3.9 mm
    out = tmp_path / "out"
    line = ["register", fixed, moving, "-m", tiny_model(field=field).path, "-o", out, "--runtime", "onnxruntime"]
    code, _, err = run_cli([*line, *extra])
    assert (code, err.count("\n")) == (3, 1), err
    assert f"the field of this tiny model for {fixed} and {moving} has " in err
    assert "longer than 1e+06 mm" in err
    assert ".partial" not in err
    assert not out.exists()


def test_a_header_left_open_is_told_in_the_sidecar(tmp_path, files, engine):
    fixed, moving, _, _ = files
    image = nib.load(moving)
    other = image.affine.copy()
    other[0, 3] += 2
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "conflict.nii.gz")
    result = register(Job(fixed, tmp_path / "conflict.nii.gz", tmp_path / "out"), engine)
    said = "conflict.nii.gz: sform and qform disagree by up to 2.00 mm; the sform is used"
    assert [line.startswith(said) for line in result.sidecar["warnings"]].count(True) == 1
