"""What is exported: the network of a run, or a bare checkpoint with what it does not say about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.export.parity import synthetic_pair
from ofg_deploy.field import Field
from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.options.words import MOST_PASSES
from ofg_deploy.preprocess import NetworkInput, PreparedPair
from ofg_deploy.train.checkpoint import Checkpoint, load_checkpoint, load_weights
from ofg_deploy.train.dataset import load_cached, prepare_all
from ofg_deploy.train.labels import dice_of_field, load_label_pair
from ofg_deploy.train.networks import build_network, fitting_class, network_class, recorded_form
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.vxm_dense import Layout, read_config
from ofg_deploy.train.pairs import PairFiles, PairList, check_pairs, find_pairs
from ofg_deploy.train.run import Run
from ofg_deploy.train.synthesis.held_out import with_images
from ofg_deploy.train.verdict import doubts

MAX_PARITY_PAIRS = 5
MAX_CALIBRATION_PAIRS = 8


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A network with its weights, what it expects, and the pairs its export is checked on.

    Attributes:
        dice: per pair, mean Dice of a field on the network's grid, or None without labels.
        pairs_from: where the pairs came from, for the record.
        calibration: prepares the training pairs that int8 takes its ranges from; none without real pairs.
        remarks: which epoch of a run this is, by what it was chosen, and doubts about that; a line each.
    """

    network: RegistrationNetwork
    name: str
    expects: NetworkInput
    training: dict[str, Any]
    pairs: list[PreparedPair]
    dice: list[Callable[[Field], float] | None]
    pairs_from: str
    calibration: Callable[[], list[PreparedPair]] = list
    remarks: tuple[str, ...] = ()

    @property
    def passes(self) -> int:
        """How often it was trained to be asked. Raises InputError: a record of something else."""
        passes = self.training.get("passes", 1)
        if type(passes) is not int or not 1 <= passes <= MOST_PASSES:
            raise InputError(
                f"the record of this training is damaged: passes is {passes!r}, expected 1 to {MOST_PASSES}"
            )
        return passes


def from_run(
    folder: Path, advance: Callable[[], None], grid: Shape | None = None, with_pairs: bool = True
) -> ExportSource:
    """The best checkpoint of a run, and its validation pairs.

    Args:
        grid: to export for, at the same spacing, instead of the one it was trained on.
        with_pairs: prepare the validation pairs; otherwise there are none.

    Raises:
        InputError: there is none. UsageError: the network or its weights do not take ``grid``.
    """
    run = Run(folder)
    config, pairs, cache = run.read()
    assert config.expects is not None  # a run has settled it
    expects = on_grid(config.expects, config.network, grid)
    checkpoint = load_checkpoint(run.best)
    form = recorded_form(checkpoint.training) if config.diffeomorphic else False
    with torch.random.fork_rng([]):  # its first weights are not wanted, nor are the caller's random numbers
        network = build_network(config.network, expects.shape, form)
    load_weights(network, checkpoint.state, run.best)
    _check_finite(network, run.best)
    chosen = (pairs.validation or pairs.training)[: MAX_PARITY_PAIRS if with_pairs else 0]
    prepared, dice = prepare_pairs(list(with_images(chosen, config, cache)), expects, cache, advance)
    where = "validation pairs of the run" if pairs.validation else "training pairs of the run"
    training = pairs.training[:MAX_CALIBRATION_PAIRS]
    return ExportSource(
        network,
        config.network,
        expects,
        _provenance(checkpoint, expects),
        prepared,
        dice,
        where,
        lambda: prepare_pairs(list(with_images(training, config, cache)), expects, cache, advance)[0],
        _remarks(checkpoint.training or {}, len(pairs.validation)),
    )


def _remarks(training: dict[str, Any], validation_pairs: int) -> tuple[str, ...]:
    epoch, epochs = training.get("epoch"), training.get("epochs")
    if not (isinstance(epoch, int) and isinstance(epochs, int)):  # of an earlier version
        return ()
    chosen = f"best: epoch {epoch} of {epochs}, by {validation_pairs} validation pair{'s' * (validation_pairs != 1)}"
    return (chosen, *doubts(epoch, epochs, validation_pairs))


def on_grid(expects: NetworkInput, name: str, grid: Shape | None) -> NetworkInput:
    """What a network trained on ``expects`` expects on another grid of the same spacing; None keeps its own.

    Raises:
        UsageError: too small, or its weights belong to the places of the grid it was trained on.
    """
    architecture = network_class(name)
    if grid is None:
        return expects
    architecture.check_grid(grid)
    if architecture.weights_know_grid and architecture.padded_grid(grid) != architecture.padded_grid(expects.shape):
        given, own = (" ".join(map(str, shape)) for shape in (grid, expects.shape))
        raise UsageError(
            f"`grid` {given}: the position embeddings of {name} are tied to grid {own}: train it on the new grid"
        )
    return replace(expects, shape=grid)


