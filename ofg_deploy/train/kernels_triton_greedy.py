"""``Greedy`` steps in Triton kernels, for CUDA; on a CPU they run in Triton's interpreter (TRITON_INTERPRET=1).

Sampling and the local NCC's gradient are the kernels of ``kernels_triton``; here are the Gaussian, one axis after the
other, and the composition of a step with the field. The lengths of the step's vectors are reduced by torch and stay on
the device: no step waits for the CPU. Not yet run or timed on a GPU.

Volumes are flat as in ``kernels_triton``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ofg_deploy.errors import UsageError
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.train.kernels_triton import (
    BLOCK,
    _sum_axis,
    _sum_products,
    _warp,
    _weigh,
    _window,
)

REACH = 4.0  # standard deviations after which a Gaussian ends, as in ``greedy.smooth``
TINY = 1.1754943508222875e-38  # the smallest normal float32


def refine(options: Greedy, field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """One pair through ``Greedy``'s steps.

    Args:
        field: (3, X, Y, Z) float32 voxels; left unchanged.
        moving, fixed: (X, Y, Z) float32, on the same device.

    Returns:
        (3, X, Y, Z) refined field.

    Raises:
        UsageError: ``blind`` steps, which only the compiled kernels know.
    """
    if options.blind:
        raise UsageError("greedy steps blind to the scale of intensities run on the CPU only")
    shape, n, half = moving.shape, moving.numel(), options.window // 2
    moving, fixed, here = moving.contiguous(), fixed.contiguous(), field.clone(memory_format=torch.contiguous_format)
    slope, warped = torch.empty_like(here), torch.empty_like(moving)
    first, second = (torch.empty((5, n), dtype=here.dtype, device=here.device) for _ in range(2))
    three, other_three = (sums[:3].view(field.shape) for sums in (first, second))  # the same memory, used in turns
    blocks, x_step, y_step = triton.cdiv(n, BLOCK), shape[1] * shape[2], shape[2]
    for _ in range(options.steps):
        _warp[blocks,](moving, here, warped, slope, *shape, n, BLOCK)
        _sum_products[blocks,](warped, fixed, first, shape[2], n, half, BLOCK)
        _sum_axis[blocks, 5](first, second, y_step, shape[1], n, half, BLOCK)
        _weigh[blocks,](second, first, x_step, shape[0], n, half, float(options.window**3), BLOCK)
        _sum_axis[blocks, 3](first, second, 1, shape[2], n, half, BLOCK)
        _sum_axis[blocks, 3](second, first, y_step, shape[1], n, half, BLOCK)
        _steer[blocks,](first, warped, fixed, slope, x_step, shape[0], n, half, BLOCK)
        direction = smooth(slope, options.gradient_sigma, three, other_three)
        longest = _longest(direction, options.limit)
        _compose[blocks,](here, direction, longest, other_three, *shape, n, options.step, TINY, BLOCK)
        smoothed = smooth(other_three, options.field_sigma, slope, three)
        here = torch.where(longest > 0, smoothed, here)
    return here


def smooth(volume: torch.Tensor, sigma: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Gaussian smoothing of (3, X, Y, Z), edge values held; 0 changes nothing.

    Args:
        first, second: working memory of the same size.

    Returns:
        ``first``, or ``volume`` as it is.
    """
    reach = int(REACH * sigma + 0.5)
    if reach == 0:
        return volume
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    taps = (taps / taps.sum()).to(volume)
    shape, n = volume.shape[1:], math.prod(volume.shape[1:])
    grid = triton.cdiv(n, BLOCK), 3
    _gauss[grid](volume, first, taps, shape[1] * shape[2], shape[0], n, reach, BLOCK)
    _gauss[grid](first, second, taps, shape[2], shape[1], n, reach, BLOCK)
    _gauss[grid](second, first, taps, 1, shape[2], n, reach, BLOCK)
    return first


def _longest(direction: torch.Tensor, limit: float) -> torch.Tensor:
    """The length, on the device, that becomes the step's: of the longest vector, or ``limit`` times the mean."""
    length = torch.linalg.vector_norm(direction, dim=0)
    mean = length.square().sum() / length.sum().clamp(min=TINY)
    return torch.minimum(length.amax(), limit * mean)


