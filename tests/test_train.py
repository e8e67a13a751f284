"""Training: which pairs, what is written, and that a killed run ends in the same weights."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from training_runs import EXPECTS, find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy import nifti
from ofg_deploy.errors import DeviceError, InputError, UsageError
from ofg_deploy.field import resample
from ofg_deploy.geometry import Grid
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.metrics import dice, mean
from ofg_deploy.options.training import DEFAULT_OPTIMISER, GUIDANCE_OPTIONS, PUBLISHED
from ofg_deploy.options.words import Optimiser
from ofg_deploy.train.checkpoint import load_checkpoint
from ofg_deploy.train.config import TrainConfig, check_effects
from ofg_deploy.train.dataset import load_cached, misfits, prepare_all
from ofg_deploy.train.devices import choose_device
from ofg_deploy.train.guidance import inner_optimiser
from ofg_deploy.train.labels import dice_of_field, load_label_pair
from ofg_deploy.train.pairs import PairFiles, PairList, check_pairs, find_pairs, plan_grid
from ofg_deploy.train.recipes import split_recipes
from ofg_deploy.train.run import Run


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_subjects(tmp_path_factory.mktemp("subjects"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).state


def test_run_folder(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    run, rows = run_training(tmp_path / "run", find_tiny_pairs(*subjects), tiny_config(), tmp_path / "cache")
    with run.metrics.open() as stream:
        table = list(csv.DictReader(stream))
    assert [int(r["epoch"]) for r in table] == [1, 2]
    assert float(table[1]["lr"]) == pytest.approx(1e-3 * 0.5**0.9)
    assert float(table[1]["val_dice"]) == rows[1].val_dice > 0.5
    assert rows[0].loss == pytest.approx(rows[0].target + 0.02 * rows[0].regularity)
    best = load_checkpoint(run.best)
    assert (best.network, best.expects) == ("voxelmorph", EXPECTS)
    scores = [r.val_dice for r in rows]
    assert best.training["val_dice"] == max(scores)
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    assert not run.curve_is_old()
    long_ago = run.curve.stat().st_mtime - 40
    os.utime(run.curve, (long_ago, long_ago))
    assert run.curve_is_old()
    assert json.loads(run.config.read_text())["config"]["guidance"] == "ofg"
    assert TrainConfig.from_record(json.loads(run.config.read_text())["config"]) == tiny_config()


def test_unsupervised_differs_and_learns_similarity(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = find_tiny_pairs(*subjects)
    _, ofg = run_training(tmp_path / "ofg", pairs, tiny_config(epochs=1), tmp_path / "cache")
    config = tiny_config(guidance="none", epochs=6, validate_every=6)
    run, rows = run_training(tmp_path / "none", pairs, config, tmp_path / "cache")
    assert rows[0].target < 0 < ofg[0].target  # an NCC loss is negative, an OFG loss is not
    assert rows[0].loss == pytest.approx(rows[0].target + 1.0 * rows[0].regularity)
    assert rows[-1].target < rows[0].target
    assert [r.val_dice is None for r in rows] == [True] * 5 + [False]
    assert load_checkpoint(run.best).training["guidance_steps"] == 0


LATE = {"guidance_optimiser": "multilevel", "guidance_coarse_steps": 2, "guidance_start": 0.5, "guidance_sobolev": 1.0}
LATE |= {"steady": True, "passes": 3}


@pytest.mark.parametrize("guidance", [{"guidance": "ofg"}, {"guidance": "none"}, LATE])
def test_resumed_run_ends_in_identical_weights(
    subjects: tuple[Path, Path], tmp_path: Path, guidance: dict[str, object]
) -> None:
    pairs, config = find_tiny_pairs(*subjects), tiny_config(**guidance, epochs=3)
    whole, rows = run_training(tmp_path / "whole", pairs, config, tmp_path / "cache")
    run_training(tmp_path / "cut", pairs, config, tmp_path / "cache", epochs=1)
    cut, resumed = run_training(tmp_path / "cut", pairs, config, tmp_path / "cache")
    assert [r.epoch for r in resumed] == [2, 3]
    for name in ("best", "last"):
        a, b = weights(getattr(whole, name)), weights(getattr(cut, name))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    initial = load_checkpoint(whole.last).resume["history"][0]["loss"]
    assert initial == rows[0].loss != rows[-1].loss


def test_killed_command_resumes(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    """``kill -9`` in the middle of an epoch, then ``--resume``, against the command left alone."""
    images, labels = subjects
    options = ["--labels", labels, "--grid", 32, 16, 32, "--spacing", 2, 2.5, 2, "--init", "none", "--max-pairs", 4]
    options += ["--epochs", 4, "--steps-per-epoch", 6, "--ncc-window", 5, "--cache", tmp_path / "cache", "--threads", 1]

    def command(*arguments: object) -> list[str]:
        return [sys.executable, "-m", "ofg_deploy", "train", *map(str, arguments)]

    subprocess.run(command(images, "-o", tmp_path / "whole", *options), check=True, capture_output=True)
    victim = subprocess.Popen(command(images, "-o", tmp_path / "cut", *options), stdout=subprocess.DEVNULL)
    last = tmp_path / "cut/last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert load_checkpoint(last).training["epoch"] < 4, "the run was over before it could be killed"
    subprocess.run(command("-o", tmp_path / "cut", "--resume", "--threads", 1), check=True, capture_output=True)
    a, b = weights(tmp_path / "whole/last.pt"), weights(last)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not list((tmp_path / "cut").glob(".partial-*/*.pt"))


def test_interrupted_command_says_how_to_go_on(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    # In the background of a shell we inherit an ignored SIGINT and would pass it on; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = [subjects[0], "-o", tmp_path / "run", "--init", "none", "--epochs", 500, "--threads", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "ofg_deploy", "train", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "--resume" in stderr


def test_pairs_of_a_folder_keep_subjects_apart(subjects: tuple[Path, Path]) -> None:
    found = find_tiny_pairs(*subjects)
    training = {p for pair in found.training for p in (pair.fixed, pair.moving)}
    validation = {p for pair in found.validation for p in (pair.fixed, pair.moving)}
    assert len(found.training) == 4
    assert len(validation) == 2
    assert not training & validation
    assert all(p.fixed != p.moving and p.fixed_labels.name == p.fixed.name for p in found.training)
    assert find_tiny_pairs(*subjects) == found != find_pairs(*subjects, 4, seed=1)


def test_pairs_of_lists(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    images, _ = subjects
    rows = [{"fixed": f"s{a}.nii.gz", "moving": f"s{b}.nii.gz"} for a, b in [(0, 1), (1, 2), (3, 4)]]
    rows[1]["split"] = "validation"
    (images / "pairs.json").write_text(json.dumps(rows))
    found = find_pairs(images / "pairs.json", None, 10, seed=0)
    assert [p.fixed.name for p in found.training] == ["s0.nii.gz", "s3.nii.gz"]
    assert [p.moving.name for p in found.validation] == ["s2.nii.gz"]
    (images / "pairs.csv").write_text("fixed,moving\ns0.nii.gz,s1.nii.gz\ns2.nii.gz,s3.nii.gz\ns1.nii.gz,s2.nii.gz\n")
    assert [len(find_pairs(images / "pairs.csv", None, most, seed=0).training) for most in (None, 10, 1)] == [2, 2, 1]
    for name in ("pairs.json", "pairs.csv"):
        (images / name).unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed,moving\n", "lists no pair"),
        ("fixed,moving\na.nii,b.nii\nc.nii,d.nii\n", "does not exist"),
        ("fixed,other\na.nii,b.nii\n", "no 'moving' in row 1"),
        ("fixed,moving,fixed_label\na.nii,b.nii,c.nii\n", "'fixed_label': is 'fixed_labels' meant"),
        ("fixed\na.nii\n", "no 'moving' in row 1"),
        ("fixed,moving\na.nii,\n", "row 1 has no moving image"),
        ("fixed,moving\na.nii,b.nii\n", "no pair to train on"),
        ("fixed,moving,split\na.nii,b.nii,test\n", "'test'"),
        ("fixed,moving,split\na.nii,b.nii,training\na.nii,b.nii,training\n", "no 'validation'"),
        ("fixed,moving,fixed_labels\na.nii,b.nii,l.nii\n", "labels for one image only"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        check_pairs(find_pairs(tmp_path / "pairs.csv", None, 10, seed=0), skip_bad=False)


def test_bad_data_and_options(
    subjects: tuple[Path, Path], tmp_path: Path, run_cli: Callable[[list[object]], tuple[int, str, str]]
) -> None:
    images, _ = subjects
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in images.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 400 if path.name == "s2.nii.gz" else None])
    for arguments, code, words in [
        ([], 2, "name a folder"),
        ([tmp_path / "nothing"], 3, "does not exist"),
        ([images, "--grid", 30, 6, 32], 2, "grid 30 6 32: this network needs at least 8 voxels along each axis"),
        ([images, "--spacing", 0, 1, 2.5], 2, "spacing 0 1 2.5: finite numbers of mm above 0 are needed"),
        ([images, "--threads", -2], 2, "--threads -2: give 1 or more, or 0 for all cores"),
        ([images, "--workers", -2], 2, "--workers -2: give 1 or more, or 0 for all cores"),
        ([images, "--loader-workers", -2], 2, "--loader-workers -2: give 1 or more, or 0 for none"),
        (["--resume", "--threads", -2], 2, "--threads -2: give 1 or more, or 0 for all cores"),
        ([images, "--network", "other"], 2, "unknown"),
        ([images, "--ncc-window", 4], 2, "odd"),
        ([images, "--epochs", 0], 2, "--epochs 0: give 1 or more"),
        ([images, "--intensity", "window"], 2, "window:-1000,1000"),
        ([images, "--labels", tmp_path / "none"], 3, "not a folder"),
        ([images, "--labels", broken.parent], 3, "does not exist"),
        (["--resume"], 3, "not a run"),
        (["--resume", "--lr", 1], 2, "--lr cannot change"),
        ([images, "--seed", -1], 2, "--seed"),
        (
            [images, "--guidance-lr", 0.1],
            2,
            "--guidance-lr has no effect with --guidance-optimiser greedy",
        ),
        ([images, "--guidance", "none", "--guidance-steps", 3], 2, "no effect with --guidance none"),
        ([images, "--guidance", "none", "--guidance-optimiser", "adam"], 2, "no effect with --guidance none"),
        ([images, "--guidance-optimiser", "greedy", "--guidance-levels", 3], 2, "no effect"),
        ([images, "--guidance-optimiser", "adam", "--guidance-field-sigma", 0.5], 2, "no effect"),
        ([images, "--guidance-gradient-sigma", -1], 2, "--guidance-gradient-sigma -1: give a number from 0 to 100"),
        ([images, "--guidance-gradient-sigma", 1e9], 2, "--guidance-gradient-sigma 1e+09: give a number from 0 to 100"),
        ([images, "--guidance-field-sigma", 1e9], 2, "--guidance-field-sigma 1e+09: give a number from 0 to 100"),
        ([images, "--guidance-step-voxels", 1e9], 2, "--guidance-step-voxels 1e+09: give a number from 1e-06 to 100"),
        ([images, "--guidance-step-limit", 0], 2, "--guidance-step-limit 0: give 0.01 or more"),
        ([images, "--guidance-step-limit", 1e-35], 2, "--guidance-step-limit 1e-35: give 0.01 or more"),
        ([images, "--similarity", "mse", "--ncc-window", 5], 2, "no effect with --similarity mse"),
        ([images, "--recipe", "other"], 2, "use one of ixi"),
        ([images, "--recipe", "oasis", "--recipe", "ixi"], 2, "one data set at a time"),
        ([images, "--guidance-optimiser", "multilevel", "--guidance-levels", 4], 2, "at its coarsest level"),
        ([images, "--guidance-optimiser", "multilevel", "--guidance-levels", 1], 2, "give 2 or more"),
        ([images, "--lr", "inf"], 2, "finite"),
        ([images, "--dice-weight", 1, "--init", "none"], 3, "labels for every training pair"),
        ([broken, "--init", "none", "--workers", 1], 3, "s2.nii.gz"),
    ]:
        found, _, stderr = run_cli(["train", "-o", tmp_path / "run", *arguments])
        assert found == code, (arguments, stderr)
        assert words in stderr
        assert stderr.count("\n") == 1
        assert not (tmp_path / "run/config.json").exists()


def test_a_run_is_for_one_process_and_the_same_images(
    subjects: tuple[Path, Path], tmp_path: Path, run_cli: Callable[[list[object]], tuple[int, str, str]]
) -> None:
    pairs = find_tiny_pairs(*subjects)
    run, _ = run_training(tmp_path / "run", pairs, tiny_config(), tmp_path / "cache", epochs=1)
    prepared = prepare_all([*pairs.training, *pairs.validation], EXPECTS, tmp_path / "cache", 1, lambda: None)
    run.check_unchanged(prepared)
    with pytest.raises(InputError, match="images changed"):
        run.check_unchanged([*prepared[1:], prepared[0]])
    with run.locked():  # a lock of this one open file, so another one in this process waits as well
        code, _, err = run_cli(["train", "-o", run.folder, "--resume"])
        assert code == 3
        assert "being trained by another process" in err
    record = json.loads(run.config.read_text())
    del record["config"]["guidance_steps"]
    run.config.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"config\.json: another version .*guidance_steps"):
        run.read()
    for damage in ({"config": []}, {"config": None}, {"pairs": [1]}):
        run.config.write_text(json.dumps({**record, **damage}))
        with pytest.raises(InputError, match=r"config\.json is damaged"):
            run.read()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", "3", 'epochs is "3", expected a whole number'),
        ("epochs", 3.0, "epochs is 3.0, expected a whole number"),
        ("epochs", True, "epochs is true, expected a whole number"),
        ("epochs", None, "epochs is null, expected a whole number"),
        ("epochs", -3, "epochs -3: give 1 or more"),
        ("steps_per_epoch", "3", 'steps_per_epoch is "3", expected a whole number or null'),
        ("lr", None, "lr is null, expected a number"),
        ("lr", False, "lr is false, expected a number"),
        ("smoothness", [1], "smoothness is [1], expected a number or null"),
        ("flip", "no", 'flip is "no", expected true or false'),
        ("flip", 0, "flip is 0, expected true or false"),
        ("network", ["voxelmorph"], 'network is ["voxelmorph"], expected a text'),
        ("guidance", 1, "guidance is 1, expected ofg or none"),
        ("expects", {"shape": "large"}, 'expects.shape is "large", expected a list'),
    ],
)
def test_a_configuration_edited_by_hand(
    subjects: tuple[Path, Path],
    tmp_path: Path,
    run_cli: Callable[[list[object]], tuple[int, str, str]],
    name: str,
    value: object,
    said: str,
) -> None:
    run = Run(tmp_path / "run")
    run.start(tiny_config(), find_tiny_pairs(*subjects), tmp_path / "cache", [], [])
    record = json.loads(run.config.read_text())
    record["config"] |= {"lr": 1, "smoothness": 2, "steps_per_epoch": None}
    run.config.write_text(json.dumps(record))
    assert run.read()[0] == tiny_config(lr=1.0, smoothness=2.0, steps_per_epoch=None)
    record["config"][name] = value
    run.config.write_text(json.dumps(record))
    code, _, err = run_cli(["train", "-o", run.folder, "--resume"])
    assert (code, err.count("\n")) == (3, 1), err
    assert str(run.config) in err
    assert said in err
    assert list(run.folder.iterdir()) == [run.config]


def test_labels_that_are_not_there_are_no_dice_of_zero(subjects: tuple[Path, Path]) -> None:
    pairs = find_tiny_pairs(*subjects)
    with pytest.raises(InputError, match="hold no label among 7"):
        load_label_pair(pairs.validation[0], Grid((32, 16, 32), np.diag([2.0, 2.5, 2.0, 1.0])), (7,))


def test_what_lies_outside_the_grid_is_said(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = list(find_tiny_pairs(*subjects).training[:2])
    assert misfits(pairs, prepare_all(pairs, EXPECTS, tmp_path, 1, lambda: None)) == []
    small = replace(EXPECTS, shape=(8, 8, 8))
    [line] = misfits(pairs, prepare_all(pairs, small, tmp_path, 1, lambda: None))
    assert line.startswith("2 of 2 pairs have content outside the network's grid")


def test_an_existing_run_is_kept(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = find_tiny_pairs(*subjects)
    run, _ = run_training(tmp_path / "run", pairs, tiny_config(epochs=1), tmp_path / "cache")
    before = run.last.read_bytes()
    with pytest.raises(InputError, match="resume=True"):
        run.start(tiny_config(), pairs, tmp_path / "cache", [], [])
    assert run.last.read_bytes() == before


def test_device_is_never_changed_in_silence() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert choose_device("auto") == "cpu"
    with pytest.raises(DeviceError, match="cuda"):
        choose_device("cuda")


def test_planned_grid_holds_every_image(subjects: tuple[Path, Path]) -> None:
    shape, spacing = plan_grid(find_tiny_pairs(*subjects), 16, None)
    assert (shape, spacing) == ((32, 16, 32), (2.0, 2.5, 2.0))
    assert plan_grid(find_tiny_pairs(*subjects), 16, (1.0, 2.5, 2.0))[0] == (64, 16, 32)
    in_lia = plan_grid(find_tiny_pairs(*subjects), 16, (1.0, 2.0, 2.5), "LIA")  # spacing in the order of the axes
    assert in_lia == ((64, 32, 16), (1.0, 2.0, 2.5))


def test_a_spacing_that_leaves_nothing_of_the_images_is_refused(subjects: tuple[Path, Path]) -> None:
    """The largest have 27 x 15 x 30 voxels, 54 x 37.5 x 60 mm."""
    pairs = find_tiny_pairs(*subjects)
    with pytest.raises(UsageError, match=r"spacing 2 25 2 mm: of images of 54 37\.5 60 mm it leaves 27 1\.5 30 voxels"):
        plan_grid(pairs, 16, (2.0, 25.0, 2.0))
    assert plan_grid(pairs, 16, (2.0, 9.0, 2.0))[0] == (32, 16, 32)  # 4.2 voxels


def test_a_slab_of_few_slices_is_not_too_coarse(tmp_path: Path) -> None:
    slab, grid = tmp_path / "slab.nii.gz", Grid((20, 24, 3), np.diag([1, 1, 5.003, 1]))
    nifti.save_volume(slab, np.ones(grid.shape, np.float32), grid)
    pairs = PairList((PairFiles(slab, slab),), ())
    assert plan_grid(pairs, 16, (1.0, 1.0, 5.004))[0] == (32, 32, 16)


def test_cache_is_used_and_follows_content(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = find_tiny_pairs(*subjects).training
    [file] = prepare_all([pairs[0]], EXPECTS, tmp_path, 1, lambda: None)
    stamp = file.stat().st_mtime_ns
    assert prepare_all([pairs[0]], EXPECTS, tmp_path, 1, lambda: None) == [file]
    assert file.stat().st_mtime_ns == stamp
    assert prepare_all([pairs[1]], EXPECTS, tmp_path, 1, lambda: None) != [file]
    parallel = prepare_all(list(pairs), EXPECTS, tmp_path / "parallel", 2, lambda: None)
    again = load_cached(parallel[0])
    parallel[1].write_bytes(parallel[1].read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged: start again"):
        load_cached(parallel[1])
    assert prepare_all(list(pairs), EXPECTS, tmp_path / "parallel", 2, lambda: None) == parallel
    assert np.array_equal(again.moving, load_cached(file).moving)
    assert sorted(f.name for f in (tmp_path / "parallel").iterdir()) == sorted(f.name for f in parallel)


def test_validation_dice_is_the_dice_of_the_label_maps(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    """A constant field of whole voxels moves the label map by an array shift."""
    files = find_tiny_pairs(*subjects).validation[0]
    [cached] = prepare_all([files], EXPECTS, tmp_path, 1, lambda: None)
    pair = load_cached(cached)
    labels = load_label_pair(files, pair.grid)
    field = np.zeros((3, *pair.grid.shape), np.float32)
    field[0], field[2] = 2, -1
    moving = nifti.load_labels(files.moving_labels)
    shifted = np.zeros(pair.grid.shape, moving.data.dtype)
    on_network = resample(moving.data, moving.grid, pair.grid, np.eye(4), order=0)
    shifted[:-2, :, 1:] = on_network[2:, :, :-1]
    assert dice_of_field(pair, labels, field) == pytest.approx(mean(dice(labels.fixed_labels, shifted)), abs=1e-12)


def test_guidance_is_settled_by_optimiser_similarity_and_recipe() -> None:
    greedy = TrainConfig(EXPECTS, guidance_steps=2)
    assert (greedy.guidance_optimiser, greedy.guidance_steps, greedy.ncc_window) == (DEFAULT_OPTIMISER, 2, 5)
    guide = inner_optimiser(greedy, torch.device("cpu"))
    assert guide.options == Greedy(2), "guidance and --refine step alike"
    others = {"step_voxels": 0.7, "step_limit": 3.0, "gradient_sigma": 0.8, "field_sigma": 0.6}
    asked = TrainConfig(EXPECTS, **{f"guidance_{name}": value for name, value in others.items()})
    guide = inner_optimiser(asked, torch.device("cpu"))
    assert guide.options == Greedy(6, *others.values())
    published = TrainConfig(EXPECTS, **PUBLISHED)
    assert (published.guidance_steps, published.guidance_start, published.guidance_lr) == (5, 0.0, 0.1)
    assert (published.guidance_sobolev, published.ncc_window, published.lr, published.steady) == (0.0, 9, 1e-4, False)
    assert TrainConfig(similarity="mind").guidance_optimiser == "adam"
    assert TrainConfig(guidance="none").ncc_window == 9
    assert split_recipes(["paper", "oasis"]) == split_recipes(["oasis", "paper"]) == ("oasis", True)
    assert split_recipes([]) == (None, False)
    for optimiser in get_args(Optimiser):
        config = TrainConfig(guidance_optimiser=optimiser)
        check_effects(GUIDANCE_OPTIONS[optimiser], config)
        assert replace(config, seed=3) == TrainConfig(guidance_optimiser=optimiser, seed=3)


def test_usage_errors_of_the_configuration() -> None:
    with pytest.raises(UsageError, match="guidance"):
        tiny_config(guidance="other")
    with pytest.raises(UsageError, match="smoothness -1: give 0 or more"):
        tiny_config(smoothness=-1.0)
