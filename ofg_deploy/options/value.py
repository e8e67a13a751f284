"""What an option is: its type, default, limits and sentence, stated once as a field of a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ofg_deploy.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


@dataclass(frozen=True)
class About:
    """What a field of options says about itself beside its type and default.

    Attributes:
        help: one or two sentences; names of other options between backquotes.
        panel: heading under which it is listed.
        shown: whether ``--help`` lists it; the others are for ``--set`` (and hidden flags).
        default: in words, where the default is None, which stands for a value that follows from something else.
        flags: on the command line, where not the name with dashes.
        metavar: placeholder of its value in the help.
        least, most, above, below: limits of a number; ``above`` and ``below`` are themselves excluded.
        odd: a whole number that must be odd.
        zero: what 0 stands for, where ``least`` is more than that.
    """

    help: str
    panel: str
    shown: bool = False
    default: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    odd: bool = False
    zero: str | None = None


def option(value: Any, help: str, panel: str, **about: Any) -> Any:
    """A field of a dataclass of options, ``value`` its default; see ``About``."""
    return field(default=value, metadata={"about": About(help, panel, **about)})


@dataclass(frozen=True)
class Option:
    """One option, as read from its field. ``type`` is without None, which ``default`` says whether it may be."""

    name: str
    type: Any
    default: Any
    about: About

    @property
    def kind(self) -> str:
        """The type in words."""
        if get_origin(self.type) is Literal:
            return _or(get_args(self.type))
        if get_origin(self.type) is tuple:
            first, *rest = get_args(self.type)
            return "names" if Ellipsis in rest else f"three {KINDS[first].partition(' ')[2]}s"
        return KINDS[self.type]

    @property
    def limits(self) -> str | None:
        """The limits in words, None without any."""
        about = self.about
        if about.odd:
            return f"an odd number, {about.least:g} or more"
        if about.above is not None:
            return f"a number above {about.above:g}"
        if about.least is None:
            return None
        if about.most is not None:
            return f"a number from {about.least:.10g} to {about.most:.10g}"
        if about.below is not None:
            return f"a number from {about.least:g}, below {about.below:g}"
        return f"{about.least:g} or more" + (f", or 0 for {about.zero}" if about.zero else "")

    @property
    def default_text(self) -> str:
        """The default in words; empty where nothing is the default."""
        if self.about.default is not None:
            return self.about.default
        return "" if self.default in (None, ()) else _shown(self.default)

    def check(self, value: Any) -> Any:
        """``value`` in the option's type: whole numbers as float where one is needed, texts as paths, lists as tuples.

        Raises:
            UsageError: another type, not one of the choices, or beyond the limits.
        """
        if get_origin(self.type) is Literal:
            choices = get_args(self.type)
            if not self.is_of_type(value):
                raise UsageError(f"`{self.name}` {_json(value)} is unknown: use {_or(choices)}")
            return value
        if get_origin(self.type) is tuple:
            return self._check_several(value)
        found = _converted(value, self.type)
        if found is None:
            raise UsageError(f"`{self.name}` {_json(value)}: expected {self.kind}")
        if isinstance(found, float) and not math.isfinite(found):
            raise UsageError(f"`{self.name}` {found}: expected a finite number")
        if not self._within(found):
            raise UsageError(f"`{self.name}` {_shown(found)}: give {self.limits}")
        return found

    def is_of_type(self, value: Any) -> bool:
        """Whether ``value`` has the type of the option, or is one of its choices; its limits are not looked at."""
        if get_origin(self.type) is Literal:
            return isinstance(value, str) and value in get_args(self.type)
        return _converted(value, self.type) is not None

    def _check_several(self, value: Any) -> tuple[Any, ...]:
        first, *rest = get_args(self.type)
        if isinstance(value, str) and Ellipsis in rest:
            return (value,)
        items = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
        found = tuple(_converted(item, first) for item in items)
        if not found or None in found or (Ellipsis not in rest and len(found) != 1 + len(rest)):
            raise UsageError(f"`{self.name}` {_json(value)}: expected {self.kind}")
        return found

    def _within(self, value: Any) -> bool:
        about = self.about
        if not isinstance(value, int | float) or isinstance(value, bool) or (value == 0 and about.zero):
            return True
        return (
            (about.least is None or value >= about.least)
            and (about.most is None or value <= about.most)
            and (about.above is None or value > about.above)
            and (about.below is None or value < about.below)
            and not (about.odd and value % 2 == 0)
        )

    def read(self, text: str) -> Any:
        """The value that a text stands for; several are apart by commas or blanks. Raises UsageError as ``check``."""
        value: Any = text.strip()
        kind = self.type
        if get_origin(kind) is tuple:
            parts = value.replace(",", " ").split()
            return self.check([_parsed(part, get_args(kind)[0]) for part in parts])
        return self.check(_parsed(value, kind))


def _parsed(text: str, kind: Any) -> Any:
    """A text as a number or a truth where that is wanted and it is one, else as it is."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def _converted(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, None where it is of another type."""
    if kind is bool:
        return value if isinstance(value, bool) else None
    if kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        return kind(value) if isinstance(value, wanted) and not isinstance(value, bool) else None
    if kind is Path:
        return Path(value) if isinstance(value, str | os.PathLike) else None
    return value if isinstance(value, kind) else None


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)


def _or(choices: Iterable[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


@cache
def options_of(*classes: type) -> Mapping[str, Option]:
    """The options that are fields of these dataclasses, by name; fields that are none are left out."""
    found = {}
    for each in classes:
        hints = get_type_hints(each)
        for one in dataclasses.fields(each):
            if about := one.metadata.get("about"):
                union = get_args(hints[one.name]) if NoneType in get_args(hints[one.name]) else ()
                kind = next((part for part in union if part is not NoneType), hints[one.name])
                found[one.name] = Option(one.name, kind, one.default, about)
    return found


def checked(given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """Options by name, each checked; those that are None where that is a default were not given and are left out.

    Raises:
        UsageError: a name that no option has, or as ``Option.check``.
    """
    return {
        name: find(name, known).check(value)
        for name, value in given.items()
        if value is not None or find(name, known).default is not None
    }


def named(given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """As ``checked``, for keywords of a function, where None always stands for an option that is not given."""
    found = {find(name, known).name: value for name, value in given.items()}
    return checked({name: value for name, value in found.items() if value is not None}, known)


def find(name: str, known: Mapping[str, Option]) -> Option:
    """An option by its name, with underscores or dashes. Raises UsageError: there is none; says which is close."""
    found = known.get(name.replace("-", "_"))
    if found is None:
        close = difflib.get_close_matches(name.replace("-", "_"), known, 1)
        raise UsageError(f"there is no option {name!r}" + (f": {close[0]} is meant?" if close else ""))
    return found


def with_options(known: Mapping[str, Option]) -> Callable[[Function], Function]:
    """Give a function that takes ``**options`` the signature in which each of them is named, with its default."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        given = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        named = [inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default) for o in known.values()]
        function.__signature__ = signature.replace(parameters=[*given, *named])  # type: ignore[attr-defined]
        return function

    return decorate
