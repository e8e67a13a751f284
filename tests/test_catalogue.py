"""Models by name: added, listed, removed, found wherever a model is expected, and chosen by ``-m auto``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from batches import results

from ofg_deploy import catalogue
from ofg_deploy.appearance import Appearance, Look, thumbnail
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import Volume, load_image
from ofg_deploy.outputs import sha256_file
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve import automatic

EXPECTS = NetworkInput((14, 18, 16), (4.4, 3.9, 4.1), Intensity("minmax"), "none")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's models; not there yet."""
    monkeypatch.setenv("OFG_MODELS", str(tmp_path / "deep/models"))
    return tmp_path / "deep/models"


@pytest.fixture
def trained_on(make_grid: Callable[..., Grid], world_image: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """A training record of images of the tests' anatomy, on grids of many kinds."""
    seen = []
    rng = np.random.default_rng(0)
    for n in range(16):
        shift = np.eye(4)
        shift[:3, 3] = rng.uniform(-3, 3, 3)
        kind = ("oblique-permuted", "LPS", "oblique", "left-handed")[n % 4]
        grid = make_grid(kind, (20, 21, 19), (3.4, 3.6, 3.5), tuple(rng.uniform(-2, 2, 3)))
        seen.append(Volume(world_image(grid, shift), grid, tmp_path / str(n)))
    looks = Appearance.of(
        np.array([Look.of(v.data).stripped for v in seen]), np.array([thumbnail(v, EXPECTS) for v in seen])
    )
    return {"guidance": "none", "images": looks.to_record()}


def test_add_list_use_remove(tiny_model, files, folder, tmp_path, run_cli) -> None:
    fixed, moving, *_ = files
    source = tmp_path / "model.onnx"
    source.write_bytes(tiny_model().path.read_bytes())
    code, out, err = run_cli(["models"])
    assert (code, err) == (0, "")
    assert "No model is packaged so far" in out

    assert run_cli(["models", "add", source])[0] == 0
    source.with_suffix(".md").write_text("\n# Knees of adults, T1\n\nData and figures.\n")
    code, out, err = run_cli(["models", "add", source, "--name", "knee-1.0"])
    assert (code, err) == (0, "")
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "knee-1.0.onnx", "knee-1.0.md"}
    rows = json.loads(run_cli(["models", "--json"])[1])["models"]
    assert [row["name"] for row in rows] == ["knee-1.0", "model"]
    assert rows[0] == {
        "name": "knee-1.0",
        "origin": "added",
        "path": str(folder / "knee-1.0.onnx"),
        "bytes": source.stat().st_size,
        "card": "Knees of adults, T1",
        "network": "tiny",
        "grid": [14, 18, 16],
        "sha256": sha256_file(source),
        "spacing_mm": [4.4, 3.9, 4.1],
        "precision": "fp32",
    }
    assert "Knees of adults" in run_cli(["models"])[1]

    assert run_cli(["register", fixed, moving, "-m", "knee-1.0", "-o", tmp_path / "named"])[0] == 0
    assert run_cli(["register", fixed, moving, "-m", source, "-o", tmp_path / "file"])[0] == 0
    assert results(tmp_path / "named") == results(tmp_path / "file")
    code, out, _ = run_cli(["info", "knee-1.0"])
    assert (code, f"sha256: {sha256_file(source)}" in out) == (0, True)
    assert run_cli(["check", fixed, "-m", "knee-1.0"])[0] == 0

    assert run_cli(["models", "remove", "knee-1.0"])[0] == 0
    assert {path.name for path in folder.iterdir()} == {"model.onnx"}
    code, _, err = run_cli(["register", fixed, moving, "-m", "knee-1.0", "-o", tmp_path / "gone"])
    assert (code, err.count("\n")) == (3, 1)
    assert "there is no model called knee-1.0 (packaged or added: model)" in err


def test_what_cannot_be_added(tiny_model, folder, tmp_path, run_cli) -> None:
    good = tiny_model().path
    damaged = tmp_path / "damaged.onnx"
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    for arguments, code, said in (
        ([damaged], 3, "changed or damaged"),
        ([tmp_path / "nowhere.onnx"], 3, "is not a file"),
        ([tmp_path], 3, "is not an .onnx model"),
        ([good, "--name", "auto"], 2, "cannot be a model's name"),
        ([good, "--name", "None"], 2, "cannot be a model's name"),
        ([good, "--name", "../up"], 2, "cannot be a model's name"),
        ([good, "--name", "x.onnx"], 2, "cannot be a model's name"),
        ([good, "--name", ""], 2, "cannot be a model's name"),
    ):
        found, _, err = run_cli(["models", "add", *arguments])
        assert (found, err.count("\n")) == (code, 1)
        assert said in err
    assert not folder.exists()
    for arguments, said in ((["remove", "x"], "there is no model called x"),):
        found, _, err = run_cli(["models", *arguments])
        assert (found, said in err) == (3, True)


