"""Templates escape all that is put into them; nothing in them says otherwise."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from ofg_deploy.report.templates import _environment, render

NAMES = sorted(path.name for path in files("ofg_deploy.report").iterdir() if path.name.endswith(".j2"))
HOSTILE = """<script>alert('1')</script>&"x"""


@pytest.mark.parametrize("name", NAMES)
def test_every_template_escapes_and_trusts_nothing(name: str) -> None:
    environment = _environment()
    source = environment.loader.get_source(environment, name)[0]
    assert not re.search(r"\|\s*safe\b|autoescape|Markup", source)
    assert callable(environment.autoescape)
    assert environment.autoescape(name)


def test_texts_are_escaped_between_tags_and_in_attributes() -> None:
    drawing = dict.fromkeys(("bars", "ticks", "limits"), ())
    found = render("distribution.svg.j2", label=HOSTILE, marks=[(1, "fail", HOSTILE)], ends=[], **drawing)
    escaped = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&#34;x"
    assert f'aria-label="{escaped}"' in found
    assert f"<title>{escaped}</title>" in found
    assert HOSTILE not in found
    made = Markup("<svg></svg>")
    figure = render("distributions.html.j2", plots=[(made, HOSTILE, HOSTILE)])
    assert figure.count(escaped) == 2
    assert "<figure><svg></svg><figcaption>" in figure


def test_a_name_that_is_not_given_is_an_error_and_not_an_empty_text() -> None:
    with pytest.raises(UndefinedError, match="side"):
        render("pictures.html.j2", count=1, pairs=2)
