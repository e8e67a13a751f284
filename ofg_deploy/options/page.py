"""docs/training-options.md: ``python -m ofg_deploy.options.page > docs/training-options.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ofg_deploy.options.export import EXPORT
from ofg_deploy.options.training import PANELS, TRAINING
from ofg_deploy.options.value import Option

HEAD = """# Options of training and export

Made from `ofg_deploy/options/` by `python -m ofg_deploy.options.page`; do not edit.

There are four ways to give an option:

- **On the command line**, as a flag with dashes: `--batch-size 2`. `ofg train --help` lists the options in
  **bold**, `ofg train --help-all` all of them. What is on by default, or by a recipe, is switched off by `--no-steady`,
  `--no-flip` and `--one-way`.
- **`ofg train --set NAME=VALUE`**, for any of them, as often as needed: `--set guidance_steps=4 --set flip=true`.
  Several numbers are separated by commas: `--set grid=160,192,224`. An option that is given twice, by flag and
  `--set`, is refused.
- **`ofg train --config FILE`**, a JSON object of options by name: `{"epochs": 100, "guidance_steps": 4}`. Paths in
  it are relative to the file. The `config.json` of a run is such a file, too: its options are taken, not its data.
  An unknown name, a value of another type and one out of range are refused.
- **In Python**, as keywords: `ofg_deploy.train_network("images", "run", epochs=100)`, where `config` is as
  `--config`, and `ofg_deploy.export_model(run, "model.onnx", trt=True)`.

An option on the command line (or a keyword) wins over the configuration, the configuration over a recipe, and the
recipe over the default. `ofg train --resume` continues a run as it was configured; only the options under Runtime,
except `cache`, may then be given.

"""


def page() -> str:
    """The page as a text."""
    parts = [HEAD, "## Training\n\n", _tables(TRAINING), "## Export\n\n", _tables(EXPORT)]
    return "".join(parts).rstrip() + "\n"


def _tables(options: Mapping[str, Option]) -> str:
    panels: dict[str, list[Option]] = {}
    for one in options.values():
        panels.setdefault(one.about.panel, []).append(one)
    return "".join(_table(panel, rows) for panel, rows in sorted(panels.items(), key=_order))


def _order(item: tuple[str, list[Option]]) -> int:
    return PANELS.index(item[0]) if item[0] in PANELS else 0


def _table(panel: str, rows: Iterable[Option]) -> str:
    lines = [f"### {panel}", "", "| option | value | default | |", "| --- | --- | --- | --- |"]
    for one in rows:
        name = f"**`{one.name}`**" if one.about.shown else f"`{one.name}`"
        lines.append(f"| {name} | {_values(one)} | {one.default_text} | {one.about.help} |")
    return "\n".join(lines) + "\n\n"


def _values(one: Option) -> str:
    if one.limits is None:
        return one.kind
    number = "a number"
    return one.kind + (one.limits.removeprefix(number) if one.limits.startswith(number) else f", {one.limits}")


if __name__ == "__main__":
    print(page(), end="")
