"""``ofg serve`` on a terminal: models are loaded, then one line says where the service is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ofg_deploy.catalogue import is_name
from ofg_deploy.cli.terminal import terminal
from ofg_deploy.errors import InputError, UsageError, check_count
from ofg_deploy.options.words import Device, Runtime
from ofg_deploy.serve.engine import check_threads
from ofg_deploy.serve.model import Model, load_model
from ofg_deploy.service.limits import Limits
from ofg_deploy.service.security import read_token
from ofg_deploy.service.server import address_of, listen, run
from ofg_deploy.service.state import Service

MOST_WORKERS = 4  # where nobody says how many


@dataclass(frozen=True)
class Means:
    """What pairs are registered with: models as ``-m`` takes them, and what runs them."""

    models: Sequence[str]
    device: Device
    runtime: Runtime
    threads: int
    workers: int

    def load(self) -> dict[str, Model]:
        """Each once, by the name that clients ask for. Raises as ``load_model``; UsageError: one name twice."""
        found: dict[str, Model] = {}
        for text in self.models:
            name = text if is_name(text) else Path(text).stem
            if name in found:
                raise UsageError(f"two models are called {name}: rename one of the files")
            found[name] = load_model(text, device=self.device, runtime=self.runtime, threads=self.threads)
        return found


def serve(
    means: Means, folder: Path, limits: Limits, host: str, port: int, token_file: Path | None, names: Sequence[str]
) -> None:
    """Until SIGTERM or Ctrl-C.

    Raises:
        UsageError: an address that needs a token or is taken, a folder that another service uses.
        InputError, DeviceError: a model, a token or a folder that cannot be used.
    """
    check_threads(means.threads)
    check_count("`workers`", means.workers, zero="the number of cores")
    console, token = terminal(), read_token(token_file)
    with listen(host, port, token) as listening:  # before the models: it takes no time
        models = means.load()
        try:
            service = Service.open(folder, models, limits, means.workers or min(os.cpu_count() or 1, MOST_WORKERS))
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}") from error
        for name, model in models.items():
            console.print(f"model {name}: {model.network} on {model.provider} ({model.runtime})", soft_wrap=True)
        console.print(f"jobs: {folder.absolute()} (results are kept {limits.keep_hours:g} h)", soft_wrap=True)
        console.print(f"serving at {address_of(listening)}{'' if token else ' (no token)'}; end with Ctrl-C")
        console.file.flush()
        run(service, listening, [host, *names], token)
    console.print("the service has ended")
