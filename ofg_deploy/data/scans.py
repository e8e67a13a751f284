"""Find what cannot be used among many scans, from their headers alone, before anything long starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid, overlap_fraction
from ofg_deploy.nifti import load_grid
from ofg_deploy.preprocess import LITTLE_OVERLAP

SHOWN = 5
GRID_TOLERANCE_VOX = 0.01  # float32 headers round; more than this moves labels


def bad_scans(scans: Iterable[tuple[Path, Path | None]], advance: Callable[[], None] = lambda: None) -> dict[Path, str]:
    """What is wrong with images and their labels, by image.

    A label map must be there, readable, and lie on its image's grid (same shape, voxels within 0.01 mm).
    """
    found: dict[Path, str] = {}
    for image, labels in scans:
        try:
            grid = load_grid(image)
            if labels is not None:
                _check_same(image, grid, labels, load_grid(labels))
        except InputError as error:
            found[image] = str(error)
        advance()
    return found


def bad_guides(given: Mapping[Path, Path | None]) -> dict[Path, str]:
    """What is wrong with the guides of images by their headers, by image; nothing where no image has one.

    A guide must be there, readable, and in the same world as its image, of which it covers a part that counts.
    """
    found: dict[Path, str] = {}
    for image, guide in given.items() if any(given.values()) else ():
        if guide is None:
            found[image] = f"{image} has no guide and others have"
            continue
        try:
            seen = overlap_fraction(load_grid(image), load_grid(guide), np.eye(4))
        except InputError as error:
            found[image] = str(error)
            continue
        if seen < LITTLE_OVERLAP:
            found[image] = f"{guide} covers {seen:.0%} of its image {image}: is it the guide of another subject?"
    return found


def describe(bad: Mapping[Path, str], of: int) -> str:
    """One line: how many, and the first five by name."""
    lines = list(bad.values())
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{len(lines)} of {of} scans cannot be used: {'; '.join(lines[:SHOWN])}{more}"


def _check_same(image: Path, grid: Grid, labels: Path, other: Grid) -> None:
    if grid.shape != other.shape:
        raise InputError(
            f"{labels} has {other.shape} voxels and its image {image.name} {grid.shape}: not the same grid"
        )
    gap = float(np.abs(grid.corners_mm() - other.corners_mm()).max())
    if gap > GRID_TOLERANCE_VOX * max(grid.spacing_mm):
        raise InputError(f"{labels} lies up to {gap:.2f} mm from its image {image.name}: not the same grid")
