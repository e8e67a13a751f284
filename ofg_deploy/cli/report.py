"""``ofg report``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, LimitFile, Overwrite, QcFail, app, json_output
from ofg_deploy.errors import UsageError

LimitOptions = Annotated[
    Optional[list[str]],
    typer.Option("--limit", metavar="KEY=[WARN:]FAIL", help="A limit, or KEY=none for no limit; may be given again."),
]


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
    radiological: Annotated[
        bool, typer.Option("--radiological", help="Show the patient's right on the left of axial and coronal pictures.")
    ] = False,
    qc_fail: QcFail = False,
    json: JsonOutput = False,
    overwrite: Overwrite = False,
) -> None:
    """Judge the registrations in DIR: a page to look at (report.html), and beside it a table (qc.tsv)."""
    from dataclasses import replace

    from ofg_deploy.cli.verbs import report as on_terminal
    from ofg_deploy.report.limits import Limits
    from ofg_deploy.report.rows import as_records

    if pictures != "all" and not (pictures.isascii() and pictures.isdigit()):
        raise UsageError(f"--pictures {pictures}: a number or all is needed")
    if out and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: the page is a file that ends in .html")
    order = replace(
        on_terminal.report_of(folder, out),
        limits=Limits.parse(limits, limit or ()),
        pictures=None if pictures == "all" else int(pictures),
        overwrite=overwrite,
        radiological=radiological,
    )
    with json_output(json) as answer:
        on_terminal.report(folder, order, qc_fail, lambda rows: answer(as_records(rows)))
