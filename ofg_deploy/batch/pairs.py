"""Which pairs a batch has: a list, two folders, or one image and a folder; and where the results of each go."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.image_folder import counterpart, look_into
from ofg_deploy.nifti import stem
from ofg_deploy.pair_list import read_rows
from ofg_deploy.serve.job import ONE_FILE, Job, parse_init
from ofg_deploy.transform.tables import ENDINGS

SEVERAL = ("moving_labels", "also")  # columns that hold several paths, with ; between them
COLUMNS = ("fixed", "moving", *SEVERAL, *ONE_FILE, "init")
NEEDED = {column: "every pair has both" for column in ("fixed", "moving")}
Make = Callable[..., Job]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
# Files beside the pairs: of the batch, its parts and its report. Large and small letters may be one.
TAKEN = re.compile(r"batch(_part-.*)?\.json|failures(_part-.*)?\.csv|report\.html|qc\.tsv", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """One registration of a batch.

    Attributes:
        name: unique in the batch.
        job: what to do; all paths absolute.
    """

    name: str
    job: Job


@dataclass(frozen=True)
class Part:
    """Which share of a batch this run does: every ``count``-th pair, beginning with number ``index``.

    Raises:
        UsageError: no such part.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UsageError(
                f"`part_id` {self.index} of `num_parts` {self.count}: parts are numbered 0 to `num_parts` - 1"
            )

    def of(self, pairs: list[Pair]) -> list[Pair]:
        """Its pairs. Those of all parts together are all, and no pair is in two."""
        return pairs[self.index :: self.count]

    def file(self, out: Path, name: str) -> Path:
        """Its own file of that name: parts write side by side."""
        end = "" if self.count == 1 else f"_part-{self.index}-of-{self.count}"
        return out / f"{Path(name).stem}{end}{Path(name).suffix}"


def from_list(source: Path, out: Path, make: Make) -> list[Pair]:
    """Pairs of a CSV or JSON list; its paths are relative to it.

    Columns are ``COLUMNS`` and ``name``. Results of a named pair go into a folder of that name, of the others into
    the folder of the batch; files are called as for a single pair.

    Args:
        out: folder of the batch.
        make: a job from its files, its folder and perhaps its start; all other options are in it.

    Raises:
        InputError: not such a list, or two pairs whose results would be called the same.
        UsageError: what a row asks for makes no sense.
    """
    pairs = []
    for number, row in enumerate(read_rows(source, COLUMNS, NEEDED), start=1):
        where = f"{source}, row {number}"
        given: dict[str, Any] = dict(row)
        name = given.pop("name", "")
        if name and not NAME.fullmatch(name):
            raise InputError(f"{where}: {name!r} is no name for a folder: use letters, digits and _ . + -")
        if TAKEN.fullmatch(name):
            raise InputError(f"{where}: {name!r} is no name for a pair: a file beside the pairs is called so")
        if missing := {"fixed", "moving"} - given.keys():
            raise InputError(f"{where} has no {min(missing)} image: {NEEDED['fixed']}")
        for column in set(COLUMNS) & given.keys() - {"init"}:
            paths = tuple((source.parent / text.strip()).absolute() for text in given[column].split(";"))
            given[column] = paths if column in SEVERAL else (source.parent / given[column]).absolute()
        try:
            if "init" in given:
                start = parse_init(given["init"])
                given["init"] = (source.parent / start).absolute() if isinstance(start, Path) else start
            pairs.append(_pair(make(out=(out / name).absolute(), **given), name))
        except UsageError as error:
            raise UsageError(f"{where}: {error.marked}") from error
    return _unique(pairs, out, "a name in the column 'name' gives a pair a folder of its own")


