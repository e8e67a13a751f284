"""A U-Net like VoxelMorph's that predicts at half resolution: nothing of it, and nothing it gives, is finer."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.convolution import Conv3d
from ofg_deploy.train.networks.voxelmorph import ConvBlock


class VoxelMorphHalf(RegistrationNetwork):
    """Strided levels down, nearest-neighbour levels up to half resolution with skips; the flow is linear in between.

    That registration fields need no more is Dalca et al.'s finding (Medical Image Analysis 2019), who predict at half
    resolution and integrate there, as this one does in diffeomorphic form. What is saved at full resolution, seven
    eighths of VoxelMorph's arithmetic, buys width where it is cheap. Fully convolutional: any grid; it computes on
    multiples of 16.

    Attributes:
        encoder: channels of the levels down; those up have the same ones. The divisor is 2 to their number.
    """

    divisor = 16
    fully_convolutional = True
    operators = frozenset({"Conv", "LeakyRelu", "Resize", "Concat"})
    encoder: ClassVar[tuple[int, ...]] = (16, 32, 64, 64)

    def __init__(self, grid: Shape, diffeomorphic: bool | Integration = False) -> None:
        super().__init__(grid, diffeomorphic)
        self.down = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in pairwise((2, *self.encoder)))
        up = self.encoder[::-1]
        below = (0, *up[:-1])  # the deepest level has nothing below it to be joined with
        self.up = nn.ModuleList(ConvBlock(b + a, a) for b, a in zip(below, up, strict=True))
        self.flow = Conv3d(self.encoder[0], 3, 3, padding=1)
        # A start close to the identity map, as VoxelMorph's.
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        levels = [images]
        for block in self.down:
            levels.append(block(levels[-1]))
        x = self.up[0](levels.pop())
        for block in self.up[1:]:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, levels.pop()], dim=1))
        return functional.interpolate(self.flow(x), scale_factor=2.0, mode="trilinear")
