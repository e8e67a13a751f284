"""TransMorph (Chen et al., Medical Image Analysis 2022) under the published names, in its published sizes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.train.networks.base import HeavyBlock, RegistrationNetwork
from ofg_deploy.train.networks.convolution import Conv3d
from ofg_deploy.train.networks.swin import SwinTransformer, WindowAttention
from ofg_deploy.train.networks.up import Up

FULL_RESOLUTION = 16  # channels of the last decoder level and of the convolution that feeds it


class Conv(nn.Sequential):
    """3x3x3 convolution, instance norm, LeakyReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        convolution = Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        super().__init__(convolution, nn.InstanceNorm3d(channels_out), nn.LeakyReLU())


class StepwiseInstanceNorm(nn.Module):
    """``nn.InstanceNorm3d`` for exported graphs, its means taken along Z first.

    ONNX Runtime adds up a whole volume in float32 in one go: at 160x192x224 its own operator left a field of 22 voxels
    0.04 voxel off.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - _mean(x)
        return centred / (_mean(centred.pow(2)) + self.eps).sqrt()


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(4, keepdim=True).mean((2, 3), keepdim=True)


class HeavyConv(Conv, HeavyBlock):
    """The same, worth recomputing."""


class TransMorph(RegistrationNetwork):
    """A Swin transformer as encoder, convolutions as decoder.

    Any grid; it computes on multiples of 32. The weights depend on the window but not on the grid. The diffeomorphic
    form is this project's own, integrated at half resolution; the paper's TransMorph-diff is another network, whose
    weights have other names.

    Attributes:
        channels: of the first stage (C in the paper).
        depths, heads: blocks and attention heads of each stage.
        window: tokens (4x4x4 voxels each) of an attention window.
    """

    divisor = 32
    operators = frozenset(
        {"Conv", "LayerNormalization", "Gather", "Pad", "MatMul", "Split", "Reshape", "Transpose", "Softmax", "Gelu"}
        | {"Add", "Mul", "AveragePool", "ReduceMean", "Sub", "Pow", "Sqrt", "Div", "LeakyRelu", "Resize", "Concat"}
    )
    channels: ClassVar[int] = 96
    depths: ClassVar[tuple[int, ...]] = (2, 2, 4, 2)
    heads: ClassVar[tuple[int, ...]] = (4, 4, 8, 8)
    window: ClassVar[Shape] = (5, 6, 7)

    def __init__(self, grid: Shape, diffeomorphic: bool | Integration = False) -> None:
        super().__init__(grid, diffeomorphic)
        c = self.channels
        self.transformer = SwinTransformer(self.padded, c, self.depths, self.heads, self.window)
        self.up0 = Up(Conv, 8 * c, 4 * c, 4 * c)
        self.up1 = Up(Conv, 4 * c, 2 * c, 2 * c)
        self.up2 = Up(Conv, 2 * c, c, c)
        self.up3 = Up(Conv, c, c // 2, c // 2)
        self.up4 = Up(Conv, c // 2, FULL_RESOLUTION, FULL_RESOLUTION)
        self.c1 = HeavyConv(2, c // 2)
        self.c2 = HeavyConv(2, FULL_RESOLUTION)
        self.reg_head = nn.Sequential(Conv3d(FULL_RESOLUTION, 3, 3, padding=1))
        # A start close to the identity map, as published.
        nn.init.normal_(self.reg_head[0].weight, std=1e-5)
        nn.init.zeros_(self.reg_head[0].bias)

    def inference_copy(self, any_size: bool = False, with_warp: bool = False) -> RegistrationNetwork:
        copy = super().inference_copy(any_size, with_warp)
        for module in copy.modules():
            if isinstance(module, WindowAttention) and module.known_bias is None:
                module.freeze_bias(self.transformer.relative)
            elif isinstance(module, Conv) and isinstance(module[1], nn.InstanceNorm3d):
                module[1] = StepwiseInstanceNorm(module[1].eps)
        return copy

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        half, full = self.c1(functional.avg_pool3d(images, 3, stride=2, padding=1)), self.c2(images)
        quarter, eighth, sixteenth, x = self.transformer(images)
        x = self.up0(x, sixteenth)
        x = self.up1(x, eighth)
        x = self.up2(x, quarter)
        x = self.up3(x, half)
        x = self.up4(x, full)
        return self.reg_head(x)


class TransMorphSmall(TransMorph):
    """The paper's small variant."""

    channels = 48
    heads = (4, 4, 4, 4)


class TransMorphLarge(TransMorph):
    """The paper's large variant."""

    channels = 128
    depths = (2, 2, 12, 2)
    heads = (4, 4, 8, 16)


class TransMorphLPBA(TransMorph):
    """Windows that tile the LPBA40 grid of 160x192x160."""

    window = (5, 6, 5)
