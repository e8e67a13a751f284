"""Learn2Reg's layout: ``imagesTr/``, ``labelsTr/`` and a ``*_dataset.json``, as a zip or a folder.

Images and labels are used where they lie (or where the zip was extracted): the challenge delivers usable NIfTI.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ofg_deploy.data import labels as names
from ofg_deploy.data.archive import Each, extract
from ofg_deploy.data.description import Dataset, Subject
from ofg_deploy.data.volumes import started
from ofg_deploy.errors import InputError
from ofg_deploy.nifti import load_grid, stem
from ofg_deploy.records import read_as

MODALITY = {"OASIS": "MR T1", "AbdomenCTCT": "CT"}
LABELS = {"OASIS": names.OASIS, "AbdomenCTCT": names.ABDOMEN_CT}


class _Entry(msgspec.Struct):
    """An image and what belongs to it, relative to the description."""

    image: str
    label: str | None = None
    keypoints: str | None = None


class _Pair(msgspec.Struct):
    """Images that are registered to each other."""

    fixed: str
    moving: str


class _Task(msgspec.Struct):
    """What is read of ``<task>_dataset.json``; an image without labels may be its path alone."""

    training: list[_Entry | str]
    registration_val: list[_Pair]
    test: list[_Entry | str] = []
    registration_test: list[_Pair] = []
    name: str = ""


def convert(source: Path, folder: Path, task: str, each: Each) -> Dataset:
    """A Learn2Reg task, ``OASIS`` or ``AbdomenCTCT``.

    Subjects of the listed validation pairs validate and are left out of training; the rest of ``training`` trains.

    Raises:
        InputError: no readable ``<task>_dataset.json``, or files it names that are missing or lie elsewhere.
    """
    if source.is_file():
        extract(source, folder / "extracted", each, started(folder))
        source = folder / "extracted"
    description = _find(source, task)
    root = description.parent
    record = read_as(description, _Task, "is not as Learn2Reg writes it")
    training, test = ([_subject(root, entry) for entry in part] for part in (record.training, record.test))
    listed, test_pairs = (
        [(_id(pair.fixed), _id(pair.moving)) for pair in part]
        for part in (record.registration_val, record.registration_test)
    )
    validating = {i for pair in listed for i in pair}
    if not training or not listed:
        raise InputError(f"{description} lists no training images or no registration_val pairs")
    known = {s.id for s in training}
    if missing := sorted(validating - known):
        raise InputError(f"{description} pairs {missing[0]}, which is not among its training images")
    test_ids = {s.id for s in test}
    return Dataset(
        name=f"{record.name or task} (Learn2Reg)",
        modality=MODALITY[task],
        splits={
            "training": tuple(s for s in training if s.id not in validating),
            "validation": tuple(s for s in training if s.id in validating),
            "test": tuple(s for s in test if s.id not in known),
        },
        pairs={
            "validation": tuple(listed),
            "test": tuple(p for p in test_pairs if {*p} <= test_ids | known),
        },
        labels=LABELS[task],
        spacing_mm=load_grid(training[0].image).spacing_mm,
        notes=(f"images are used where they lie, under {root}",),
    )


def find_description(source: Path, task: str) -> Path | None:
    """``<task>_dataset.json`` in a folder or one below it; None if there is none."""
    for pattern in (f"{task}_dataset.json", f"*/{task}_dataset.json"):
        if found := sorted(source.glob(pattern)):
            return found[0]
    return None


def _find(source: Path, task: str) -> Path:
    found = find_description(source, task)
    if found is None:
        raise InputError(f"{source} has no {task}_dataset.json: the zip or folder of Learn2Reg is expected")
    return found


def _subject(root: Path, entry: _Entry | str) -> Subject:
    if isinstance(entry, str):
        entry = _Entry(entry)
    labels, landmarks = (_inside(root, name) if name else None for name in (entry.label, entry.keypoints))
    return Subject(_id(entry.image), _inside(root, entry.image), labels, landmarks)


def _inside(root: Path, name: str) -> Path:
    path = (root / name).absolute()
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{name!r} in the description lies outside {root}: refused")
    path = root.absolute() / Path(name)
    if not path.is_file():
        raise InputError(f"{path} is listed in the description but missing")
    return path


def _id(name: str) -> str:
    return stem(Path(name))