def from_folders(fixed: Path, moving: Path, out: Path, make: Make, beside: dict[str, Any]) -> list[Pair]:
    """Pairs of two folders by file name, or one image with every image of a folder.

    What goes with an image (label maps, masks, points, more channels) is a folder too, whose files are named like the
    image; or, on the side where there is one image alone, a file.

    Args:
        out, make: as ``from_list``.
        beside: what goes with the images, by field of ``Job``.

    Raises:
        InputError: an image without its counterpart, the one image of all pairs missing, or two pairs whose results
            would be called the same.
        UsageError: a file where a folder is needed, or results among the images.
    """
    sides = {"fixed": fixed, "moving": moving}
    if out.resolve() in {path.resolve() for path in sides.values()}:
        raise UsageError(f"`out` {out} is the folder of the images: the next run would take results for images")
    found = {side: _images(path) for side, path in sides.items() if path.is_dir()}
    if len(found) == 2:
        for here, there in (("fixed", "moving"), ("moving", "fixed")):
            if alone := sorted(found[here].keys() - found[there].keys()):
                raise InputError(
                    f"{len(alone)} of the {len(found[here])} images in {sides[here]} have none of the same name in "
                    f"{sides[there]}, the first: {found[here][alone[0]].name}: match them, or list them with `pairs`"
                )
    for side, path in sides.items():
        if side not in found and not path.exists():
            raise InputError(f"{path} does not exist: it is the {side} image of every pair")
    names = sorted(next(iter(found.values())))
    pairs = []
    for name in names:
        image = {side: found[side][name] if side in found else path.absolute() for side, path in sides.items()}
        files: dict[str, Any] = {}
        for role in (role for role in ONE_FILE if beside.get(role)):
            side = role.split("_")[0]
            files[role] = _beside(beside[role], image[side], role, side in found)
        for role in SEVERAL:
            files[role] = tuple(_beside(p, image["moving"], role, "moving" in found) for p in beside.get(role, ()))
        pairs.append(_pair(make(**image, **files, out=out.absolute()), ""))
    return _unique(pairs, out, "list them with `pairs` and a column 'name', which gives a pair a folder of its own")


def shared(pairs: Iterable[Pair]) -> set[Path]:
    """Files that more than one pair reads."""
    seen: set[Path] = set()
    often: set[Path] = set()
    for pair in pairs:
        files = set(pair.job.inputs().values())
        often |= seen & files
        seen |= files
    return often


def _pair(job: Job, name: str) -> Pair:
    return Pair(name or job.outputs("affine")["sidecar"].stem, job)


def _unique(pairs: list[Pair], out: Path, advice: str) -> list[Pair]:
    """The pairs under names that tell them apart, as ``ofg report`` does where several share a folder.

    Raises:
        InputError: two pairs would write the same file, or one a file where the other has its folder; also where large
            and small letters are one.
    """
    writers: dict[str, Pair] = {}
    for pair in pairs:
        for path in pair.job.outputs("affine").values():
            if (other := writers.setdefault(str(path).casefold(), pair)) is not pair:
                raise InputError(
                    f"{path} would be the result of two pairs, {other.job.moving} on {other.job.fixed} and "
                    f"{pair.job.moving} on {pair.job.fixed}: {advice}"
                )
    for pair in pairs:
        folder = str(pair.job.out).casefold()
        if folder in writers:
            other = writers[folder]
            raise InputError(
                f"{pair.job.out} would be the folder of one pair, {pair.job.moving} on {pair.job.fixed}, and a result "
                f"of another, {other.job.moving} on {other.job.fixed}: choose another name"
            )
    often = Counter(pair.name for pair in pairs)
    return [pair if often[pair.name] == 1 else replace(pair, name=_full_name(pair.job, out)) for pair in pairs]


def _full_name(job: Job, out: Path) -> str:
    sidecar = job.outputs("affine")["sidecar"]
    return sidecar.relative_to(out.absolute()).with_name(sidecar.stem).as_posix()


def _images(folder: Path) -> dict[str, Path]:
    """Images of a folder by name without ending."""
    found = look_into(folder)
    if not found.images:
        more = f"; {remark}" if (remark := found.remark()) else ""
        raise InputError(f"{folder} holds no NIfTI image (.nii or .nii.gz){more}")
    return {name: path.absolute() for name, path in found.images.items()}


def _beside(given: Path, image: Path, role: str, many: bool) -> Path:
    option = f"--{role.replace('_', '-')}"
    if not given.is_dir():
        if many:
            raise UsageError(f"{option} {given}: a folder is needed, with a file for each image")
        return given.absolute()
    if role.endswith("points"):
        wanted = [stem(image) + ending for ending in (".csv", *ENDINGS)]
    else:
        wanted = [counterpart(given, image).name]
    for name in wanted:
        if (path := given / name).exists():
            return path.absolute()
    raise InputError(f"{option} {given} has no {wanted[0]} for the image {image}")
