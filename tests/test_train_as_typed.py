"""``ofg train`` and ``ofg export`` as typed: what they take from the folder, runs that end in time, common frames."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from training_runs import EXPECTS, make_subjects, tiny_config

from ofg_deploy.cli import here
from ofg_deploy.errors import InputError, Interrupted, UsageError
from ofg_deploy.nifti import load_image
from ofg_deploy.train import dataset
from ofg_deploy.train.budget import Budget, Costs, describe, plan
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import file_digest, load_cached, prepare_all
from ofg_deploy.train.pairs import PairFiles, find_pairs
from ofg_deploy.train.starts import choose_frame, start_file

SHORT = ["--epochs", "1", "--steps-per-epoch", "2", "--ncc-window", "5", "--max-pairs", "2", "--init", "none"]


def test_what_is_taken_from_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither dataset.json nor a folder images.*ofg data folder FOLDER"):
        here.data_in(tmp_path)
    (tmp_path / "images").mkdir()
    assert here.data_in(tmp_path) == (tmp_path / "images", None)
    (tmp_path / "labels").mkdir()
    assert here.data_in(tmp_path) == (tmp_path / "images", tmp_path / "labels")
    (tmp_path / "dataset.json").write_text("{}")
    assert here.data_in(tmp_path) == (tmp_path / "dataset.json", None)


def test_the_newest_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing to export is named.*train first \(ofg train\)"):
        here.newest_run(tmp_path)
    now = time.time()
    for name, age, files in (
        ("run", 50, ["config.json"]),
        ("run/older", 40, ["config.json", "best.pt"]),
        ("run/newer", 20, ["config.json", "best.pt"]),
        ("run/unfinished", 0, ["config.json"]),
        ("run/cache", 0, ["best.pt"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("")
            os.utime(folder / file, (now - age, now - age))
        if name == "run":
            with pytest.raises(InputError, match=r"has not finished an epoch yet.*--resume"):
                here.newest_run(tmp_path)
    assert here.newest_run(tmp_path) == tmp_path / "run/newer"
    (tmp_path / "run/best.pt").write_text("")
    assert here.newest_run(tmp_path) == tmp_path / "run"


def test_without_arguments(tmp_path: Path, run_cli, monkeypatch) -> None:
    """``ofg train``, ``ofg export`` in a folder with images and labels; nothing there is one line."""
    monkeypatch.chdir(tmp_path)
    for verb, said in (("train", "nothing to train on is named"), ("export", "nothing to export is named")):
        code, _, err = run_cli([verb])
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
    assert not any(tmp_path.iterdir())
    make_subjects(tmp_path)
    code, out, err = run_cli(["train", *SHORT, "--threads", "1", "--workers", "1", "--device", "cpu"])
    assert code == 0, err
    assert "data: images with labels (of this folder)" in out
    assert "no GPU: --hours H plans a run" in out
    assert json.loads((tmp_path / "run/config.json").read_text())["pairs"]["training"][0]["fixed_labels"]
    taken: list[object] = []

    def export_model(source: str, *_: object, **__: object) -> None:
        taken.append(source)
        raise Interrupted("enough")

    monkeypatch.setattr("ofg_deploy.export.api.export_model", export_model)
    code, out, err = run_cli(["export"])
    assert (code, err) == (130, "ofg: error: enough\n")
    assert "run: run (the newest run here)" in out
    assert taken == ["run"]


@pytest.mark.parametrize("verb", ["train", "export"])
def test_a_package_that_is_not_installed_is_code_5_and_the_command_that_installs_it(verb: str) -> None:
    absent = "import sys\nsys.modules.update({n: None for n in ('torch', 'onnx')})\n"
    code = f"{absent}from ofg_deploy.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert re.fullmatch(r"ofg: error: (torch|onnx) is not installed: pip install ofg-deploy\[train\]\n", done.stderr)


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("left_s", [300.0, 3600.0, 30000.0])
def test_a_plan_fits_into_its_time(left_s: float, two_way: bool) -> None:
    config = TrainConfig(EXPECTS, network="voxelmorph-half", steady=True, two_way=two_way)
    costs = Costs(step=0.5, validation=8.0, left=left_s)
    planned = plan(config, Budget(left_s / 3600, frozenset()), costs)
    steps = planned.epochs * planned.steps_per_epoch * (2 if two_way else 1)
    validations = -(-planned.epochs // planned.validate_every)
    seconds = steps * costs.step + validations * costs.validation + planned.epochs
    assert 0.55 * left_s < seconds < left_s
    assert planned.lr == pytest.approx(min(3e-3, max(1e-4, 20 / steps)), rel=0.05)
    others = replace(config, **{k: getattr(planned, k) for k in ("epochs", "steps_per_epoch", "validate_every", "lr")})
    assert planned == others


def test_options_that_were_given_win_over_the_plan() -> None:
    costs = Costs(step=0.5, validation=1.0, left=3600.0)
    config = TrainConfig(EXPECTS, epochs=7, lr=5e-4, validate_every=3)
    planned = plan(config, Budget(1.0, frozenset({"epochs", "lr", "validate_every"})), costs)
    assert (planned.epochs, planned.lr, planned.validate_every) == (7, 5e-4, 3)
    assert 0.5 * 3600 < 7 * planned.steps_per_epoch * 0.5 < 3600
    planned = plan(replace(config, steps_per_epoch=100), Budget(1.0, frozenset({"steps_per_epoch"})), costs)
    assert planned.steps_per_epoch == 100
    assert 0.5 * 3600 < planned.epochs * 100 * 0.5 < 3600
    for hours, given in ((0, ()), (-1, ()), (float("nan"), ()), (float("inf"), ()), (1, ("epochs", "steps_per_epoch"))):
        with pytest.raises(UsageError, match="hours"):
            Budget(hours, frozenset(given))


def test_a_plan_counts_batches_of_all_processes() -> None:
    config = TrainConfig(EXPECTS, batch_size=2, accumulate=3)
    planned = plan(config, Budget(1.0, frozenset()), Costs(step=2.0, validation=1.0, left=3600.0, pairs_at_once=8))
    assert planned.steps_per_epoch % 24 == 0  # whole optimiser steps
    batches = planned.epochs * planned.steps_per_epoch / 8
    assert 0.5 * 3600 < batches * 2.0 < 3600


def test_what_is_said_of_a_plan() -> None:
    budget, costs = Budget(0.02, frozenset()), Costs(step=2.0, validation=1.0, left=72.0)
    config = plan(TrainConfig(EXPECTS, network="voxelmorph-half"), budget, costs)
    lines = describe(config, budget, costs)
    assert "planned for 0.02 h: voxelmorph-half" in lines[0]
    assert "would take 4 days, 15:06:40" in lines[0]  # 500 x 400 x 2 s
    assert "steps fit into 0.02 h" in lines[1]
    assert len(describe(plan(config, Budget(5, frozenset()), Costs(0.5, 1, 18000)), budget, costs)) == 1
    assert (Budget(0.1, frozenset()).most_pairs, Budget(9, frozenset()).most_pairs) == (40, 400)


def test_hours_on_a_cpu(tmp_path: Path, run_cli, monkeypatch) -> None:
    """A compact network, a length in config.json that a resumed run keeps, and the time that was asked for."""
    monkeypatch.chdir(tmp_path)
    make_subjects(tmp_path)
    common = ["--threads", "1", "--workers", "1", "--device", "cpu"]
    started = time.process_time()  # other work on this machine does not count
    code, out, err = run_cli(
        ["train", "--hours", "0.004", "--epochs", "2", "--init", "none", "--ncc-window", "5", *common]
    )
    assert code == 0, err
    assert time.process_time() - started < 1.5 * 0.004 * 3600
    assert "planned for 0.004 h: voxelmorph-half, 2 epochs of" in out
    assert "--hours H" not in out
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["network"], config["epochs"]) == ("voxelmorph-half", 2)
    assert config["steps_per_epoch"] > 2
    assert config["lr"] == 3e-3
    code, _, err = run_cli(["train", "--resume", "--hours", "1"])
    assert (code, "--hours cannot change with --resume" in err) == (2, True)
    before = (tmp_path / "run/config.json").read_bytes()
    assert run_cli(["train", "--resume", *common])[0] == 0
    assert (tmp_path / "run/config.json").read_bytes() == before


@pytest.fixture
def frames(images: Path) -> list[PairFiles]:
    """All ordered pairs of four shifted subjects."""
    paths = sorted(images.iterdir())[:4]
    return [PairFiles(a, b) for a in paths for b in paths if a != b]


def test_starts_through_a_frame_are_composed_alignments(frames, tmp_path, monkeypatch) -> None:
    """Each subject is aligned once; the start of a pair is T_moving after the inverse of T_fixed, by SimpleITK."""
    expects = replace(EXPECTS, init="rigid")
    frame = choose_frame(frames, "rigid")
    assert frame is not None
    steps: list[int] = []
    files = prepare_all(frames, expects, tmp_path / "cache", 1, lambda: steps.append(1), frame=frame)
    assert len(steps) == len(frames) + 4
    assert len(list((tmp_path / "cache").glob("*.start.npy"))) == 4

    def to_sitk(image: Path) -> sitk.AffineTransform:
        file = start_file(file_digest(image), file_digest(frame), "rigid", tmp_path / "cache")
        lps = np.diag([-1.0, -1, 1, 1]) @ np.load(file) @ np.diag([-1.0, -1, 1, 1])
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(lps[:3, :3].ravel().tolist())
        transform.SetTranslation(lps[:3, 3].tolist())
        return transform

    shifts = {f"s{n}.nii.gz": np.array([n % 7 - 3, 2 - n % 5, 0.5 * n]) for n in range(4)}
    for pair, file in zip(frames, files, strict=True):
        matrix = load_cached(file).moving_from_fixed
        for point in ((0.0, 0, 0), (12.0, -7, 9), (-20.0, 15, 3)):
            lps = (-point[0], -point[1], point[2])
            through = to_sitk(pair.moving).TransformPoint(to_sitk(pair.fixed).GetInverse().TransformPoint(lps))
            np.testing.assert_allclose((matrix @ [*point, 1])[:3] * [-1, -1, 1], through, atol=1e-9)
        # The anatomy of subject n lies at x + shift_n: a fixed point p is at p + shift_fixed - shift_moving.
        truth = shifts[pair.fixed.name] - shifts[pair.moving.name]
        assert np.linalg.norm(matrix[:3, 3] - truth) < 1.5
    assert load_cached(files[0]).moving.shape == EXPECTS.shape

    # All is cached; alignments of pairs by themselves are other entries.
    monkeypatch.setattr(dataset, "align_with_frame", None)
    again: list[int] = []
    assert prepare_all(frames, expects, tmp_path / "cache", 1, lambda: again.append(1), frame=frame) == files
    assert len(again) == len(steps)
    assert not {*files} & {tmp_path / "cache" / f"{dataset._key(pair, expects)}.npz" for pair in frames}


def test_where_a_frame_is_chosen(frames) -> None:
    assert choose_frame(frames, "none") is None
    assert choose_frame(frames, "centre") is None
    assert choose_frame(frames[:2], "affine") is None  # two pairs of three subjects
    assert choose_frame(frames[:2], "affine", always=True) in {frames[0].fixed, frames[0].moving, frames[1].moving}
    assert choose_frame(frames, "affine") == choose_frame(frames[::-1], "affine")


def test_a_subject_that_cannot_be_aligned_takes_its_pairs_along(frames, tmp_path) -> None:
    bad = next(pair.moving for pair in frames if pair.moving != choose_frame(frames, "rigid"))
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    frame = choose_frame(frames, "rigid")
    expects = replace(EXPECTS, init="rigid")
    with pytest.raises(InputError, match="truncated"):
        prepare_all(frames, expects, tmp_path / "a", 1, lambda: None, frame=frame)
    failed: dict[PairFiles, str] = {}
    files = prepare_all(frames, expects, tmp_path / "a", 1, lambda: None, failed, frame)
    assert failed.keys() == {pair for pair in frames if bad in (pair.fixed, pair.moving)}
    assert [file.exists() for file in files] == [pair not in failed for pair in frames]


def test_the_command_records_the_frame_and_validates_as_it_will_register(tmp_path, run_cli) -> None:
    images, _ = make_subjects(tmp_path)
    common = ["--epochs", "1", "--steps-per-epoch", "1", "--ncc-window", "5", "--threads", "1", "--workers", "1"]
    code, _, err = run_cli(["train", images, "-o", tmp_path / "run", "--init", "rigid", "--max-pairs", "6", *common])
    assert code == 0, err
    record = json.loads((tmp_path / "run/config.json").read_text())
    frame = record["config"]["frame"]
    pairs = find_pairs(images, None, 6, 0)
    frame = str((tmp_path / "run" / frame).resolve())
    assert frame in {str(p.fixed) for p in pairs.training} | {str(p.moving) for p in pairs.training}
    cache = tmp_path / "run/cache"
    expects = TrainConfig.from_record(record["config"]).expects
    for pair in pairs.validation:
        direct = load_cached(cache / f"{dataset._key(pair, expects)}.npz").moving_from_fixed
        from ofg_deploy.preprocess import Start

        wanted = Start("rigid").align(load_image(pair.fixed), load_image(pair.moving)).moving_from_fixed
        np.testing.assert_array_equal(direct, wanted)
    assert run_cli(["train", "-o", tmp_path / "run", "--resume", "--threads", "1", "--workers", "1"])[0] == 0
    code, _, err = run_cli(["train", images, "-o", tmp_path / "x", "--starts", "frame", "--init", "none", *common])
    assert (code, "--starts frame composes" in err) == (2, True)
    assert tiny_config().frame is None
