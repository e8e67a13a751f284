"""Lists of pairs, CSV, TSV or JSON; and what the pairs are called whose results lie in a folder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofg_deploy.column_names import meant
from ofg_deploy.errors import InputError
from ofg_deploy.outputs import read_csv, read_json

logger = logging.getLogger("ofg_deploy")
# Of the lists of all verbs: a list for one of them may be given to another.
ALL_COLUMNS = (
    *("name", "fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask"),
    *("fixed_points", "moving_points", "also", "init", "transform", "split"),
)


def read_rows(source: Path, columns: tuple[str, ...], needed: dict[str, str]) -> list[dict[str, str]]:
    """Rows by column, as text without spaces around it; what is empty is absent.

    A list may have other columns, as the ``participants.tsv`` of a BIDS data set has: they are left out, and a warning
    of the logger ``ofg_deploy`` names them. What looks like one of ``columns`` misspelt is refused: it would be taken
    for absent.

    Args:
        source: CSV with a header, the same with tabs, or JSON (by its name): a list of objects whose values are text.
        columns: those that are read, beside ``name``.
        needed: columns each row must have, if only empty, and what to write there.

    Raises:
        InputError: not such a list, or nothing in it.
    """
    if source.suffix.lower() == ".json":
        rows: Any = read_json(source)
    else:
        header, cells = read_csv(source)
        rows = [dict(zip((name.strip() for name in header), row, strict=True)) for row in cells]
        for row in rows:
            if not row.get("", "-").strip():  # a comma at the end of every line
                del row[""]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{source} lists no pair: one row a pair is needed, with columns {', '.join(columns)}")
    known = ("name", *columns)
    others = list(dict.fromkeys(str(column) for row in rows for column in row if column not in known))
    for column in others:
        if (wanted := meant(column, known)) and column not in ALL_COLUMNS:
            raise InputError(f"{source} has the column {column!r}: is {wanted!r} meant? Rename it, or take it out")
    for number, row in enumerate(rows, start=1):
        for column, advice in needed.items():
            if column not in row:
                raise InputError(
                    f"{source} has no {column!r} in row {number}: {advice}; its columns are {', '.join(row) or 'none'}"
                )
        if not all(row.get(column) is None or isinstance(row[column], str) for column in known):
            raise InputError(f"{source}, row {number}: every value must be a path or a name")
    if others:
        logger.warning("%s: columns that are not used: %s", source, shortened(others))
    return [
        {column: value.strip() for column in row if column in known and (value := row[column]) and value.strip()}
        for row in rows
    ]


def shortened(names: Sequence[str], most: int = 8) -> str:
    """Names in a line, a few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def called(folder: Path, sidecars: Sequence[Path]) -> list[str]:
    """Name of each pair in a folder of ``ofg register``, by its sidecar there or in a folder of its own.

    A pair that the list of a batch names has a folder of that name; where several share one, both names.
    """
    names = [path.stem if path.parent == folder else path.parent.name for path in sidecars]
    often = Counter(names)
    return [
        name if often[name] == 1 else path.relative_to(folder).with_name(path.stem).as_posix()
        for name, path in zip(names, sidecars, strict=True)
    ]
