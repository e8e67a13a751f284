"""``ofg train`` on a terminal: plan, prepare, train with progress; resume."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ofg_deploy.errors import InputError, Interrupted, UsageError, check_count
from ofg_deploy.image_folder import look_into
from ofg_deploy.preprocess import Init, Intensity, NetworkInput
from ofg_deploy.train.batches import TrainingFiles
from ofg_deploy.train.budget import COMPACT, DEFAULT_NETWORK, Budget, Costs, describe, plan, rate_for, updates_of
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import misfits, prepare_all
from ofg_deploy.train.devices import check_bf16_on_cpu, choose_device, first_alone, launch
from ofg_deploy.train.estimate import check_memory
from ofg_deploy.train.here import data_in
from ofg_deploy.train.labels import prepare_labels
from ofg_deploy.train.loop import Trainer
from ofg_deploy.train.networks import build_network, network_class
from ofg_deploy.train.objective import Objective
from ofg_deploy.train.pairs import (
    DEFAULT_PAIRS,
    PairList,
    check_labels,
    check_pairs,
    find_dataset,
    find_pairs,
    plan_grid,
    without_failed,
)
from ofg_deploy.train.preparing import Preparing, seen_pairs
from ofg_deploy.train.recipes import DEFAULT_INIT, Options, check_pairing, find_recipe, resolve
from ofg_deploy.train.run import EpochRecord, Run, breakdown
from ofg_deploy.train.starts import COMPOSED, choose_frame, images_of
from ofg_deploy.train.verdict import judged

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PLAIN_EVERY_S = 60.0  # a line of progress where there is no terminal
UNKNOWN_LABELS = 35  # of a Dice loss over all labels that occur: as many as brain parcellations have


def find_here(labels: Path | None) -> tuple[Path, Path | None]:
    """What to train on and its label maps, where no data was named; says what was taken.

    Raises:
        UsageError: nothing there.
    """
    data, beside = data_in(Path())
    labels = labels or beside
    _console().print(f"data: {data}{f' with {labels}' if labels else ''} (of this folder)", soft_wrap=True)
    return data, labels


def budget_of(hours: float | None, given: Mapping[str, object]) -> Budget | None:
    """What ``--hours`` plans with; None without it. ``given`` has None for options that were not named."""
    return None if hours is None else Budget(hours, frozenset(name for name in given if given[name] is not None))


def default_network(budget: Budget | None, resources: Resources) -> str:
    """The architecture where none is named: a compact one where there is a budget and no GPU."""
    return COMPACT if budget and choose_device(resources.device) == "cpu" else DEFAULT_NETWORK


def find(
    data: Path,
    out: Path,
    labels: Path | None,
    pairs: int | None,
    seed: int,
    skip_bad: bool,
    budget: Budget | None = None,
) -> PairList:
    """The usable pairs of a new run, every scan's header checked.

    Raises:
        InputError: ``out`` holds a run already, or scans that cannot be used.
    """
    if pairs is not None:
        check_count("--pairs", pairs)
    if Run(out).config.exists():
        raise InputError(f"{out} holds a run already: add --resume to continue it or choose another folder")
    at_random = budget.most_pairs if budget else DEFAULT_PAIRS
    found, left_out = check_pairs(find_pairs(data, labels, pairs, seed, at_random), skip_bad)
    remark = look_into(data).remark() if data.is_dir() and find_dataset(data) is None else None
    for line in (remark, left_out):
        _warn(line)
    return found


def settle(
    data: Path, pairs: PairList, network: str, recipe_name: str | None, given: Options
) -> tuple[NetworkInput, Options, PairList]:
    """What the network will see, the options with nothing left open but grid and spacing, and what Dice is taken over.

    An option that was given wins over the recipe, the recipe over the plan in ``dataset.json``, and that over a grid
    planned from the images here.
    """
    recipe, dataset = find_recipe(recipe_name), find_dataset(data)
    if recipe is not None:
        check_pairing(str(recipe_name), recipe, dataset, listed=dataset is None and data.is_file())
        pairs = replace(pairs, evaluated=recipe.labels)
    architecture = network_class(network)
    if given.grid is not None:
        architecture.check_grid(given.grid)
    divisor = architecture.divisor
    options = resolve(given, recipe, dataset.plan if dataset else None, divisor)
    intensity = Intensity.parse(options.intensity or "")
    grid, spacing = options.grid, options.spacing_mm
    if grid is None or spacing is None:
        planned_grid, planned_spacing = plan_grid(pairs, divisor, spacing, options.axes or "RAS")
        grid, spacing = grid or planned_grid, spacing or planned_spacing
    expects = NetworkInput(grid, spacing, intensity, options.init or DEFAULT_INIT, options.axes or "RAS")
    return expects, options, pairs


def frame_of(starts: str | None, pairs: PairList, init: Init) -> str | None:
    """The common frame of the training pairs' starts; None aligns each pair by itself.

    Args:
        starts: ``frame``, ``pair``, or None for what is less work.

    Raises:
        UsageError: ``frame`` with a start that cannot be composed.
    """
    if starts == "pair":
        return None
    if starts == "frame" and init not in COMPOSED:
        raise UsageError(f"--starts frame composes {' or '.join(COMPOSED)} starts, and --init is {init}: leave it out")
    frame = choose_frame(pairs.training, init, always=starts == "frame")
    return None if frame is None else str(frame)


@dataclass(frozen=True)
class Resources:
    """What decides how fast a run goes, but not where it ends.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of each process; 0 for all cores.
        workers: processes that prepare pairs; 0 for all cores.
        loader_workers: processes that read prepared pairs ahead; None for 2 on CUDA and none on a CPU.
        activation_checkpointing: compute the network's activations twice instead of keeping them.
    """

    device: str = "auto"
    threads: int = 0
    workers: int = 0
    loader_workers: int | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_count("--threads", self.threads, zero="all cores")
        check_count("--workers", self.workers, zero="all cores")
        check_count("--loader-workers", self.loader_workers or 0, zero="none")


def with_rate(config: TrainConfig, pairs: int) -> TrainConfig:
    """The configuration with the learning rate that goes with its length."""
    return replace(config, lr=rate_for(config, updates_of(config, pairs, int(os.environ.get("WORLD_SIZE", "1")))))


def start(
    out: Path,
    config: TrainConfig,
    pairs: PairList,
    cache: Path,
    resources: Resources,
    skip_bad: bool = False,
    budget: Budget | None = None,
) -> None:
    """Begin a run in ``out``; the folder is claimed only once every pair is prepared and a step has been tried.

    Args:
        budget: of time, by which the length is planned once it is known what a step takes here.
    """
    began, run = time.monotonic(), Run(out)
    fabric = launch(choose_device(resources.device), config.precision)
    memory = _check_machine(config, pairs, fabric, resources)
    pairs = pairs if budget else seen_pairs(pairs, config, fabric.world_size)
    if fabric.is_global_zero:
        Preparing(config, pairs, cache, skip_bad, budget).save(run)
    try:
        pairs, files = first_alone(fabric, lambda: _prepare(pairs, config, cache, resources.workers, skip_bad))
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped while preparing pairs; continue with: ofg train -o {out} --resume") from error
    trainer = _trainer(run, config, pairs, files, fabric, resources)
    step_s = trainer.trial().seconds
    if budget:
        costs = Costs(
            trainer.mean_over_processes(step_s),
            trainer.mean_over_processes(trainer.trial_validation()),
            trainer.mean_over_processes(3600 * budget.hours - (time.monotonic() - began)),
            config.batch_size * fabric.world_size,
        )
        config = plan(config, budget, costs)
        trainer = _trainer(run, config, pairs, files, fabric, resources)
    _announce(trainer, pairs, memory, step_s)
    if budget:
        for line in describe(config, budget, costs):
            _console().print(line, soft_wrap=True)
    elif fabric.device.type == "cpu":
        _console().print("no GPU: --hours H plans a run that ends in H hours on this machine", soft_wrap=True)
    first_alone(fabric, lambda: _claim(fabric, run, config, pairs, cache, files))
    _train(trainer, pairs)


def resume(out: Path, resources: Resources) -> None:
    """Continue a run exactly as it was configured, also one that was stopped before its first epoch."""
    run = Run(out)
    if preparing := Preparing.load(run):
        start(out, preparing.config, preparing.pairs, preparing.cache, resources, preparing.skip_bad, preparing.budget)
        return
    config, pairs, cache = run.read()
    fabric = launch(choose_device(resources.device), config.precision)
    memory = _check_machine(config, pairs, fabric, resources)
    pairs, files = first_alone(fabric, lambda: _prepare(pairs, config, cache, resources.workers, skip_bad=False))
    run.check_unchanged([*files["training"], *files["validation"]])
    trainer = _trainer(run, config, pairs, files, fabric, resources)
    if len(trainer.history) >= config.epochs:
        _console().print(f"{out} is finished: {config.epochs} of {config.epochs} epochs", soft_wrap=True)
        _conclude(trainer, pairs)
        return
    _announce(trainer, pairs, memory, trainer.trial().seconds)
    _train(trainer, pairs)


def _claim(
    fabric: Fabric, run: Run, config: TrainConfig, pairs: PairList, cache: Path, files: dict[str, list[Path]]
) -> None:
    if fabric.is_global_zero:
        run.start(config, pairs, cache, sys.argv, [*files["training"], *files["validation"]])
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
    pairs: PairList, config: TrainConfig, cache: Path, workers: int, skip_bad: bool
) -> tuple[PairList, dict[str, list[Path]]]:
    """Prepared files by split. Voxels are read here for the first time, those of validation labels too."""
    every = [*pairs.training, *pairs.validation]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if config.dice_weight and (bare := next((p for p in pairs.training if p.fixed_labels is None), None)):
        raise InputError(f"--dice-weight needs labels for every training pair: {bare.fixed} has none")
    failed = check_labels(pairs.validation + (pairs.training if config.dice_weight else ()))
    if not skip_bad:  # says so now, not after the long work
        without_failed(pairs, failed, skip_bad)
    frame = None if config.frame is None else Path(config.frame)
    work = len(every) + (len(images_of(pairs.training)) if frame else 0)
    with Progress(*columns, disable=not _is_first()) as progress:
        task = progress.add_task(f"preparing pairs (init {config.expects.init})", total=work)
        began = told = time.monotonic()
        done = 0

        def advance() -> None:
            nonlocal told, done
            done += 1
            progress.advance(task)
            if not progress.console.is_terminal and time.monotonic() - told > PLAIN_EVERY_S:
                told = time.monotonic()
                left = timedelta(seconds=round((told - began) / done * (work - done)))
                _console().print(f"preparing pairs: {done} of {work} steps done, about {left} left", soft_wrap=True)

        how = (config.expects, cache, workers or os.cpu_count() or 1, advance, failed if skip_bad else None)
        # Validation pairs start as ofg register will, each from its own alignment.
        files = prepare_all(list(pairs.training), *how, frame) + prepare_all(list(pairs.validation), *how)
    kept, left_out = without_failed(pairs, failed, skip_bad)
    _warn(left_out)
    where = dict(zip(every, files, strict=True))
    prepared = [*kept.training, *kept.validation]
    for line in misfits(prepared, [where[p] for p in prepared]):
        _warn(line)
    training = [where[p] for p in kept.training]
    labels = prepare_labels(kept.training, training, kept.evaluated) if config.dice_weight else []
    return kept, {"training": training, "labels": labels, "validation": [where[p] for p in kept.validation]}


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _warn(line: str | None) -> None:
    if line and _is_first():
        print(f"ofg: warning: {line}", file=sys.stderr)


def _trainer(
    run: Run, config: TrainConfig, pairs: PairList, files: dict[str, list[Path]], fabric: Fabric, resources: Resources
) -> Trainer:
    workers = resources.loader_workers
    if workers is None:
        workers = 2 if fabric.device.type == "cuda" else 0
    training = TrainingFiles(files["training"], files["labels"])
    trainer = Trainer(run, config, pairs, training, files["validation"], fabric, workers)
    trainer.network.activation_checkpointing = resources.activation_checkpointing
    return trainer


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False, quiet=not _is_first())


def _train(trainer: Trainer, pairs: PairList) -> None:
    run, config, console = trainer.run, trainer.config, _console()
    # Counted in pairs of all processes, as --steps-per-epoch counts them.
    per_batch = config.batch_size * trainer.fabric.world_size
    steps = trainer.steps_per_epoch * per_batch
    done = len(trainer.history)
    text = TextColumn(
        "epoch {task.fields[epoch]}/{task.fields[epochs]}  loss {task.fields[loss]:.4f}  {task.fields[val]}"
    )
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    alone = run.locked() if _is_first() else nullcontext()
    with alone, Progress(*columns, console=console) as progress:
        fields = {"epoch": done + 1, "epochs": config.epochs, "loss": math.nan, "val": ""}
        task = progress.add_task("", total=config.epochs * steps, completed=done * steps, **fields)

        began = told = time.monotonic()
        first = done * steps

        def on_step(step: int, loss: float) -> None:
            nonlocal told
            completed = done * steps + step * per_batch
            progress.update(task, completed=completed, loss=loss, epoch=done + 1)
            if not console.is_terminal and time.monotonic() - told > PLAIN_EVERY_S:
                told = time.monotonic()
                left = timedelta(
                    seconds=round((told - began) / (completed - first) * (config.epochs * steps - completed))
                )
                share = 100 * completed / (config.epochs * steps)
                console.print(f"epoch {done + 1}/{config.epochs} {share:.0f} % done, about {left} left", soft_wrap=True)

        try:
            if line := _guidance_begins(config, done):
                console.print(line, soft_wrap=True)
            for row in trainer.train(on_step):
                done = row.epoch
                progress.update(task, completed=done * steps, loss=row.loss, val=_scores(row))
                _warn(breakdown(trainer.history))
                if not console.is_terminal:  # a log file gets a line an epoch instead of a moving bar
                    line = f"epoch {row.epoch}/{config.epochs} loss {row.loss:.5f} {_scores(row)}"
                    console.print(line, soft_wrap=True)
                if line := _guidance_begins(config, done):
                    console.print(line, soft_wrap=True)
        except KeyboardInterrupt as error:
            raise Interrupted(f"stopped; continue with: ofg train -o {run.folder} --resume") from error
    _conclude(trainer, pairs)


def _guidance_begins(config: TrainConfig, epoch: int) -> str | None:
    """What to say before an epoch, counted from 0, in which guidance begins."""
    if not 0 < epoch < config.epochs or not config.guided(epoch) or config.guided(epoch - 1):
        return None
    return f"guidance begins in epoch {epoch + 1}: the loss is another one from here on, and jumps"


def _conclude(trainer: Trainer, pairs: PairList) -> None:
    """Which epoch is kept and how much that says, where it lies, what comes next."""
    run, console = trainer.run, _console()
    chosen, doubts = judged(trainer.history, len(pairs.validation), trainer.start_scores)
    if chosen:
        console.print(chosen, soft_wrap=True)
    for line in doubts:
        _warn(line)
    console.print(f"run: {run.folder}", soft_wrap=True)
    console.print(f"next: ofg export {run.folder} -o model.onnx", soft_wrap=True)


def _announce(trainer: Trainer, pairs: PairList, memory: str, step_s: float) -> None:
    """What is about to happen, and what it takes in memory and time."""
    config, fabric, console = trainer.config, trainer.fabric, _console()
    grid = "x".join(str(n) for n in config.expects.shape)
    processes = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    console.print(
        f"{config.network} on {fabric.device.type}, {config.precision}{processes}, "
        f"guidance {trainer.objective.guidance}, grid {grid}, "
        f"{len(pairs.training)} training and {len(pairs.validation)} validation pairs",
        soft_wrap=True,
    )
    left = timedelta(seconds=round(step_s * trainer.steps_per_epoch * (config.epochs - len(trainer.history))))
    console.print(f"{memory}; {step_s:.2f} s a step, {left} in all without validation", soft_wrap=True)
    scores = trainer.start_scores
    begin = "" if scores.dice is None else f", Dice {scores.dice:.4f} and NCC {scores.ncc:.4f} of the initial alignment"
    console.print(f"learning rate {config.lr:.2g}{begin}", soft_wrap=True)


def _scores(row: EpochRecord) -> str:
    if row.val_ncc is None or row.val_folding_percent is None:
        return ""
    dice = "" if row.val_dice is None else f"Dice {row.val_dice:.4f}  "
    return f"{dice}NCC {row.val_ncc:.4f}  folding {row.val_folding_percent:.3f} %"
