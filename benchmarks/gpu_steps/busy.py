"""What ``nvidia-smi`` says of the GPU; it comes with the driver, so no package is needed."""

from __future__ import annotations

import subprocess
import threading
from types import TracebackType

ASK = ("nvidia-smi", "--format=csv,noheader,nounits", "--id=0")


def gpu_name() -> str:
    """Of the first GPU, or what nvidia-smi says instead."""
    try:
        done = subprocess.run([*ASK, "--query-gpu=name"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "no nvidia-smi"
    return (done.stdout or done.stderr).strip().splitlines()[0] if done.stdout or done.stderr else "no GPU"


class Busy:
    """Samples, while it is open, whether a kernel ran: ``share`` is the mean utilisation, None where nobody says.

    nvidia-smi itself averages over a sixth of a second to a second; every 0.2 s is as often as it has something new.
    """

    def __init__(self) -> None:
        self._values: list[float] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Busy:
        command = [*ASK, "--query-gpu=utilization.gpu", "--loop-ms=200"]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except FileNotFoundError:
            return self
        self._reader = threading.Thread(target=self._read, args=(self._process,))
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._reader.join()

    @property
    def share(self) -> float | None:
        """0..1, of the first GPU."""
        return sum(self._values) / len(self._values) / 100 if self._values else None

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for text in process.stdout:
            if text.strip().isdigit():
                self._values.append(float(text))
