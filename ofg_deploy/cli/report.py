"""``ofg report``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import Overwrite, app
from ofg_deploy.errors import UsageError

LimitFile = Annotated[
    Optional[Path], typer.Option("--limits", help='JSON of limits: {"folding_percent": {"warn": 0.5, "fail": 1}}.')
]
LimitOptions = Annotated[
    Optional[list[str]],
    typer.Option("--limit", metavar="KEY=[WARN:]FAIL", help="A limit, or KEY=none for no limit; may be given again."),
]
QcFail = Annotated[bool, typer.Option("--qc-fail", help="Exit with 7 if a pair fails, after everything is written.")]


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of ofg register.")],
    out: Annotated[
        Optional[Path], typer.Option("--out", "-o", help="Page to write; DIR/report.html if absent.")
    ] = None,
    limits: LimitFile = None,
    limit: LimitOptions = None,
    pictures: Annotated[
        str, typer.Option(metavar="N|all", help="Pairs that have a figure, worst first; thumbnails for the others.")
    ] = "20",
    qc_fail: QcFail = False,
    overwrite: Overwrite = False,
) -> None:
    """Judge the registrations in DIR: a page to look at (report.html), and beside it a table (qc.tsv)."""
    from ofg_deploy.report import command
    from ofg_deploy.report.limits import Limits
    from ofg_deploy.report.write import Report

    if pictures != "all" and not (pictures.isascii() and pictures.isdigit()):
        raise UsageError(f"--pictures {pictures}: a number or all is needed")
    html = out or folder / "report.html"
    if html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {html}: the page is a file that ends in .html")
    order = Report(
        html,
        html.with_name("qc.tsv"),
        f"Registrations in {folder.absolute().name}",
        limits=Limits.parse(limits, limit or ()),
        pictures=None if pictures == "all" else int(pictures),
        overwrite=overwrite,
    )
    command.report(folder, order, qc_fail)
