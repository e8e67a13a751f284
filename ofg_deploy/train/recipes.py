"""Published recipes: the grid, normalisation, pairing and labels of each data set, by name.

Source: Xin et al., On-the-Fly Guidance Training for Medical Image Registration (2024), and its training scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ofg_deploy.data import labels as names
from ofg_deploy.data.description import Dataset, Plan
from ofg_deploy.errors import UsageError
from ofg_deploy.geometry import Shape, Spacing
from ofg_deploy.options.training import Selection
from ofg_deploy.options.words import PAPER, Init, RecipeName

DEFAULTS = Selection()


@dataclass(frozen=True)
class Recipe:
    """Defaults of a training run; options given on the command line win over each of them.

    Attributes:
        grid: voxels of the network's grid along ``axes``.
        spacing_mm: its voxel size.
        intensity: the intensity recipe, as on the command line.
        init: the alignment of a pair before the network sees it.
        with_atlas: whether all pairs share an atlas.
        two_way: a second step with the pair swapped.
        flip: random flips of both images.
        labels: numbers that count in the Dice.
        axes: anatomical directions of the grid's axes.
    """

    grid: Shape
    spacing_mm: Spacing
    intensity: str
    init: Init
    with_atlas: bool
    two_way: bool
    flip: bool
    labels: tuple[int, ...]
    axes: str = "RAS"


_MM = (1.0, 1.0, 1.0)
_CT = (192, 160, 256)
_CT_MM = (2.0, 2.0, 2.0)
_ORGANS = tuple(names.ABDOMEN_CT)

# IXI and OASIS are published in FreeSurfer's axes, left-inferior-anterior: windows, positions and every published
# checkpoint depend on that.
RECIPES: dict[RecipeName, Recipe] = {
    "ixi": Recipe((160, 192, 224), _MM, "minmax", "none", True, False, True, tuple(names.IXI), "LIA"),
    "oasis": Recipe((160, 192, 224), _MM, "minmax", "none", False, True, False, tuple(names.OASIS), "LIA"),
    "lpba40": Recipe((160, 192, 160), _MM, "minmax", "none", True, False, True, tuple(names.LPBA40)),
    # -160..240 HU is the radiologist's abdominal window (width 400, level 40): fat at -100 and contrast-enhanced
    # vessels at 200 stay apart, air and bone saturate.
    "abdomenctct": Recipe(_CT, _CT_MM, "window:-160,240", "none", False, True, False, _ORGANS),
    "abdomenctct-published": Recipe(_CT, _CT_MM, "linear:0,500", "none", False, True, False, _ORGANS),
    "hippocampus": Recipe((48, 64, 48), _MM, DEFAULTS.intensity, "affine", False, False, False, (1, 2)),
}


def split_recipes(names: Sequence[str]) -> tuple[str | None, bool]:
    """The recipe of a data set, and whether the method is to be as published (``paper``).

    Raises:
        UsageError: recipes of two data sets, or one that does not exist.
    """
    of_data = [name for name in names if name != PAPER]
    for name in of_data:
        find_recipe(name)
    if len(of_data) > 1:
        raise UsageError(f"`recipe` {' and '.join(of_data)}: one data set at a time (paper goes with any)")
    return (of_data[0] if of_data else None), PAPER in names


@dataclass(frozen=True)
class Options:
    """What training can take from the command line, a recipe or a plan; None was not given."""

    grid: Shape | None = None
    spacing_mm: Spacing | None = None
    intensity: str | None = None
    init: Init | None = None
    two_way: bool | None = None
    flip: bool | None = None
    axes: str | None = None


def find_recipe(name: str | None) -> Recipe | None:
    """A recipe by name; None for None. Raises UsageError for an unknown one."""
    if name is None:
        return None
    if name not in RECIPES:
        raise UsageError(f"`recipe` {name!r} is unknown: use one of {', '.join(RECIPES)}, or paper when training")
    return RECIPES[name]


def resolve(given: Options, recipe: Recipe | None, plan: Plan | None, divisor: int) -> Options:
    """Given options, else the recipe's, else the data set's plan; only grid and spacing may stay open (None).

    A planned grid belongs to the planned spacing and is not used with another one. Where the network needs multiples
    of another divisor, a planned grid is rounded up to them.

    Raises:
        UsageError: other axes than those of the grid that would be used.
    """
    source, axes = recipe or plan, recipe.axes if recipe else DEFAULTS.axes
    if given.axes is not None and given.axes != axes and (given.grid is None or given.spacing_mm is None):
        raise UsageError(f"`axes` {given.axes}: `grid` and `spacing` must be given with it, in the same order")
    spacing, grid = given.spacing_mm, given.grid
    if source is not None:
        if grid is None and spacing in (None, source.spacing_mm):
            x, y, z = (-(-n // divisor) * divisor for n in source.grid)
            grid = (x, y, z)
        spacing = spacing or source.spacing_mm
    return Options(
        grid,
        spacing,
        given.intensity or (recipe.intensity if recipe else DEFAULTS.intensity),
        given.init or (recipe.init if recipe else DEFAULTS.init),
        given.two_way if given.two_way is not None else bool(recipe and recipe.two_way),
        given.flip if given.flip is not None else bool(recipe and recipe.flip),
        given.axes or axes,
    )


def check_pairing(name: str, recipe: Recipe, dataset: Dataset | None, listed: bool) -> None:
    """Refuse a recipe whose pairing the data does not have.

    Args:
        listed: whether the pairs come from a list of the user, which is taken as it is.

    Raises:
        UsageError: an atlas recipe without an atlas in the data, or the other way round.
    """
    if listed:
        return
    has_atlas = dataset is not None and dataset.rule != "random"
    if recipe.with_atlas and not has_atlas:
        raise UsageError(
            f"`recipe` {name} pairs everybody with an atlas and the data names none: make it with ofg data"
        )
    if has_atlas and not recipe.with_atlas:
        raise UsageError(f"`recipe` {name} pairs at random and the data pairs with an atlas: another recipe is meant")
