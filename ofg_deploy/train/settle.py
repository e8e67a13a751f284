"""From what was asked for to a configuration with nothing left open, and the pairs it is for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.image_folder import look_into
from ofg_deploy.options.training import PUBLISHED, Resources, Selection, Weights
from ofg_deploy.options.words import COMPACT
from ofg_deploy.preprocess import Init, Intensity, NetworkInput
from ofg_deploy.train.budget import Budget, rate_for, updates_of
from ofg_deploy.train.config import WEIGHTS, TrainConfig, check_effects
from ofg_deploy.train.devices import choose_device
from ofg_deploy.train.guides import have_guides, without_guides
from ofg_deploy.train.networks import network_class
from ofg_deploy.train.observer import Observer
from ofg_deploy.train.pairs import DEFAULT_PAIRS, PairList, check_pairs, find_dataset, find_pairs, plan_grid
from ofg_deploy.train.recipes import Options, check_pairing, find_recipe, resolve, split_recipes
from ofg_deploy.train.run import Run, held
from ofg_deploy.train.starts import COMPOSED, choose_frame
from ofg_deploy.train.synthesis.people import find_people, plan_people


@dataclass(frozen=True)
class Asked:
    """Options by name, each checked; those not given are missing.

    Attributes:
        explicit: what the user named; these win.
        configured: those of a configuration.
    """

    explicit: Mapping[str, Any]
    configured: Mapping[str, Any]

    @property
    def both(self) -> dict[str, Any]:
        """Every option that was given."""
        return {**self.configured, **self.explicit}


@dataclass(frozen=True)
class Plan:
    """A run that can begin.

    Attributes:
        budget: of time, by which the length is planned once it is known what a step takes here.
    """

    config: TrainConfig
    pairs: PairList
    cache: Path
    skip_bad: bool
    budget: Budget | None


# What a recipe decides, which a configuration that says otherwise contradicts.
OF_DATA_RECIPE = {"grid", "spacing", "axes", "intensity", "init", "two_way", "flip"}


def settle(images: Path, run: Path, asked: Asked, resources: Resources, overwrite: bool, observer: Observer) -> Plan:
    """Find and check the pairs, plan the network's input, and settle every option.

    An option that was given wins over the configuration, that over the recipe, and that over defaults.

    Raises:
        UsageError: options that contradict each other, have no effect, or that the network does not take.
        InputError: ``run`` holds a run already, or scans that cannot be used.
    """
    given = asked.both
    selection = Selection(**{name: value for name, value in given.items() if name in Selection.__dataclass_fields__})
    of_data, published = split_recipes(selection.recipe)
    decided = (OF_DATA_RECIPE if of_data else set()) | (PUBLISHED.keys() if published else set())
    if "recipe" in asked.explicit and (clash := sorted(decided & asked.configured.keys())):
        raise UsageError(f"`recipe` and `config` both decide {', '.join(clash)}: leave one of them out")
    weights = {name: value for name, value in given.items() if name in WEIGHTS}
    config = TrainConfig(**{**(PUBLISHED if published else {}), **weights})
    check_effects(asked.explicit, config)
    budget = None
    if selection.hours is not None:  # a length in the configuration is no wish where the hours are one
        budget = Budget(selection.hours, frozenset(asked.explicit if "hours" in asked.explicit else given))
    if "network" not in given:
        config = replace(config, network=default_network(budget, resources))
    if config.synthesise:
        check_synthesised(asked.explicit, of_data)
        pairs, planned = find_label_maps(images, run, selection, config, overwrite, observer)
        given = {**planned, **given}
    else:
        pairs = find(images, run, selection, config.seed, overwrite, budget, observer, config.guides)
    if asked.explicit.get("guides") and not (config.synthesise or have_guides(pairs.training)):
        raise UsageError("`guides=True`: the training pairs have no guides; leave it out, or name them in the data")
    wishes = Options(
        given.get("grid"),
        given.get("spacing"),
        given.get("intensity"),
        given.get("init"),
        given.get("two_way"),
        given.get("flip"),
        given.get("axes"),
    )
    expects, options, pairs = settle_input(images, pairs, config.network, of_data, wishes)
    # Starts of a configuration go with its own initial alignment.
    other_init = "init" in asked.explicit and "starts" not in asked.explicit
    starts = None if other_init else selection.starts
    if config.synthesise:  # people meet in one frame
        starts = "frame" if expects.init in COMPOSED else "pair"
    config = replace(
        config,
        expects=expects,
        frame=frame_of(starts, pairs, expects.init),
        two_way=bool(options.two_way),
        flip=bool(options.flip),
    )
    if config.synthesise and config.steps_per_epoch is None and budget is None:
        config = replace(config, steps_per_epoch=DEFAULT_PAIRS)
    if config.lr is None:
        config = with_rate(config, len(pairs.training))
    return Plan(config, pairs, selection.cache or run / "cache", selection.skip_bad, budget)


def default_network(budget: Budget | None, resources: Resources) -> str:
    """The architecture where none is named: a compact one where there is a budget and no GPU."""
    return COMPACT if budget and choose_device(resources.device) == "cpu" else Weights.network


def find(
    data: Path,
    run: Path,
    selection: Selection,
    seed: int,
    overwrite: bool,
    budget: Budget | None,
    observer: Observer,
    guides: bool = True,
) -> PairList:
    """The usable pairs of a new run, every scan's header checked.

    Args:
        guides: keep the guides of the pairs.

    Raises:
        InputError: ``run`` holds a run already, or scans that cannot be used.
    """
    if Run(run).config.exists() and not overwrite:
        raise held(run)
    at_random = budget.most_pairs if budget else DEFAULT_PAIRS
    every = find_pairs(data, selection.labels, selection.max_pairs, seed, at_random)
    found, left_out = check_pairs(every if guides else without_guides(every), selection.skip_bad)
    remark = look_into(data).remark() if data.is_dir() and find_dataset(data) is None else None
    for line in (remark, left_out):
        if line:
            observer.warn(line)
    return found


def find_label_maps(
    data: Path, run: Path, selection: Selection, config: TrainConfig, overwrite: bool, observer: Observer
) -> tuple[PairList, dict[str, Any]]:
    """The label maps of a new run, read to their last voxel, and the grid and spacing that hold them.

    Raises:
        InputError: ``run`` holds a run already, or label maps that cannot be rendered.
    """
    if Run(run).config.exists() and not overwrite:
        raise held(run)
    if not data.exists():
        raise InputError(f"{data} does not exist: give a folder of label maps, or dataset.json")
    pairs, looked, left_out = find_people(data, find_dataset(data), config.seed, selection.skip_bad)
    if left_out:
        observer.warn(left_out)
    grid, spacing = plan_people(looked, network_class(config.network).divisor, selection.spacing, selection.axes)
    return pairs, {"grid": grid, "spacing": spacing}


def check_synthesised(given: Mapping[str, Any], recipe: str | None) -> None:
    """Refuse what means nothing where pairs are rendered. Raises UsageError."""
    of_images = {"labels", "max_pairs", "starts"} & given.keys()
    for name in [*sorted(of_images), *(["recipe"] if recipe else [])]:
        raise UsageError(f"`{name}` has no effect with `synthesise=True`: leave one of them out")
    if (intensity := str(given.get("intensity", ""))).startswith(("window", "linear")):
        raise UsageError(
            f"`intensity={intensity}` is for scans in units: rendered images have none; use percentile or minmax"
        )


def settle_input(
    data: Path, pairs: PairList, network: str, recipe_name: str | None, given: Options
) -> tuple[NetworkInput, Options, PairList]:
    """What the network will see, the options with nothing left open but grid and spacing, and what Dice is taken over.

    An option that was given wins over the recipe, the recipe over the plan in ``dataset.json``, and that over a grid
    planned from the images here.
    """
    recipe, dataset = find_recipe(recipe_name), find_dataset(data)
    if recipe is not None:
        check_pairing(str(recipe_name), recipe, dataset, listed=dataset is None and data.is_file())
        pairs = replace(pairs, evaluated=recipe.labels)
    architecture = network_class(network)
    if given.grid is not None:
        architecture.check_grid(given.grid)
    divisor = architecture.divisor
    options = resolve(given, recipe, dataset.plan if dataset else None, divisor)
    intensity = Intensity.parse(options.intensity or "")
    grid, spacing = options.grid, options.spacing_mm
    if grid is None or spacing is None:
        planned_grid, planned_spacing = plan_grid(pairs, divisor, spacing, options.axes or Selection.axes)
        grid, spacing = grid or planned_grid, spacing or planned_spacing
    expects = NetworkInput(grid, spacing, intensity, options.init or Selection.init, options.axes or Selection.axes)
    return expects, options, pairs


def frame_of(starts: str | None, pairs: PairList, init: Init) -> str | None:
    """The common frame of the training pairs' starts; None aligns each pair by itself.

    Args:
        starts: ``frame``, ``pair``, or None for what is less work.

    Raises:
        UsageError: ``frame`` with a start that cannot be composed.
    """
    if starts == "pair":
        return None
    if starts == "frame" and init not in COMPOSED:
        raise UsageError(f"`starts=frame` composes {' or '.join(COMPOSED)} starts, and `init` is {init}: leave it out")
    frame = choose_frame(pairs.training, init, always=starts == "frame")
    return None if frame is None else str(frame)


def with_rate(config: TrainConfig, pairs: int) -> TrainConfig:
    """The configuration with the learning rate that goes with its length."""
    return replace(config, lr=rate_for(config, updates_of(config, pairs, int(os.environ.get("WORLD_SIZE", "1")))))
