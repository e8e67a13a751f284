"""Small but real training runs for the tests of training, export and bench."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import save_volume
from ofg_deploy.options.training import PUBLISHED
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train.batches import TrainingFiles
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import prepare_all
from ofg_deploy.train.devices import launch
from ofg_deploy.train.labels import prepare_labels
from ofg_deploy.train.loop import Trainer
from ofg_deploy.train.pairs import PairList, find_pairs
from ofg_deploy.train.run import EpochRecord, Run

EXPECTS = NetworkInput((32, 16, 32), (2.0, 2.5, 2.0), Intensity(), "none")


def make_subjects(folder: Path, count: int = 5) -> tuple[Path, Path]:
    """Images and labels: one textured ellipsoid, moved and stretched from subject to subject; every axis differs."""
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    shape = (27, 15, 30)
    texture = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.5)
    index = np.indices(shape, dtype=np.float64)
    grid = Grid(shape, np.diag([2.0, 2.5, 2.0, 1.0]))
    for n in range(count):
        rng = np.random.default_rng(n + 1)
        centre = np.array([13.0, 7.0, 15.0]) + rng.uniform(-1.5, 1.5, 3)
        radius = np.array([8.0, 4.5, 10.0]) * rng.uniform(0.9, 1.1, 3)
        distance = (((index - centre[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(axis=0)
        image = np.clip(1.3 - distance, 0, 1) * 80 + 20 * texture * (distance < 1)
        save_volume(images / f"s{n}.nii.gz", image.astype(np.float32), grid)
        save_volume(labels / f"s{n}.nii.gz", np.where(distance < 0.4, 2, distance < 1).astype(np.uint8), grid)
    return images, labels


def tiny_config(**changes: object) -> TrainConfig:
    """Two epochs of three steps with a small window, guided as published; without pictures, which take longer."""
    published = {**PUBLISHED, "guidance_start": 0.0, "guidance_sobolev": 0.0}  # whatever the optimiser
    short = {"epochs": 2, "steps_per_epoch": 3, "ncc_window": 5, "guidance_steps": 2, "lr": 1e-3, "picture_every": 0}
    return TrainConfig(EXPECTS, **{**published, **short, **changes})


def run_training(
    folder: Path, pairs: PairList, config: TrainConfig, cache: Path, epochs: int | None = None, trial: bool = False
) -> tuple[Run, list[EpochRecord]]:
    """Train to the end, or until ``epochs`` epochs are finished as if killed then; continues a run that exists."""
    run = Run(folder)
    every = [*pairs.training, *pairs.validation]
    prepared = prepare_all(every, config.expects, cache, 1, lambda: None)
    if not run.config.exists():
        run.start(config, pairs, cache, ["test"], prepared)
    count = len(pairs.training)
    rows = []
    labels = prepare_labels(pairs.training, prepared[:count]) if config.dice_weight else []
    files = TrainingFiles(prepared[:count], labels)
    trainer = Trainer(run, config, pairs, files, prepared[count:], launch("cpu", config.precision))
    if trial:
        trainer.trial()
    for row in trainer.train():
        rows.append(row)
        if row.epoch == epochs:
            break
    return run, rows


def find_tiny_pairs(images: Path, labels: Path | None) -> PairList:
    """At most four training pairs."""
    return find_pairs(images, labels, 4, seed=0)
