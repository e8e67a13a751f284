"""``dataset.json``: who is in a data set, in which split, and who is registered to whom."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Shape, Spacing
from ofg_deploy.outputs import read_json, to_json, write_bytes
from ofg_deploy.records import fitted

FORMAT = "ofg-deploy dataset"
SCHEMA = 1
FILE_NAME = "dataset.json"

Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Rule = Literal["random", "atlas-fixed", "atlas-moving"]


@dataclass(frozen=True)
class Subject:
    """One scan.

    Attributes:
        id: unique in the data set.
        image, labels, landmarks: absolute paths; the last two are optional.
        guide: another image of the same subject, in the same world: what training compares instead of ``image``.
    """

    id: str
    image: Path
    labels: Path | None = None
    landmarks: Path | None = None
    guide: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What ``ofg data folder`` proposes for training.

    Attributes:
        grid: voxels of the network's grid along R, A, S.
        spacing_mm: its voxel size.
        batch: pairs that fit into the memory at once.
        memory: which memory was counted and what a pair needs, in words.
    """

    grid: Shape
    spacing_mm: Spacing
    batch: int
    memory: str


@dataclass(frozen=True)
class Dataset:
    """A data set as training and evaluation see it.

    Attributes:
        name, modality: for people.
        splits: subjects of each split; nobody is in two.
        rule: how pairs are made in splits that list none: ``random`` ordered pairs, or every subject with the atlas as
            the fixed or as the moving image.
        atlas: needed by the atlas rules; it may be no member of a split.
        pairs: listed (fixed id, moving id) by split.
        labels: names of the labels to evaluate, by number; empty means all that occur.
        spacing_mm: where all images share it.
        notes: assumptions made and people left out while it was described.
        plan: proposed grid, spacing and batch.

    Raises:
        InputError: an id that occurs twice or that a pair names in vain, or an atlas rule without an atlas.
    """

    name: str
    modality: str
    splits: dict[Split, tuple[Subject, ...]]
    rule: Rule = "random"
    atlas: Subject | None = None
    pairs: dict[Split, tuple[tuple[str, str], ...]] | None = None
    labels: dict[int, str] | None = None
    spacing_mm: Spacing | None = None
    notes: tuple[str, ...] = ()
    plan: Plan | None = None

    def __post_init__(self) -> None:
        ids = [subject.id for subject in self.subjects()]
        if twice := sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []:
            raise InputError(f"the data set {self.name} has the subject {twice[0]} twice")
        if self.rule != "random" and self.atlas is None:
            raise InputError(f"the data set {self.name} pairs with an atlas but names none")
        named = {i for listed in (self.pairs or {}).values() for pair in listed for i in pair}
        if unknown := sorted(named - set(ids)):
            raise InputError(f"the data set {self.name} pairs the subject {unknown[0]}, which it does not have")

    def subjects(self) -> list[Subject]:
        """Everybody, the atlas last."""
        everybody = [s for split in SPLITS for s in self.splits.get(split, ())]
        return everybody if self.atlas is None else [*everybody, self.atlas]

    def pairs_of(self, split: Split, most: int | None, seed: int) -> list[tuple[Subject, Subject]]:
        """(fixed, moving) of a split: as listed, else by the rule.

        Args:
            most: at most so many, drawn with ``seed`` where there are more; None keeps all.
        """
        by_id = {s.id: s for s in self.subjects()}
        members = self.splits.get(split, ())
        if listed := (self.pairs or {}).get(split):
            every = [(by_id[fixed], by_id[moving]) for fixed, moving in listed]
        elif self.atlas is not None and self.rule == "atlas-fixed":
            every = [(self.atlas, s) for s in members]
        elif self.atlas is not None and self.rule == "atlas-moving":
            every = [(s, self.atlas) for s in members]
        else:
            every = [(a, b) for a in members for b in members if a != b]
        if most is None or most >= len(every):
            return every
        return random.Random(seed).sample(every, most)


def is_dataset(path: Path) -> bool:
    """Whether a JSON file calls itself one of ours; lists of pairs and other tools' files do not."""
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        record = read_json(path)
    except InputError:
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write ``dataset.json`` at once or not at all; paths become relative to it where they lie below it."""
    folder = path.parent.absolute()

    def where(file: Path) -> str:
        return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)

    def subject(s: Subject) -> dict[str, str]:
        files = {"image": s.image, "labels": s.labels, "landmarks": s.landmarks, "guide": s.guide}
        return {"id": s.id, **{key: where(file) for key, file in files.items() if file is not None}}

    plan = dataset.plan
    record = {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": dataset.name,
        "modality": dataset.modality,
        "spacing_mm": dataset.spacing_mm,
        "labels": {str(number): name for number, name in (dataset.labels or {}).items()},
        "rule": dataset.rule,
        "atlas": None if dataset.atlas is None else subject(dataset.atlas),
        "splits": {split: [subject(s) for s in dataset.splits.get(split, ())] for split in SPLITS},
        "pairs": {split: list(listed) for split, listed in (dataset.pairs or {}).items()},
        "notes": list(dataset.notes),
        "plan": None if plan is None else vars(plan),
    }
    write_bytes(path, to_json(record).encode())


def read_dataset(path: Path) -> Dataset:
    """Read what ``write_dataset`` wrote, strictly.

    Raises:
        InputError: missing, of another schema, or with keys, types or ids that do not fit.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a {FORMAT} of schema {SCHEMA}: make it with ofg data")
    record = fitted(content, _Record, f"{path} is damaged", exactly=True)
    folder = path.parent.absolute()
    try:
        return Dataset(
            name=record.name,
            modality=record.modality,
            splits={split: tuple(_located(s, folder) for s in members) for split, members in record.splits.items()},
            rule=record.rule,
            atlas=_located(record.atlas, folder) if record.atlas else None,
            pairs={split: tuple(listed) for split, listed in record.pairs.items()},
            labels=record.labels,
            spacing_mm=record.spacing_mm,
            notes=tuple(record.notes),
            plan=record.plan,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class _Member(msgspec.Struct, forbid_unknown_fields=True):
    """A subject; its files are relative to ``dataset.json``."""

    id: str
    image: str
    labels: str | None = None
    landmarks: str | None = None
    guide: str | None = None


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the file holds, as ``Dataset`` has it."""

    format: str
    schema: int
    name: str
    modality: str
    spacing_mm: Spacing | None
    labels: dict[int, str]
    rule: Rule
    atlas: _Member | None
    splits: dict[Split, list[_Member]]
    pairs: dict[Split, list[tuple[str, str]]]
    notes: list[str] = []
    plan: Plan | None


def _located(member: _Member, folder: Path) -> Subject:
    given = (member.image, member.labels, member.landmarks, member.guide)
    image, labels, landmarks, guide = (None if file is None else folder / file for file in given)
    assert image is not None
    return Subject(member.id, image, labels, landmarks, guide)
