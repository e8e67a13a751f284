"""Energy of a pair and its field, as published: local NCC + diffusion, and the OFG loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional


def warp(moving: torch.Tensor, field: torch.Tensor, beyond: str = "zeros") -> torch.Tensor:
    """Sample ``moving`` (N, C, X, Y, Z) at voxel + ``field`` (N, 3, X, Y, Z, voxels); linear, zeros outside.

    Args:
        beyond: ``border`` holds the edge values outside instead.
    """
    shape = field.shape[2:]
    axes = [torch.arange(n, dtype=field.dtype, device=field.device) for n in shape]
    lattice = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    upper = torch.tensor([n - 1 for n in shape], dtype=field.dtype, device=field.device).view(3, 1, 1, 1)
    where = 2 * (lattice + field) / upper - 1
    # grid_sample wants the last array axis first.
    return functional.grid_sample(moving, where.flip(1).movedim(1, -1), padding_mode=beyond, align_corners=True)


def local_ncc_loss(a: torch.Tensor, b: torch.Tensor, window: int = 9) -> torch.Tensor:
    """Negative squared local correlation of (N, 1, X, Y, Z) images, mean over voxels.

    cross^2 / (var_a * var_b + 1e-5) over a cubic window with zero padding. As published, the window *sums* (not means)
    enter, which sets the scale of the 1e-5. Avants et al., Medical Image Analysis 2008, eq. 5.

    Args:
        a: the image that may carry a gradient (the warped moving one).
        b: the other image, a constant here.
    """
    loss: torch.Tensor = _LocalNCC.apply(a, b.detach(), window)
    return loss


class _LocalNCC(torch.autograd.Function):
    """Value and closed-form gradient in ``a``: eight box sums in all, and no graph of intermediate volumes."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, window: int) -> torch.Tensor:
        size = float(window**3)
        sums = _window_sums(torch.cat([a, b, a * a, b * b, a * b], dim=1), window)
        sum_a, sum_b, sum_aa, sum_bb, sum_ab = sums.split(1, dim=1)
        cross = sum_ab - sum_a * sum_b / size
        var_a = sum_aa - sum_a * sum_a / size
        var_b = sum_bb - sum_b * sum_b / size
        inverse = 1 / (var_a * var_b + 1e-5)
        ratio = cross * inverse
        # With r = cross^2 / denominator: dr/dcross = 2 ratio, dr/dvar_a = -ratio^2 var_b. A voxel of ``a`` enters
        # cross with weight b - mean_b and var_a with weight 2 (a - mean_a); the box filter is its own transpose.
        by_cross, by_var = 2 * ratio, -ratio * ratio * var_b
        by_mean = -(by_cross * sum_b + 2 * by_var * sum_a) / size
        ctx.window = window
        ctx.save_for_backward(a, b, torch.cat([by_cross, by_var, by_mean], dim=1))
        return -(cross * ratio).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        a, b, weights = ctx.saved_tensors
        by_cross, by_var, by_mean = _window_sums(weights, ctx.window).split(1, dim=1)
        gradient = by_cross * b + 2 * by_var * a + by_mean
        return gradient * (-upstream / a.numel()), None, None


def diffusion(field: torch.Tensor) -> torch.Tensor:
    """Mean squared forward difference of (N, 3, X, Y, Z) along each axis, averaged over the three axes."""
    return torch.stack([torch.diff(field, dim=axis).square().mean() for axis in (2, 3, 4)]).sum() / 3


def ofg_loss(predicted: torch.Tensor, refined: torch.Tensor, sobolev: float = 0.0) -> torch.Tensor:
    """Mean squared difference to the refined field, which is a constant here (Xin et al., MICCAI 2024).

    Args:
        sobolev: weight of the diffusion of the difference, which is added. Targets that are smoothed gradients say
            little at fine scales; this makes the network hear it.
    """
    loss = functional.mse_loss(predicted, refined.detach())
    return loss + sobolev * diffusion(predicted - refined.detach()) if sobolev else loss


def _window_sums(x: torch.Tensor, window: int) -> torch.Tensor:
    """Box sums of each channel (zero padding), one axis after the other."""
    half = window // 2
    for axis in (2, 3, 4):
        padding = [0] * 6
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = half
        x = functional.pad(x, padding).unfold(axis, window, 1).sum(-1)
    return x
