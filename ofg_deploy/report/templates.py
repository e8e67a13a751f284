"""Templates of the report. Every text in them is escaped; what is not is markup that this package made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ofg_deploy.report.png import data_uri
from ofg_deploy.report.rows import STATUSES

if TYPE_CHECKING:
    from jinja2 import Environment

SYMBOLS = {"pass": "✓", "warn": "▲", "fail": "✕", "not registered": "✕", "unreadable": "?"}


def render(name: str, **given: Any) -> Markup:
    """A template, ``pair.html.j2`` for example."""
    return Markup(_environment().get_template(name).render(given))


def stream(name: str, **given: Any) -> Iterator[str]:
    """The same in pieces: a page of a thousand pairs is never whole in memory."""
    return _environment().get_template(name).generate(given)


def asset(name: str) -> Markup:
    """A file of this package that goes into the page as it is: its style, its script."""
    return Markup(files("ofg_deploy.report").joinpath(name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    found = Environment(
        loader=PackageLoader("ofg_deploy.report", "."),
        autoescape=select_autoescape(("html.j2", "svg.j2"), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(SYMBOLS=SYMBOLS, STATUSES=STATUSES)
    found.filters.update(data_uri=data_uri, tenths="{:.1f}".format)
    return found
