"""What a folder of ``ofg register`` holds: sidecars, those of named pairs in a folder each, and ``failures.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ofg_deploy import sidecar
from ofg_deploy.batch_record import BatchRecord
from ofg_deploy.errors import InputError
from ofg_deploy.outputs import from_cell, read_csv
from ofg_deploy.pair_list import called
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import Failure


def entries(folder: Path) -> list[Registration | Failure]:
    """Every pair of the folder and of the folders in it by name, those that could not be registered last.

    A failure is over where the pair was registered after the batch that tells of it, by another part or alone. A named
    pair of a batch has a folder of its own and is called like it. What begins with a dot is unfinished. A JSON file
    that does not parse is taken for a broken sidecar and comes along; other records of ours and files of somebody
    else's do not.

    Raises:
        InputError: not a folder, or no pair in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the `out` folder of ofg register")
    paths = sidecar.find(folder, broken=True)
    names = called(folder, paths)
    found: list[Registration | Failure] = [Registration(p, called=n) for p, n in zip(paths, names, strict=True)]
    for table in sorted([*folder.glob("failures.csv"), *folder.glob("failures_part-*.csv")]):
        over = _since(table, found)
        found += [failure for failure in _failures(table) if failure.name not in over]
    if not found:
        raise InputError(f"{folder} holds no sidecar of ofg register (*.json): give its `out` folder")
    return found


def _since(table: Path, found: Sequence[Registration | Failure]) -> set[str]:
    """Pairs that were registered after the batch that left this table; none where its record is not there."""
    created: dict[str, str] = {}
    for entry in (entry for entry in found if isinstance(entry, Registration)):
        with suppress(InputError):
            created[entry.name] = entry.record.created
    batch = table.with_name(f"{table.stem.replace('failures', 'batch', 1)}.json")
    try:
        written = BatchRecord.read(batch).written
    except InputError:
        return set()
    return {name for name, at in created.items() if at > written}  # both UTC, to the second


def _failures(path: Path) -> list[Failure]:
    header, rows = read_csv(path)
    if not {"pair", "error"} <= set(header):
        raise InputError(f"{path} is no table of ofg register, with columns pair and error")
    name, error = header.index("pair"), header.index("error")
    return [Failure(from_cell(row[name]), from_cell(row[error])) for row in rows]
