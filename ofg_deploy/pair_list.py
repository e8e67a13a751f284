"""Lists of pairs, CSV or JSON, read strictly; and what the pairs are called whose results lie in a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ofg_deploy.errors import InputError
from ofg_deploy.outputs import read_csv, read_json


def read_rows(source: Path, columns: tuple[str, ...], needed: dict[str, str]) -> list[dict[str, str]]:
    """Rows by column, as text without spaces around it; what is empty is absent.

    Args:
        source: CSV with a header, or JSON (by its name): a list of objects whose values are text.
        columns: those there may be, beside ``name``. Others are refused: a mistyped one would be taken for absent.
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
    for number, row in enumerate(rows, start=1):
        if unknown := {str(column) for column in row} - {*columns, "name"}:
            raise InputError(f"{source} has the column {min(unknown)!r}{_meant(min(unknown), columns)}")
        for column, advice in needed.items():
            if column not in row:
                raise InputError(f"{source} has no {column!r} in row {number}: {advice}")
        if not all(value is None or isinstance(value, str) for value in row.values()):
            raise InputError(f"{source}, row {number}: every value must be a path or a name")
    return [{column: value.strip() for column, value in row.items() if value and value.strip()} for row in rows]


def _meant(column: str, columns: tuple[str, ...]) -> str:
    """What a column that is not known may have been meant for, and those that are."""
    plain = re.sub(r"[\s-]+", "_", column.strip().lower())
    for candidate in (plain, re.sub(r"_(image|img|file|path|nii)s?$", "", plain)):
        if candidate in columns:
            return f": {candidate!r} is meant?"
    near = get_close_matches(plain, columns, n=1, cutoff=0.75)
    return f": {near[0]!r} is meant?" if near else f": use name, {', '.join(columns)}"


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
