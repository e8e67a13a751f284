"""A candidate without a network, in a module that loads fast: the process of a candidate imports it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ofg_deploy.errors import DeviceError


@dataclass(frozen=True)
class Stub:
    """Holds ``megabytes`` while it runs, or fails as ``how`` says."""

    how: str = ""
    megabytes: int = 0
    runtime: str = "stub"
    device: str = "cpu"

    def import_runtime(self) -> None:
        pass

    def open(self) -> Any:
        failures = {"ofg": DeviceError("no such card"), "other": RuntimeError("bad plan\nmore"), "os": OSError("gone")}
        if self.how in failures:
            raise failures[self.how]
        if self.how == "dies":
            os._exit(3)

        def predict(moving: Any, fixed: Any) -> Any:
            held = np.ones(self.megabytes << 20, np.uint8)
            return np.stack([moving + 0 * held[:1].sum()] * 3)

        return predict, "stub 1"
