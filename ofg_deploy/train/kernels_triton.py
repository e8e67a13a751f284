"""The guided step in five Triton kernels, for CUDA; on a CPU they run in Triton's interpreter (TRITON_INTERPRET=1).

The same arithmetic as ``ofg_deploy.kernels`` with single-precision sums, as the plain-torch closed form has them:
window sums one axis after the other, the last one fused with what is made of them. Nothing is allocated between steps.
The tests run them in the interpreter and compile them for sm_75, sm_80 and sm_90; not yet run or timed on a GPU.

Volumes are flat in here: a voxel's index is (x * Y + y) * Z + z, channel c of n voxels starts at c * n.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256
BETA_1 = 0.9  # as ``_update`` has it


def refine(
    field: torch.Tensor,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    steps: int,
    lr: float,
    smoothness: float,
    window: int,
) -> torch.Tensor:
    """One pair through ``ofg_deploy.kernels.refine.Adam``'s steps.

    Args:
        field: (3, X, Y, Z) float32 voxels; left unchanged.
        moving, fixed: (X, Y, Z) float32, on the same device.
        steps, lr, smoothness, window: as there.

    Returns:
        (3, X, Y, Z) refined field.
    """
    return _descend(field, moving, fixed, steps, lr, smoothness, window)[0]


def gradient(
    field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor, smoothness: float, window: int
) -> torch.Tensor:
    """(3, X, Y, Z): gradient of the energy that ``refine`` descends; its steps divide by the size and hide errors."""
    state = _descend(field, moving, fixed, 1, 1.0, smoothness, window)[1]
    return state.view(3, 3, *moving.shape)[:, 0] / (1 - BETA_1)


def _descend(
    field: torch.Tensor,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    steps: int,
    lr: float,
    smoothness: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The refined field, and Adam's state: for each component mean, mean square and its largest, (9, voxels)."""
    shape, n = moving.shape, moving.numel()
    moving, fixed, here = moving.contiguous(), fixed.contiguous(), field.clone(memory_format=torch.contiguous_format)
    after, slope, warped = torch.empty_like(here), torch.empty_like(here), torch.empty_like(moving)
    first, second = (torch.empty((5, n), dtype=here.dtype, device=here.device) for _ in range(2))
    state = torch.zeros((9, n), dtype=here.dtype, device=here.device)
    half, blocks = window // 2, triton.cdiv(n, BLOCK)
    stencil = [2 * smoothness / (9 * n * (size - 1) / size) for size in shape]
    x_step, y_step = shape[1] * shape[2], shape[2]
    for count in range(1, steps + 1):
        _warp[blocks,](moving, here, warped, slope, *shape, n, BLOCK)
        _sum_products[blocks,](warped, fixed, first, shape[2], n, half, BLOCK)
        _sum_axis[blocks, 5](first, second, y_step, shape[1], n, half, BLOCK)
        _weigh[blocks,](second, first, x_step, shape[0], n, half, float(window**3), BLOCK)
        _sum_axis[blocks, 3](first, second, 1, shape[2], n, half, BLOCK)
        _sum_axis[blocks, 3](second, first, y_step, shape[1], n, half, BLOCK)
        step, root = lr / (1 - BETA_1**count), (1 - 0.999**count) ** -0.5
        _update[blocks,](first, warped, fixed, slope, here, after, state, *shape, n, half, *stencil, step, root, BLOCK)
        here, after = after, here
    return here, state


@triton.jit
def _corner(image, x, y, z, size_x, size_y, size_z, mask):
    inside = mask & (x >= 0) & (x < size_x) & (y >= 0) & (y < size_y) & (z >= 0) & (z < size_z)
    return tl.load(image + (x * size_y + y) * size_z + z, mask=inside, other=0.0)


@triton.jit
def _split(displacement, index, size):
    """Whole part plus the voxel's index, and the fraction; far outside is just outside."""
    whole = tl.floor(displacement)
    position = tl.minimum(tl.maximum(whole + index.to(tl.float32), -2.0), size * 1.0)
    return position.to(tl.int32), displacement - whole


