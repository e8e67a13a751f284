"""A real browser for the tests: Chromium, driven by Playwright, WebGL in software. Skips where it is absent."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofg_deploy.web import assets

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = [
    *("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--force-color-profile=srgb", "--hide-scrollbars"),
]
PATIENCE_MS = 90_000  # software rendering beside other work
REFERENCES = Path(__file__).with_name("screens")
SIZE = (240, 160)  # of the pictures that are kept


@pytest.fixture(scope="module")  # no longer: Playwright keeps an event loop running, which others must not meet
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are tested with Playwright (pip install playwright)"
    )
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("pages are tested in Chromium, which is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable[..., Any]]:
    """(address, width=1280, scheme="light", motion="reduce") -> page. Anything wrong in its console fails the test."""
    opened, wrong = [], []

    def open_(address: str, width: int = 1280, scheme: str = "light", motion: str = "reduce") -> Any:
        viewport = {"width": width, "height": 680}
        page = chromium.new_page(viewport=viewport, color_scheme=scheme, reduced_motion=motion)
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        opened.append(page)
        page.expected = wrong
        page.goto(address)
        return page

    yield open_
    for page in opened:
        page.close()
    assert wrong == []


@pytest.fixture(scope="session")
def built() -> None:
    if not assets.is_built():
        pytest.skip("the page is not built (make web)")


def thumbnail(png: bytes) -> np.ndarray:
    """(height, width, 3) of 0..1, small, so that single pixels of an edge do not matter."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB").resize(SIZE, Image.Resampling.BOX)
    return np.asarray(image, dtype=float) / 255


def matches(png: bytes, name: str) -> None:
    """Compare with the picture of this name that somebody has looked at; a new one is written where there is none."""
    from PIL import Image

    path, found = REFERENCES / f"{name}.png", thumbnail(png)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.round(found * 255).astype(np.uint8)).save(path, optimize=True)
        pytest.fail(f"{path} was not there and has been written: look at it, then run the test again")
    expected = np.asarray(Image.open(path).convert("RGB"), dtype=float) / 255
    off = np.abs(found - expected).max(axis=2)
    assert off.mean() < 0.006, f"{name}: the pictures differ by {off.mean():.3f} on average"
    assert (off > 0.2).mean() < 0.01, f"{name}: {100 * (off > 0.2).mean():.1f} % of the pixels differ"


def luminance(colour: str) -> float:
    """0..1 of a CSS ``rgb(r, g, b)``."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
