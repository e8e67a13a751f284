"""LKU-Net (Jia et al., MLMI 2022) under the published names, in any of its widths."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import torch
from torch import nn

from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.train.networks.base import HeavyBlock, RegistrationNetwork
from ofg_deploy.train.networks.convolution import Conv3d


class Conv(nn.Sequential, HeavyBlock):
    """3x3x3 convolution, then PReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(Conv3d(channels_in, channels_out, 3, stride, padding=1), nn.PReLU())


class Up(nn.Sequential, HeavyBlock):
    """2x2x2 transposed convolution with stride 2, then PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.ConvTranspose3d(channels, channels, 2, stride=2), nn.PReLU())


class LargeKernel(HeavyBlock):
    """Convolutions of 3, 5 and 1 voxels and the identity side by side, then PReLU (the paper's LK block)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer_regularKernel = nn.Sequential(Conv3d(channels, channels, 3, padding=1))
        self.layer_largeKernel = nn.Sequential(Conv3d(channels, channels, 5, padding=2))
        self.layer_oneKernel = nn.Sequential(Conv3d(channels, channels, 1))
        self.layer_nonlinearity = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.layer_regularKernel(x) + self.layer_largeKernel(x) + self.layer_oneKernel(x)
        return self.layer_nonlinearity(wide + x)


class LKUNet(RegistrationNetwork):
    """A U-Net of four levels with large kernels in the encoder.

    Its diffeomorphic form integrates at full resolution, in seven steps, edge values held beyond the grid.

    Attributes:
        start: channels at full resolution, 8 in the paper's default; all others are multiples of it.
    """

    start: ClassVar[int] = 8
    integration = Integration(downsize=1)
    divisor = 16
    fully_convolutional = True
    size_operators = frozenset({"Shape", "Cast", "Sub", "Reshape"})
    operators = frozenset({"Conv", "ConvTranspose", "PRelu", "Add", "Concat", "Mul", "Abs", "Div"})

    def __init__(self, grid: Shape, diffeomorphic: bool | Integration = False) -> None:
        super().__init__(grid, diffeomorphic)
        c = self.start
        self.eninput, self.ec1 = Conv(2, c), Conv(c, c)
        self.ec2, self.ec3 = Conv(c, 2 * c, stride=2), LargeKernel(2 * c)
        self.ec4, self.ec5 = Conv(2 * c, 4 * c, stride=2), LargeKernel(4 * c)
        self.ec6, self.ec7 = Conv(4 * c, 8 * c, stride=2), LargeKernel(8 * c)
        self.ec8, self.ec9 = Conv(8 * c, 8 * c, stride=2), LargeKernel(8 * c)
        self.up1, self.dc1, self.dc2 = Up(8 * c), Conv(16 * c, 8 * c), Conv(8 * c, 4 * c)
        self.up2, self.dc3, self.dc4 = Up(4 * c), Conv(8 * c, 4 * c), Conv(4 * c, 2 * c)
        self.up3, self.dc5, self.dc6 = Up(2 * c), Conv(4 * c, 4 * c), Conv(4 * c, 2 * c)
        self.up4, self.dc7, self.dc8 = Up(2 * c), Conv(3 * c, 2 * c), Conv(2 * c, 2 * c)
        self.dc9 = nn.Sequential(Conv3d(2 * c, 3, 3, padding=1, bias=False), nn.Softsign())
        # Published checkpoints carry a second head, which nothing uses: without a gradient, or processes wait for it.
        self.dc10 = nn.Sequential(Conv3d(2 * c, 3, 3, padding=1, bias=False), nn.Softsign()).requires_grad_(False)
        self.register_buffer("half_extent_vox", _half_extent(torch.tensor(self.padded)), persistent=False)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        e0 = self.ec1(self.eninput(images))
        e1 = self.ec3(self.ec2(e0))
        e2 = self.ec5(self.ec4(e1))
        e3 = self.ec7(self.ec6(e2))
        x = self.ec9(self.ec8(e3))
        x = self.dc2(self.dc1(torch.cat([self.up1(x), e3], dim=1)))
        x = self.dc4(self.dc3(torch.cat([self.up2(x), e2], dim=1)))
        x = self.dc6(self.dc5(torch.cat([self.up3(x), e1], dim=1)))
        x = self.dc8(self.dc7(torch.cat([self.up4(x), e0], dim=1)))
        return self.dc9(x) * (_half_extent(_sizes(images)) if self.any_size else self.half_extent_vox)


@cache
def of_width(start: int) -> type[LKUNet]:
    """LKU-Net with another number of start channels (4, 8, 16 and 32 are published)."""
    return LKUNet if start == LKUNet.start else type(f"LKUNet{start}", (LKUNet,), {"start": start})


def _half_extent(sizes: torch.Tensor) -> torch.Tensor:
    """Voxels for one normalised unit: -1..1 spans the volume from the first to the last voxel centre."""
    return ((sizes.float() - 1) / 2).view(1, 3, 1, 1, 1)


def _sizes(images: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) of the images; in a graph one node, where the exporter would write ten."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic("Shape", (images,), {"start": 2}, dtype=torch.int64, shape=(3,), version=20)
    return torch.tensor(images.shape[2:])
