"""The documentation as a whole: it builds without a warning, its links resolve, its quotations are the program's."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import ROOT

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("ofg_deploy/models/*.md"))
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; strict, so any warning has made the build fail."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install ofg-deploy[docs]")
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    # Not --quiet: then warnings are not counted, and nothing is strict.
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_builds_strictly_and_has_every_page(site: Path) -> None:
    first = (site / "index.html").read_text()
    assert "tutorials/register-two-scans.html" in first
    assert (site / "benchmarks/NOTES.html").exists()
    assert (site / "demo.png").stat().st_size == (ROOT / "docs/demo.png").stat().st_size
    outside = [
        found
        for page in site.rglob("*.html")
        for found in re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', page.read_text())
    ]
    assert outside == [], "the site must need no other host"


def test_the_command_line_reference_lists_every_option(site: Path) -> None:
    from typer.main import get_command

    from ofg_deploy.cli import app

    page = (site / "reference/command-line.html").read_text()
    verbs = {**get_command(app).commands}
    verbs |= {
        f"{name} {child}": one
        for name, verb in list(verbs.items())
        for child, one in getattr(verb, "commands", {}).items()
    }
    assert len(verbs) > 15
    for name, verb in verbs.items():
        if verb.hidden:
            continue
        assert f"ofg {name}" in page
        for option in verb.params:
            if option.param_type_name == "option":
                assert f"<code>{option.opts[0]}</code>" in page, (name, option.opts)


def test_the_api_reference_names_everything_public(site: Path) -> None:
    import ofg_deploy

    page = (site / "reference/python-api.html").read_text()
    for name in ofg_deploy.__all__:
        assert name == "__version__" or f">{name}<" in page, name
    for member in ("Registration.save", "Model.register_many", "moving_labels", "guidance_steps"):
        assert member in page


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_exist_in_a_checkout(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in LINK.findall(text):
        path = target.partition("#")[0]
        assert target.startswith(("https://", "#")) or (page.parent / path).exists(), target


def messages() -> str:
    """Every text of the package's code, one on a line."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "ofg_deploy").rglob("*.py"))
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(value for value in constants if isinstance(value, str))


def test_troubleshooting_quotes_what_the_program_says() -> None:
    """A heading in backquotes is a message; what lies between its … stands in the code."""
    headings = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(headings) > 15
    said = messages()
    for heading in headings:
        for piece in heading.split("…"):
            assert piece.strip(" :,") in said, (heading, piece)
