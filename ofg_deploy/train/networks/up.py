"""The decoder block that TransMorph and ViT-V-Net share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.train.networks.base import HeavyBlock


class Up(HeavyBlock):
    """Twice the resolution (trilinear), beside what skips over from the encoder, then two convolutions.

    Args:
        convolution: makes one, with norm and activation, from its channels in and out.
        channels_in, skipped, channels_out: from below, from the encoder, and of the result.
    """

    def __init__(
        self, convolution: Callable[[int, int], nn.Module], channels_in: int, skipped: int, channels_out: int
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels_in + skipped, channels_out)
        self.conv2 = convolution(channels_out, channels_out)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="trilinear")
        return self.conv2(self.conv1(torch.cat([x, skip], dim=1)))
