"""Several processes, batches, precision, memory: the same training, however it is spread."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import EXPECTS, find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy.errors import DeviceError, InputError, UsageError
from ofg_deploy.outputs import write_bytes
from ofg_deploy.train import estimate
from ofg_deploy.train.batches import Item, TrainingFiles, epoch_items, load_batches, micro_batches
from ofg_deploy.train.checkpoint import load_checkpoint
from ofg_deploy.train.dataset import load_cached, prepare_all
from ofg_deploy.train.devices import launch
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.run import Run

RunCli = Callable[[list[object]], tuple[int, str, str]]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_subjects(tmp_path_factory.mktemp("subjects"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_checkpoint(run.last).state


def gradient_difference(a: Run, b: Run) -> float:
    """Relative distance of the gradients of two runs of a single step, read from Adam's first moments.

    The weights themselves would not tell: Adam's first step has the size of the learning rate, whatever the gradient.
    """
    first, second = (
        torch.cat([s["exp_avg"].flatten() for s in load_checkpoint(run.last).resume["optimiser"]["state"].values()])
        for run in (a, b)
    )
    return float((first - second).norm() / first.norm())


@pytest.mark.parametrize("guidance", ["ofg", "none"])
def test_two_processes_train_like_one_with_the_double_batch(
    subjects: tuple[Path, Path], tmp_path: Path, guidance: str, run_cli: RunCli
) -> None:
    """Through torchrun and the command, one optimiser step."""
    options = ["--grid", 32, 16, 32, "--spacing", 2, 2.5, 2, "--init", "none", "--max-pairs", 4, "--ncc-window", 5]
    options += ["--epochs", 1, "--steps-per-epoch", 2, "--threads", 1, "--guidance", guidance, "--labels", subjects[1]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "ofg_deploy"]
    runs = {name: Run(tmp_path / name) for name in ("two", "one")}
    options += ["--cache", tmp_path / "cache"]
    command = [sys.executable, *torchrun, "train", subjects[0], "-o", runs["two"].folder, *options]
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: ofg export") == 1
    code, out, err = run_cli(["train", subjects[0], "-o", runs["one"].folder, *options, "--batch-size", 2])
    assert code == 0, err
    assert out.count("next: ofg export") == 1
    # The inner Adam divides by the size of its gradient: rounding, which differs with the batch, is amplified.
    assert gradient_difference(runs["one"], runs["two"]) < (1e-3 if guidance == "ofg" else 1e-5)
    rows = {name: load_checkpoint(run.last).resume["history"][0] for name, run in runs.items()}
    for column in ("loss", "target", "regularity", "val_dice", "val_ncc"):
        assert rows["two"][column] == pytest.approx(rows["one"][column], rel=1e-4), column


def test_two_processes_accumulate_and_resume(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    """A network with an unused head, which other processes must not wait for."""
    options = ["--grid", 32, 16, 32, "--spacing", 2, 2.5, 2, "--init", "none", "--max-pairs", 4, "--ncc-window", 5]
    options += ["--epochs", 2, "--steps-per-epoch", 4, "--accumulate", 2, "--network", "lku-net"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]

    def train(*arguments: object) -> None:
        command = [*launcher, "-m", "ofg_deploy", "train", "--threads", 1, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    whole = Run(tmp_path / "whole")
    train(subjects[0], "-o", whole.folder, "--cache", tmp_path / "cache", *options)
    before = weights(whole)
    record = load_checkpoint(whole.last)
    assert record.resume["processes"] == 2
    assert [row["epoch"] for row in record.resume["history"]] == [1, 2]
    train("-o", whole.folder, "--resume")  # nothing is left to do
    assert all(torch.equal(before[k], v) for k, v in weights(whole).items())


def test_accumulation_is_a_larger_batch(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = find_tiny_pairs(*subjects)
    changes = {"epochs": 1, "steps_per_epoch": 2, "guidance": "none"}
    whole, _ = run_training(tmp_path / "a", pairs, tiny_config(**changes, batch_size=2), tmp_path / "cache")
    parts, _ = run_training(tmp_path / "b", pairs, tiny_config(**changes, accumulate=2), tmp_path / "cache")
    changes["steps_per_epoch"] = 1
    single, _ = run_training(tmp_path / "c", pairs, tiny_config(**changes), tmp_path / "cache")
    assert gradient_difference(whole, parts) < 1e-5
    assert gradient_difference(whole, single) > 0.1


def test_items_of_an_epoch() -> None:
    config = tiny_config(steps_per_epoch=5, two_way=True, flip=True, batch_size=2, accumulate=2)
    items = epoch_items(config, 3, 1, processes=2)
    assert len(items) == 16  # 10 visits, rounded up to steps of 8
    assert [i.swapped for i in items] == [False, True] * 8
    assert all(a.pair == b.pair and a.flipped == b.flipped for a, b in zip(items[::2], items[1::2], strict=True))
    assert {i.pair for i in items[:6]} == {0, 1, 2}
    assert len({i.flipped for i in items}) > 2
    plain = epoch_items(replace(config, flip=False), 3, 1, processes=2)
    assert [i.pair for i in plain] == [i.pair for i in items]
    assert items == epoch_items(config, 3, 1, processes=2) != epoch_items(config, 3, 2, processes=2)
    shares = [micro_batches(config, items, n, 2) for n in (0, 1)]
    assert [len(share) for share in shares] == [4, 4]
    for step in range(2):  # both processes together: the items of the step
        seen = [i for share in shares for batch in share[2 * step : 2 * step + 2] for i in batch]
        assert sorted(map(repr, seen)) == sorted(map(repr, items[8 * step : 8 * step + 8]))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_swapped_and_flipped(subjects: tuple[Path, Path], tmp_path: Path, workers: int) -> None:
    pairs = list(find_tiny_pairs(*subjects).training[:2])
    files = prepare_all(pairs, EXPECTS, tmp_path, 1, lambda: None)
    a, b = (load_cached(file) for file in files)
    items = [[Item(0, False, ()), Item(1, True, (0, 2))]]
    [batch] = load_batches(TrainingFiles(files, []), items, workers)
    assert batch.moving.shape == (2, 1, 32, 16, 32)
    assert np.array_equal(batch.moving[0, 0], a.moving)
    assert np.array_equal(batch.moving[1, 0], b.fixed[::-1, :, ::-1])
    assert np.array_equal(batch.fixed[1, 0], b.moving[::-1, :, ::-1])
    files[0].write_bytes(b"x")
    with pytest.raises(InputError, match=r"^[^\n]*damaged: start again[^\n]*$"):
        list(load_batches(TrainingFiles(files, []), items, workers))


def test_labels_guide_where_images_do_not(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = find_tiny_pairs(*subjects)
    config = tiny_config(guidance="none", smoothness=0.0, dice_weight=5.0, epochs=4)
    _, rows = run_training(tmp_path / "run", pairs, config, tmp_path / "cache")
    assert rows[0].loss == pytest.approx(rows[0].target + 5 * rows[0].dice_loss)
    assert rows[-1].dice_loss < rows[0].dice_loss
    with pytest.raises(InputError, match="labels for every training pair"):
        run_training(tmp_path / "none", find_tiny_pairs(subjects[0], None), config, tmp_path / "cache")


def test_bf16_is_close_and_resumes(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, cache = find_tiny_pairs(*subjects), tmp_path / "cache"
    config = tiny_config(precision="bf16", guidance="none", steps_per_epoch=1)
    with pytest.raises(DeviceError, match=r"downarm.3.main would see \(4, 2, 4\) voxels"):
        run_training(tmp_path / "small", pairs, config, cache)
    config = replace(config, expects=replace(EXPECTS, shape=(48, 48, 64)), network="voxelmorph-half")
    whole, rows = run_training(tmp_path / "whole", pairs, config, cache)
    run_training(tmp_path / "cut", pairs, config, cache, epochs=1)
    once = Run(shutil.copytree(tmp_path / "cut", tmp_path / "once"))
    cut, _ = run_training(tmp_path / "cut", pairs, config, cache)
    assert all(torch.equal(weights(whole)[k], v) for k, v in weights(cut).items())
    config = replace(config, precision="fp32", epochs=1)
    full, exact = run_training(tmp_path / "fp32", pairs, config, cache)
    assert 1e-6 < gradient_difference(full, once) < 0.03
    assert rows[0].target == pytest.approx(exact[0].target, rel=1e-3)
    with pytest.raises(DeviceError, match="bf16 or fp32"):
        launch("cpu", "fp16")


def test_a_trial_changes_nothing(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, config = find_tiny_pairs(*subjects), tiny_config(epochs=1)
    plain, _ = run_training(tmp_path / "plain", pairs, config, tmp_path / "cache")
    tried, _ = run_training(tmp_path / "tried", pairs, config, tmp_path / "cache", trial=True)
    assert all(torch.equal(weights(plain)[k], v) for k, v in weights(tried).items())


def test_resuming_with_other_processes_is_refused(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, config = find_tiny_pairs(*subjects), tiny_config()
    run, _ = run_training(tmp_path / "run", pairs, config, tmp_path / "cache", epochs=1)
    record = torch.load(run.last, weights_only=True)
    record["resume"]["processes"] = 4
    torch.save(record, run.last)
    with pytest.raises(UsageError, match="4 processes"):
        run_training(tmp_path / "run", pairs, config, tmp_path / "cache")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_memory_is_estimated_and_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the peak of a process that really takes such a step."""
    config = tiny_config(guidance="none")
    config = replace(config, expects=replace(EXPECTS, shape=(96, 80, 112)))
    network = build_network("voxelmorph", (96, 80, 112))
    step = (
        "import torch\n"
        "from pathlib import Path\n"
        "from ofg_deploy.train.losses import diffusion, local_ncc_loss, warp\n"
        "from ofg_deploy.train.networks import build_network\n"
        "def peak():\n"
        "    [line] = [x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith('VmHWM')]\n"
        "    return 1024 * int(line.split()[1])\n"
        "network = build_network('voxelmorph', (96, 80, 112)).to(memory_format=torch.channels_last_3d)\n"
        "def step(*shape):\n"
        "    a, b = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)\n"
        "    field = network(a, b); (local_ncc_loss(warp(a, field), b) + diffusion(field)).backward()\n"
        "grid, network.grid, network.padded = network.grid, (16, 16, 16), (16, 16, 16)\n"
        "step(16, 16, 16)\n"
        "network.grid = network.padded = grid\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"  # forget the peak of importing torch
        "before = peak(); step(96, 80, 112); print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", step], check=True, capture_output=True, text=True)
    measured, need = int(done.stdout), estimate.memory_needed(config, network)
    assert 0.8 < need / measured < 1.6, (need, measured)
    half = estimate.memory_needed(replace(config, precision="bf16"), network)
    assert half < need < estimate.memory_needed(replace(config, batch_size=2), network)
    monkeypatch.setattr(estimate, "memory_free", lambda device: need - 1)
    with pytest.raises(DeviceError, match=r"needs about .* are free: use a smaller grid or batch_size"):
        estimate.check_memory(config, network, torch.device("cpu"), 1)
    monkeypatch.setattr(estimate, "memory_free", lambda device: need + 1)
    assert "needs about" in estimate.check_memory(config, network, torch.device("cpu"), 1)
    with pytest.raises(DeviceError):
        estimate.check_memory(config, network, torch.device("cpu"), 2)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the write fails half-way, as there."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            write_bytes(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_logs_and_pictures(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(epochs=3, picture_every=2)
    run_training(tmp_path / "run", find_tiny_pairs(*subjects), config, tmp_path / "cache", epochs=1)
    run, rows = run_training(tmp_path / "run", find_tiny_pairs(*subjects), config, tmp_path / "cache")
    assert [run.picture(n).exists() for n in (1, 2, 3)] == [True, True, True]  # the first, every second, the last
    assert run.picture(2).read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(run.tensorboard)).Reload()
    logged = events.Scalars("validation/dice")
    assert [event.step for event in logged] == [1, 2, 3]
    assert logged[-1].value == pytest.approx(rows[-1].val_dice)
    assert [event.step for event in events.Images("validation/first pair")] == [1, 2, 3]
