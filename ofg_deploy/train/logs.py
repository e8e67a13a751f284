"""What people watch while a network trains: TensorBoard, and one validation pair drawn again and again."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ofg_deploy.field import Field, jacobian_determinant, sample
from ofg_deploy.geometry import lattice
from ofg_deploy.outputs import plainly_named, write_bytes
from ofg_deploy.preprocess import PreparedPair
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.run import EpochRecord, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Logs:
    """Open while a run trains.

    Args:
        done: finished epochs; what a killed run logged after them is dropped.
        active: false in every process but the first, where nothing is written.
    """

    def __init__(self, run: Run, config: TrainConfig, done: int, active: bool) -> None:
        self._run, self._config = run, config
        self._writer = None
        self._open = ExitStack()
        if active:
            from torch.utils.tensorboard import SummaryWriter

            run.tensorboard.mkdir(parents=True, exist_ok=True)
            folder = self._open.enter_context(plainly_named(run.tensorboard))
            self._writer = SummaryWriter(folder, purge_step=done + 1)

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()
        self._open.close()

    def epoch(self, row: EpochRecord, first_pair: Callable[[], tuple[PreparedPair, Field] | None]) -> None:
        """Add a finished epoch.

        Args:
            first_pair: gives the first validation pair and its field, if there is one; asked only for a picture.
        """
        for name, value in asdict(row).items():
            if value is not None and name != "epoch":
                tag = f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"training/{name}"
                self._writer.add_scalar(tag, value, row.epoch)
        every = self._config.picture_every
        if every and (row.epoch % every == 0 or row.epoch in (1, self._config.epochs)) and (found := first_pair()):
            figure = draw_pair(*found)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=90)
            write_bytes(self._run.picture(row.epoch), buffer.getvalue())
            self._writer.add_figure("validation/first pair", figure, row.epoch, close=False)
        self._writer.flush()


def draw_pair(pair: PreparedPair, field: Field) -> Figure:
    """Middle slices across the last axis: fixed, moving, warped, both differences, lattice and Jacobian determinant."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    middle = pair.grid.shape[2] // 2
    where = lattice(pair.grid.shape) + field
    warped = sample(pair.moving, where)
    figure = Figure(figsize=(16, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 7)
    grey = {"fixed": pair.fixed, "moving": pair.moving, "warped": warped}
    for ax, (name, image) in zip(axes, grey.items(), strict=False):
        ax.imshow(image[:, :, middle].T, origin="lower", cmap="gray", vmin=0, vmax=1)
        ax.set_title(name)
    for ax, name, image in zip(axes[3:5], ("before", "after"), (pair.moving, warped), strict=True):
        ax.imshow((image - pair.fixed)[:, :, middle].T, origin="lower", cmap="PuOr", vmin=-1, vmax=1)
        ax.set_title(f"difference {name}")
    x, y = where[:2, :, :, middle]
    axes[5].plot(x[::4].T, y[::4].T, x[:, ::4], y[:, ::4], color="black", linewidth=0.6)
    axes[5].set(title="field", aspect="equal")
    determinant = jacobian_determinant(field)[:, :, middle]
    shown = axes[6].imshow(np.log2(np.clip(determinant, 0.25, 4)).T, origin="lower", cmap="RdBu_r", vmin=-2, vmax=2)
    axes[6].set_title("log2 Jacobian")
    figure.colorbar(shown, ax=axes[6])
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return figure
