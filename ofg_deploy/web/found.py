"""Which registration ``ofg view`` is to show."""

from __future__ import annotations

from pathlib import Path

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.report.folder import entries
from ofg_deploy.report.registration import Registration

LISTED = 8  # names in a message


def registration_in(place: Path, pair: str | None = None) -> Registration:
    """The registration of a sidecar, or the one in a folder of ``ofg register``; of several, the one of this name.

    Raises:
        UsageError: there are several and none was named, or none has this name.
        InputError: nothing is there, or no registration.
    """
    if place.is_file():
        if place.suffix != ".json":
            raise InputError(
                f"{place} is not a sidecar: give the folder that ofg register wrote, or the .json file in it"
            )
        if pair is not None:
            raise UsageError(f"`pair` {pair}: {place} is the sidecar of one registration; leave `pair` out")
        registration = Registration(place)
        _ = registration.record  # raises
        return registration
    if not place.is_dir():
        raise InputError(f"{place} does not exist: give the folder that ofg register wrote, or the .json file in it")
    found = [entry for entry in entries(place) if isinstance(entry, Registration)]
    if not found:
        raise InputError(f"no pair in {place} could be registered: there is nothing to view")
    named = [entry for entry in found if pair in (None, entry.name)]
    if len(named) == 1:
        return named[0]
    names = ", ".join(entry.name for entry in found[:LISTED]) + (", ..." if len(found) > LISTED else "")
    if pair is None:
        raise UsageError(f"{place} holds {len(found)} registrations: choose one with `pair`: {names}")
    raise UsageError(f"`pair` {pair}: {place} holds no such registration, but {names}")
