"""The pairs of a report with their verdicts, worst first; and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ofg_deploy.errors import InputError
from ofg_deploy.outputs import cell
from ofg_deploy.report.limits import Limits
from ofg_deploy.report.measures import JUDGED, MEASURES
from ofg_deploy.report.outliers import scores
from ofg_deploy.report.registration import Registration

Status = Literal["fail", "not registered", "unreadable", "warn", "pass"]
STATUSES: tuple[Status, ...] = ("fail", "not registered", "unreadable", "warn", "pass")  # worst first


@dataclass(frozen=True)
class Failure:
    """A pair that could not be registered, and why."""

    name: str
    error: str
    method: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """One pair of the report.

    Attributes:
        entry: where it comes from.
        numbers: by measure; empty where there are none.
        outlier: the measure that is least like the other pairs' (``numbers["outlier_z"]`` says by how much).
        reasons: why it is neither ``pass`` nor to be trusted, a line each.
        problem: what could not be read of it: its sidecar or an image.
        warnings: what the registration itself warned about; with any, the pair does not pass.
    """

    entry: Registration | Failure
    numbers: dict[str, float | None]
    outlier: str | None = None
    reasons: tuple[str, ...] = ()
    problem: str | None = None
    warnings: tuple[str, ...] = ()
    verdict: Status = "pass"

    @property
    def name(self) -> str:
        """Of the pair."""
        return self.entry.name

    @property
    def method(self) -> str:
        """What it is compared under."""
        return self.entry.method

    @property
    def status(self) -> Status:
        """The verdict by numbers; ``unreadable`` where something is missing, unless it fails anyway."""
        if self.problem and self.verdict in ("warn", "pass"):
            return "unreadable"
        return self.verdict

    @property
    def why(self) -> tuple[str, ...]:
        """Every reason to look at it."""
        return (*self.reasons, *([self.problem] if self.problem else []))


def judge(entries: Sequence[Registration | Failure], limits: Limits) -> list[Row]:
    """A row for each entry, in the order given; pairs are compared with those of the same method."""
    rows = [_read(entry) for entry in entries]
    scored: dict[int, tuple[float, str] | None] = {}
    for method in dict.fromkeys(row.method for row in rows):
        members = [at for at, row in enumerate(rows) if row.method == method]
        scored |= dict(zip(members, scores([rows[at].numbers for at in members]), strict=True))
    return [_judged(row, scored[at], limits) for at, row in enumerate(rows)]


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """By status, then by how unlike the others they are, then as they were."""
    return sorted(rows, key=lambda row: (STATUSES.index(row.status), -(row.numbers.get("outlier_z") or 0.0)))


def table(rows: Sequence[Row]) -> str:
    """``qc.tsv``, as BIDS has its tables: a row for each pair, ``n/a`` where there is no number."""
    keys = [measure.key for measure in MEASURES]
    more = sorted({key for row in rows for key in row.numbers} - {*keys, "outlier_z"})
    lines = [["pair", "method", "status", "reasons", "outlier_z", "outlier_measure", *keys, *more]]
    for row in rows:
        numbers = [row.numbers.get(key) for key in ("outlier_z", *keys, *more)]
        first, *others = ("n/a" if value is None else f"{value:.8g}" for value in numbers)
        told = (row.name, row.method, row.status, "; ".join(row.why))
        lines.append([*(_cell(text) for text in told), first, row.outlier or "n/a", *others])
    return "".join("\t".join(line) + "\n" for line in lines)


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the table holds, JSON-ready; a number that is not known is None."""
    return [
        {
            "pair": row.name,
            "method": row.method,
            "status": row.status,
            "reasons": list(row.why),
            "outlier_measure": row.outlier,
            "numbers": dict(sorted(row.numbers.items())),
        }
        for row in rows
    ]


def _read(entry: Registration | Failure) -> Row:
    if isinstance(entry, Failure):
        return Row(entry, {}, reasons=(f"not registered: {entry.error}",), verdict="not registered")
    try:
        _ = entry.per_label  # read here, so that what is damaged is this row's problem
        return Row(entry, dict(entry.numbers), warnings=entry.warnings)
    except InputError as error:
        return Row(entry, {}, problem=" ".join(str(error).split()))


def _judged(row: Row, score: tuple[float, str] | None, limits: Limits) -> Row:
    if row.problem or isinstance(row.entry, Failure):
        return row
    numbers = {**row.numbers, **({"outlier_z": score[0]} if score else {})}
    reasons, worst = [], "pass"
    for key, measure in JUDGED.items():
        if (verdict := limits.judge(key, numbers.get(key))) == "pass":
            continue
        limit = limits.of[key].fail if verdict == "fail" else limits.of[key].warn
        side = "above" if measure.worse == "high" else "below"
        by = f" by {score[1]}" if key == "outlier_z" and score else ""
        reasons.append(f"{verdict}: {key} {numbers[key]:.4g} is {side} {limit:g}{by}")
        worst = "fail" if "fail" in (worst, verdict) else "warn"
    if row.warnings:
        reasons += [f"warn: {line}" for line in row.warnings]
        worst = "fail" if worst == "fail" else "warn"
    reasons.sort(key=lambda reason: not reason.startswith("fail"))
    outlier = score[1] if score else None
    return replace(row, numbers=numbers, outlier=outlier, reasons=tuple(reasons), verdict=worst)  # type: ignore[arg-type]


def _cell(text: str) -> str:
    """A file name may hold what ends a cell or a line."""
    for raw, shown in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(raw, shown)
    return cell(text) or "n/a"
