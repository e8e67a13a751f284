"""Runtimes that would report to their makers, and keep files in HOME for it, do neither unless the user wants it.

Ray's driver, which is all that runs here, reports nothing: that is for the dashboard of a cluster and those who run it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONNX_RUNTIME = "onnxruntime"
SWITCH = "ORT_DISABLE_TELEMETRY"  # ONNX Runtime from 1.32 on: no events, no device id, no store under ~/.cache
OPENVINO = "openvino_telemetry"  # the module that does it for OpenVINO, which does without where it is missing
_IMPORTING = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Runtimes are imported inside, also those that come along with what is imported.

    ONNX Runtime looks at its switch when it is first imported, and opens its store there: its function that turns
    events off comes too late. What the user has set stays; otherwise the switch is set while the import lasts.

    OpenVINO sends an event when it is first imported: here it finds no module that could. With the user's consent,
    which OpenVINO's own ``opt_in_out --opt_in`` writes down, it is left as it is.
    """
    with _IMPORTING:
        switch = ONNX_RUNTIME not in sys.modules and SWITCH not in os.environ
        module = OPENVINO not in sys.modules and not _consented()
        if switch:
            os.environ[SWITCH] = "1"
        if module:
            sys.modules[OPENVINO] = None  # type: ignore[assignment]  # what makes an import fail
        try:
            yield
        finally:
            if module:
                del sys.modules[OPENVINO]
            if switch:
                del os.environ[SWITCH]


def _consented() -> bool:
    folder = Path(os.environ["LOCALAPPDATA"], "Intel Corporation") if os.name == "nt" else Path.home() / "intel"
    try:
        return (folder / OPENVINO).read_bytes().strip() == b"1"
    except (OSError, RuntimeError, KeyError):  # no home
        return False
