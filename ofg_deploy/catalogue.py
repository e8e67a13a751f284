"""Models by name: those that ship with the package, and those the user added. What ``-m NAME`` means everywhere.

A model is an exported ``NAME.onnx``; its card is ``NAME.md`` in the same folder. The user's folder is
``OFG_MODELS``, or ``ofg-deploy/models`` where the platform keeps data of applications.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.locations import user_folder
from ofg_deploy.model_file import read_model
from ofg_deploy.outputs import read_text, staged

PACKAGED = Path(__file__).parent / "models"
RESERVED = ("auto", "none")  # of ofg register: choose a model, or do without
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
FILES = (".onnx", ".engine", ".pt", ".pth", ".tar", ".json")  # a name that ends so would be taken for a file
Origin = Literal["packaged", "added"]


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue; whether the file can be used is known once it is read."""

    name: str
    path: Path
    origin: Origin

    @property
    def card(self) -> Path:
        """Where its card lies, if it has one."""
        return self.path.with_suffix(".md")

    def summary(self) -> str | None:
        """The first line of the card that holds text; None without a card or where it cannot be read."""
        try:
            lines = (line.strip("# \t") for line in read_text(self.card).splitlines())
        except InputError:
            return None
        return next((line for line in lines if line), None)


def added_folder() -> Path:
    """The user's folder; it need not exist."""
    if given := os.environ.get("OFG_MODELS"):
        return Path(given).expanduser().absolute()
    return user_folder() / "models"


def entries() -> list[Entry]:
    """Packaged models, then added ones, each sorted by name."""
    folders: tuple[tuple[Origin, Path], ...] = (("packaged", PACKAGED), ("added", added_folder()))
    return [
        Entry(path.stem, path, origin)
        for origin, folder in folders
        for path in sorted(folder.glob("*.onnx"))
        if NAME.fullmatch(path.stem)
    ]


def is_name(text: str) -> bool:
    """Whether an argument is a model's name and not a path: it has no separator and no ending of a file."""
    return not any(mark in text for mark in ("/", "\\")) and not text.lower().endswith(FILES)


def find(name: str) -> Entry:
    """The model of this name.

    Raises:
        InputError: there is none, or two: a packaged one and one of the user's.
    """
    found = [entry for entry in entries() if entry.name == name]
    if len(found) > 1:
        raise InputError(
            f"two models are called {name}, a packaged one and {found[1].path}: rename or remove the latter "
            f"(ofg models remove {name})"
        )
    if not found:
        there = ", ".join(entry.name for entry in entries()) or "none so far"
        raise InputError(
            f"there is no model called {name} (packaged or added: {there}): give the path of an .onnx file, or add one "
            "with ofg models add FILE"
        )
    return found[0]


def model_path(text: str) -> Path:
    """The file that ``-m TEXT`` means where a model has to be one: a path, or the name of a model.

    Raises:
        UsageError: ``auto`` or ``none``. InputError: no model of that name.
    """
    if text in RESERVED:
        raise UsageError(f"-m {text} is for ofg register: give a model's name (ofg models) or file here")
    return find(text).path if is_name(text) else Path(text)


def source_path(text: str) -> Path:
    """The same where run folders and checkpoints are taken too: what exists under that name here comes first.

    Raises:
        UsageError: both a file or folder here and a model are called so.
    """
    path = Path(text)
    if not is_name(text):
        return path
    named = [entry for entry in entries() if entry.name == text]
    if not named:
        return path  # whoever opens it says what is wrong
    if path.exists():
        raise UsageError(f"{text} is a model (ofg models) and also a file or folder here: write ./{text} for that")
    return find(text).path


def add(source: Path, name: str | None, overwrite: bool) -> Entry:
    """Copy an exported model, and the card beside it if there is one, into the user's folder.

    Raises:
        UsageError: a name that cannot be one. InputError: not an exported model, changed since its export, or the name
            is taken (without ``overwrite``).
    """
    if source.suffix != ".onnx":
        raise InputError(f"{source} is not an .onnx model: add what ofg export made (engines belong to one GPU)")
    name = source.stem if name is None else name
    if not NAME.fullmatch(name) or name.lower().endswith(FILES) or name.lower() in RESERVED:
        raise UsageError(
            f"{name!r} cannot be a model's name: give `name` of letters, digits and _ . + -, at most 64, other than "
            f"{' and '.join(RESERVED)}"
        )
    if any(entry.name == name for entry in entries() if entry.origin == "packaged"):
        raise InputError(f"a packaged model is called {name}: give another `name`")
    content = read_model(source).content
    entry = Entry(name, added_folder() / f"{name}.onnx", "added")
    own_card = source.with_suffix(".md")
    text = read_text(own_card) if own_card.is_file() else None
    # Without a new card an old one of that name would describe another model.
    cards, stale = ([entry.card], []) if text is not None else ([], [entry.card])
    with staged([*cards, entry.path], overwrite, lambda: stale) as partial:
        partial[-1].write_bytes(content)
        if text is not None:
            partial[0].write_text(text, encoding="utf-8")
    return entry


def remove(name: str) -> Entry:
    """Take an added model and its card away. Raises InputError: no such model, or a packaged one."""
    found = {entry.origin: entry for entry in entries() if entry.name == name}
    if "added" not in found:
        if found:
            raise InputError(f"{name} ships with the package: only added models can be removed")
        find(name)
    entry = found["added"]
    try:
        entry.card.unlink(missing_ok=True)  # first: a card that stays behind would describe the next model of this name
        entry.path.unlink()
    except OSError as error:
        raise InputError(f"{entry.path} cannot be removed: {error.strerror or error}") from error
    return entry
