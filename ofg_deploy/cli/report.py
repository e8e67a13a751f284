"""``ofg report``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, LimitFile, Overwrite, QcFail, app, json_output
from ofg_deploy.cli.help import BASIC, OUTPUT, QUALITY, REGISTER, verb
from ofg_deploy.errors import UsageError

LimitOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--limit",
        metavar="KEY=[WARN:]FAIL",
        rich_help_panel=QUALITY,
        help="One quality limit, or KEY=none for no limit; repeatable.",
    ),
]


@verb(
    app,
    panel=REGISTER,
    examples=(
        ("A page on a folder of registrations", "ofg report out"),
        ("Fail in a script if a pair folds too much", "ofg report out --limit folding_percent=0.5:1 --qc-fail"),
    ),
)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of ofg register.")],
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out", "-o", metavar="FILE", rich_help_panel=BASIC, help="HTML page; DIR/report.html if absent."
        ),
    ] = None,
    limits: LimitFile = None,
    limit: LimitOptions = None,
    pictures: Annotated[
        str,
        typer.Option(
            metavar="N|all",
            rich_help_panel=OUTPUT,
            help="Pairs with a full figure, worst first; thumbnails of the rest.",
        ),
    ] = "20",
    radiological: Annotated[
        bool,
        typer.Option(
            "--radiological",
            rich_help_panel=OUTPUT,
            help="Radiological convention: the patient's right is on the left of the picture.",
        ),
    ] = False,
    qc_fail: QcFail = False,
    json: JsonOutput = False,
    overwrite: Overwrite = False,
) -> None:
    """Report on the quality of registrations: an HTML page and a table (qc.tsv), the worst pairs first."""
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
