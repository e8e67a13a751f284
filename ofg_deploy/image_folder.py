"""Folders of images: which files count, the same for every verb, and what to say of the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ofg_deploy.errors import InputError

ENDING = re.compile(r"\.(nii|nii\.gz|img|img\.gz|hdr|hdr\.gz)$", re.IGNORECASE)
SINGLE = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder by name without ending, and what else lies there.

    Attributes:
        folder: as given.
        images: ``.nii``, ``.nii.gz``, or the ``.img`` of a pair with its ``.hdr``; by path below the folder, without
            ending; in order.
        left_out: paths by kind, in words.
    """

    folder: Path
    images: dict[str, Path]
    left_out: dict[str, tuple[Path, ...]]

    def remark(self) -> str | None:
        """One line on what was left out; None where nothing was."""
        if not self.left_out:
            return None
        parts = [f"{len(paths)} {kind} (the first: {paths[0].name})" for kind, paths in self.left_out.items()]
        return f"{self.folder}: {len(self.images)} images taken, left out: {', '.join(parts)}"


def look_into(folder: Path, deep: bool = False) -> ImageFolder:
    """Find the images of a folder; hidden files, among them those of macOS (``._*``), are none.

    Args:
        deep: in the folders below it, too; those that are hidden excepted.

    Raises:
        InputError: not a folder, not readable, or two images that differ in their ending only.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give a folder of NIfTI images")
    try:
        every = sorted(folder.rglob("*") if deep else folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
    images: dict[str, Path] = {}
    left_out: dict[str, list[Path]] = {}
    here = {_key(path) for path in every}
    for path in every:
        parts = path.relative_to(folder).parts
        kind = _left_out(path, here)
        if any(part.startswith(".") for part in parts[:-1]) or (deep and kind == "folders"):
            continue
        if kind == "":
            continue
        if kind is not None:
            left_out.setdefault(kind, []).append(path)
            continue
        name = path.relative_to(folder).with_name(bare(path)).as_posix()
        if (other := images.setdefault(name, path)) is not path:
            raise InputError(
                f"{folder} has both {other.name} and {path.name}: remove one, or name the images in a list of pairs"
            )
    return ImageFolder(folder, images, {kind: tuple(paths) for kind, paths in left_out.items()})


def bare(path: Path) -> str:
    """File name without the ending of an image."""
    return ENDING.sub("", path.name)


def counterpart(folder: Path, image: Path, below: Path | None = None) -> Path:
    """The file in ``folder`` that is named like an image, its own ending first; where none is, the name it should have.

    Args:
        below: the folder of the image, where its relative path counts.
    """
    where = folder if below is None else folder / image.relative_to(below).parent
    found = [path for path in _named(where, bare(image)) if ENDING.search(path.name)]
    return next((path for path in found if path.name == image.name), next(iter(found), where / image.name))


def _named(folder: Path, name: str) -> Iterable[Path]:
    endings = (".nii.gz", ".nii", ".img", ".img.gz")
    tried = (f"{name}{ending}" for e in endings for ending in (e, e.upper()))
    return [path for path in (folder / name for name in tried) if path.is_file()]


def _left_out(path: Path, here: set[tuple[Path, str, str]]) -> str | None:
    """Why a file is no image, in words; "" where there is nothing to say of it; None for an image."""
    if path.name.startswith("."):
        return "hidden files"
    if path.is_dir():
        return "folders"
    found = ENDING.search(path.name)
    if found is None:
        return "files of other kinds"
    if SINGLE.search(path.name):
        return None
    folder, name, kind = _key(path)
    if (folder, name, "hdr" if kind == "img" else "img") not in here:
        return f".{kind} files without their .{'hdr' if kind == 'img' else 'img'}"
    return None if kind == "img" else ""


def _key(path: Path) -> tuple[Path, str, str]:
    found = ENDING.search(path.name)
    kind = found[1].lower().removesuffix(".gz") if found else ""
    return path.parent, bare(path), kind
