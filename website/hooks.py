"""What mkdocs cannot do by itself: pages from outside ``docs/``, and reference pages made from the code.

A link in a page is written as it works in a checkout (``../benchmarks/NOTES.md``). In the site, a file outside
``docs/`` has its path in the checkout (``benchmarks/NOTES.md``) and README.md is the first page; links follow.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from website.command_line import command_line  # noqa: E402
from website.python_api import python_api  # noqa: E402

# Files outside docs/ that are part of the site, by their path in the checkout. Pages are in the navigation as well.
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CITATION.cff",
    "LICENSE",
    "ofg_deploy/models/README.md",
    "benchmarks/NOTES.md",
    "benchmarks/GPU.md",
    "benchmarks/results/runtimes.json",
    "benchmarks/results/zero_overhead.png",
    "examples/Dockerfile",
    "examples/kubernetes.yaml",
    "examples/triton_client.py",
)
FRONT = "index.md"
GENERATED = {"reference/command-line.md": command_line, "reference/python-api.md": python_api}
MARK = "<!-- made from the code -->"
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the files of ``OUTSIDE``."""
    for path in OUTSIDE:
        files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in generated parts, and turn links of the checkout into links of the site."""
    here = page.file.src_uri
    if here in GENERATED:
        if MARK not in markdown:
            raise ValueError(f"docs/{here} has no line {MARK}")
        markdown = markdown.replace(MARK, GENERATED[here]())
    return linked(markdown, in_checkout(here), here)


def linked(markdown: str, source: str, here: str) -> str:
    """Relative links of ``source`` (path in the checkout) as they are in the site from the page ``here``."""

    def moved(found: re.Match[str]) -> str:
        target = found[2]
        if ":" in target:
            return found[0]
        there = in_site(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        way = posixpath.relpath(there, posixpath.dirname(here) or ".")
        return f"{found[1]}{way}{found[3] or ''}{found[4]}"

    return LINK.sub(moved, markdown)


def in_site(path: str) -> str:
    """Path in the checkout -> path in the site."""
    return FRONT if path == "README.md" else path.removeprefix("docs/")


def in_checkout(path: str) -> str:
    """Path in the site -> path in the checkout."""
    if path == FRONT:
        return "README.md"
    return path if path in OUTSIDE else f"docs/{path}"
