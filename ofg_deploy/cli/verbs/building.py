"""An engine build on the terminal: its nested phases, and a build because an engine does not fit."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ofg_deploy.cli.terminal import shows_progress, terminal
from ofg_deploy.serve.engine_file import EngineRecord


def bars_on(console: Console) -> Progress:
    """Lines of work under way, gone when it is done; none where nobody looks."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not shows_progress(console))


class BuildProgress:
    """One line for each phase that is running, indented below the one that contains it."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, tuple[TaskID, int]] = {}

    def waiting(self) -> None:
        """Say that another process is building the same engine."""
        self._bars.print("another process is building this engine: waiting for it")

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """See ``export.tensorrt.Progress``."""
        depth = self._tasks[parent][1] + 1 if parent in self._tasks else 0
        self._tasks[phase] = self._bars.add_task("  " * depth + phase, total=steps), depth

    def step(self, phase: str, done: int) -> None:
        """See ``export.tensorrt.Progress``."""
        if phase in self._tasks:
            self._bars.update(self._tasks[phase][0], completed=done)

    def finish(self, phase: str) -> None:
        """See ``export.tensorrt.Progress``."""
        if phase in self._tasks:
            self._bars.remove_task(self._tasks.pop(phase)[0])


def rebuild(engine: Path, record: EngineRecord, problems: list[str]) -> None:
    """As ``export.engine.rebuild``, with what is done and why on the terminal."""
    from ofg_deploy.export.engine import rebuild as rebuild_engine

    console = terminal()
    console.print(f"{engine} is incompatible with this GPU or TensorRT: {'; '.join(problems)}", soft_wrap=True)
    with bars_on(console) as bars:
        progress = BuildProgress(bars)

        def say(line: str) -> None:
            bars.print(line, soft_wrap=True)

        rebuild_engine(engine, record, progress, progress.waiting, say)
