"""VxmDense: the networks in checkpoints that VoxelMorph's own PyTorch code saved, described by their ``config``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.records import fitted
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.convolution import Conv3d
from ofg_deploy.train.networks.voxelmorph import DECODER, ConvBlock, Unet, VoxelMorph

NAME = "vxm-dense"
DEFAULT = ((16, 32, 32, 32), (32, 32, 32, 32, 32, 16, 16))
POOLED = "unet_model.encoder."  # version 0.1 has strided convolutions, ``unet_model.downarm.``
KNOWN = {
    *("inshape", "nb_unet_features", "nb_unet_levels", "unet_feat_mult", "nb_unet_conv_per_level", "int_steps"),
    *("int_downsize", "bidir", "use_probs", "src_feats", "trg_feats", "unet_half_res"),
}


@dataclass(frozen=True)
class Layout:
    """A U-Net of VoxelMorph.

    Attributes:
        encoder: channels of every convolution on the way down.
        decoder: channels of every convolution on the way up, as many.
        head: channels of the convolutions after it.
        convolutions: of each level.
        pooled: levels are convolved, then pooled (version 0.2); otherwise convolved with stride 2 (version 0.1).
        half_resolution: the last level is not enlarged, so the flow is on half the grid.
        integration: of the flow; None where it is the displacement itself.

    Raises:
        InputError: numbers that describe no such network.
    """

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    head: tuple[int, ...]
    convolutions: int = 1
    pooled: bool = False
    half_resolution: bool = False
    integration: Integration | None = None

    def __post_init__(self) -> None:
        channels = (*self.encoder, *self.decoder, *self.head)
        levels = len(self.encoder) // max(1, self.convolutions)
        if not 1 <= levels <= 8 or len(self.decoder) != len(self.encoder) or len(self.encoder) % self.convolutions:
            raise InputError(
                f"encoder {self.encoder}, decoder {self.decoder}: 1 to 8 levels of {self.convolutions} convolutions "
                "each are needed, as many up as down"
            )
        if not self.pooled and (not self.head or self.convolutions > 1 or self.half_resolution):
            raise InputError("one convolution a level, full resolution and a head are needed with strided convolutions")
        if not all(1 <= n <= 4096 for n in channels):
            raise InputError(f"{channels} channels: whole numbers of 1 to 4096 are needed")

    @property
    def levels(self) -> int:
        """How often the resolution is halved."""
        return len(self.encoder) // self.convolutions

    def to_record(self) -> dict[str, Any]:
        """JSON-ready; ``from_record`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Layout:
        """Raises InputError unless ``to_record`` made it."""
        return fitted(dict(record), cls, "the record describes no network of VoxelMorph", exactly=True)


def read_config(config: Mapping[str, Any], names: Iterable[str]) -> tuple[Shape, Layout]:
    """The grid and the network that a checkpoint's ``config`` describes, as VoxelMorph builds it.

    Args:
        config: the arguments of its network, of which those that are absent have their defaults.
        names: of the weights, which tell the two generations apart.

    Raises:
        InputError: an entry that is missing or unknown, or a network that this version does not have.
    """
    if unknown := sorted(str(key) for key in set(config) - KNOWN):
        raise InputError(f"config has {unknown[0]!r}, which is not known of VoxelMorph's VxmDense")
    if "inshape" not in config:
        raise InputError("config has no 'inshape', the grid of the network")
    grid = _whole_numbers(config["inshape"], "inshape")
    if len(grid) != 3:
        raise InputError(f"config has inshape {grid}: a network of 3-D images is needed")
    for key, wanted in (("use_probs", False), ("src_feats", 1), ("trg_feats", 1)):
        if config.get(key, wanted) != wanted:
            raise InputError(f"config has {key} {config[key]!r}: only networks with {wanted!r} can be exported")
    convolutions = _whole_number(config.get("nb_unet_conv_per_level", 1), "nb_unet_conv_per_level", 1)
    steps = _whole_number(config.get("int_steps", 7), "int_steps", 0)
    downsize = _whole_number(config.get("int_downsize", 2), "int_downsize", 1)
    half = bool(config.get("unet_half_res", False))
    if half and (steps == 0 or downsize != 2):
        raise InputError(
            f"config has unet_half_res with int_steps {steps} and int_downsize {downsize}: VoxelMorph itself needs an "
            "int_downsize of 2 there, and steps"
        )
    encoder, decoder = _channels(config, convolutions)
    layout = Layout(
        encoder,
        decoder[: len(encoder)],
        decoder[len(encoder) :],
        convolutions,
        any(name.startswith(POOLED) for name in names),
        half,
        Integration(steps, downsize, "zeros", nominal=True, coarse=half) if steps else None,
    )
    x, y, z = grid
    return (x, y, z), layout


def _channels(config: Mapping[str, Any], convolutions: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    given, levels = config.get("nb_unet_features"), config.get("nb_unet_levels")
    if isinstance(given, int) and not isinstance(given, bool):
        count = _whole_number(levels, "nb_unet_levels", 2)
        factor = config.get("unet_feat_mult", 1)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 64:
            raise InputError(f"config has unet_feat_mult {factor!r}: a number above 0 is needed")
        features = [int(n) for n in np.round(given * float(factor) ** np.arange(min(count, 9)))]
        down, up = ([n for n in of for _ in range(convolutions)] for of in (features[:-1], features[::-1]))
        return tuple(down), tuple(up)
    if levels is not None:
        raise InputError(f"config has nb_unet_levels {levels!r} and nb_unet_features {given!r}: one number is needed")
    if given is None:
        return DEFAULT
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise InputError(f"config has nb_unet_features {given!r}: [encoder, decoder] is needed")
    encoder, decoder = (_whole_numbers(part, "nb_unet_features") for part in given)
    return encoder, decoder


def _whole_numbers(values: Any, key: str) -> tuple[int, ...]:
    if not isinstance(values, list | tuple):
        raise InputError(f"config has {key} {values!r}: a list of whole numbers is needed")
    return tuple(_whole_number(value, key, 1) for value in values)


def _whole_number(value: Any, key: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"config has {key} {value!r}: a whole number of at least {least} is needed")
    return int(value)


class PooledUnet(nn.Module):
    """Levels of convolutions, each then pooled; as many up again, doubled and joined with what was pooled."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.half = layout.half_resolution
        n = layout.convolutions
        channels, skips = 2, []
        self.encoder = nn.ModuleList()
        for start in range(0, len(layout.encoder), n):
            widths = (channels, *layout.encoder[start : start + n])
            self.encoder.append(nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(widths)))
            channels = widths[-1]
            skips.append(channels)
        self.decoder = nn.ModuleList()
        for start in range(0, len(layout.decoder), n):
            widths = (channels, *layout.decoder[start : start + n])
            self.decoder.append(nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(widths)))
            skip = skips.pop()
            channels = widths[-1] + (skip if skips or not self.half else 0)
        self.remaining = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise((channels, *layout.head)))
        self.channels = layout.head[-1] if layout.head else channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = []
        for level in self.encoder:
            for block in level:  # type: ignore[attr-defined]
                x = block(x)
            levels.append(x)
            x = functional.max_pool3d(x, 2)
        for level in self.decoder:
            for block in level:  # type: ignore[attr-defined]
                x = block(x)
            skip = levels.pop()
            if levels or not self.half:
                x = torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1)
        for block in self.remaining:
            x = block(x)
        return x


class VxmDense(RegistrationNetwork):
    """VoxelMorph's network in any of its layouts; use ``vxm_dense`` to make one.

    Attributes:
        layout: the network.
    """

    fully_convolutional = True
    layout: ClassVar[Layout]

    def __init__(self, grid: Shape, diffeomorphic: bool | Integration = False) -> None:
        super().__init__(grid, diffeomorphic)
        layout = self.layout
        if layout.pooled:
            self.unet_model: nn.Module = PooledUnet(layout)
            channels = self.unet_model.channels
        else:
            self.unet_model = Unet(layout.encoder, layout.head, layout.decoder)
            channels = layout.head[-1]
        self.flow = Conv3d(channels, 3, 3, padding=1)

    @classmethod
    def check_grid(cls, grid: Shape) -> None:
        """Raises UsageError if VoxelMorph's own code would not take the grid."""
        super().check_grid(grid)
        downsize = cls.layout.integration.downsize if cls.layout.integration else 1
        if any(n % cls.divisor or n % downsize or n // downsize < 2 for n in grid):
            given = " ".join(map(str, grid))
            raise UsageError(f"grid {given}: this network takes multiples of {np.lcm(cls.divisor, downsize)}")

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.flow(self.unet_model(images))


def is_published(layout: Layout, architecture: type[RegistrationNetwork]) -> bool:
    """Whether the layout has the weights of one of this project's own VoxelMorphs, whatever its integration."""
    assert issubclass(architecture, VoxelMorph)
    own = Layout(architecture.encoder, DECODER, architecture.head)
    return replace(layout, integration=None) == own


def vxm_dense(layout: Layout) -> type[VxmDense]:
    """The class of networks of a layout; with ``diffeomorphic`` they integrate as the layout says."""
    operators = {"Conv", "LeakyRelu", "Resize", "Concat", *(["MaxPool"] if layout.pooled else [])}
    if layout.half_resolution and layout.levels == 1:
        operators -= {"Resize", "Concat"}
    named = {"layout": layout, "divisor": 2**layout.levels, "operators": frozenset(operators)}
    return type("VxmDense", (VxmDense,), {**named, "integration": layout.integration or Integration()})
