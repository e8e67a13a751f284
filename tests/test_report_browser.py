"""The HTML report in a real browser: its table sorts and filters, and its colours follow the reader's."""

from __future__ import annotations

import pytest
from browser import chromium, luminance, open_page  # noqa: F401 - fixtures
from report_pairs import run_ofg, write_pair


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    numbers = {"b-worst": (0.3, 4.0), "a-best": (0.95, 0.0), "c-middle": (0.7, 0.2)}
    for seed, (name, (ncc, folding)) in enumerate(numbers.items()):
        write_pair(tmp_path, name, seed, ncc_after=ncc, folding_percent=folding)
    run_ofg(monkeypatch, capsys, "report", tmp_path)
    return (tmp_path / "report.html").as_uri()


def test_the_table_is_sorted_and_filtered(report, open_page):  # noqa: F811
    page = open_page(report)

    def names() -> list[str]:
        shown = page.locator("table.cohort tbody tr:visible th").all_inner_texts()
        return [text.split()[0] for text in shown]

    def click(title: str) -> str:
        page.get_by_role("button", name=title).click()
        return page.get_by_role("columnheader", name=title).get_attribute("aria-sort")

    assert click("folding (%)") == "descending"  # what is bad comes first
    assert names() == ["b-worst", "c-middle", "a-best"]
    assert click("folding (%)") == "ascending"
    assert names() == ["a-best", "c-middle", "b-worst"]
    assert click("NCC after") == "ascending"
    assert names() == ["b-worst", "c-middle", "a-best"]
    page.get_by_role("columnheader", name="pair").get_by_role("button").press("Enter")
    assert names() == ["a-best", "b-worst", "c-middle"]
    page.locator(".filter input").fill("C-MID")
    assert names() == ["c-middle"]
    assert page.locator(".filter output").inner_text() == "1 of 3 pairs"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(report, open_page, scheme):  # noqa: F811
    page = open_page(report, width=820, scheme=scheme)
    colours = "element => [getComputedStyle(document.body).backgroundColor, getComputedStyle(element).color]"
    for part in ("h1", ".status.fail", "table.cohort td", ".why", "a"):
        one = page.locator(part).first
        if one.count():
            back, ink = map(luminance, one.evaluate(colours))
            assert (back < 0.5) == (scheme == "dark")
            assert abs(back - ink) > 0.35, part
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 820
    picture = page.locator("svg.view").first
    picture.scroll_into_view_if_needed()
    assert picture.bounding_box()["width"] > 300
