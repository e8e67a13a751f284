"""Records name files from where they lie: a tree can be moved, and no model tells of the machine it was made on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ofg_deploy.locations import located, portable, portable_command


@pytest.mark.parametrize(
    ("path", "folder", "text"),
    [
        ("/data/study/out/w.nii", "/data/study/out", "w.nii"),
        ("/data/study/images/a b.nii", "/data/study/out", "../images/a b.nii"),
        ("/data/study/a.nii", "/data/study/out/deep/er", "../../../a.nii"),
        ("/archive/a.nii", "/data/study/out", "/archive/a.nii"),
    ],
)
def test_paths_of_a_tree_are_relative_and_come_back(path: str, folder: str, text: str) -> None:
    assert portable(Path(path), Path(folder)) == text
    assert located(text, Path(folder)) == Path(path)
    moved = located(text, Path("/mnt/laptop/elsewhere/out"))
    assert (moved == Path(path)) == text.startswith("/")


def test_the_current_folder_counts_for_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable(Path("images/a.nii"), Path("out")) == "../images/a.nii"
    typed = ["/usr/local/bin/ofg", "register", str(tmp_path / "f.nii"), "-m", "m.onnx"]
    assert portable_command(typed, Path("out")) == ["ofg", "register", "../f.nii", "-m", "m.onnx"]


def test_results_that_moved_with_their_images_are_still_read(
    tmp_path, files, tiny_model, world_labels, write_nifti, run_cli
):
    fixed, moving, *grids = files
    for path, grid in zip((fixed, moving), grids, strict=True):
        write_nifti(path.with_name(f"{path.name[:3]}_seg.nii.gz"), world_labels(grid), grid.world_from_vox)
    labels = ["--fixed-labels", tmp_path / "fix_seg.nii.gz", "--moving-labels", tmp_path / "mov_seg.nii.gz"]
    model = tiny_model().path
    study = tmp_path / "study"
    study.mkdir()
    for path in tmp_path.glob("*.nii.gz"):
        path.rename(study / path.name)
    labels = [study / Path(each).name if isinstance(each, Path) else each for each in labels]
    given = [study / fixed.name, study / moving.name, "-m", model, *labels]
    assert run_cli(["register", *given, "-o", study / "out"])[0] == 0
    sidecar = (study / "out/mov_to_fix.json").read_text()
    assert str(tmp_path) not in json.dumps(json.loads(sidecar)["inputs"])
    study.rename(tmp_path / "moved")
    assert run_cli(["report", tmp_path / "moved/out"])[0] == 0
    assert run_cli(["eval", tmp_path / "moved/out", "-o", tmp_path / "scores"])[0] == 0
    scores = json.loads((tmp_path / "scores/results.json").read_text())
    assert scores["source"] == "../moved/out"
    assert scores["pairs"][0]["inputs"]["fixed"]["path"] == "../moved/fix.nii.gz"
    # An absolute path, as earlier versions wrote them, is still found.
    record = json.loads(sidecar)
    for role, name in {"fixed": "fix.nii.gz", "moving": "mov.nii.gz"}.items():
        record["inputs"][role]["path"] = str(tmp_path / "moved" / name)
    record["inputs"] = {role: each for role, each in record["inputs"].items() if role in ("fixed", "moving")}
    (tmp_path / "moved/out/mov_to_fix.json").write_text(json.dumps(record))
    assert run_cli(["report", tmp_path / "moved/out"])[0] == 0


def test_a_run_that_moved_with_its_images(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    from training_runs import tiny_config

    from ofg_deploy.train.pairs import PairFiles, PairList
    from ofg_deploy.train.run import Run

    study = tmp_path / "study"
    pair = PairFiles(study / "images/a.nii", study / "images/b.nii")
    run = Run(study / "run")
    config = tiny_config(frame=str(study / "images/a.nii"))
    run.start(config, PairList((pair,), (pair,)), study / "cache", [str(study / "ofg"), "train"], [])
    assert str(tmp_path) not in run.config.read_text()
    (tmp_path / "there").mkdir()
    study.rename(tmp_path / "there/study")
    there = tmp_path / "there/study"
    found, pairs, cache = Run(there / "run").read()
    assert pairs.training == (PairFiles(there / "images/a.nii", there / "images/b.nii"),)
    assert cache == there / "cache"
    assert found.frame == str(there / "images/a.nii")


def test_an_exported_graph_names_no_place(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    from ofg_deploy.export import onnx as exporter
    from ofg_deploy.train.networks import build_network

    torch.manual_seed(0)
    network = build_network("voxelmorph-half", (16, 16, 16))
    content = exporter.trace(network, (16, 16, 16)).SerializeToString()
    for told in (os.sep + "ofg_deploy", ".py", str(Path.home()), str(Path(torch.__file__).parent)):
        assert told.encode() not in content, told
