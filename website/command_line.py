"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

RARE = "Rarely needed; `--help` does not list these."


def command_line() -> str:
    """Markdown of every verb: usage, arguments, options by panel, examples."""
    from ofg_deploy.cli import app

    return "\n".join(line for name, one in _verbs("ofg", get_command(app)) for line in _verb(name, one))


def _verbs(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, one in sorted(getattr(command, "commands", {}).items()):
        if not one.hidden:
            yield from _verbs(f"{name} {child}", one)


def _verb(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    places = [f"[{_label(p)}]" if not p.required else _label(p) for p in arguments]
    if hasattr(command, "commands"):
        places.append("COMMAND")
    yield from ("", f"## {name}", "", "```", " ".join([name, *places, "[OPTIONS]"]), "```", "")
    yield _text(command.help or "")
    if arguments:
        yield from ("", "| argument | |", "| --- | --- |")
        yield from (f"| `{_label(p)}` | {_cell(p.help)} |" for p in arguments)
    panels: dict[str, list[Any]] = {}
    for one in options:
        panels.setdefault(getattr(one, "rich_help_panel", None) or "Options", []).append(one)
    for panel, members in panels.items():
        shown, rare = [p for p in members if not p.hidden], [p for p in members if p.hidden]
        if shown:
            yield from ("", f"**{panel}**", "", *_table(shown))
        if rare:
            yield from ("", f"**{panel}, continued.** {RARE}", "", *_table(rare))
    if command.epilog:
        yield from ("", "**Examples**", "", "```", command.epilog.strip(), "```")


def _table(options: list[Any]) -> Iterator[str]:
    yield from ("| option | value | default | |", "| --- | --- | --- | --- |")
    for one in options:
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        yield f"| {names} | {_cell(_value(one))} | {_cell(_default(one))} | {_cell(one.help)} |"


def _label(argument: Any) -> str:
    label = str(argument.metavar or argument.name).strip("[]{}")
    return label.upper().removesuffix("...") + ("..." if argument.nargs == -1 else "")


def _value(option: Any) -> str:
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return str(option.metavar).replace("|", " or ")
    return _kind(option.type_descriptor.annotation)


def _kind(annotation: Any) -> str:
    """What a person types for a value of this type."""
    inside = [one for one in get_args(annotation) if one is not type(None)]
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(map(str, inside))
    if origin is tuple:
        return " ".join(map(_kind, inside))
    if origin is list:
        return f"{_kind(inside[0])}, repeatable"
    if inside:
        return ", ".join(map(_kind, inside))
    return {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}[annotation]


def _default(option: Any) -> str:
    if option.is_flag or option.default in (None, [], ()) or callable(option.default):
        return ""
    value = option.default
    return f"`{getattr(value, 'value', value)}`" if isinstance(value, str | int | float) else ""


def _text(text: str) -> str:
    return re.sub(r"\n[ ]+", "\n", text.replace("\b\n", "").strip()).replace("<", "&lt;")


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
