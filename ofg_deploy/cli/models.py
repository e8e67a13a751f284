"""``ofg models``: its options, and the list it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, Overwrite, app
from ofg_deploy.cli.help import BASIC, MODELS, Verbs, verb
from ofg_deploy.cli.terminal import terminal

if TYPE_CHECKING:
    from ofg_deploy.catalogue import Entry

models = typer.Typer(
    name="models", cls=Verbs, help="List, add and remove models by name.", add_completion=False, rich_markup_mode=None
)
app.add_typer(models, rich_help_panel=MODELS)


@models.callback(invoke_without_command=True)
def show(context: typer.Context, json: JsonOutput = False) -> None:
    """List, add and remove models by name: those that -m NAME takes and -m auto chooses from."""
    if context.invoked_subcommand is not None:
        return
    from ofg_deploy.catalogue import added_folder, entries
    from ofg_deploy.outputs import to_json

    rows = [_row(entry) for entry in entries()]
    if json:
        print(to_json({"schema": 1, "folder": str(added_folder()), "models": rows}), end="")
        return
    for row in rows:
        print(f"{row['name']} ({row['origin']}): {_in_words(row)}")
        print(f"  {row['card'] or 'no card'}")
    if not rows:
        print("No model is packaged so far, and none was added.")
    print(f"added models: {added_folder()} (OFG_MODELS)")
    if not rows:
        print("next: ofg models add model.onnx --name NAME")


def _in_words(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"unusable, {row['error']}"
    grid = "x".join(map(str, row["grid"]))
    sides = " x ".join(f"{side:.3g}" for side in row["spacing_mm"])
    size = f"{row['bytes'] / 1e6:.1f} MB, sha256 {row['sha256'][:12]}"
    return f"{row['network']} {row['precision']}, {grid} voxels of {sides} mm, {size}"


@verb(models, examples=(("Add a model, then use it", "ofg models add model.onnx --name knee"),))
def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Model of ofg export; its model card (.md) is copied too.")
    ],
    name: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", rich_help_panel=BASIC, help="Name of the model; that of the file if absent."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy a model into the user's folder of models, so that -m NAME and -m auto find it."""
    from ofg_deploy import catalogue

    entry = catalogue.add(file, name, overwrite)
    terminal().print(f"model: {entry.path}", soft_wrap=True)
    terminal().print(f"next: ofg register FIXED MOVING -m {entry.name}", soft_wrap=True)


@verb(models, examples=(("A model that was added", "ofg models remove knee"),))
def remove(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an added model.")]) -> None:
    """Remove an added model from the user's folder of models."""
    from ofg_deploy import catalogue

    terminal().print(f"removed: {catalogue.remove(name).path}", soft_wrap=True)


def _row(entry: Entry) -> dict[str, Any]:
    """JSON-ready; a model that cannot be used has ``error``."""
    from ofg_deploy.errors import InputError
    from ofg_deploy.model_file import read_model

    known = {
        "name": entry.name,
        "origin": entry.origin,
        "path": str(entry.path),
        "bytes": entry.path.stat().st_size,
        "card": entry.summary(),
    }
    try:
        model = read_model(entry.path)
    except InputError as error:
        return {**known, "error": str(error)}
    contract = model.contract
    details = {"network": contract.network, "grid": list(contract.expects.shape), "sha256": model.sha256}
    return {**known, **details, "spacing_mm": list(contract.expects.spacing_mm), "precision": contract.precision}
