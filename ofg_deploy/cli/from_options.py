"""Options of the command line made from the fields of ``options``, and what was given on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, get_args, get_origin

import typer

from ofg_deploy.cli.spelling import flag
from ofg_deploy.errors import PARAMETER, UsageError
from ofg_deploy.options.value import Option, find

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(options: Mapping[str, Option]) -> Callable[[Function], Function]:
    """For a verb with ``**given``: make it take these options; those that are not given are None in it."""

    def decorate(verb: Function) -> Function:
        signature = inspect.signature(verb, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        made = [_parameter(one) for one in options.values()]
        verb.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        verb.__annotations__ = {p.name: p.annotation for p in (*own, *made)}
        return verb

    return decorate


def _parameter(one: Option) -> inspect.Parameter:
    kind = one.type
    if get_origin(kind) is tuple and Ellipsis in get_args(kind):
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    flags = one.about.flags or (flag(one.name),)
    shown = one.about.shown
    about = typer.Option(
        *flags,
        help=described(one),
        hidden=not shown,
        metavar=one.about.metavar or _placeholder(one.type),
        rich_help_panel=one.about.panel,
        show_default=False,
    )
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Optional[kind], about]
    )


def _placeholder(kind: Any) -> str:
    """What stands for the value in the help."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "NAME" if Ellipsis in get_args(kind) else "X Y Z"
    return {int: "N", float: "VALUE", Path: "PATH"}.get(kind, "TEXT")


def described(one: Option) -> str:
    """Its sentence and default, with other options as flags."""
    text = one.about.help + (f" [default: {one.default_text}]" if one.default_text not in ("", "false") else "")
    return PARAMETER.sub(lambda found: flag(found[1]) + (f" {found[2]}" if found[2] else ""), text)


def with_assigned(given: Mapping[str, Any], assigned: Iterable[str], known: Mapping[str, Option]) -> dict[str, Any]:
    """Options given as flags and by ``--set NAME=VALUE``, by name; None is not given.

    Raises:
        UsageError: one that is given twice, that does not exist, or a value that is none of its.
    """
    found = {name: value for name, value in given.items() if value is not None}
    for text in assigned:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: give NAME=VALUE, as in --set guidance_steps=4")
        one = find(name.strip(), known)
        if one.name in found:
            raise UsageError(f"`{one.name}` is given twice: leave --set {text} out, or the other one")
        found[one.name] = one.read(value)
    return found
