"""When a registration is good enough: a limit to warn at and one to fail at, for each measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from ofg_deploy.errors import UsageError
from ofg_deploy.outputs import parse_json, read_text
from ofg_deploy.records import fitted
from ofg_deploy.report.measures import CUT, JUDGED

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Limit:
    """The last values that are still good. A value at a limit is within it.

    Attributes:
        warn: beyond it, look; None: never.
        fail: beyond it, do not use; None: never.
    """

    warn: float | None = None
    fail: float | None = None


# Reasons are in docs/quality.md. What depends on the anatomy (Dice itself, NCC itself, distances) has no limit of its
# own: there the comparison with before, and with the other pairs, speaks.
DEFAULTS = MappingProxyType(
    {
        "folding_percent": Limit(1.0, 5.0),
        "sdlogj": Limit(1.0),
        "overlap": Limit(0.5, 0.25),
        "ncc_gain": Limit(0.0),
        "mi_gain": Limit(0.0, -0.1),
        "mi_over_start": Limit(0.0),
        "dice_gain": Limit(0.0, -0.05),
        "dice_over_start": Limit(0.0),
        "inverse_p99_mm": Limit(0.5, 2.0),
        "outlier_z": Limit(CUT),
    }
)


@dataclass(frozen=True)
class Limits:
    """A limit for each measure that has one.

    Attributes:
        of: by the key of the measure.

    Raises:
        UsageError: a measure that does not exist or has no bad direction, or a warning that comes after the failure.
    """

    of: Mapping[str, Limit] = field(default_factory=lambda: DEFAULTS)

    def __post_init__(self) -> None:
        for key, limit in self.of.items():
            if key not in JUDGED:
                raise UsageError(f"limit on {key!r}: use one of {', '.join(JUDGED)}")
            if not all(value is None or math.isfinite(value) for value in (limit.warn, limit.fail)):
                raise UsageError(f"limit on {key}: finite numbers are needed")
            if limit.warn is not None and limit.fail is not None and JUDGED[key].is_worse(limit.warn, limit.fail):
                raise UsageError(f"limit on {key}: warns at {limit.warn:g}, which is beyond its failure {limit.fail:g}")

    @classmethod
    def parse(cls, file: Path | None = None, options: Sequence[str] = ()) -> Limits:
        """The defaults, then a JSON file, then options in their order; each replaces the limit it names.

        Args:
            file: ``{"folding_percent": 0.5, "sdlogj": {"warn": 0.5, "fail": 1}, "overlap": null}``.
            options: ``KEY=FAIL``, ``KEY=WARN:FAIL`` (either may be empty) or ``KEY=none``.

        With a failure alone the default's warning stays where it is milder.

        Raises:
            UsageError: not of this form. InputError: the file cannot be read.
        """
        of = dict(DEFAULTS)
        for key, value in [*(_of_file(file) if file else ()), *map(_of_option, options)]:
            limit = value if isinstance(value, Limit) else Limit(None, value)
            if not isinstance(value, Limit) and key in JUDGED and (usual := of.get(key, Limit()).warn) is not None:
                limit = Limit(usual if JUDGED[key].is_worse(value, usual) else None, value)
            of[key] = limit
        return cls(of)

    def judge(self, key: str, value: float | None) -> Verdict:
        """Whether a value is within its limits; one that is not known is."""
        limit = self.of.get(key)
        if limit is None or value is None:
            return "pass"
        if limit.fail is not None and JUDGED[key].is_worse(value, limit.fail):
            return "fail"
        return "warn" if limit.warn is not None and JUDGED[key].is_worse(value, limit.warn) else "pass"


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    """A limit of a file."""

    warn: float | None = None
    fail: float | None = None


def _of_file(path: Path) -> list[tuple[str, float | Limit]]:
    text = read_text(path)
    try:
        found = fitted(parse_json(text), dict[str, float | _Given | None], "these are not limits")
    except ValueError as error:
        raise UsageError(f'{path}: {error}: write them as {{"folding_percent": 0.5}}') from error
    return [(key, _limit(value)) for key, value in found.items()]


def _limit(value: float | _Given | None) -> float | Limit:
    if value is None:
        return Limit()
    return Limit(value.warn, value.fail) if isinstance(value, _Given) else value


def _of_option(text: str) -> tuple[str, float | Limit]:
    key, separator, value = (part.strip() for part in text.partition("="))
    try:
        if not separator or not value:
            raise ValueError
        if value.lower() == "none":
            return key, Limit()
        if ":" in value:
            warn, fail = (float(part) if part.strip() else None for part in value.split(":"))
            return key, Limit(warn, fail)
        return key, float(value)
    except ValueError as error:
        raise UsageError(f"`limit` {text}: use KEY=FAIL, KEY=WARN:FAIL or KEY=none, KEY as folding_percent") from error
