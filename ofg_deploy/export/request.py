"""What the command line asks to export: a run, one of our checkpoints, or a published one and what it leaves unsaid."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.export.source import ExportSource, from_checkpoint, from_run, on_grid, read_layout
from ofg_deploy.geometry import Shape, Spacing
from ofg_deploy.preprocess import Init, Intensity, NetworkInput
from ofg_deploy.train.checkpoint import Checkpoint, load_checkpoint
from ofg_deploy.train.networks import network_class
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.vxm_dense import NAME as VXM_DENSE
from ofg_deploy.train.networks.vxm_dense import is_published, vxm_dense
from ofg_deploy.train.recipes import Options, find_recipe, resolve


@dataclass(frozen=True)
class BareOptions:
    """What a published checkpoint does not say about itself; ``pairs`` are real pairs to check it on.

    None was not given: one of our own checkpoints knows, a published one has what its recipe says, or the default.
    A ``grid`` may be given for anything: ours are exported for it in place of the one they were trained on.
    """

    network: str | None
    diffeomorphic: bool | None
    grid: Shape | None
    spacing_mm: Spacing | None
    axes: str | None
    intensity: str | None
    init: Init | None
    pairs: Path | None
    recipe: str | None = None

    def check_none(self, what: str) -> None:
        """Raises UsageError if anything was given."""
        given = [f"`{name.removesuffix('_mm')}`" for name, value in asdict(self).items() if value is not None]
        if given:
            raise UsageError(f"{', '.join(given)}: these describe a bare checkpoint; {what} knows its own")


def find_source(path: Path, bare: BareOptions, scratch: Path, with_pairs: bool = True) -> ExportSource:
    """The network with its weights, for the grid asked for.

    Args:
        scratch: where pairs of a bare checkpoint are prepared.
        with_pairs: whether the pairs of a run are prepared, to check an export on.

    Raises:
        UsageError: something is missing, contradicts the file, or a grid the weights do not take.
        InputError: as ``source.from_run`` and ``source.from_checkpoint``.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give a run folder of ofg train or a checkpoint")
    if path.is_dir():
        replace(bare, grid=None).check_none("a run folder")
        return from_run(path, lambda: None, bare.grid, with_pairs)
    own = load_checkpoint(path)
    diffeomorphic = bare.diffeomorphic
    if diffeomorphic is None:
        diffeomorphic = bool((own.training or {}).get("diffeomorphic"))
    if own.config is not None:
        network, expects, diffeomorphic = _described(path, own, bare)
    elif own.expects is None:
        if bare.network is None or (bare.grid is None and bare.recipe is None):
            raise UsageError(
                f"{path} is not a run folder: a bare checkpoint needs `network` and `grid` X Y Z or `recipe`"
            )
        network, expects = bare.network, _published(bare, network_class(bare.network))
    else:
        network, expects = str(own.network), on_grid(own.expects, str(own.network), bare.grid)
        given = Options(expects.shape, bare.spacing_mm, bare.intensity, bare.init, axes=bare.axes)
        if bare.recipe or (bare.network or network, _fill(given, expects)) != (network, expects):
            raise UsageError(f"{path} was trained as {network} on {own.expects}: leave out what says otherwise")
    return from_checkpoint(path, network, diffeomorphic, expects, bare.pairs, scratch, lambda: None)


def _described(path: Path, own: Checkpoint, bare: BareOptions) -> tuple[str, NetworkInput, bool]:
    """Network, grid and integration as the ``config`` of the file has them; the rest as for other published ones.

    Raises:
        InputError: a config that this version cannot follow. UsageError: options that contradict it.
    """
    grid, layout = read_layout(own, path)
    same = [name for name in ("voxelmorph", "voxelmorph-2") if is_published(layout, network_class(name))]
    if bare.network not in (None, VXM_DENSE, *same):
        raise UsageError(f"{path} describes its own network in its config: leave out `network` {bare.network}")
    if bare.diffeomorphic and layout.integration is None:
        raise UsageError(
            f"{path} has int_steps 0 in its config, so it predicts no velocity: leave out `diffeomorphic=True`"
        )
    expects = _published(replace(bare, grid=bare.grid or grid), vxm_dense(layout))
    return VXM_DENSE, expects, layout.integration is not None


def _published(bare: BareOptions, architecture: type[RegistrationNetwork]) -> NetworkInput:
    """Given options win over the recipe's, as in training, and those over the defaults."""
    options = Options(bare.grid, bare.spacing_mm, bare.intensity, bare.init, axes=bare.axes)
    if recipe := find_recipe(bare.recipe):
        options = resolve(options, recipe, None, architecture.divisor)
    if options.grid is None:
        raise UsageError("`spacing` is not the recipe's: give the `grid` that belongs to it")
    architecture.check_grid(options.grid)
    default = NetworkInput(options.grid, (1.0, 1.0, 1.0), Intensity("minmax"), "affine")
    return _fill(options, default)


def _fill(options: Options, default: NetworkInput) -> NetworkInput:
    """What was not given is as in ``default``."""
    return NetworkInput(
        options.grid or default.shape,
        options.spacing_mm or default.spacing_mm,
        Intensity.parse(options.intensity) if options.intensity else default.intensity,
        options.init or default.init,
        options.axes or default.axes,
    )
