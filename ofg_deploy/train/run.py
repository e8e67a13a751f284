"""A training run on disk: what was asked for, what came of each epoch, and what a killed run needs to go on."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from filelock import FileLock, Timeout

from ofg_deploy.appearance import Appearance
from ofg_deploy.errors import InputError
from ofg_deploy.locations import located, portable, portable_command
from ofg_deploy.outputs import check_writable, staged, to_json, write_bytes
from ofg_deploy.records import read_as
from ofg_deploy.train.checkpoint import Checkpoint, save_checkpoint
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.networks import network_class
from ofg_deploy.train.pairs import PairList, PairRecord
from ofg_deploy.version import __version__

CURVE_EVERY_S = 30.0


@dataclass(frozen=True)
class EpochRecord:
    """One row of ``metrics.csv``. ``val_dice`` is None without validation labels; all ``val_*`` on unvalidated epochs.

    ``loss`` is as in ``objective.Terms``; ``target`` is the OFG loss (and guidance_similarity x the similarity loss),
    or the similarity loss alone without guidance and before it begins.
    """

    epoch: int
    lr: float
    loss: float
    target: float
    regularity: float
    dice_loss: float
    val_dice: float | None
    val_ncc: float | None
    val_folding_percent: float | None
    seconds: float

    @property
    def score(self) -> float | None:
        """What decides which epoch is best: validation Dice, or similarity where there are no labels."""
        return self.val_ncc if self.val_dice is None else self.val_dice


def breakdown(history: list[EpochRecord]) -> str | None:
    """What to say where the last epoch's validation is, for the first time, worth less than half of the best one.

    A network whose weights were thrown far off rarely comes back, and its loss is a finite number. Scores below 0.2 say
    little (the correlation of unlike modalities), so nothing is said of them.
    """
    scored = [(row.score, row) for row in history if row.score is not None]
    if len(scored) < 2 or scored[-1][1] is not history[-1]:
        return None
    # Of two alike the later one, as ``save_epoch``.
    (best, at), (last, _) = max(scored[:-1], key=lambda pair: (pair[0], pair[1].epoch)), scored[-1]
    low = [row.epoch for score, row in scored if row.epoch > at.epoch and score < best / 2]
    if best < 0.2 or low != [history[-1].epoch]:
        return None
    name = "similarity" if at.val_dice is None else "Dice"
    return (
        f"validation {name} fell from {best:.3f} in epoch {at.epoch} to {last:.3f} in epoch {low[0]}: "
        f"the training broke down; best.pt keeps epoch {at.epoch}, a new run needs a lower `lr`"
    )


def held(folder: Path) -> InputError:
    """What to say where a new run would go into the folder of another one."""
    return InputError(
        f"{folder} holds a run already: add `resume=True` to continue it, `overwrite=True` to replace it, or choose "
        "another folder"
    )


class RunRecord(msgspec.Struct):
    """What is read of ``config.json`` (``Run.start`` writes it).

    Attributes:
        config: ``TrainConfig.to_record``.
        pairs: what is trained on.
        cache: folder of the prepared pairs, as ``locations.portable`` has it.
        prepared: names of their files.
    """

    config: dict[str, Any]
    pairs: PairRecord
    cache: str
    prepared: list[str] | None = None


@dataclass(frozen=True)
class Run:
    """A run folder: ``config.json``, ``metrics.csv``, ``curve.png``, ``best.pt``, ``last.pt``, logs, pictures."""

    folder: Path

    @property
    def config(self) -> Path:
        """What is trained, on which pairs."""
        return self.folder / "config.json"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.folder / "metrics.csv"

    @property
    def curve(self) -> Path:
        """Picture of the metrics."""
        return self.folder / "curve.png"

    @property
    def best(self) -> Path:
        """The epoch with the best validation score: what `ofg export` takes."""
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        """The last finished epoch, with what a resumed run needs."""
        return self.folder / "last.pt"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.folder / "tensorboard"

    def picture(self, epoch: int) -> Path:
        """The first validation pair after an epoch (counted from 1)."""
        return self.folder / "pictures" / f"epoch-{epoch:04d}.png"

    def start(
        self, config: TrainConfig, pairs: PairList, cache: Path, command: list[str], prepared: list[Path]
    ) -> None:
        """Record what is about to be trained. Raises InputError if the folder holds a run already.

        Args:
            prepared: cache files of all pairs; their names say what the images held.
        """
        if self.config.exists():
            raise held(self.folder)
        check_writable([self.config], overwrite=False)
        record = {
            "schema": 1,
            "version": __version__,
            "torch": torch.__version__,
            "command": portable_command(command, self.folder),
            "cache": portable(cache, self.folder),
            "config": self.portable_config(config),
            "pairs": pairs.to_record(self.folder),
            "prepared": [file.name for file in prepared],
        }
        try:
            with staged([self.config], overwrite=False) as [partial]:
                partial.write_bytes(to_json(record).encode())
        except InputError as error:
            if self.config.exists():  # another process was quicker
                raise InputError(f"{self.folder} holds a run already: choose another folder") from error
            raise

    def portable_config(self, config: TrainConfig) -> dict[str, Any]:
        """For a record in the folder; ``config_of`` is its inverse."""
        frame = config.frame and portable(Path(config.frame), self.folder)
        return {**config.to_record(), "frame": frame}

    def config_of(self, record: dict[str, Any], file: Path) -> TrainConfig:
        """The configuration of a record in the folder, read from ``file``. Raises as ``TrainConfig.from_record``."""
        config = TrainConfig.from_record(record, str(file))
        return config if config.frame is None else replace(config, frame=str(located(config.frame, self.folder)))

    def clear(self) -> None:
        """Remove what an earlier run left here, its configuration first; the cache of prepared pairs stays.

        Raises:
            InputError: another process trains it, or something cannot be removed.
        """
        files = [f for f in (self.config, self.last, self.best, self.metrics, self.curve) if f.exists()]
        folders = [f for f in (self.tensorboard, self.picture(0).parent) if f.exists()]
        if not files and not folders:
            return
        try:
            with self.locked():
                for file in files:
                    file.unlink()
                for folder in folders:
                    shutil.rmtree(folder)
        except OSError as error:
            raise InputError(f"cannot replace the run in {self.folder}: {error.strerror or error}") from error

    def check_unchanged(self, prepared: list[Path]) -> None:
        """Raises InputError if images are not those the run began with."""
        if self._record().prepared != [file.name for file in prepared]:
            raise InputError(f"images changed since {self.folder} began: a resumed run would mix them; start a new one")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one training at a time. Raises InputError if another process is at it."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"{self.folder} is being trained by another process") from error
        try:
            yield
        finally:
            lock.release()

    def read(self) -> tuple[TrainConfig, PairList, Path]:
        """Configuration, pairs and cache folder. Raises InputError: no run, damaged, or of another version."""
        if not self.config.is_file():
            raise InputError(f"{self.folder} is not a run of ofg train: it has no config.json")
        record = self._record()
        config = self.config_of(record.config, self.config)
        return config, PairList.from_record(record.pairs, self.folder), located(record.cache, self.folder)

    def curve_is_old(self) -> bool:
        """Whether it is time to draw the curve again: that takes longer than many a short epoch."""
        newest = self.curve if self.curve.exists() else self.config
        return time.time() - newest.stat().st_mtime > CURVE_EVERY_S

    def _record(self) -> RunRecord:
        return read_as(self.config, RunRecord, "is damaged")


def save_epoch(
    run: Run,
    config: TrainConfig,
    state: dict[str, torch.Tensor],
    resume: dict[str, Any],
    history: list[EpochRecord],
    images: Appearance,
    start_score: float | None = None,
) -> None:
    """Write a finished epoch.

    ``last.pt`` goes last: until it is there, a resumed run does this epoch again and rewrites the rest.

    Args:
        state: the network's weights.
        resume: what only training needs, besides the history.
        images: what the training images look like.
        start_score: validation score of the initial alignment, for the curve.
    """
    state = {name: value.detach().cpu() for name, value in state.items()}
    row = history[-1]
    training = {
        "guidance": config.guidance,
        "guidance_steps": config.guidance_steps if config.guidance == "ofg" else 0,
        "epoch": row.epoch,
        "epochs": config.epochs,
        "seed": config.seed,
        "diffeomorphic": config.diffeomorphic,
        "val_dice": row.val_dice,
        "val_ncc": row.val_ncc,
        "val_folding_percent": row.val_folding_percent,
        "version": __version__,
        "images": images.to_record(),
    }
    if config.passes > 1:
        training["passes"] = config.passes
    if config.diffeomorphic:
        training["integration"] = network_class(config.network).integration.to_record()
    checkpoint = Checkpoint(state, config.network, config.expects, training)
    scored = [r.score for r in history if r.score is not None]
    if not scored or (row.score is not None and row.score >= max(scored)):
        save_checkpoint(run.best, checkpoint)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([f.name for f in fields(EpochRecord)])
    writer.writerows([["" if v is None else v for v in asdict(r).values()] for r in history])
    write_bytes(run.metrics, table.getvalue().encode())
    if row.epoch == config.epochs or run.curve_is_old():
        _draw_curve(run.curve, config, history, start_score)
    resume = {**resume, "history": [asdict(r) for r in history]}
    save_checkpoint(run.last, Checkpoint(state, config.network, config.expects, training, resume))


def _draw_curve(path: Path, config: TrainConfig, history: list[EpochRecord], start_score: float | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    left = figure.add_subplot()
    epochs = [r.epoch for r in history]
    left.plot(epochs, [r.loss for r in history], color="tab:gray")
    left.set(xlabel="epoch", ylabel="training loss", title=f"{config.network}, guidance {config.guidance}")
    begins = next((e for e in range(1, config.epochs) if config.guided(e) and not config.guided(e - 1)), None)
    if begins is not None and begins < len(history):  # from here on the loss is another one
        left.axvline(begins + 0.5, color="tab:orange", linestyle="--", linewidth=1)
        left.annotate(
            "guidance begins", (begins + 0.5, 0.98), xycoords=("data", "axes fraction"), rotation=90, va="top"
        )
    scored = [(r.epoch, r.score) for r in history if r.score is not None]
    if scored:
        right = left.twinx()
        right.plot(*zip(*scored, strict=True), color="tab:blue", marker="." if len(scored) < 40 else "")
        name = "Dice" if any(r.val_dice is not None for r in history) else "NCC"
        right.set_ylabel(f"validation {name}", color="tab:blue")
        if start_score is not None:
            right.axhline(start_score, color="tab:blue", linestyle=":", linewidth=1, label="initial alignment")
            right.legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())
