"""An export on a terminal: progress of preparation and build, the parity table, the files, the next step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ofg_deploy.cli.spelling import spelled
from ofg_deploy.cli.terminal import is_verbose, plain_table, terminal
from ofg_deploy.cli.verbs.building import BuildProgress, bars_on
from ofg_deploy.export.observer import Observer
from ofg_deploy.serve.engine_file import record_path

if TYPE_CHECKING:
    from ofg_deploy.export.api import Exported
    from ofg_deploy.export.engine import PublishedEngine
    from ofg_deploy.export.onnx import Exported as PublishedModel
    from ofg_deploy.export.precision import Attempt

ROWS = {
    "field_vox_mean": "field error, mean (voxel)",
    "field_vox_p99": "field error, 99 % (voxel)",
    "field_vox_p999": "field error, 99.9 % (voxel)",
    "field_vox_max": "field error, max (voxel)",
    "field_mm_mean": "field error, mean (mm)",
    "field_mm_p99": "field error, 99 % (mm)",
    "field_mm_p999": "field error, 99.9 % (mm)",
    "field_mm_max": "field error, max (mm)",
    "warped_difference_max": "warped intensity, max (of 0..1)",
    "dice_difference": "Dice difference, max",
    "folding_difference_percent": "folding difference, max (%)",
}

# With --verbose also the others.
FIRST = ("field_vox_max", "field_mm_mean", "field_mm_max", "dice_difference", "folding_difference_percent")


class Terminal(Observer):
    """Bars while the work is under way, and lines above them."""

    def __init__(self) -> None:
        self.console = terminal()
        self._bars = bars_on(self.console)
        self._build = BuildProgress(self._bars)

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def note(self, line: str) -> None:
        """As ``Observer``."""
        self.console.print(spelled(line), soft_wrap=True)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """As ``Observer``."""
        task = self._bars.add_task(what, total=None)
        yield
        self._bars.remove_task(task)

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """As ``Observer``."""
        self._build.start(phase, parent, steps)

    def step(self, phase: str, done: int) -> None:
        """As ``Observer``."""
        self._build.step(phase, done)

    def finish(self, phase: str) -> None:
        """As ``Observer``."""
        self._build.finish(phase)

    def conclude(self, exported: Exported) -> None:
        """What came of it, and the next step."""
        made, console = exported.model, self.console
        if made:
            for attempt in made.attempts:
                _print_attempt(console, attempt)
            _print_parity(console, f"{made.contract.precision} ONNX against eager", asdict(made.parity))
            _print_form(console, made)
            console.print(f"model: {made.model}\nrecord: {made.record}", soft_wrap=True)
        if exported.engine:
            _print_engine(console, exported.engine)
        if served := exported.triton:
            batches = f"batches of at most {served.max_batch}" if served.max_batch > 1 else "one pair at a time"
            console.print(f"triton: {served.folder} ({served.platform}, {batches})", soft_wrap=True)
        if made or exported.engines:
            done = made.model if made else exported.engines[0]
            console.print(f"next: ofg register FIXED MOVING -m {done} -o OUT", soft_wrap=True)
        elif served:
            console.print(f"next: tritonserver --model-repository={served.folder.parent}", soft_wrap=True)


def as_record(exported: Exported) -> dict[str, Any]:
    """What was exported, JSON-ready."""
    made, engine = exported.model, exported.engine
    return {
        "schema": 1,
        "model": str(exported.path),
        "record": str(made.record) if made else None,
        "precision": made.contract.precision if made else None,
        "parity": dict(exported.parity),
        "engines": [str(path) for path in exported.engines],
        "engine_built_now": engine.built_now if engine else None,
    }


def _print_form(console: Console, made: PublishedModel) -> None:
    console.print(f"sizes: {made.form.reason}", soft_wrap=True)
    if elsewhere := made.parity_elsewhere:
        console.print(f"on another grid, one synthetic pair: field error at most {elsewhere.field_mm_max:.2e} mm")
    if made.warped_error is not None:
        console.print(f"warped in the graph against ofg's own sampler: at most {made.warped_error:.2e} (of 0..1)")


def _print_attempt(console: Console, attempt: Attempt) -> None:
    """A precision that was stepped down from, or what is float32 in the one that holds; nothing to say otherwise."""
    if not attempt.beyond and not attempt.float32_layers:
        return
    verdict = "; ".join(attempt.beyond) or "within its bounds"
    console.print(f"{attempt.precision}{' mixed' if attempt.float32_layers else ''}: {verdict}", soft_wrap=True)
    for layer, error in attempt.float32_layers.items():
        console.print(f"  float32: {layer} ({error:.2e} mm at 99.9 % if only this layer is reduced)", soft_wrap=True)


def _print_parity(console: Console, title: str, figures: Mapping[str, Any]) -> None:
    how = ", emulated" if figures["emulated"] else ""
    pairs = f"{figures['pairs']} pair{'s' * (figures['pairs'] != 1)}"
    table = plain_table(f"{title}{how}, {pairs}", "difference")
    for key, name in ROWS.items():
        if key not in FIRST and not is_verbose():
            continue
        table.add_row(name, "no labels" if figures[key] is None else f"{figures[key]:.2e}")
    console.print(table)


def _print_engine(console: Console, published: PublishedEngine) -> None:
    how = f"built in {published.record.build_s:.1f} s" if published.built_now else "from the cache"
    if published.record.parity:
        _print_parity(console, f"engine against {published.record.compared_with}", published.record.parity)
    else:
        console.print(f"engine: {published.record.compared_with}", soft_wrap=True)
    megabytes = published.engine.stat().st_size / 1e6
    console.print(
        f"engine: {published.engine} ({megabytes:.1f} MB, {how})\nrecord: {record_path(published.engine)}",
        soft_wrap=True,
    )
