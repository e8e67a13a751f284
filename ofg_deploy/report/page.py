"""The report as one HTML page that asks nothing of any other place: no request, no script of others, names escaped."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from ofg_deploy.report.limits import Limit, Limits
from ofg_deploy.report.measures import JUDGED, MEASURES, NONE, OUTLIER, Measure, minus
from ofg_deploy.report.panels import Panel
from ofg_deploy.report.png import Index
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.rows import STATUSES, Row
from ofg_deploy.report.svg import Mosaic, data_uri, distribution

SYMBOLS = {"pass": "✓", "warn": "▲", "fail": "✕", "not registered": "✕", "unreadable": "?"}
LEGEND = (
    "Each plane is cut through the slice of the fixed image with most contrast in its middle half, the patient's right "
    "on the {side}. Differences: blue where the fixed image is brighter, orange where the moving one is. Deformation: "
    "where a regular lattice of the fixed image maps to in the moving one, without the initial alignment. Log "
    "Jacobian: dark where volume is kept, orange where it grows from fixed to moving, blue where it shrinks, from 1/4 "
    "to 4; white where space folds. Labels: fixed in blue, warped in orange and dashed. Numbers: whole volume."
)
GENERATOR = '<meta name="generator" content="ofg_deploy report">'
LONG = 30  # rows: a table with more scrolls in a frame of its own
FEWEST = 3  # pairs: fewer have no distribution


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn of a pair.

    Attributes:
        thumbnail: picture and its width over height; None where there is none.
        anchor: the figure's name in the page; empty where it has none.
    """

    thumbnail: tuple[Index, float] | None = None
    anchor: str = ""


def head(title: str) -> str:
    """Up to the body. The policy names the page's own style and script by their digests: nothing else runs."""
    style, script = _asset("style.css"), _asset("script.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{GENERATOR}'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>\n<h1>{escape(title)}</h1>"
    )


def is_ours(path: Path) -> bool:
    """Whether a page is an earlier report of this program, which a new one may replace. False for anything else."""
    try:
        with path.open("rb") as stream:
            return path.is_file() and GENERATOR.encode() in stream.read(2**12)
    except OSError:
        return False


def foot() -> str:
    """What closes the page."""
    return f"<script>{_asset('script.js')}</script></body></html>\n"


