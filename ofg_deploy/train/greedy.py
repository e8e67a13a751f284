"""``Greedy`` and ``Multilevel`` steps in plain torch: for tensors that are not on the CPU, and as an oracle."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from ofg_deploy.errors import UsageError
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.train.losses import local_ncc_loss, warp

REACH = 4.0  # standard deviations after which a Gaussian ends, as in ``kernels.gaussian``


def refine(
    optimiser: Greedy | Multilevel, field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor
) -> torch.Tensor:
    """Refine every pair of a batch, whatever else is in it.

    Args:
        field: (N, 3, X, Y, Z) voxels.
        moving, fixed: (N, 1, X, Y, Z) in 0..1.

    Returns:
        The refined field, detached.

    Raises:
        UsageError: ``blind`` steps, which are compiled ones alone.
    """
    greedy = optimiser if isinstance(optimiser, Greedy) else optimiser.greedy
    if greedy.blind:
        raise UsageError("greedy steps blind to the scale of intensities run on the CPU only")
    field = field.detach()
    if isinstance(optimiser, Multilevel):
        fixed_levels = [fixed]
        for _ in optimiser.coarse_steps:
            fixed_levels.append(coarsen(fixed_levels[-1]))
        for steps in optimiser.coarse_steps:
            target = fixed_levels.pop()
            warped = warp(moving, field)
            for _ in fixed_levels:
                warped = coarsen(warped)
            update = _descend(
                replace(greedy, steps=steps), target.new_zeros(len(target), 3, *target.shape[2:]), warped, target
            )
            for finer in reversed(fixed_levels):
                update = refine_grid(update, finer.shape[2:])
            field = compose(field, update)
    return _descend(greedy, field, moving, fixed)


def _descend(options: Greedy, field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    for _ in range(options.steps):
        warped, slope = _warp_with_slope(moving, field)
        with torch.enable_grad():
            loss = local_ncc_loss(warped.requires_grad_(), fixed, options.window)
        [gradient] = torch.autograd.grad(loss, warped)
        direction = smooth(gradient * slope, options.gradient_sigma)
        length, space = direction.square().sum(dim=1, keepdim=True).sqrt(), (2, 3, 4)
        total = length.sum(space, keepdim=True)
        mean = length.square().sum(space, keepdim=True) / total.clamp(min=torch.finfo(total.dtype).tiny)
        longest = torch.minimum(length.amax(space, keepdim=True), options.limit * mean)
        step = direction * (-options.step / torch.maximum(length, longest).clamp(min=torch.finfo(total.dtype).tiny))
        field = torch.where(longest > 0, smooth(compose(field, step), options.field_sigma), field)
    return field


def _warp_with_slope(moving: torch.Tensor, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``losses.warp``, and d warped / d field (N, 3, X, Y, Z).

    At a lattice point the slope is that of the upper side, where ``grid_sample`` has whichever side its rounding falls
    on; and every coarse level starts with all its voxels on lattice points.
    """
    shape = moving.shape[2:]
    whole = field.floor()
    t_x, t_y, t_z = (field - whole).unbind(1)
    strides = ((shape[1] + 2) * (shape[2] + 2), shape[2] + 2, 1)
    corners = []  # by axis: the lower and the upper index into the image with a rim of zeros
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        at = [1, 1, 1]
        at[axis] = size
        place = whole[:, axis] + torch.arange(size, device=field.device, dtype=field.dtype).view(at)
        corners.append([(p.clamp(-1, size) + 1).long() * stride for p in (place, place + 1)])
    rimmed = functional.pad(moving, [1] * 6).flatten(1)
    values = [
        [[rimmed.gather(1, (x + y + z).flatten(1)).view(x.shape) for z in corners[2]] for y in corners[1]]
        for x in corners[0]
    ]
    along_z = [[low + t_z * (high - low) for low, high in row] for row in values]
    along_y = [low + t_y * (high - low) for low, high in along_z]
    warped = along_y[0] + t_x * (along_y[1] - along_y[0])
    by_y = [high - low for low, high in along_z]
    by_z = [a[1] - a[0] + t_y * ((b[1] - b[0]) - (a[1] - a[0])) for a, b in values]
    slope = [along_y[1] - along_y[0], by_y[0] + t_x * (by_y[1] - by_y[0]), by_z[0] + t_x * (by_z[1] - by_z[0])]
    return warped[:, None], torch.stack(slope, dim=1)


def compose(field: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The map of ``step`` first, then that of ``field``, which keeps its edge values beyond the border."""
    return step + warp(field, step, beyond="border")


def smooth(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of (N, C, X, Y, Z), edge values held; 0 changes nothing."""
    reach = int(REACH * sigma + 0.5)
    if reach == 0:
        return volume
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    return _along_axes(volume, (taps / taps.sum()).to(volume))


def coarsen(image: torch.Tensor) -> torch.Tensor:
    """(N, C, X, Y, Z) smoothed by 1/4, 1/2, 1/4 along each axis; every second voxel, the first one kept."""
    return _along_axes(image, image.new_tensor([0.25, 0.5, 0.25]))[:, :, ::2, ::2, ::2].contiguous()


def refine_grid(field: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A field (N, 3, ...) in coarse voxels, linearly on the finer grid ``shape`` that ``coarsen`` came from."""
    for axis, size in enumerate(shape, start=2):
        place = torch.arange(size, device=field.device)
        below, above = place // 2, ((place + 1) // 2).clamp(max=field.shape[axis] - 1)
        field = 0.5 * (field.index_select(axis, below) + field.index_select(axis, above))
    return 2 * field


def _along_axes(volume: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    reach = len(taps) // 2
    flat = volume.reshape(-1, 1, *volume.shape[2:])
    for axis in range(3):
        padding, shape = [0] * 6, [1, 1, 1, 1, 1]
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
        shape[2 + axis] = len(taps)
        flat = functional.conv3d(functional.pad(flat, padding, mode="replicate"), taps.view(shape))
    return flat.view(volume.shape)
