"""A training from its plan to its last epoch: prepare the pairs, try a step, claim the folder, train; or resume."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ofg_deploy.errors import InputError, Interrupted
from ofg_deploy.options.training import Resources
from ofg_deploy.train.batches import TrainingFiles
from ofg_deploy.train.budget import Budget, Costs, describe, plan
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import misfits, prepare_all
from ofg_deploy.train.devices import check_bf16_on_cpu, choose_device, first_alone, launch
from ofg_deploy.train.estimate import check_memory
from ofg_deploy.train.guides import check_own, have_guides, prepare_guides
from ofg_deploy.train.labels import prepare_labels
from ofg_deploy.train.loop import Trainer
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.objective import Objective
from ofg_deploy.train.observer import Observer, Progress
from ofg_deploy.train.pairs import PairList, check_labels, without_failed
from ofg_deploy.train.preparing import Preparing, seen_pairs
from ofg_deploy.train.run import Run, breakdown
from ofg_deploy.train.starts import images_of
from ofg_deploy.train.synthesis.held_out import with_images
from ofg_deploy.train.synthesis.people import prepare_people
from ofg_deploy.train.synthesis.source import Synthesis
from ofg_deploy.train.verdict import judged

if TYPE_CHECKING:
    from lightning_fabric import Fabric

UNKNOWN_LABELS = 35  # of a Dice loss over all labels that occur: as many as brain parcellations have


def start(
    out: Path,
    config: TrainConfig,
    pairs: PairList,
    cache: Path,
    resources: Resources,
    skip_bad: bool,
    budget: Budget | None,
    observer: Observer,
    overwrite: bool = False,
) -> None:
    """Begin a run in ``out``; the folder is claimed only once every pair is prepared and a step has been tried.

    Args:
        budget: of time, by which the length is planned once it is known what a step takes here.
        overwrite: replace a run that is there. It stays as it is until the folder is claimed.
    """
    began, run = time.monotonic(), Run(out)
    fabric = launch(choose_device(resources.device), config.precision)
    memory = _check_machine(config, pairs, fabric, resources)
    pairs = pairs if budget else seen_pairs(pairs, config, fabric.world_size)
    resumable = not run.config.exists()
    if fabric.is_global_zero and resumable:
        Preparing(config, pairs, cache, skip_bad, budget).save(run)
    try:
        pairs, files = first_alone(
            fabric, lambda: _prepare(pairs, config, cache, resources.workers, skip_bad, observer)
        )
    except KeyboardInterrupt as error:
        how = "continue with `resume=True`" if resumable else f"the run in {out} is unchanged"
        raise Interrupted(f"stopped while preparing pairs; {how}") from error
    trainer = _trainer(run, config, pairs, cache, files, fabric, resources, new=True)
    step_s = trainer.trial().seconds
    if budget:
        costs = Costs(
            trainer.mean_over_processes(step_s),
            trainer.mean_over_processes(trainer.trial_validation()),
            trainer.mean_over_processes(3600 * budget.hours - (time.monotonic() - began)),
            config.batch_size * fabric.world_size,
        )
        config = plan(config, budget, costs)
        trainer = _trainer(run, config, pairs, cache, files, fabric, resources, new=True)
    _announce(trainer, pairs, memory, step_s, observer)
    if budget:
        for line in describe(config, budget, costs):
            observer.note(line)
    elif fabric.device.type == "cpu":
        observer.note("no GPU: `hours=H` plans a run that ends in H hours on this machine")
    first_alone(fabric, lambda: _claim(fabric, run, config, pairs, cache, files, overwrite))
    _train(trainer, pairs, observer)


def resume(out: Path, resources: Resources, observer: Observer) -> None:
    """Continue a run exactly as it was configured, also one that was stopped before its first epoch."""
    run = Run(out)
    if begun := Preparing.load(run):
        start(out, begun.config, begun.pairs, begun.cache, resources, begun.skip_bad, begun.budget, observer)
        return
    config, pairs, cache = run.read()
    fabric = launch(choose_device(resources.device), config.precision)
    memory = _check_machine(config, pairs, fabric, resources)
    pairs, files = first_alone(fabric, lambda: _prepare(pairs, config, cache, resources.workers, False, observer))
    run.check_unchanged([*files["training"], *files["guides"], *files["validation"]])
    trainer = _trainer(run, config, pairs, cache, files, fabric, resources)
    if len(trainer.history) >= config.epochs:
        observer.note(f"{out} is finished: {config.epochs} of {config.epochs} epochs")
        _conclude(trainer, pairs, observer)
        return
    _announce(trainer, pairs, memory, trainer.trial().seconds, observer)
    _train(trainer, pairs, observer)


def _claim(
    fabric: Fabric,
    run: Run,
    config: TrainConfig,
    pairs: PairList,
    cache: Path,
    files: dict[str, list[Path]],
    overwrite: bool,
) -> None:
    if fabric.is_global_zero:
        if overwrite or not run.config.exists():  # checkpoints without a configuration would be taken for this run's
            run.clear()
        run.start(config, pairs, cache, sys.argv, [*files["training"], *files["guides"], *files["validation"]])
        Preparing.forget(run)


def _check_machine(config: TrainConfig, pairs: PairList, fabric: Fabric, resources: Resources) -> str:
    """What can be refused before the pairs are prepared; what a step needs of memory, as a sentence."""
    torch.set_num_threads(resources.threads or max(1, (os.cpu_count() or 1) // _local_processes()))
    network = build_network(config.network, config.expects.shape, config.diffeomorphic)
    network.activation_checkpointing = resources.activation_checkpointing
    if config.precision == "bf16" and fabric.device.type == "cpu":
        check_bf16_on_cpu(network, config.expects.shape)
    Objective(config, fabric.device)
    labels = (len(pairs.evaluated) if pairs.evaluated else UNKNOWN_LABELS) if config.dice_weight else 0
    return check_memory(config, network, fabric.device, _local_processes(), labels)


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _prepare(
    pairs: PairList, config: TrainConfig, cache: Path, workers: int, skip_bad: bool, observer: Observer
) -> tuple[PairList, dict[str, list[Path]]]:
    """Prepared files by split. Voxels are read here for the first time, those of validation labels too."""
    if config.synthesise:
        return pairs, _prepare_synthesised(pairs, config, cache, workers or os.cpu_count() or 1, observer)
    every = [*pairs.training, *pairs.validation]
    if config.dice_weight and (bare := next((p for p in pairs.training if p.fixed_labels is None), None)):
        raise InputError(f"`dice_weight` needs labels for every training pair: {bare.fixed} has none")
    failed = check_labels(pairs.validation + (pairs.training if config.dice_weight else ()))
    if not skip_bad:  # says so now, not after the long work
        without_failed(pairs, failed, skip_bad)
    frame = None if config.frame is None else Path(config.frame)
    work = len(every) + (len(images_of(pairs.training)) if frame else 0)
    with observer.preparing(f"preparing pairs (init {config.expects.init})", work) as advance:
        how = (config.expects, cache, workers or os.cpu_count() or 1, advance, failed if skip_bad else None)
        # Validation pairs start as ofg register will, each from its own alignment.
        files = prepare_all(list(pairs.training), *how, frame) + prepare_all(list(pairs.validation), *how)
        guided = config.guides and have_guides(pairs.training)
        if guided:
            prepare_guides(
                pairs.training, files[: len(pairs.training)], config.expects, how[2], failed if skip_bad else None
            )
    kept, left_out = without_failed(pairs, failed, skip_bad)
    where = dict(zip(every, files, strict=True))
    prepared = [*kept.training, *kept.validation]
    for line in (left_out, *misfits(prepared, [where[p] for p in prepared])):
        if line:
            observer.warn(line)
    training = [where[p] for p in kept.training]
    labels = prepare_labels(kept.training, training, kept.evaluated) if config.dice_weight else []
    guides = prepare_guides(kept.training, training, config.expects, how[2]) if guided else []
    if guides:
        check_own(kept.training, training, guides)
    validation = [where[p] for p in kept.validation]
    return kept, {"training": training, "labels": labels, "guides": guides, "validation": validation}


def _prepare_synthesised(
    pairs: PairList, config: TrainConfig, cache: Path, workers: int, observer: Observer
) -> dict[str, list[Path]]:
    """The people that training pairs are rendered of, and validation pairs, rendered now and prepared as any images."""
    people = images_of(pairs.training)
    frame, work = config.frame and Path(config.frame), len(people) + 2 * len(pairs.validation)
    assert config.expects is not None
    with observer.preparing(f"preparing label maps (init {config.expects.init})", work) as advance:
        training = prepare_people(people, frame, config.expects, config.skull > 0, cache, workers, advance)
        rendered = with_images(pairs.validation, config, cache, advance)
        validation = prepare_all(list(rendered), config.expects, cache, workers, advance)
    for line in misfits(list(rendered), validation):
        observer.warn(line)
    return {"training": training, "labels": [], "guides": [], "validation": validation}


def _trainer(
    run: Run,
    config: TrainConfig,
    pairs: PairList,
    cache: Path,
    files: dict[str, list[Path]],
    fabric: Fabric,
    resources: Resources,
    new: bool = False,
) -> Trainer:
    workers = resources.loader_workers
    if workers is None:
        workers = 2 if fabric.device.type == "cuda" else 0
    synthesis = Synthesis(files["training"], config) if config.synthesise else None
    training = TrainingFiles(files["training"], files["labels"], files["guides"], synthesis)
    pairs = replace(pairs, validation=with_images(pairs.validation, config, cache))
    trainer = Trainer(run, config, pairs, training, files["validation"], fabric, workers, new)
    trainer.network.activation_checkpointing = resources.activation_checkpointing
    return trainer


def _train(trainer: Trainer, pairs: PairList, observer: Observer) -> None:
    run, config = trainer.run, trainer.config
    # Counted in pairs of all processes, as steps_per_epoch counts them.
    per_batch = config.batch_size * trainer.fabric.world_size
    steps = trainer.steps_per_epoch * per_batch
    total, done = config.epochs * steps, len(trainer.history)
    alone = run.locked() if trainer.fabric.is_global_zero else nullcontext()
    begun = Progress("training", done * steps, total, done + 1, config.epochs)
    with alone, observer.training(begun) as tell:

        def on_step(step: int, loss: float) -> None:
            tell(Progress("training", done * steps + step * per_batch, total, done + 1, config.epochs, loss))

        try:
            if line := _guidance_begins(config, done):
                observer.note(line)
            for row in trainer.train(on_step):
                done = row.epoch
                if line := breakdown(trainer.history):
                    observer.warn(line)
                tell(Progress("training", done * steps, total, done, config.epochs, row.loss, row))
                if line := _guidance_begins(config, done):
                    observer.note(line)
        except KeyboardInterrupt as error:
            raise Interrupted("stopped; continue with `resume=True`") from error
    _conclude(trainer, pairs, observer)


def _guidance_begins(config: TrainConfig, epoch: int) -> str | None:
    """What to say before an epoch, counted from 0, in which guidance begins."""
    if not 0 < epoch < config.epochs or not config.guided(epoch) or config.guided(epoch - 1):
        return None
    return f"guidance begins in epoch {epoch + 1}: the loss is another one from here on, and jumps"


def _conclude(trainer: Trainer, pairs: PairList, observer: Observer) -> None:
    """Which epoch is kept and how much that says."""
    chosen, doubts = judged(trainer.history, len(pairs.validation), trainer.start_scores)
    if chosen:
        observer.note(chosen)
    for line in doubts:
        observer.warn(line)


def _announce(trainer: Trainer, pairs: PairList, memory: str, step_s: float, observer: Observer) -> None:
    """What is about to happen, and what it takes in memory and time."""
    config, fabric = trainer.config, trainer.fabric
    grid = "x".join(str(n) for n in config.expects.shape)
    processes = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    what = "label maps to render" if config.synthesise else "training"
    guided = config.guides and (config.synthesise or have_guides(pairs.training))
    observer.note(
        f"{config.network} on {fabric.device.type}, {config.precision}{processes}, "
        f"guidance {trainer.objective.guidance}{' with guides' * guided}, grid {grid}, "
        f"{len(pairs.training)} {what} and {len(pairs.validation)} validation pairs"
    )
    left = timedelta(seconds=round(step_s * trainer.steps_per_epoch * (config.epochs - len(trainer.history))))
    observer.note(f"{memory}; {step_s:.2f} s a step, {left} in all without validation")
    scores = trainer.start_scores
    begin = "" if scores.dice is None else f", Dice {scores.dice:.4f} and NCC {scores.ncc:.4f} of the initial alignment"
    observer.note(f"learning rate {config.lr:.2g}{begin}")
