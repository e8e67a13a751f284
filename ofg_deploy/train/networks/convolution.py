"""3-D convolution that trains fast on a CPU at batch 1."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

# torch hands a convolution of one float32 sample to oneDNN only above so many values of (channels, X, Y); below, its
# own one unfolds the volume and is several times slower. Two samples go to oneDNN at any size.
ONEDNN_ABOVE = 20480


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` with padding k // 2 and stride 1 or 2: the same weights, names and values (to rounding).

    In training on a CPU a single small sample is convolved as two slabs along X, each with the neighbouring planes it
    needs, as if they were two samples.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if not self.training or kernel == 1 or x.device.type != "cpu" or x.shape[0] != 1 or x.shape[2] % (2 * stride):
            return super().forward(x)
        if x.shape[1] * x.shape[2] * x.shape[3] > ONEDNN_ABOVE:
            return super().forward(x)
        _, ahead, beside = self.padding
        padded = functional.pad(x, (0, 0, 0, 0, kernel // 2, kernel // 2))
        half = x.shape[2] // 2
        planes = half - stride + kernel
        slabs = torch.cat([padded[:, :, :planes], padded[:, :, half : half + planes]])
        convolved = functional.conv3d(slabs, self.weight, self.bias, self.stride, (0, ahead, beside))
        return torch.cat([convolved[:1], convolved[1:]], dim=2)
