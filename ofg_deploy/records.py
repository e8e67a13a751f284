"""JSON records of ours, checked by msgspec as they are read: an entry that does not fit is named, and what would."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from threading import Lock
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from ofg_deploy.errors import InputError
from ofg_deploy.outputs import read_json

Kind = TypeVar("Kind")
Place = tuple[str | int, ...]  # keys and indices from the outermost object inwards

# msgspec 0.22 looks at a type the first time it is converted to, and crashes where two threads do that at once.
_ONE_AT_A_TIME = Lock()

LONGEST = 40  # characters of a value in a message
IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "null": "null",
    "array": "a list",
    "object": "an object",
}
_SAID = re.compile(r"(.*?)(?: - at (`key` in )?`(\$[^`]*)`)?", re.DOTALL)  # msgspec: what is wrong, and where
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


def read_as(path: Path, kind: type[Kind], what: str, advice: str = "") -> Kind:
    """A JSON file as a ``kind``. Raises InputError as ``outputs.read_json`` and ``fitted``."""
    return fitted(read_json(path), kind, f"{path} {what}", advice)


def fitted(content: Any, kind: type[Kind], what: str, advice: str = "", exactly: bool = False) -> Kind:
    """What JSON holds as a ``kind``: a dataclass, a ``msgspec.Struct``, or a type made of the builtin ones.

    Numbers may be whole where they need not be; nothing else is taken for another type.

    Args:
        what: begins the error, for example ``run/config.json is damaged``.
        advice: ends it: what to do.
        exactly: a dataclass must have all its entries and no others; otherwise those with a default may be absent,
            and others are not looked at.

    Raises:
        InputError: one line: ``what``, the entry, its value, what was expected there, ``advice``.
    """
    why = None
    try:
        with _ONE_AT_A_TIME:
            found = msgspec.convert(content, kind, str_keys=True)
        why = _others(content, found, ()) if exactly else None
    except msgspec.ValidationError as error:
        why = _in_words(content, kind, error)
    if why is not None:
        raise InputError(f"{what}: {why}{advice and f': {advice}'}")
    return found


def _in_words(content: Any, kind: Any, error: msgspec.ValidationError) -> str:
    match = _SAID.fullmatch(str(error))
    assert match
    said, of_key, path = match.groups()
    place = _place(content, kind, error, path or "$")
    where = named(place)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", said):
        return f"{named((*place, missing[1]))} is missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", said, re.DOTALL):
        return f"{named((*place, unknown[1][:LONGEST]))} is not known"
    choices = _choices(kind, place, bool(of_key))
    expected = _joined(choices) if choices else _expected(said)
    if of_key:
        return f"{where} has a key that is not {expected}"
    if said.startswith(("Expected ", "Invalid enum value")):
        return f"{where} is {_shown(_at(content, place))}, expected {expected}"
    if said.startswith(("Number out of range", "Integer value out of range")):
        return f"{where} is {_shown(_at(content, place))}, out of range"
    return said if not place or said.startswith(where) else f"{where}: {said}"  # of the type's own checks


def _expected(said: str) -> str:
    """``Expected `float | null`, got `str``` -> ``a number or null``."""
    match = re.match(r"Expected `(.*?)`(?: of (length .*?))?(?:, got .*)?$", said, re.DOTALL)
    kinds = match[1].split(" | ") if match else []
    text = _joined([IN_WORDS.get(kind, kind) for kind in kinds])
    return f"{text} of {match[2]}" if match and match[2] else text


def _joined(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _choices(kind: Any, place: Place, of_key: bool) -> list[str]:
    """The values that a ``Literal`` there allows, or one for the keys there; empty where it is none."""
    kinds = _members(kind)
    for step in place:
        kinds = [member for each in kinds for inner in _inner(each, step) for member in _members(inner)]
    if of_key:
        kinds = [get_args(each)[0] for each in kinds if get_origin(each) is dict]
    found = [str(value) for each in kinds if get_origin(each) is Literal for value in get_args(each)]
    return [*found, "null"] if found and type(None) in kinds else found


def _members(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def _inner(kind: Any, step: str | int) -> list[Any]:
    """The type of an entry."""
    parts = get_args(kind)
    if get_origin(kind) is dict:
        return [parts[1]]
    if isinstance(step, int) and parts:
        return [parts[0] if Ellipsis in parts or len(parts) <= step else parts[step]]
    return [hint] if isinstance(kind, type) and (hint := get_type_hints(kind).get(str(step))) else []


def _place(content: Any, kind: Any, error: msgspec.ValidationError, path: str) -> Place:
    """Keys and indices of the entry. msgspec does not say which key of a table it was: that which fails by itself."""
    place: Place = ()
    for name, index in _STEP.findall(path):
        if index != "...":
            place = (*place, name or int(index))
            continue
        table = _at(content, place)
        wrong = (key for key in table if _error(_with(content, place, {key: table[key]}), kind) == str(error))
        if (key := next(wrong, None)) is None:
            return place
        place = (*place, key)
    return place


def _error(content: Any, kind: Any) -> str | None:
    try:
        msgspec.convert(content, kind, str_keys=True)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _at(content: Any, place: Place) -> Any:
    for step in place:
        content = content[step]
    return content


def _with(content: Any, place: Place, new: Any) -> Any:
    """A copy with another value there."""
    if not place:
        return new
    copy: Any = content.copy() if isinstance(content, dict) else list(content)
    copy[place[0]] = _with(content[place[0]], place[1:], new)
    return copy


def named(place: Place) -> str:
    """``("pairs", 0, "fixed")`` -> ``pairs[0].fixed``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".") or "it"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else str(value)
    except (TypeError, ValueError):  # of a checkpoint, which holds more than JSON does
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _others(content: Any, value: Any, place: Place) -> str | None:
    """Which entry of a dataclass is missing or not known, at any depth; None if none is."""
    if isinstance(value, tuple | list) and isinstance(content, tuple | list):
        inner = [(*each, (*place, at)) for at, each in enumerate(zip(content, value, strict=True))]
    elif is_dataclass(value) and isinstance(content, dict):
        names = [field.name for field in fields(value)]
        for name in sorted({*names} ^ content.keys(), key=str):
            return f"{named((*place, str(name)[:LONGEST]))} is {'missing' if name in names else 'not known'}"
        inner = [(content[name], getattr(value, name), (*place, name)) for name in names]
    elif isinstance(value, msgspec.Struct):
        names = [name for name in value.__struct_fields__ if name in content]
        inner = [(content[name], getattr(value, name), (*place, name)) for name in names]
    else:
        return None
    return next((why for each in inner if (why := _others(*each))), None)
