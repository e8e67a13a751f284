"""The page, which is built apart from this package (``make web``) and shipped in its wheel."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).parents[1] / "web" / "static"  # index.html, and all else of it in assets/
ABSENT = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>OFG Deploy</title></head>
<body>
<h1>OFG Deploy: the registration service is running</h1>
<p>Its page is not built. In a copy of the source, with Node 20 or newer, run <code>make web</code> and start
<code>ofg serve</code> again; the published wheel has the page in it.</p>
<p>The API works without it: <a href="/openapi.json">its description</a> (OpenAPI),
<a href="/v1/models">the models</a>.</p>
</body>
</html>
"""


def add_page(app: FastAPI, static: Path | None = None) -> None:
    """``GET /`` and ``/assets/``."""
    folder = static or STATIC
    index = folder / "index.html"

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(index.read_text(encoding="utf-8") if index.is_file() else ABSENT)

    if (folder / "assets").is_dir():
        app.mount("/assets", StaticFiles(directory=folder / "assets"), name="assets")