def _provenance(checkpoint: Checkpoint, expects: NetworkInput) -> dict[str, Any]:
    """How the weights came about, and on what grid if not the one exported for."""
    training, trained = dict(checkpoint.training or {}), checkpoint.expects
    return training if trained is None or trained.shape == expects.shape else {**training, "grid": list(trained.shape)}


def from_checkpoint(
    path: Path,
    name: str,
    diffeomorphic: bool,
    expects: NetworkInput,
    pairs: Path | None,
    cache: Path,
    advance: Callable[[], None],
) -> ExportSource:
    """A bare checkpoint, ours or a published one, checked on ``pairs`` (folder or list) or on one synthetic pair.

    Raises:
        InputError: weights or a ``config`` that do not fit the network, or unusable pairs.
        UsageError: a form or a grid that the checkpoint does not have.
    """
    checkpoint = load_checkpoint(path)
    training = _provenance(checkpoint, expects)
    if checkpoint.config is not None:
        grid, layout = read_layout(checkpoint, path)
        training |= {"layout": layout.to_record(), **({} if grid == expects.shape else {"grid": list(grid)})}
        how: bool | Integration = layout.integration or False
        if diffeomorphic != bool(how):
            saved = "without" if diffeomorphic else "with"
            raise UsageError(f"{path} was saved {saved} integration, as its config says: export it the same way")
    else:
        _check_form(checkpoint, path, diffeomorphic)
        how = recorded_form(checkpoint.training) if checkpoint.training else diffeomorphic
    architecture = fitting_class(name, checkpoint.state, training)
    architecture.check_grid(expects.shape)
    network = architecture(expects.shape, how)
    load_weights(network, checkpoint.state, path)
    _check_finite(network, path)
    if not checkpoint.training:
        integration = {} if network.integrate is None else {"integration": network.integrate.how.to_record()}
        training = {"source": path.name, "diffeomorphic": diffeomorphic, **training, **integration}
    if pairs is None:
        return ExportSource(network, name, expects, training, [synthetic_pair(expects)], [None], "one synthetic pair")
    found: PairList = check_pairs(find_pairs(pairs, None, MAX_PARITY_PAIRS, seed=0), skip_bad=False)[0]
    prepared, dice = prepare_pairs(list(found.validation[:MAX_PARITY_PAIRS]), expects, cache, advance)
    others = list(found.training[:MAX_CALIBRATION_PAIRS])
    return ExportSource(
        network,
        name,
        expects,
        training,
        prepared,
        dice,
        str(pairs),
        lambda: prepare_pairs(others, expects, cache, advance)[0],
    )


def read_layout(checkpoint: Checkpoint, path: Path) -> tuple[Shape, Layout]:
    """Grid and network of a checkpoint with a ``config``. Raises InputError with the file's name."""
    try:
        return read_config(checkpoint.config or {}, checkpoint.state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_finite(network: RegistrationNetwork, path: Path) -> None:
    """Weights of a training that diverged, or of a damaged file, before any time goes into them."""
    for name, value in network.state_dict().items():
        bad = value.numel() - int(torch.isfinite(value).sum())
        if bad:
            raise InputError(
                f"{path}: {bad} of {value.numel()} values of {name!r} are NaN or infinite: export another checkpoint"
            )


def _check_form(checkpoint: Checkpoint, path: Path, diffeomorphic: bool) -> None:
    """Weights fit both forms alike, so only the record can tell; a published checkpoint has none."""
    if checkpoint.training and checkpoint.training.get("diffeomorphic", False) != diffeomorphic:
        found = "without" if diffeomorphic else "with"
        raise UsageError(f"{path} was trained {found} `diffeomorphic=True`: export it the same way")


def prepare_pairs(
    pairs: list[PairFiles], expects: NetworkInput, cache: Path, advance: Callable[[], None]
) -> tuple[list[PreparedPair], list[Callable[[Field], float] | None]]:
    """Pairs as the network sees them, and for each the mean Dice of a field, or None without labels."""
    prepared = [load_cached(file) for file in prepare_all(pairs, expects, cache, 1, advance)]
    dice: list[Callable[[Field], float] | None] = []
    for files, pair in zip(pairs, prepared, strict=True):
        labels = load_label_pair(files, pair.grid)
        dice.append(partial(dice_of_field, pair, labels) if labels else None)
    return prepared, dice
