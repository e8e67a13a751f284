"""VoxelMorph's VxmDense told by its papers and file format, on arrays: no module of this project, no integration of it.

``forward`` computes with torch's convolutions and scipy's interpolation alone. Weights and images follow from rules, so
that figures of VoxelMorph's own packages on the same input can stand in the test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional

Grid = tuple[int, int, int]


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Values by rule: no two tensors alike, about as large as trained ones."""
    state = {}
    for number, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        gain = 6.0 if name == "flow.weight" else 1.6
        values = np.sin(1.7 * np.arange(np.prod(shape)) ** 1.3 + number) * gain / np.sqrt(np.prod(shape[1:]) or 1)
        state[name] = torch.from_numpy(values.reshape(shape) * (0.05 if name.endswith("bias") else 1)).float()
    return state


def pair(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Moving and fixed, (1, 1, X, Y, Z) in 0..1, no symmetry."""
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in grid), indexing="ij")
    moving = np.exp(-8 * ((x - 0.4) ** 2 + 2 * (y - 0.6) ** 2 + 3 * (z - 0.5) ** 2)) + 0.2 * np.sin(9 * x + 5 * y * z)
    fixed = np.exp(-8 * ((x - 0.5) ** 2 + 2 * (y - 0.5) ** 2 + 2 * (z - 0.4) ** 2)) + 0.2 * np.cos(7 * z + 4 * x * y)
    return tuple(torch.from_numpy((i - i.min()) / np.ptp(i)).float()[None, None] for i in (moving, fixed))


def shapes(config: dict[str, Any], pooled: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a network with ``nb_unet_features`` [encoder, decoder], one conv a level."""
    encoder, decoder = config["nb_unet_features"]
    up, head = decoder[: len(encoder)], decoder[len(encoder) :]
    half = config.get("unet_half_res", False)
    parts = ("encoder.{}.0", "decoder.{}.0", "remaining.{}") if pooled else ("downarm.{}", "uparm.{}", "extras.{}")
    skips = list(reversed(encoder)) if pooled else [*reversed(encoder[:-1]), 2]
    blocks, channels = [], 2
    for n, width in enumerate(encoder):
        blocks.append((parts[0].format(n), channels, width))
        channels = width
    for n, width in enumerate(up):
        blocks.append((parts[1].format(n), channels, width))
        channels = width + (0 if half and n == len(up) - 1 else skips[n])
    for n, width in enumerate(head):
        blocks.append((parts[2].format(n), channels, width))
        channels = width
    found = {"flow.weight": (3, channels, 3, 3, 3), "flow.bias": (3,)}
    for name, inputs, outputs in blocks:
        found[f"unet_model.{name}.main.weight"] = (outputs, inputs, 3, 3, 3)
        found[f"unet_model.{name}.main.bias"] = (outputs,)
    return found


def forward(config: dict[str, Any], state: dict[str, torch.Tensor], moving: Any, fixed: Any) -> np.ndarray:
    """Displacement (3, X, Y, Z) in voxels."""
    pooled = "unet_model.encoder.0.0.main.weight" in state
    half = config.get("unet_half_res", False)

    def block(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        name = f"unet_model.{name}.main"
        x = functional.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, 1)
        return torch.where(x > 0, x, 0.2 * x)

    levels = len(config["nb_unet_features"][0])
    x, skips = torch.cat([moving, fixed], 1), []
    for n in range(levels):
        if pooled:
            skips.append(block(x, f"encoder.{n}.0"))
            x = functional.max_pool3d(skips[-1], 2)
        else:
            skips.append(x)
            x = block(x, f"downarm.{n}", 2)
    for n in range(levels):
        x = block(x, f"decoder.{n}.0" if pooled else f"uparm.{n}")
        if not (half and n == levels - 1):
            for axis in (2, 3, 4):
                x = x.repeat_interleave(2, axis)
            x = torch.cat([x, skips.pop()], 1)
    for n in range(len(config["nb_unet_features"][1]) - levels):
        x = block(x, f"remaining.{n}" if pooled else f"extras.{n}")
    flow = functional.conv3d(x, state["flow.weight"], state["flow.bias"], padding=1)[0].double().numpy()
    steps, downsize = config.get("int_steps", 7), config.get("int_downsize", 2)
    if not steps:
        return flow
    grid = moving.shape[2:]
    if downsize > 1 and not half:
        flow = corners_kept(flow, [n // downsize for n in grid]) / downsize
    flow = squared(flow, steps, "grid-constant")
    return corners_kept(flow, grid) * downsize if downsize > 1 else flow


def squared(velocity: np.ndarray, steps: int, beyond: str) -> np.ndarray:
    """Scaling and squaring of (3, X, Y, Z); ``beyond`` the grid as scipy calls it."""
    index = np.indices(velocity.shape[1:], dtype=float)
    step = velocity / 2**steps
    for _ in range(steps):
        where = index + step
        step = step + np.array([map_coordinates(c, where, order=1, mode=beyond) for c in step])
    return step


def corners_kept(field: np.ndarray, grid: Any) -> np.ndarray:
    """Linear on another grid whose corner voxels are the same."""
    axes = [np.linspace(0, n - 1, m) for n, m in zip(field.shape[1:], grid, strict=True)]
    where = np.meshgrid(*axes, indexing="ij")
    return np.array([map_coordinates(c, where, order=1, mode="nearest") for c in field])
