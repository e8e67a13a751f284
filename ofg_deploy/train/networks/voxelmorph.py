"""VoxelMorph (Balakrishnan et al., IEEE TMI 2019) in the widths the OFG paper trains, under the published names."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.train.networks.base import RegistrationNetwork

ENCODER = (8, 32, 32, 32)
DECODER = (32, 32, 32, 32)
HEAD = (32, 8, 8)


class ConvBlock(nn.Module):
    """3x3x3 convolution, then LeakyReLU(0.2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.main = nn.Conv3d(channels_in, channels_out, 3, stride, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(self.main(x), 0.2)


class Unet(nn.Module):
    """Four strided levels down, four nearest-neighbour levels up with skips, then the head at full resolution."""

    def __init__(self, channels_in: int = 2) -> None:
        super().__init__()
        down = (channels_in, *ENCODER)
        self.downarm = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in pairwise(down))
        skips = (0, *reversed(ENCODER[:-1]))
        below = (ENCODER[-1], *DECODER[:-1])
        self.uparm = nn.ModuleList(ConvBlock(b + s, d) for b, s, d in zip(below, skips, DECODER, strict=True))
        head = (DECODER[-1] + channels_in, *HEAD)
        self.extras = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(head))

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
    """Fully convolutional: any grid whose axes are multiples of 16."""

    divisor = 16
    onnx_ops = frozenset({"Conv", "LeakyRelu", "Resize", "Concat"})

    def __init__(self) -> None:
        super().__init__()
        self.unet_model = Unet()
        self.flow = nn.Conv3d(HEAD[-1], 3, 3, padding=1)
        # A start close to the identity map, as published.
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """(N, 1, X, Y, Z) twice -> (N, 3, X, Y, Z) voxels, array-axis order, fixed voxel -> moving voxel."""
        return self.flow(self.unet_model(torch.cat([moving, fixed], dim=1)))
