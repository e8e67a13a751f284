"""Runtimes that would report to their makers, and keep files in HOME for it, do neither unless the user wants it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Each has its own switch; one that the user has set stays as it is.
SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime from 1.32 on: no events, no device id, no store under ~/.cache
    "RAY_USAGE_STATS_ENABLED": "0",
}
OPENVINO = "openvino_telemetry"  # the module that does it for OpenVINO, which does without where it is missing


@contextmanager
def quiet() -> Iterator[None]:
    """Runtimes are imported inside, also those that come along with what is imported.

    OpenVINO sends an event when it is first imported: here it finds no module that could. With the user's consent,
    which OpenVINO's own ``opt_in_out --opt_in`` writes down, it is left as it is.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    if OPENVINO in sys.modules or _consented():
        yield
        return
    sys.modules[OPENVINO] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        del sys.modules[OPENVINO]


def _consented() -> bool:
    folder = Path(os.environ["LOCALAPPDATA"], "Intel Corporation") if os.name == "nt" else Path.home() / "intel"
    try:
        return (folder / OPENVINO).read_bytes().strip() == b"1"
    except (OSError, RuntimeError, KeyError):  # no home
        return False