@triton.jit
def _steer(weights, a, b, slope, step, size, n, half, block: tl.constexpr):
    """The last axis of the weights' sums; the gradient in the field takes the place of the image's slope."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    mask = i < n
    by_cross = _window(weights, i, step, size, n, half, block)
    by_var = _window(weights + n, i, step, size, n, half, block)
    by_mean = _window(weights + 2 * n, i, step, size, n, half, block)
    value_a, value_b = tl.load(a + i, mask=mask, other=0.0), tl.load(b + i, mask=mask, other=0.0)
    image = -(by_cross * value_b + by_var * value_a + by_mean) / n
    for c in tl.static_range(3):
        tl.store(slope + c * n + i, image * tl.load(slope + c * n + i, mask=mask, other=0.0), mask=mask)


@triton.jit
def _gauss(source, out, taps, step, size, n, reach, block: tl.constexpr):
    """Weighted sum along the axis whose neighbours are ``step`` voxels apart, edge values held."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    mask = i < n
    channel = tl.program_id(1) * n
    place = (i // step) % size
    total = tl.zeros((block,), tl.float32)
    for k in range(-reach, reach + 1):
        there = tl.minimum(tl.maximum(place + k, 0), size - 1)
        value = tl.load(source + channel + i + (there - place) * step, mask=mask, other=0.0)
        total += tl.load(taps + reach + k) * value
    tl.store(out + channel + i, total, mask=mask)


@triton.jit
def _held(displacement, index, size):
    """Lower and upper neighbour along an axis, both kept inside, and the fraction between them."""
    whole = tl.floor(displacement)
    position = tl.minimum(tl.maximum(whole + index.to(tl.float32), -1.0), size * 1.0).to(tl.int32)
    lower = tl.minimum(tl.maximum(position, 0), size - 1)
    upper = tl.minimum(tl.maximum(position + 1, 0), size - 1)
    return lower, upper, displacement - whole


@triton.jit
def _compose(
    field, direction, longest, out, size_x, size_y, size_z, n, length, tiny, block: tl.constexpr,
):  # fmt: skip
    """The step (the direction scaled, downhill) first, then the field; beyond the border it keeps its edge values."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    mask = i < n
    s_x = tl.load(direction + i, mask=mask, other=0.0)
    s_y = tl.load(direction + n + i, mask=mask, other=0.0)
    s_z = tl.load(direction + 2 * n + i, mask=mask, other=0.0)
    scale = tl.maximum(tl.sqrt(s_x * s_x + s_y * s_y + s_z * s_z), tl.load(longest))
    scale = -length / tl.maximum(scale, tiny)
    s_x, s_y, s_z = s_x * scale, s_y * scale, s_z * scale
    x0, x1, tx = _held(s_x, i // (size_y * size_z), size_x)
    y0, y1, ty = _held(s_y, (i // size_z) % size_y, size_y)
    z0, z1, tz = _held(s_z, i % size_z, size_z)
    x0, x1, y0, y1 = x0 * size_y * size_z, x1 * size_y * size_z, y0 * size_z, y1 * size_z
    for c in tl.static_range(3):
        one = field + c * n
        v000, v001 = tl.load(one + x0 + y0 + z0, mask=mask), tl.load(one + x0 + y0 + z1, mask=mask)
        v010, v011 = tl.load(one + x0 + y1 + z0, mask=mask), tl.load(one + x0 + y1 + z1, mask=mask)
        v100, v101 = tl.load(one + x1 + y0 + z0, mask=mask), tl.load(one + x1 + y0 + z1, mask=mask)
        v110, v111 = tl.load(one + x1 + y1 + z0, mask=mask), tl.load(one + x1 + y1 + z1, mask=mask)
        c00, c01 = v000 + tz * (v001 - v000), v010 + tz * (v011 - v010)
        c10, c11 = v100 + tz * (v101 - v100), v110 + tz * (v111 - v110)
        a0, a1 = c00 + ty * (c01 - c00), c10 + ty * (c11 - c10)
        step = s_x if c == 0 else (s_y if c == 1 else s_z)
        tl.store(out + c * n + i, step + a0 + tx * (a1 - a0), mask=mask)
