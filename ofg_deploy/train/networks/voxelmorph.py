"""VoxelMorph (Balakrishnan et al., IEEE TMI 2019) in its two published widths, under the published names."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.train.networks.base import HeavyBlock, RegistrationNetwork
from ofg_deploy.train.networks.convolution import Conv3d

DECODER = (32, 32, 32, 32)


class ConvBlock(HeavyBlock):
    """3x3x3 convolution, then LeakyReLU(0.2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.main = Conv3d(channels_in, channels_out, 3, stride, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(self.main(x), 0.2)


class Unet(nn.Module):
    """Strided levels down, as many nearest-neighbour levels up with skips, then the head at full resolution."""

    def __init__(self, encoder: tuple[int, ...], head: tuple[int, ...], decoder: tuple[int, ...] = DECODER) -> None:
        super().__init__()
        down = (2, *encoder)
        self.downarm = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in pairwise(down))
        skips = (0, *reversed(encoder[:-1]))
        below = (encoder[-1], *decoder[:-1])
        self.uparm = nn.ModuleList(ConvBlock(b + s, d) for b, s, d in zip(below, skips, decoder, strict=True))
        self.extras = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise((decoder[-1] + 2, *head)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = [x]
        for block in self.downarm:
            levels.append(block(levels[-1]))
        x = levels.pop()
        for block in self.uparm:
            x = functional.interpolate(block(x), scale_factor=2.0, mode="nearest")
            x = torch.cat([x, levels.pop()], dim=1)
        for block in self.extras:
            x = block(x)
        return x


class VoxelMorph(RegistrationNetwork):
    """Fully convolutional, in the widths the OFG paper trains: any grid; it computes on multiples of 16.

    Attributes:
        encoder, head: channels of the levels down and of the convolutions at full resolution.
    """

    divisor = 16
    fully_convolutional = True
    operators = frozenset({"Conv", "LeakyRelu", "Resize", "Concat"})
    encoder: ClassVar[tuple[int, ...]] = (8, 32, 32, 32)
    head: ClassVar[tuple[int, ...]] = (32, 8, 8)

    def __init__(self, grid: Shape, diffeomorphic: bool | Integration = False) -> None:
        super().__init__(grid, diffeomorphic)
        self.unet_model = Unet(self.encoder, self.head)
        self.flow = Conv3d(self.head[-1], 3, 3, padding=1)
        # A start close to the identity map, as published.
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.flow(self.unet_model(images))


class VoxelMorph2(VoxelMorph):
    """VoxelMorph-2: twice the channels at the finest levels."""

    encoder = (16, 32, 32, 32)
    head = (32, 16, 16)
