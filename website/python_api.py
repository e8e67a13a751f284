"""The reference of ``import ofg_deploy``, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

SECTIONS = ("Args", "Returns", "Raises", "Attributes", "Yields")
HEADING = re.compile(rf"^({'|'.join((*SECTIONS, 'Example', 'Examples'))}):$")
ENTRY = re.compile(r"^([\w*][\w*, ]*): (.*)$")


def python_api() -> str:
    """Markdown of every public name: functions, then classes with their public members, then errors."""
    import ofg_deploy

    every = {name: getattr(ofg_deploy, name) for name in ofg_deploy.__all__ if name != "__version__"}
    functions = {name: one for name, one in every.items() if inspect.isfunction(one)}
    errors = {n: one for n, one in every.items() if inspect.isclass(one) and issubclass(one, Exception)}
    classes = {name: one for name, one in every.items() if name not in functions and name not in errors}
    lines: list[str] = []
    for title, group in (("Functions", functions), ("Classes", classes), ("Errors", errors)):
        lines += ["", f"## {title}"]
        for name, one in group.items():
            lines += _described(name, one, 3)
            if title == "Classes":
                lines += [line for member in _members(one) for line in _described(f"{name}.{member[0]}", member[1], 4)]
    return "\n".join(lines)


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    for name, one in vars(owner).items():
        if not name.startswith("_") and (inspect.isfunction(one) or isinstance(one, property)) and inspect.getdoc(one):
            yield name, one


def _described(name: str, one: Any, level: int) -> Iterator[str]:
    yield from ("", f"{'#' * level} {name}", "")
    if inspect.isfunction(one):
        yield from ("```python", _signature(name, one), "```", "")
    elif isinstance(one, property):
        yield from (f"Property, `{_plain(inspect.signature(one.fget).return_annotation)}`.", "")
    elif issubclass(one, Exception):
        yield from (f"Exit code {one.exit_code}. Bases: {', '.join(f'`{b.__name__}`' for b in one.__bases__)}.", "")
    elif hasattr(one, "__dataclass_fields__") and not any(field.startswith("_") for field in one.__dataclass_fields__):
        yield from ("```python", _signature(name, one), "```", "")
    yield from _docstring(inspect.getdoc(one) or "")


def _signature(name: str, one: Any) -> str:
    given = [p for p in inspect.signature(one).parameters.values() if p.name != "self"]
    parts, keyword = [], False
    for p in given:
        if p.kind is p.KEYWORD_ONLY and not keyword:
            parts, keyword = [*parts, "*"], True
        parts.append(_plain(str(p)))
    returned = inspect.signature(one).return_annotation
    arrow = "" if returned is inspect.Signature.empty or inspect.isclass(one) else f" -> {_plain(returned)}"
    one_line = f"{name}({', '.join(parts)}){arrow}"
    if len(one_line) <= 88:
        return one_line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){arrow}"])


def _plain(annotation: object) -> str:
    """Annotations are strings: drop their quotes."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"(: |\| |\[|^)'([^']*)'(?= =|$)", r"\1\2", text)


def _docstring(text: str) -> Iterator[str]:
    """Google style -> Markdown: sections in bold, their entries as a list, examples as code."""
    section = ""
    for line in text.replace("``", "`").splitlines():
        if found := HEADING.match(line):
            section = found[1]
            if section.startswith("Example"):
                yield from ("", "**Example**", "", "```pycon")
            else:
                yield from ("", f"**{section}**", "")
        elif section.startswith("Example"):
            if not line.strip():
                continue
            yield line.removeprefix("    ")
        elif section and (entry := ENTRY.match(line.removeprefix("    "))):
            yield f"- `{entry[1]}`: {entry[2]}"
        elif section:
            yield f"  {line.strip()}" if line.startswith("        ") else line.strip()
        else:
            yield line
    if section.startswith("Example"):
        yield "```"
