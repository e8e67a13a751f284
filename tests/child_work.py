"""What ``test_child.py`` has done in other processes, which import this and little else."""

from __future__ import annotations

from typing import Any

from ofg_deploy.errors import InputError


def reverse_forever(caller: Any) -> None:
    while True:
        caller.send(caller.recv()[::-1])


def refuse(caller: Any, text: str) -> None:
    raise InputError(text)
