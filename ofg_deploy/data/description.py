"""``dataset.json``: who is in a data set, in which split, and who is registered to whom."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Shape, Spacing
from ofg_deploy.outputs import read_json, to_json, write_bytes

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
    """

    id: str
    image: Path
    labels: Path | None = None
    landmarks: Path | None = None


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
        files = {"image": s.image, "labels": s.labels, "landmarks": s.landmarks}
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
    try:
        record = read_json(path)
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("schema") != SCHEMA:
            raise InputError(f"{path} is not a {FORMAT} of schema {SCHEMA}: make it with ofg data")
        return _from_record(record, path.parent.absolute())
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {error}") from error


def _from_record(record: dict[str, Any], folder: Path) -> Dataset:
    rest = dict(record)
    del rest["format"], rest["schema"]
    splits, pairs, plan, atlas = (rest.pop(key) for key in ("splits", "pairs", "plan", "atlas"))
    for found in (splits, pairs):
        if unknown := sorted(set(found) - set(SPLITS)):
            raise InputError(f"split {unknown[0]!r} is unknown: use {', '.join(SPLITS)}")
    if rest["rule"] not in get_args(Rule):
        raise InputError(f"rule {rest['rule']!r} is unknown: use {', '.join(get_args(Rule))}")
    names, spacing = rest.pop("labels"), rest.pop("spacing_mm")
    dataset = Dataset(
        splits={split: tuple(_subject(s, folder) for s in members) for split, members in splits.items()},
        pairs={split: tuple((str(fixed), str(moving)) for fixed, moving in rows) for split, rows in pairs.items()},
        atlas=None if atlas is None else _subject(atlas, folder),
        labels={int(number): str(name) for number, name in names.items()},
        spacing_mm=None if spacing is None else _three(spacing, float),
        plan=None if plan is None else _plan(plan),
        **rest,
    )
    return replace(dataset, notes=tuple(str(note) for note in dataset.notes))


def _subject(record: dict[str, str], folder: Path) -> Subject:
    if unknown := sorted(set(record) - {"id", "image", "labels", "landmarks"}):
        raise InputError(f"subject {record.get('id')!r} has an unknown key {unknown[0]!r}")
    files = {key: folder / value for key, value in record.items() if key != "id"}
    return Subject(str(record["id"]), **files)


def _plan(record: dict[str, Any]) -> Plan:
    return Plan(**{**record, "grid": _three(record["grid"], int), "spacing_mm": _three(record["spacing_mm"], float)})


def _three(values: Any, kind: Any) -> Any:
    first, second, third = (kind(v) for v in values)
    return first, second, third
