"""``train_network``: what ``ofg train`` does, for Python. Prints nothing; torch is loaded when it is called."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofg_deploy.errors import UsageError
from ofg_deploy.extras import need
from ofg_deploy.options.training import TRAINING, Resources
from ofg_deploy.options.value import named, options_of, with_options

if TYPE_CHECKING:
    from ofg_deploy.train.config import TrainConfig
    from ofg_deploy.train.observer import Observer, Progress

RESOURCES = options_of(Resources)


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        folder: the run folder, which ``export_model`` and ``ofg export`` take.
        config: what was trained, with nothing left open.
        best: checkpoint of the epoch with the best validation.
        last: checkpoint of the last epoch, which a resumed run goes on from.
    """

    folder: Path
    config: TrainConfig
    best: Path
    last: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """One row for each epoch, as in ``metrics.csv``, which is read now; None where an epoch was not validated."""
        with (self.folder / "metrics.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        return [{name: float(text) if text else None for name, text in row.items()} for row in rows]


@with_options(TRAINING)
def train_network(
    images: str | os.PathLike[str] | None,
    run: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | TrainConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Observer | Callable[[Progress], None] | None = None,
    **options: Any,
) -> Run:
    """Train a network: images -> run folder with checkpoints.

    Notes and warnings go to the logger ``ofg_deploy``.

    Args:
        images: ``dataset.json`` of ``ofg data``, a folder of NIfTI images, or a CSV or JSON list of pairs; None with
            ``resume``.
        run: the run folder, made if needed.
        config: options from a JSON file (the ``config.json`` of a run is one) or of another run; ``options`` win.
        resume: continue the run as it was configured; only options such as ``device`` and ``threads`` can be given.
        overwrite: replace a run that is in the folder.
        progress: called with a ``Progress`` after each step of preparation, each batch and each epoch.
        options: as of ``ofg train`` (docs/training-options.md), by name: ``epochs=100, labels="labels"``. None stands
            for an option that is not given.

    Raises:
        UsageError: an option that is unknown, out of range, has no effect, or contradicts another one.
        InputError: images or a run that cannot be used; ``run`` holds a run already.
        DeviceError: a device or a package that is not there, or too little memory.
        Interrupted: Ctrl-C.

    Example:
        >>> import ofg_deploy as ofg
        >>> run = ofg.train_network("images", "run", labels="labels", epochs=1, steps_per_epoch=2, ncc_window=5)
        >>> run.best.name, len(run.metrics)
        ('best.pt', 1)
    """
    need("torch", "lightning_fabric", "tensorboard", "matplotlib", "filelock")
    explicit = named(options, TRAINING)
    resources = Resources(**{name: value for name, value in explicit.items() if name in RESOURCES})
    if resume:
        _refuse_others(images, config, overwrite, explicit)
    elif images is None:
        raise UsageError("`images` is missing: name dataset.json, a folder of NIfTI images, or a list of pairs")
    from ofg_deploy.train import session
    from ofg_deploy.train.devices import torch_as_it_was
    from ofg_deploy.train.observer import Logged, Observer
    from ofg_deploy.train.run import Run as RunFolder
    from ofg_deploy.train.settings_file import configured
    from ofg_deploy.train.settle import Asked, settle

    folder = Path(run)
    observer = progress if isinstance(progress, Observer) else Logged(progress)
    if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
        observer = Observer()
    with torch_as_it_was():
        if resume:
            session.resume(folder, resources, observer)
        else:
            asked = Asked(explicit, configured(config))
            resources = Resources(**{name: value for name, value in asked.both.items() if name in RESOURCES})
            plan = settle(Path(images), folder, asked, resources, overwrite, observer)  # type: ignore[arg-type]
            session.start(
                folder, plan.config, plan.pairs, plan.cache, resources, plan.skip_bad, plan.budget, observer, overwrite
            )
    files = RunFolder(folder)
    return Run(folder, files.read()[0], files.best, files.last)


def _refuse_others(images: Any, config: Any, overwrite: bool, explicit: dict[str, Any]) -> None:
    """A resumed run is as it was configured: an option that would be dropped in silence is refused."""
    others = {"images": images, "config": config, "overwrite": overwrite or None}
    named = [name for name, value in others.items() if value is not None]
    for name in (*named, *(explicit.keys() - RESOURCES.keys())):
        raise UsageError(f"`{name}` cannot change with `resume=True`: a run goes on as it was configured")