def summary(rows: Sequence[Row], intro: Sequence[str], limits: Limits) -> Iterator[str]:
    """Paragraphs, how many pairs have which status, and what the numbers and their limits are."""
    yield from (f"<p>{escape(text)}</p>" for text in intro)
    counts = Counter(row.status for row in rows)
    items = (f"<li><b>{counts[status]}</b>{_status(status)}</li>" for status in reversed(STATUSES) if counts[status])
    yield f'<ul class="counts">{"".join(items)}</ul>'
    lines = "".join(
        f'<tr><th scope="row" class="text">{escape(m.title)}</th><td class="text">{escape(m.about)}</td>'
        f'<td class="text">{escape(_beyond(m, limits.of.get(m.key, Limit())))}</td></tr>'
        for m in (*MEASURES, OUTLIER)
    )
    heads = "".join(f'<th scope="col" class="text">{text}</th>' for text in ("measure", "what it is", "limits"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    yield "<details><summary>What the numbers are, and their limits</summary>"
    yield _scrolled(table, "Measures and limits") + "</details>"


def methods(rows: Sequence[Row]) -> Iterator[str]:
    """The means of each method, if there are several."""
    names = sorted({row.method for row in rows})
    if len(names) < 2:
        return
    measures = _present(rows)
    top = "".join(f"<th>{escape(text)}</th>" for text in ("method", "pairs", *(m.title for m in measures)))
    lines = ""
    for name in names:
        mine = [row for row in rows if row.method == name]
        cells = "".join(f"<td>{m.show(mean(mine, m.key))}</td>" for m in measures)
        lines += f'<tr><th scope="row" class="text">{escape(name)}</th><td>{len(mine)}</td>{cells}</tr>'
    yield "<h2>Mean over pairs</h2>"
    yield _scrolled(f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>", "Means")


def cohort(rows: Sequence[Row], drawn: Sequence[Drawn], limits: Limits) -> Iterator[str]:
    """The sortable table, a row for each pair in the order given."""
    measures, several = _present(rows), len({row.method for row in rows}) > 1
    heads = [("pair", "text", "up"), ("status", "number", "up")]
    heads += [("method", "text", "up")] if several else []
    plain = '<th scope="col" class="text">warped, difference</th>'
    heads += [(OUTLIER.title, "number", "down")]
    heads += [(m.title, "number", "down" if m.worse == "high" else "up") for m in measures]
    cells = [
        f'<th scope="col" data-kind="{kind}" data-first="{first}"><button type="button">{escape(text)}</button></th>'
        for text, kind, first in heads
    ]
    cells.insert(2, plain)
    yield '<h2>Pairs, worst first</h2><div class="filter"><label>Show only '
    yield '<input type="search" placeholder="name, status, reason"></label>'
    yield f"<output>{len(rows)} pairs</output></div>"
    kind = "scroll long" if len(rows) > LONG else "scroll"
    yield f'<div class="{kind}" tabindex="0" role="region" aria-label="Pairs"><table class="cohort"><thead><tr>'
    yield "".join(cells) + "</tr></thead><tbody>"
    for row, picture in zip(rows, drawn, strict=True):
        name = escape(row.name)
        shown = name.replace("_", "_<wbr>")
        linked = f'<a href="#{picture.anchor}">{shown}</a>' if picture.anchor else shown
        why = f'<span class="why">{escape("; ".join(row.why))}</span>' if row.why else ""
        yield f'<tr><th scope="row" data-value="{name}">{linked}</th><td data-value="{STATUSES.index(row.status)}">'
        yield f"{_status(row.status)}{why}</td><td>{_thumbnail(picture, row)}</td>"
        yield f'<td class="text">{escape(row.method)}</td>' if several else ""
        by = f'<span class="why">{escape(JUDGED[row.outlier].title)}</span>' if row.outlier else ""
        yield _cell(OUTLIER, row, limits, by) + "".join(_cell(m, row, limits) for m in measures) + "</tr>"
    yield "</tbody></table></div>"


def distributions(rows: Sequence[Row], limits: Limits) -> Iterator[str]:
    """Every judged measure over the pairs that have it."""
    if len(rows) < FEWEST:
        return
    yield "<h2>Distributions</h2><p>A tick for each pair, and a triangle where it does not pass: filled where it fails."
    yield '</p><div class="plots">'
    for measure in (OUTLIER, *_present(rows)):
        values = [(v, row.name, row.status) for row in rows if (v := row.numbers.get(measure.key)) is not None]
        if measure.worse is None or len(values) < FEWEST:
            continue
        limit = limits.of.get(measure.key, Limit())
        middle = measure.show(float(np.median([v for v, _, _ in values])))
        told = f"median {middle}" + (f" · {beyond}" if (beyond := _beyond(measure, limit)) else "")
        yield f"<figure>{distribution(measure, limit, values)}"
        yield f"<figcaption><b>{escape(measure.title)}</b> <span>{escape(told)}</span></figcaption></figure>"
    yield "</div>"


def section(anchor: str, row: Row, shown: Sequence[Panel], limits: Limits) -> str:
    """The figure of a pair: flicker, numbers, panels; without panels what is known all the same."""
    if not shown:
        return f'<section class="pair" id="{anchor}">{_headline(row)}{_about(row)}{_numbers(row, limits)}</section>'
    mosaic = Mosaic(anchor, shown)
    layers = "".join(f'<g class="layer is-{key}">{mosaic.again(key)}</g>' for key in ("moving", "warped", "fixed"))
    radio = f'<input type="radio" name="{anchor}" value='
    viewer = mosaic.frame(layers + mosaic.letters(), "fixed, moving or warped image, as chosen below")
    choices = "".join(
        f'<label{kind}>{radio}"{value}"{" checked" * (value == "fixed")}>{text}</label>'
        for value, text, kind in (
            ("moving", "moving", ""),
            ("fixed", "fixed", ""),
            ("warped", "warped", ""),
            ("before", "flicker before (fixed, moving)", ' class="moves"'),
            ("after", "flicker after (fixed, warped)", ' class="moves"'),
        )
    )
    still = '<span class="still">Less motion is asked for: swap with the arrow keys.</span>'
    figures = "".join(
        f'<figure class="is-{panel.key}-panel">{mosaic.panel(panel)}<figcaption><b>{panel.title}</b> '
        f"<span>{escape(panel.note)}</span></figcaption>"
        "</figure>"
        for panel in shown
    )
    return (
        f'<section class="pair" id="{anchor}">{_headline(row)}{_about(row)}<div class="side"><fieldset class="flicker">'
        f"<legend>Swap the images to see what is not aligned</legend>{viewer}"
        f'<div class="choices">{choices}{still}</div></fieldset>{_numbers(row, limits)}</div>'
        f'<div class="panels">{figures}</div>{_labels(row)}</section>'
    )


def mean(rows: Sequence[Row], key: str) -> float | None:
    """Over those that have the number; None where none has."""
    found = [value for row in rows if (value := row.numbers.get(key)) is not None]
    return float(np.mean(found)) if found else None


def _headline(row: Row) -> str:
    method = f" · {escape(row.method)}" if row.method else ""
    why = "".join(f'<span class="why">{escape(line)}</span>' for line in row.why)
    return f"<h3>{escape(row.name)}{method} {_status(row.status)}</h3>{why}"


def _numbers(row: Row, limits: Limits) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(m.title)}</th>{_cell(m, row, limits)}</tr>'
        for m in (*MEASURES, OUTLIER)
        if row.numbers.get(m.key) is not None
    )
    return f'<table class="numbers"><tbody>{lines}</tbody></table>'


def _about(row: Row) -> str:
    """Images, model, runtime and program of a pair."""
    if not isinstance(row.entry, Registration) or row.problem:
        return ""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in row.entry.about.items())
    return f'<dl class="about">{items}</dl>' if items else ""


