"""The training loop. An epoch either happened as a whole or not at all: a killed run resumes to the same weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.passes import in_passes
from ofg_deploy.records import fitted
from ofg_deploy.train.batches import TrainingFiles, epoch_items, load_batches, micro_batches
from ofg_deploy.train.checkpoint import load_checkpoint, load_weights
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import appearance, load_cached
from ofg_deploy.train.devices import check_bf16_on_cpu
from ofg_deploy.train.estimate import Trial, out_of_memory_explained
from ofg_deploy.train.labels import load_label_pair
from ofg_deploy.train.logs import Logs
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.objective import Batch, Objective, Terms
from ofg_deploy.train.pairs import PairList
from ofg_deploy.train.passes import passes_before, predict_after
from ofg_deploy.train.run import EpochRecord, Run, save_epoch
from ofg_deploy.train.steady_adam import SteadyAdam
from ofg_deploy.train.validation import Scores, predict, score_pair

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Trainer:
    """Network, optimiser and data of one run, in each process of it.

    Args:
        run: started by ``Run.start``; continues where its ``last.pt`` stops.
        files: prepared training pairs.
        validation: prepared validation pairs, in the order of ``pairs.validation``.
        fabric: of ``devices.launch``.
        loader_workers: processes that read ahead.
        new: begin at the first epoch, whatever is in the folder.

    Raises:
        UsageError: the grid does not suit the network.
        DeviceError: arithmetic this device gets wrong.
        InputError: the checkpoint to resume from does not fit, or unreadable labels.
    """

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        pairs: PairList,
        files: TrainingFiles,
        validation: list[Any],
        fabric: Fabric,
        loader_workers: int = 0,
        new: bool = False,
    ) -> None:
        self.run, self.config, self.files, self.fabric = run, config, files, fabric
        self.loader_workers = loader_workers
        torch.manual_seed(config.seed)
        self.network = build_network(config.network, config.expects.shape, config.diffeomorphic)
        if config.precision == "bf16" and fabric.device.type == "cpu":
            check_bf16_on_cpu(self.network, config.expects.shape)
        self.network.to(memory_format=torch.channels_last_3d)  # 1.3x faster steps on a CPU, same numbers
        self.objective = Objective(config, fabric.device)
        self.history: list[EpochRecord] = []
        weights = self.network.parameters()
        optimiser = (
            SteadyAdam(weights, config.lr) if config.steady else torch.optim.Adam(weights, config.lr, amsgrad=True)
        )
        resume = self._load_last() if not new and run.config.exists() and run.last.exists() else None
        self.module, self.optimiser = fabric.setup(self.network, optimiser)
        if resume:
            try:
                self.optimiser.load_state_dict(resume["optimiser"])
                fabric.strategy.precision.load_state_dict(resume["precision"])
            except Exception as error:  # whatever odd entries lead to
                raise _not_resumable(run.last, error) from error
        self.validation = [load_cached(file) for file in validation]
        self.labels = [
            load_label_pair(p, c.grid, pairs.evaluated) for p, c in zip(pairs.validation, self.validation, strict=True)
        ]

    @property
    def steps_per_epoch(self) -> int:
        """Batches of this process in an epoch."""
        return len(self._batches(0))

    @cached_property
    def start_scores(self) -> Scores:
        """Of the initial alignment of the validation pairs, which a network has to improve on."""
        still = np.zeros((3, *self.config.expects.shape), np.float32)
        pairs = zip(self.validation, self.labels, strict=True)
        return Scores.of(np.array([score_pair(pair, labels, still) for pair, labels in pairs]).reshape(-1, 3))

    def trial(self) -> Trial:
        """Time two steps that change nothing. Raises DeviceError if they do not fit into memory."""
        random_state, buffers = torch.get_rng_state(), copy.deepcopy(dict(self.network.named_buffers()))
        [batch] = load_batches(self.files, self._batches(0)[:1], 0)
        with out_of_memory_explained():
            last = self.config.epochs - 1  # guidance may not have begun in the first one
            usual = self.config.passes // 2  # the mean, rounded up
            trial = Trial.of(lambda: self._backward(batch.to(self.fabric.device), last, usual, update=True))
        self.optimiser.zero_grad()
        torch.set_rng_state(random_state)
        for name, buffer in self.network.named_buffers():  # a batch norm has counted the trial
            buffer.copy_(buffers[name])
        return trial

    def trial_validation(self) -> float:
        """Seconds that a validation will take, by its first pair."""
        if not self.validation:
            return 0.0
        started = time.perf_counter()
        score_pair(self.validation[0], self.labels[0], self._field(0))
        return (time.perf_counter() - started) * -(-len(self.validation) // self.fabric.world_size)

    def mean_over_processes(self, value: float) -> float:
        """The same number in each process."""
        return float(self._sum_over_processes(np.array([value]))[0]) / self.fabric.world_size

    def train(self, on_step: Callable[[int, float], None] = lambda step, loss: None) -> Iterator[EpochRecord]:
        """Go on to the last epoch, yielding each finished one.

        Args:
            on_step: called with the batch of the epoch (from 1) and its loss.
        """
        images = appearance(self.files.pairs)
        with Logs(self.run, self.config, len(self.history), self.fabric.is_global_zero) as logs:
            for epoch in range(len(self.history), self.config.epochs):
                started = time.perf_counter()
                torch.manual_seed(self.config.seed + 7919 * epoch + self.fabric.global_rank)  # of dropout
                lr = self.config.lr * self.config.decay(epoch)
                for group in self.optimiser.param_groups:
                    group["lr"] = lr
                with out_of_memory_explained():
                    terms = self._epoch(epoch, on_step)
                self._share_statistics()
                scores = self._validate() if self._validates(epoch) else Scores()
                seconds = round(time.perf_counter() - started, 3)
                row = EpochRecord(epoch + 1, lr, *terms, scores.dice, scores.ncc, scores.folding_percent, seconds)
                self.history.append(row)
                if self.fabric.is_global_zero:
                    resume = {
                        "optimiser": self.optimiser.state_dict(),
                        "precision": self.fabric.strategy.precision.state_dict(),
                        "processes": self.fabric.world_size,
                    }
                    before = self.start_scores.ncc if scores.dice is None else self.start_scores.dice
                    save_epoch(self.run, self.config, self.network.state_dict(), resume, self.history, images, before)
                    logs.epoch(row, self._first_validation_field)
                self.fabric.barrier()
                yield row

    def _epoch(self, epoch: int, on_step: Callable[[int, float], None]) -> list[float]:
        """Means over the epoch and all processes: loss, target, regularity, Dice loss."""
        self.network.train()
        batches = self._batches(epoch)
        sums = np.zeros(4)
        for step, batch in enumerate(self._load(batches), start=1):
            update = step % self.config.accumulate == 0
            before = passes_before(self.config, epoch, step)
            terms = self._backward(batch.to(self.fabric.device), epoch, before, update).numbers()
            if not np.isfinite(terms[0]):
                raise InputError(f"the loss became {terms[0]} in epoch {epoch + 1}: start again with a lower `lr`")
            if update:
                self.optimiser.step()
                self.optimiser.zero_grad()
            sums += terms
            on_step(step, terms[0])
        return [float(v) for v in self._sum_over_processes(sums) / (len(batches) * self.fabric.world_size)]

    def _backward(self, batch: Batch, epoch: int, before: int, update: bool) -> Terms:
        """Add the gradient of a batch after some passes; processes exchange theirs only before an update."""
        with self.fabric.no_backward_sync(self.module, enabled=not update):
            field = predict_after(self.module, batch.moving, batch.fixed, before)
            terms = self.objective(field, batch, epoch)
            self.fabric.backward(terms.loss / self.config.accumulate)
        return terms

    def _load(self, batches: list[list[Any]]) -> Iterator[Batch]:
        return load_batches(self.files, batches, self.loader_workers, self.fabric.device.type == "cuda")

    def _share_statistics(self) -> None:
        """Each process has seen other pairs; what is validated and saved is the mean of their batch statistics."""
        if self.fabric.world_size > 1:
            for name, buffer in self.network.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(self.fabric.all_reduce(buffer, reduce_op="mean"))

    def _validates(self, epoch: int) -> bool:
        return (epoch + 1) % self.config.validate_every == 0 or epoch + 1 == self.config.epochs

    def _validate(self) -> Scores:
        """Each process takes its share of the pairs."""
        rows = np.zeros((len(self.validation), 3))
        for n in range(self.fabric.global_rank, len(rows), self.fabric.world_size):
            field = self._field(n)
            rows[n] = score_pair(self.validation[n], self.labels[n], field)
        return Scores.of(self._sum_over_processes(rows))

    def _sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        if self.fabric.world_size == 1:
            return values
        return self.fabric.all_reduce(torch.from_numpy(values).to(self.fabric.device), reduce_op="sum").cpu().numpy()

    def _field(self, n: int) -> Any:
        one_pass = partial(predict, self.network, device=self.fabric.device)
        pair = self.validation[n]
        return in_passes(one_pass, self.config.passes)(pair.moving, pair.fixed)

    def _first_validation_field(self) -> tuple[Any, Any] | None:
        return (self.validation[0], self._field(0)) if self.validation else None

    def _batches(self, epoch: int) -> list[list[Any]]:
        processes = self.fabric.world_size
        items = epoch_items(self.config, len(self.files.pairs), epoch, processes)
        return micro_batches(self.config, items, self.fabric.global_rank, processes)

    def _load_last(self) -> dict[str, Any]:
        path = self.run.last
        checkpoint = load_checkpoint(path)
        resume = checkpoint.resume
        if not resume or not {"optimiser", "precision", "processes", "history"} <= resume.keys():
            raise InputError(f"{path} cannot be resumed: it lacks what this version of ofg train keeps for that")
        if resume["processes"] != self.fabric.world_size:
            raise UsageError(
                f"{path} was trained by {resume['processes']} processes, this is a run of {self.fabric.world_size}: "
                "resume with the same number, other batches would be seen"
            )
        load_weights(self.network, checkpoint.state, path)
        try:
            self.history = fitted(resume["history"], list[EpochRecord], "its history", exactly=True)
        except InputError as error:
            raise _not_resumable(path, error) from error
        if [r.epoch for r in self.history] != list(range(1, len(self.history) + 1)):
            raise _not_resumable(path, "its history is not one of epochs")
        return resume


def _not_resumable(path: Path, why: object) -> InputError:
    reason = " ".join(str(why).split())[:160]
    return InputError(f"{path} cannot be resumed, its record is damaged ({reason}): train again, or export best.pt")
