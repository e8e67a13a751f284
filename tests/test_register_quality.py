"""``ofg register --report``, ``--qc-fail``: the page and the verdict after everything is registered and written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from batches import write_subjects
from report_pairs import Done, Page, run_ofg

from ofg_deploy.report.folder import entries

pytest.importorskip("onnxruntime")

Register = Callable[..., Done]


@pytest.fixture
def images(tmp_path: Path, make_grid: Callable[..., object], world_image: Callable[..., object]) -> Path:
    return write_subjects(tmp_path / "images", 3, make_grid, world_image)


@pytest.fixture
def register(
    tmp_path: Path,
    tiny_model: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Register:
    """Into ``out``, by a gentle model, one that folds a third of the voxels, or one that leads out of the image."""

    def run(*arguments: object, fold: bool = False, away: bool = False) -> Done:
        noise = np.random.default_rng(0).normal(0, 2, (3, 14, 18, 16))
        field = noise if fold else np.full_like(noise, 1000) if away else None
        model = tiny_model(field=field).path  # type: ignore[attr-defined]
        always = ("-m", model, "-o", tmp_path / "out", "--runtime", "onnxruntime", "--threads", 1)
        return run_ofg(monkeypatch, capfd, "register", *arguments, *always)

    return run


def lenient_limits(folder: Path) -> Path:
    """No model here makes images more alike, and none is to fail for that."""
    path = folder / "limits.json"
    path.write_text('{"folding_percent": null, "ncc_gain": null, "mi_gain": null}')
    return path


def test_an_empty_result_is_said_and_shown(register: Register, images: Path, tmp_path: Path) -> None:
    done = register(images / "s0.nii.gz", images / "s1.nii.gz", "--report", "--qc-fail", away=True)
    assert done.returncode == 7
    assert "ofg: warning: the warped image is 0 everywhere: the map leads out of the moving image" in done.stderr
    assert "1 of 1 pairs fail, the worst (s1_to_s0): fail: mi_gain" in done.stderr
    page = Page((tmp_path / "out/s1_to_s0_report.html").read_text(encoding="utf-8"))
    assert "there is nothing to register" not in page.text
    assert "checkerboard" in page.text


def test_a_pair_with_its_page(register: Register, images: Path, tmp_path: Path) -> None:
    pair, out = (images / "s0.nii.gz", images / "s1.nii.gz"), tmp_path / "out"
    assert register(*pair, "--report").returncode == 0
    page = Page((out / "s1_to_s0_report.html").read_text(encoding="utf-8"))
    assert len(page.named("section")) == 1
    assert "s1_to_s0" in page.text
    assert not (out / "qc.tsv").exists()
    again = register(*pair, "--overwrite")
    assert again.returncode == 0
    assert not (out / "s1_to_s0_report.html").exists()  # it showed the registration that is gone


def test_an_existing_page_is_refused_before_any_work(register: Register, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "s1_to_s0_report.html").write_text("mine")
    done = register(images / "s0.nii.gz", images / "s1.nii.gz", "--report")
    assert done.returncode == 3
    assert "s1_to_s0_report.html exists already" in done.stderr
    assert [path.name for path in out.iterdir()] == ["s1_to_s0_report.html"]


def test_a_pair_that_fails_is_written_all_the_same(register: Register, images: Path, tmp_path: Path) -> None:
    pair, out = (images / "s0.nii.gz", images / "s1.nii.gz"), tmp_path / "out"
    done = register(*pair, "--qc-fail", fold=True)
    assert done.returncode == 7
    assert re.fullmatch(
        r"ofg: warning: no gain over the initial alignment .*\n"
        r"ofg: error: 1 of 1 pairs fail, the worst \(s1_to_s0\): fail: (folding_percent|mi_gain) .*\n",
        done.stderr,
    )
    assert {path.name for path in out.iterdir()} == {"s1_to_s0.json", "s1_to_s0_Warp.nii.gz", "s1_to_s0_warped.nii.gz"}
    lenient = ("--overwrite", "--limits", lenient_limits(tmp_path))
    assert register(*pair, "--qc-fail", "--report", *lenient, fold=True).returncode == 0
    refused = register(*pair, *lenient)
    assert refused.returncode == 2
    assert "--limits goes with" in refused.stderr


def test_a_batch_with_its_page(register: Register, images: Path, tmp_path: Path) -> None:
    """One pair of three cannot be registered: 6 as always; with --qc-fail that is a failure, too."""
    (images / "s2.nii.gz").write_bytes(b"nothing")
    listed = tmp_path / "pairs.csv"
    rows = [
        "fixed,moving,name",
        *(f"images/s{a}.nii.gz,images/s{b}.nii.gz,{n}" for a, b, n in ((0, 1, ""), (1, 0, "back"), (0, 2, ""))),
    ]
    listed.write_text("\n".join(rows) + "\n")
    limits = ("--limits", lenient_limits(tmp_path))
    done = register("--pairs", listed, "--report", *limits)
    assert done.returncode == 6
    assert "3 pairs: 2 warn, 1 not registered" in done.stdout  # this network improves nothing
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert {"s1_to_s0", "back", "s2_to_s0"} <= {cells[0] for cells in page.cells}
    again = register("--pairs", listed, "--report", "--qc-fail", "--resume", *limits)
    assert again.returncode == 7
    assert "(s2_to_s0): not registered: " in again.stderr


def test_parts_leave_the_verdict_to_the_whole(register: Register, images: Path, tmp_path: Path) -> None:
    done = register(images, images / "s0.nii.gz", "--num-parts", 2, "--qc-fail")
    assert done.returncode == 2
    assert "after the parts run ofg report" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_failure_that_is_mended_is_none(tmp_path, make_grid, world_image, tiny_model, run_cli) -> None:
    """A part of a batch leaves its table; the whole, later, does not know of it."""
    images = write_subjects(tmp_path / "images", 3, make_grid, world_image)
    atlas, good = (images / "s0.nii.gz").rename(tmp_path / "atlas.nii.gz"), (images / "s2.nii.gz").read_bytes()
    (images / "s2.nii.gz").write_bytes(b"no image")
    batch = ["register", atlas, images, "-m", tiny_model().path, "-o", tmp_path / "out"]
    assert run_cli([*batch, "--num-parts", 2, "--part-id", 1])[0] == 6
    told = ["s2_to_atlas"]
    assert [entry.name for entry in entries(tmp_path / "out")] == told
    record = tmp_path / "out/batch_part-1-of-2.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "written": "2026-01-01T00:00:00+00:00"}))  # not in the same second
    (images / "s2.nii.gz").write_bytes(good)
    assert run_cli([*batch, "--resume"])[0] == 0
    assert (tmp_path / "out/failures_part-1-of-2.csv").exists()
    assert [entry.name for entry in entries(tmp_path / "out")] == ["s1_to_atlas", *told]
    record.write_text(json.dumps({**content, "written": "2126-01-01T00:00:00+00:00"}))  # tried again since, in vain
    assert [entry.name for entry in entries(tmp_path / "out")] == ["s1_to_atlas", *told, *told]