def _labels(row: Row) -> str:
    """A table of every label, to be opened."""
    if not isinstance(row.entry, Registration) or row.problem or not (found := row.entry.per_label):
        return ""
    columns = {"dice_before": "Dice before", "dice_start": "Dice start", "dice": "Dice after", "hd95_mm": "HD95 (mm)"}
    kept = [key for key in columns if any(key in values for values in found.values())]
    heads = "".join(f'<th scope="col">{text}</th>' for text in ("label", *(columns[key] for key in kept)))
    lines = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{_plain(values.get(key), '.2f' if key == 'hd95_mm' else '.3f')}</td>" for key in kept)
        + "</tr>"
        for label, values in found.items()
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    return f"<details><summary>Every label ({len(found)})</summary>{_scrolled(table, 'Labels')}</details>"


def _plain(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _cell(measure: Measure, row: Row, limits: Limits, more: str = "") -> str:
    value = row.numbers.get(measure.key)
    verdict = limits.judge(measure.key, value)
    mark = "" if verdict == "pass" else f' class="{verdict}"'
    symbol = "" if verdict == "pass" else f'<span aria-label="{verdict}">{SYMBOLS[verdict]}</span> '
    return f'<td{mark} data-value="{"" if value is None else f"{value:.8g}"}">{symbol}{measure.show(value)}{more}</td>'


def _thumbnail(picture: Drawn, row: Row) -> str:
    if picture.thumbnail is None:
        return ""
    index, aspect = picture.thumbnail
    size = f'width="{round(52 * aspect)}" height="52"'
    label = f"{row.name}: warped image and its difference to the fixed one"
    return f'<img class="thumb" {size} loading="lazy" decoding="async" alt="{escape(label)}" src="{data_uri(index)}">'


def _status(status: str) -> str:
    kind, *_ = status.split()
    return f'<span class="status {kind}"><span aria-hidden="true">{SYMBOLS[status]}</span> {status}</span>'


def _scrolled(table: str, label: str) -> str:
    """A wide table in a frame that scrolls, by the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _present(rows: Sequence[Row]) -> list[Measure]:
    return [m for m in MEASURES if any(row.numbers.get(m.key) is not None for row in rows)]


def _beyond(measure: Measure, limit: Limit) -> str:
    if measure.key not in JUDGED:
        return ""
    side = "above" if measure.worse == "high" else "below"
    found = [(kind, at) for kind, at in (("warn", limit.warn), ("fail", limit.fail)) if at is not None]
    return ", ".join(f"{kind} {side} {minus(f'{at:g}')}" for kind, at in found)


def _asset(name: str) -> str:
    return files("ofg_deploy.report").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
