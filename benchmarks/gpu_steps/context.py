"""What a step is given, and how it hands over its rows: one by one, so that a step that is killed keeps what it has."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
ENOUGH_S = 3.0  # with less than this left, no further measurement is begun


@dataclass
class Context:
    """One step in its process.

    Attributes:
        step: its letter.
        rows: file that takes a row a line.
        seconds: it is killed after so many.
        work: folder for models and images; what one step leaves there, the next one uses.
        out: folder of the results.
        dry: small sizes on a CPU.
        run: the training run of step f.
    """

    step: str
    rows: Path
    seconds: float
    work: Path
    out: Path
    dry: bool
    run: Path | None = None
    _start: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """Where the step's own work runs."""
        return "cpu" if self.dry else "cuda"

    @property
    def left(self) -> float:
        """Seconds until the step is killed."""
        return self.seconds - (time.monotonic() - self._start)

    def add(
        self, what: str, figures: Figures, aim: str | None = None, on: str | None = None, why_not: str | None = None
    ) -> None:
        """Hand over a row.

        Args:
            what: was measured.
            figures: by name with its unit; numbers, or words.
            aim: what the figures are to be compared with.
            on: the card or the processor; the step's own if absent.
            why_not: the reason, word for word, where there are no figures.
        """
        figures = {name: plain(value) for name, value in figures.items()}
        where = on or card(self.device)
        row = {"step": self.step, "what": what, "on": where, "figures": figures, "aim": aim, "why_not": why_not}
        with self.rows.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def attempt(
        self, what: str, measure: Callable[[], Figures], aim: str | None = None, on: str | None = None
    ) -> Figures | None:
        """A row of what ``measure`` returns, or of why it could not; None in that case."""
        if self.left < ENOUGH_S:
            self.add(what, {}, aim, on, f"not begun: {self.left:.0f} s were left to this step")
            return None
        try:
            figures = measure()
        except Exception as error:
            self.add(what, {}, aim, on, reason(error))
            return None
        self.add(what, figures, aim, on)
        return figures


def card(device: str) -> str:
    """The name of what computes, as it is reported."""
    if device == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name())


def reason(error: BaseException) -> str:
    """The error's own words, behind its type."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed ({error})"
    words = str(error).strip() or traceback.format_exc().strip().splitlines()[-1]
    return f"{type(error).__name__}: {words}"


def plain(value: Any) -> Any:
    """As JSON has it; a number that is none is written as a word."""
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
