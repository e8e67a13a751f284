"""What was asked for while the pairs of a run are prepared, so that a resumed run can go on with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ofg_deploy.locations import located, portable
from ofg_deploy.outputs import to_json, write_bytes
from ofg_deploy.records import read_as
from ofg_deploy.train.budget import Budget
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.pairs import PairList, PairRecord
from ofg_deploy.train.run import Run

NAME = "preparing.json"  # beside config.json, which takes its place once every pair is prepared


class _Record(msgspec.Struct):
    """Of ``preparing.json``."""

    config: dict[str, Any]
    pairs: PairRecord
    cache: str
    skip_bad: bool
    budget: Budget | None


@dataclass(frozen=True)
class Preparing:
    """Arguments of ``session.start`` that decide what is trained."""

    config: TrainConfig
    pairs: PairList
    cache: Path
    skip_bad: bool
    budget: Budget | None

    def save(self, run: Run) -> None:
        """Write it. Raises InputError: the folder cannot be written."""
        budget = self.budget and {"hours": self.budget.hours, "given": sorted(self.budget.given)}
        record = {
            "config": run.portable_config(self.config),
            "pairs": self.pairs.to_record(run.folder),
            "cache": portable(self.cache, run.folder),
            "skip_bad": self.skip_bad,
            "budget": budget,
        }
        write_bytes(run.folder / NAME, to_json(record).encode())

    @classmethod
    def load(cls, run: Run) -> Preparing | None:
        """What was being prepared when a run was stopped; None where it has begun, or never was. Raises InputError."""
        path = run.folder / NAME
        if run.config.exists() or not path.is_file():
            return None
        record = read_as(path, _Record, "is damaged", "start the run again")
        return cls(
            run.config_of(record.config, path),
            PairList.from_record(record.pairs, run.folder),
            located(record.cache, run.folder),
            record.skip_bad,
            record.budget,
        )

    @staticmethod
    def forget(run: Run) -> None:
        """The run has begun."""
        (run.folder / NAME).unlink(missing_ok=True)


def seen_pairs(pairs: PairList, config: TrainConfig, processes: int) -> PairList:
    """Without the training pairs that a short run would never come to; they need not be prepared."""
    if config.synthesise:
        return pairs
    per_step = processes * config.batch_size * config.accumulate
    each = config.steps_per_epoch or len(pairs.training)
    visits = config.epochs * (-(-each // per_step) * per_step)
    return replace(pairs, training=pairs.training[:visits])