def test_nothing_is_overwritten_unasked_and_an_old_card_goes_with_its_model(
    tiny_model, folder, tmp_path, run_cli
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    first.write_bytes(tiny_model().path.read_bytes())
    second.write_bytes(tiny_model(shape=(16, 16, 16)).path.read_bytes())
    first.with_suffix(".md").write_text("The first")
    assert run_cli(["models", "add", first, "--name", "m"])[0] == 0
    before = (folder / "m.onnx").read_bytes()
    code, _, err = run_cli(["models", "add", second, "--name", "m"])
    assert (code, "--overwrite" in err) == (3, True)
    assert (folder / "m.onnx").read_bytes() == before
    assert run_cli(["models", "add", second, "--name", "m", "--overwrite"])[0] == 0
    assert (folder / "m.onnx").read_bytes() == second.read_bytes()
    assert {path.name for path in folder.iterdir()} == {"m.onnx"}


def test_a_damaged_one_is_listed_as_such_and_refused_where_it_is_used(tiny_model, folder, files, run_cli) -> None:
    assert run_cli(["models", "add", tiny_model().path, "--name", "m"])[0] == 0
    content = bytearray((folder / "m.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "m.onnx").write_bytes(content)
    code, out, _ = run_cli(["models", "--json"])
    assert code == 0
    assert "changed or damaged" in json.loads(out)["models"][0]["error"]
    code, _, err = run_cli(["register", *files[:2], "-m", "m", "-o", folder / "out"])
    assert (code, "changed or damaged" in err) == (3, True)
    code, out, _ = run_cli(["register", *files[:2], "-o", folder / "out", "--init", "none", "--refine", "1"])
    assert code == 0
    assert "no network: no model suits the images (m: " in out


def test_names_and_paths_are_told_apart(tiny_model, folder, tmp_path, run_cli, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli(["models", "add", tiny_model().path, "--name", "run"])[0] == 0
    assert catalogue.source_path("run") == folder / "run.onnx"
    (tmp_path / "run").mkdir()
    code, _, err = run_cli(["info", "run"])
    assert (code, "is a model (ofg models) and also a file or folder here" in err) == (2, True)
    assert catalogue.source_path("./run") == Path("run")
    assert catalogue.source_path("other") == Path("other")
    assert catalogue.model_path("run") == folder / "run.onnx"  # a folder is no model
    assert catalogue.model_path("run.onnx") == Path("run.onnx")
    for text in ("auto", "none"):
        code, _, err = run_cli(["check", "a.nii", "-m", text])
        assert (code, "is for ofg register" in err) == (2, True)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="where Linux keeps data of applications")
def test_the_user_s_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("OFG_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert catalogue.added_folder() == tmp_path / ".local/share/ofg-deploy/models"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert catalogue.added_folder() == tmp_path / "data/ofg-deploy/models"
    monkeypatch.setenv("OFG_MODELS", "~/mine")
    assert catalogue.added_folder() == tmp_path / "mine"


def test_auto_takes_the_model_whose_images_both_look_like(
    tiny_model, folder, files, tmp_path, trained_on, run_cli
) -> None:
    fixed, moving, *_ = files
    other = dict(trained_on, images=dict(trained_on["images"]))
    inverted = Appearance.from_record(trained_on["images"])
    assert inverted is not None
    other["images"] = replace(inverted, mean=1 - inverted.mean).to_record()
    for name, training in (("blobs", trained_on), ("inverted", other), ("old", {"guidance": "none"})):
        model = tiny_model(training=training, init="centre").path
        assert run_cli(["models", "add", model, "--name", name])[0] == 0
    code, out, _ = run_cli(["register", fixed, moving, "-o", tmp_path / "auto"])
    assert code == 0
    assert "model auto: added model blobs, the images look like those it was trained on (likeness 0." in out
    assert "network tiny on" in out
    record = json.loads((tmp_path / "auto/mov_to_fix.json").read_text())
    assert record["model"]["chosen_by"] == "auto"
    assert record["model"]["reason"].startswith("added model blobs")
    assert record["model"]["sha256"] == sha256_file(folder / "blobs.onnx")
    assert "refinement" not in record  # behind a network, steps are taken where they are asked for

    assert run_cli(["register", fixed, moving, "-m", "blobs", "-o", tmp_path / "named", "--quality", "fast"])[0] == 0
    assert json.loads((tmp_path / "named/mov_to_fix.json").read_text())["refinement"]["steps_taken"] > 0


def slices(volume: nib.Nifti1Image) -> nib.Nifti1Image:
    return volume.slicer[:, :, 8:11]


def mouse(volume: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(volume.get_fdata(), volume.affine @ np.diag([0.1, 0.1, 0.1, 1]))


def abdomen(volume: nib.Nifti1Image) -> nib.Nifti1Image:
    """Large, full to the edges, bright elsewhere."""
    rng = np.random.default_rng(3)
    coarse = rng.random((5, 5, 5))
    data = np.kron(coarse, np.ones((8, 8, 8))).astype(np.float32)
    matrix = np.diag([8.0, 8.0, 8.0, 1])
    matrix[:3, 3] = -156
    return nib.Nifti1Image(data, matrix)


def inverted(volume: nib.Nifti1Image) -> nib.Nifti1Image:
    data = volume.get_fdata()
    return nib.Nifti1Image(data.max() - data, volume.affine)


def stripped(volume: nib.Nifti1Image) -> nib.Nifti1Image:
    data = volume.get_fdata()
    inside = np.zeros(data.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    return nib.Nifti1Image(np.where((data > np.percentile(data, 50)) & inside, data, 0), volume.affine)


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (slices, "it covers"),
        (mouse, "it covers"),
        (abdomen, ""),
        (inverted, "its likeness to their mean image is -"),
        (stripped, "it looks skull-stripped, and 0%"),
    ],
)
def test_auto_goes_without_where_an_image_is_of_another_kind(
    tiny_model, folder, files, tmp_path, trained_on, run_cli, change, said, role
) -> None:
    model = tiny_model(training=trained_on, init="centre").path
    assert run_cli(["models", "add", model, "--name", "blobs"])[0] == 0
    good = {"fixed": load_image(files[0]), "moving": load_image(files[1])}
    assert automatic.choose_model([(good["fixed"], good["moving"])]).path == folder / "blobs.onnx"
    path = tmp_path / "strange.nii.gz"
    nib.save(change(nib.load(files[0] if role == "fixed" else files[1])), path)
    choice = automatic.choose_model([tuple({**good, role: load_image(path)}.values())])
    assert choice.path is None
    assert choice.reason is not None
    assert choice.reason.startswith(
        f"no model suits the images (blobs: the {role} image is not like its training images, {said}"
    )


def test_auto_without_anything_that_runs_a_model(tiny_model, folder, files, trained_on, run_cli, monkeypatch) -> None:
    model = tiny_model(training=trained_on, init="centre").path
    assert run_cli(["models", "add", model, "--name", "blobs"])[0] == 0
    monkeypatch.setattr(automatic, "find_spec", lambda name: None)
    choice = automatic.choose_model([(load_image(files[0]), load_image(files[1]))])
    assert choice.path is None
    assert "pip install 'ofg-deploy[cpu]'" in str(choice.reason)


def test_auto_of_a_batch_is_one_choice_and_pairs_unlike_it_are_warned_of(
    tiny_model, folder, images, atlas, tmp_path, trained_on, run_cli, monkeypatch
) -> None:
    model = tiny_model(training=trained_on, init="centre").path
    assert run_cli(["models", "add", model, "--name", "blobs"])[0] == 0
    monkeypatch.setattr(automatic, "SAMPLE", 2)  # the first and the last
    nib.save(inverted(nib.load(images / "s2.nii.gz")), images / "s2.nii.gz")
    code, out, _ = run_cli(["register", atlas, images, "-o", tmp_path / "out"])
    assert code == 0
    assert "model auto: added model blobs" in out
    warned = {
        name: any("auto chose the model by other pairs" in line for line in record["warnings"])
        for name, record in results(tmp_path / "out").items()
        if name.endswith(".json")
    }
    assert warned == {f"s{n}_to_atlas.json": n == 2 for n in (1, 2, 3, 4)}


def test_an_image_that_cannot_be_read_is_what_is_said_of(
    tiny_model, folder, files, trained_on, tmp_path, run_cli
) -> None:
    """The only pair's own error, whatever else was asked for; in a batch it is that pair's alone."""
    assert run_cli(["models", "add", tiny_model(training=trained_on, init="centre").path, "--name", "blobs"])[0] == 0
    files[1].write_bytes(files[1].read_bytes()[:3000])
    code, _, err = run_cli(["register", *files[:2], "-o", tmp_path / "out", "--device", "cpu"])
    assert (code, err.count("\n"), "truncated" in err) == (3, 1, True)
    (tmp_path / "list.csv").write_text("fixed,moving\nfix.nii.gz,mov.nii.gz\n")
    code, out, err = run_cli(["register", "--pairs", tmp_path / "list.csv", "-o", tmp_path / "out"])
    assert (code, "truncated" in err) == (6, True)
    assert "no image could be read to choose by" in out
