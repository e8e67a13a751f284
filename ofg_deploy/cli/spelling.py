"""Parameters in messages, as the command line spells them: "`resume=True`" becomes "--resume"."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from ofg_deploy.errors import PARAMETER, plain


def flag(name: str) -> str:
    """The long flag of a parameter, where its verb does not say otherwise."""
    return f"--{name.replace('_', '-')}"


def spelled(text: str) -> str:
    """A message of the library with its marked parameters (see ``errors.py``) as options of the verb that runs.

    ``name`` becomes the option's long form, or an argument's placeholder; ``name=value`` the option with its value, or
    the switch for True and False. What no verb takes loses its marks and stays.
    """
    if not PARAMETER.search(text):
        return text
    known = _parameters()

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        parameter = known.get(name)
        return plain(found[0]) if parameter is None else _spelling(parameter, value)

    return PARAMETER.sub(option, text)


def _spelling(parameter: Any, value: str | None) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper()) if value is None else str(value)
    on = next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
    if value is None:
        return str(on)
    if not parameter.is_flag:
        return f"{on} {value}"
    if value == "True":
        return str(on)
    return str(parameter.secondary_opts[0]) if parameter.secondary_opts else f"no {on}"


def _parameters() -> dict[str, Any]:
    """Those of the verb on the command line by name, and those of all others for names that it does not have."""
    from typer.main import get_command

    from ofg_deploy.cli.app import app

    root: Any = get_command(app)
    verb = root
    for word in sys.argv[1:]:
        verb = getattr(verb, "commands", {}).get(word, verb)
    return {
        name: parameter
        for command in (*_below(root), verb)
        for parameter in command.params
        for name in (*(option.lstrip("-").replace("-", "_") for option in parameter.opts), parameter.name)
    }


def _below(command: Any) -> Iterator[Any]:
    for verb in getattr(command, "commands", {}).values():
        yield verb
        yield from _below(verb)
