"""The report as one HTML page that asks nothing of any other place: no request, no script of others, names escaped."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ofg_deploy.report.limits import Limit, Limits
from ofg_deploy.report.measures import JUDGED, MEASURES, NONE, OUTLIER, Measure, minus
from ofg_deploy.report.panels import Panel
from ofg_deploy.report.png import Index
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import STATUSES, Row
from ofg_deploy.report.svg import Mosaic, distribution
from ofg_deploy.report.templates import asset, render, stream

GENERATOR = Markup('<meta name="generator" content="ofg_deploy report">')
LONG = 30  # rows: a table with more scrolls in a frame of its own
FEWEST = 3  # pairs: fewer have no distribution
CHOICES = (  # of the flicker: value, text, whether it moves
    ("moving", "moving", False),
    ("fixed", "fixed", False),
    ("warped", "warped", False),
    ("before", "flicker before (fixed, moving)", True),
    ("after", "flicker after (fixed, warped)", True),
)
PER_LABEL = {"dice_before": "Dice before", "dice_start": "Dice start", "dice": "Dice after", "hd95_mm": "HD95 (mm)"}


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn of a pair.

    Attributes:
        thumbnail: picture and its width over height; None where there is none.
        anchor: the figure's name in the page; empty where it has none.
    """

    thumbnail: tuple[Index, float] | None = None
    anchor: str = ""


@dataclass(frozen=True)
class Cell:
    """A number of a pair: its verdict, the value to sort by, how it is shown, and the measure that it comes from."""

    verdict: str
    data: str
    shown: str
    by: str = ""


def head(title: str) -> str:
    """Up to the body. The policy names the page's own style and script by their digests: nothing else runs."""
    style, script = asset("style.css"), asset("script.js")
    digests = {"style_digest": _digest(style), "script_digest": _digest(script)}
    return render("head.html.j2", title=title, style=style, generator=GENERATOR, **digests)


def is_ours(path: Path) -> bool:
    """Whether a page is an earlier report of this program, which a new one may replace. False for anything else."""
    try:
        with path.open("rb") as opened:
            return path.is_file() and GENERATOR.encode() in opened.read(2**12)
    except OSError:
        return False


def foot() -> str:
    """What closes the page."""
    return render("foot.html.j2", script=asset("script.js")) + "\n"


def summary(rows: Sequence[Row], intro: Sequence[str], limits: Limits) -> str:
    """Paragraphs, how many pairs have which status, and what the numbers and their limits are."""
    often = Counter(row.status for row in rows)
    counts = [(status, often[status]) for status in reversed(STATUSES) if often[status]]
    measures = [(measure, _beyond(measure, limits.of.get(measure.key, Limit()))) for measure in (*MEASURES, OUTLIER)]
    return render("summary.html.j2", intro=intro, counts=counts, measures=measures)


def methods(rows: Sequence[Row]) -> str:
    """The means of each method, if there are several."""
    names = sorted({row.method for row in rows})
    if len(names) < 2:
        return ""
    measures = _present(rows)
    of = {name: [row for row in rows if row.method == name] for name in names}
    means = [(name, len(mine), [m.show(mean(mine, m.key)) for m in measures]) for name, mine in of.items()]
    return render("methods.html.j2", titles=[measure.title for measure in measures], methods=means)


def cohort(rows: Sequence[Row], drawn: Sequence[Drawn], limits: Limits) -> Iterator[str]:
    """The sortable table, a row for each pair in the order given."""
    measures, several = [OUTLIER, *_present(rows)], len({row.method for row in rows}) > 1
    heads = [("pair", "text", "up"), ("status", "number", "up"), *([("method", "text", "up")] if several else [])]
    heads += [(m.title, "number", "down" if m is OUTLIER or m.worse == "high" else "up") for m in measures]
    return stream(
        "cohort.html.j2",
        rows=list(zip(rows, drawn, strict=True)),
        heads=heads,
        several=several,
        measures=measures,
        long=len(rows) > LONG,
        cell=lambda measure, row: _cell(measure, row, limits, with_source=True),
    )


def distributions(rows: Sequence[Row], limits: Limits) -> str:
    """Every judged measure over the pairs that have it."""
    if len(rows) < FEWEST:
        return ""
    plots = []
    for measure in (OUTLIER, *_present(rows)):
        values = [(v, row.name, row.status) for row in rows if (v := row.numbers.get(measure.key)) is not None]
        if measure.worse is None or len(values) < FEWEST:
            continue
        limit = limits.of.get(measure.key, Limit())
        told = [f"median {measure.show(float(np.median([v for v, _, _ in values])))}", _beyond(measure, limit)]
        plots.append((distribution(measure, limit, values), measure.title, " · ".join(filter(None, told))))
    return render("distributions.html.j2", plots=plots)


def pictures(count: int, pairs: int, radiological: bool) -> str:
    """Headline and legend of the figures of so many pairs."""
    return render("pictures.html.j2", count=count, pairs=pairs, side="left" if radiological else "right")


def section(anchor: str, row: Row, shown: Sequence[Panel], limits: Limits) -> str:
    """The figure of a pair: flicker, numbers, panels; without panels what is known all the same."""
    whole = row.entry if isinstance(row.entry, Registration) and not row.problem else None
    known = [measure for measure in (*MEASURES, OUTLIER) if row.numbers.get(measure.key) is not None]
    given = {
        "anchor": anchor,
        "row": row,
        "about": whole.about if whole else {},
        "cells": [(measure.title, _cell(measure, row, limits)) for measure in known],
        "panels": [],
    }
    if shown:
        mosaic = Mosaic(anchor, shown)
        columns, labels = _labels(whole) if whole else ([], [])
        given |= {
            "viewer": mosaic.viewer("fixed, moving or warped image, as chosen below"),
            "choices": CHOICES,
            "panels": [(panel, mosaic.panel(panel)) for panel in shown],
            "columns": columns,
            "labels": labels,
        }
    return render("pair.html.j2", **given)


def mean(rows: Sequence[Row], key: str) -> float | None:
    """Over those that have the number; None where none has."""
    found = [value for row in rows if (value := row.numbers.get(key)) is not None]
    return float(np.mean(found)) if found else None


def _labels(registration: Registration) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Heads, and cells of every label."""
    found = registration.per_label
    kept = [key for key in PER_LABEL if any(key in values for values in found.values())]
    rows = [(label, [_shown(values.get(key), key) for key in kept]) for label, values in found.items()]
    return ["label", *(PER_LABEL[key] for key in kept)], rows


def _shown(value: float | None, key: str) -> str:
    return NONE if value is None else format(value, ".2f" if key == "hd95_mm" else ".3f")


def _cell(measure: Measure, row: Row, limits: Limits, with_source: bool = False) -> Cell:
    value = row.numbers.get(measure.key)
    by = JUDGED[row.outlier].title if with_source and measure is OUTLIER and row.outlier else ""
    verdict = limits.judge(measure.key, value)
    return Cell(verdict, "" if value is None else f"{value:.8g}", measure.show(value), by)


def _present(rows: Sequence[Row]) -> list[Measure]:
    return [m for m in MEASURES if any(row.numbers.get(m.key) is not None for row in rows)]


def _beyond(measure: Measure, limit: Limit) -> str:
    if measure.key not in JUDGED:
        return ""
    side = "above" if measure.worse == "high" else "below"
    found = [(kind, at) for kind, at in (("warn", limit.warn), ("fail", limit.fail)) if at is not None]
    return ", ".join(f"{kind} {side} {minus(f'{at:g}')}" for kind, at in found)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