@triton.jit
def _warp(image, field, warped, slope, size_x, size_y, size_z, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    mask = i < n
    x, tx = _split(tl.load(field + i, mask=mask, other=0.0), i // (size_y * size_z), size_x)
    y, ty = _split(tl.load(field + n + i, mask=mask, other=0.0), (i // size_z) % size_y, size_y)
    z, tz = _split(tl.load(field + 2 * n + i, mask=mask, other=0.0), i % size_z, size_z)
    v000 = _corner(image, x, y, z, size_x, size_y, size_z, mask)
    v001 = _corner(image, x, y, z + 1, size_x, size_y, size_z, mask)
    v010 = _corner(image, x, y + 1, z, size_x, size_y, size_z, mask)
    v011 = _corner(image, x, y + 1, z + 1, size_x, size_y, size_z, mask)
    v100 = _corner(image, x + 1, y, z, size_x, size_y, size_z, mask)
    v101 = _corner(image, x + 1, y, z + 1, size_x, size_y, size_z, mask)
    v110 = _corner(image, x + 1, y + 1, z, size_x, size_y, size_z, mask)
    v111 = _corner(image, x + 1, y + 1, z + 1, size_x, size_y, size_z, mask)
    e00, e01, e10, e11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
    c00, c01, c10, c11 = v000 + tz * e00, v010 + tz * e01, v100 + tz * e10, v110 + tz * e11
    b0, b1 = c01 - c00, c11 - c10
    a0, a1 = c00 + ty * b0, c10 + ty * b1
    e0, e1 = e00 + ty * (e01 - e00), e10 + ty * (e11 - e10)
    tl.store(warped + i, a0 + tx * (a1 - a0), mask=mask)
    tl.store(slope + i, a1 - a0, mask=mask)
    tl.store(slope + n + i, b0 + tx * (b1 - b0), mask=mask)
    tl.store(slope + 2 * n + i, e0 + tx * (e1 - e0), mask=mask)


@triton.jit
def _sum_products(a, b, out, size_z, n, half, block: tl.constexpr):
    """Sums of a, b, a^2, b^2 and ab along the last axis."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    z = i % size_z
    s_a = tl.zeros((block,), tl.float32)
    s_b, s_aa, s_bb, s_ab = s_a, s_a, s_a, s_a
    for k in range(-half, half + 1):
        inside = (i < n) & (z + k >= 0) & (z + k < size_z)
        value_a = tl.load(a + i + k, mask=inside, other=0.0)
        value_b = tl.load(b + i + k, mask=inside, other=0.0)
        s_a += value_a
        s_b += value_b
        s_aa += value_a * value_a
        s_bb += value_b * value_b
        s_ab += value_a * value_b
    mask = i < n
    tl.store(out + i, s_a, mask=mask)
    tl.store(out + n + i, s_b, mask=mask)
    tl.store(out + 2 * n + i, s_aa, mask=mask)
    tl.store(out + 3 * n + i, s_bb, mask=mask)
    tl.store(out + 4 * n + i, s_ab, mask=mask)


@triton.jit
def _window(source, i, step, size, n, half, block: tl.constexpr):
    """Sum along the axis whose neighbours are ``step`` voxels apart."""
    place = (i // step) % size
    total = tl.zeros((block,), tl.float32)
    for k in range(-half, half + 1):
        inside = (i < n) & (place + k >= 0) & (place + k < size)
        total += tl.load(source + i + k * step, mask=inside, other=0.0)
    return total


@triton.jit
def _sum_axis(source, out, step, size, n, half, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.program_id(1) * n
    tl.store(out + channel + i, _window(source + channel, i, step, size, n, half, block), mask=i < n)


@triton.jit
def _weigh(sums, weights, step, size, n, half, volume, block: tl.constexpr):
    """The last axis of the five sums, and the three weights that ``_update`` makes the gradient of."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    s_a = _window(sums, i, step, size, n, half, block)
    s_b = _window(sums + n, i, step, size, n, half, block)
    var_a = _window(sums + 2 * n, i, step, size, n, half, block) - s_a * s_a / volume
    var_b = _window(sums + 3 * n, i, step, size, n, half, block) - s_b * s_b / volume
    cross = _window(sums + 4 * n, i, step, size, n, half, block) - s_a * s_b / volume
    ratio = cross / (var_a * var_b + 1e-5)
    in_cross, in_var = 2 * ratio, -2 * ratio * ratio * var_b
    mask = i < n
    tl.store(weights + i, in_cross, mask=mask)
    tl.store(weights + n + i, in_var, mask=mask)
    tl.store(weights + 2 * n + i, -(in_cross * s_b + in_var * s_a) / volume, mask=mask)


@triton.jit
def _bend(field, i, step, size, mask):
    """Twice the value less its neighbours along an axis; the field goes on unchanged beyond the border."""
    place = (i // step) % size
    here = tl.load(field + i, mask=mask, other=0.0)
    before = tl.load(field + i - step, mask=mask & (place > 0), other=0.0)
    after = tl.load(field + i + step, mask=mask & (place < size - 1), other=0.0)
    return tl.where(place > 0, here - before, 0.0) + tl.where(place < size - 1, here - after, 0.0)


@triton.jit
def _update(
    weights, a, b, slope, field, out, state,
    size_x, size_y, size_z, n, half, w_x, w_y, w_z, lr, root, block: tl.constexpr,
):  # fmt: skip
    """The last axis of the weights' sums, the gradient in the field, Adam (amsgrad)."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    mask = i < n
    step_x = size_y * size_z
    by_cross = _window(weights, i, step_x, size_x, n, half, block)
    by_var = _window(weights + n, i, step_x, size_x, n, half, block)
    by_mean = _window(weights + 2 * n, i, step_x, size_x, n, half, block)
    value_a, value_b = tl.load(a + i, mask=mask, other=0.0), tl.load(b + i, mask=mask, other=0.0)
    image = -(by_cross * value_b + by_var * value_a + by_mean) / n
    for c in tl.static_range(3):
        one = field + c * n
        rough = w_x * _bend(one, i, step_x, size_x, mask) + w_y * _bend(one, i, size_z, size_y, mask)
        rough += w_z * _bend(one, i, 1, size_z, mask)
        gradient = image * tl.load(slope + c * n + i, mask=mask, other=0.0) + rough
        mine = state + 3 * c * n + i
        mean = 0.9 * tl.load(mine, mask=mask, other=0.0) + 0.1 * gradient
        square = 0.999 * tl.load(mine + n, mask=mask, other=0.0) + 0.001 * gradient * gradient
        largest = tl.maximum(tl.load(mine + 2 * n, mask=mask, other=0.0), square)
        tl.store(mine, mean, mask=mask)
        tl.store(mine + n, square, mask=mask)
        tl.store(mine + 2 * n, largest, mask=mask)
        value = tl.load(one + i, mask=mask, other=0.0) - lr * mean / (tl.sqrt(largest) * root + 1e-8)
        tl.store(out + c * n + i, value, mask=mask)
