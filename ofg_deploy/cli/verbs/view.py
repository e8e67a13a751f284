"""``ofg view`` on a terminal: the address, then nothing until Ctrl-C."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from threading import Event

from ofg_deploy.cli.terminal import both, warn
from ofg_deploy.web.assets import check_built
from ofg_deploy.web.found import registration_in
from ofg_deploy.web.scene import Scene
from ofg_deploy.web.server import ViewServer


def view(out: Path, pair: str | None, port: int, browser: bool) -> None:
    """Serve until Ctrl-C.

    Raises:
        DeviceError: the page is not built, or the port is taken. UsageError, InputError: as ``registration_in`` and
            ``Scene``.
    """
    console, stderr = both()
    check_built()
    scene = Scene(registration_in(out, pair))
    warn(stderr, scene.notes)
    server = ViewServer(scene, port)
    server.start()
    try:
        console.print(f"{scene.registration.name}: {server.address} (Ctrl-C ends)", soft_wrap=True)
        if browser:
            webbrowser.open(server.address)
        Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
