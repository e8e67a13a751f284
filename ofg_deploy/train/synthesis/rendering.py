"""From label codes to an image: brightness by table, partial volume, resolution, slices, bias field, noise, gamma."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ofg_deploy.geometry import Spacing
from ofg_deploy.kernels.rendering import averaged
from ofg_deploy.train.synthesis.contrasts import DARKEST, Contrast, draw_means
from ofg_deploy.train.synthesis.label_maps import Coded

Image = npt.NDArray[np.float32]

# What scans of different machines have; each scan draws its own within these bounds.
RESOLUTION_MM = (0.5, 2.0)  # full width at half maximum, within the slice
SLICES, SLICE_MM = 0.4, (1.0, 6.0)  # share of the scans made of thick slices; how thick
BIAS_NODES, BIAS = 5, 0.2  # along each axis, and the largest standard deviation of the logarithm
TEXTURE = 0.04  # the largest, relative, of what is not homogeneous within a tissue; as fine as two voxels
NOISE = (0.005, 0.04)  # standard deviation, where the brightest tissue is 1
GAMMA = 0.15  # standard deviation of the logarithm of the exponent
CUT, CUT_SHARE = 0.15, 0.25  # share of the scans whose field of view ends within the grid, and the most that is lost
WIDTH = 2.3548  # full width at half maximum of a Gaussian, in standard deviations


@dataclass(frozen=True)
class Renderer:
    """Images on a grid from codes on one that is ``finer`` times as fine along each axis.

    Attributes:
        spacing_mm: of the images.
        finer: 1 or 2.
    """

    spacing_mm: Spacing
    finer: int

    def clean(self, coded: Coded) -> Image:
        """The T1-like rendering without head, noise or blur beyond the voxels: the same contrast for everybody."""
        return averaged(coded.codes, coded.clean(), self.finer)

    def scan(self, coded: Coded, contrast: Contrast, head: bool, rng: np.random.Generator) -> Image:
        """(X, Y, Z) 0 or more, as a scanner might see it.

        Args:
            coded: on the finer grid.
            head: with what lies around the brain, and noise in the air; otherwise there is exact 0.
        """
        means = draw_means(coded.numbers, contrast, rng)
        if not head:
            means[coded.outer] = 0
        image = torch.from_numpy(averaged(coded.codes, means, self.finer))  # partial volume
        shape = tuple(image.shape)
        thick = int(rng.integers(3)) if rng.random() < SLICES else None
        for axis in range(3):
            width = rng.uniform(*RESOLUTION_MM)
            step = rng.uniform(*SLICE_MM) if axis == thick else 0.0
            if max(width, step) > self.spacing_mm[axis] / 2:
                image = _along(image, _blur(shape[axis], self.spacing_mm[axis], max(width, step), step, rng), axis)
        inside = image > DARKEST / 2
        bias = _upsampled(rng.standard_normal((BIAS_NODES,) * 3), shape).mul_(rng.uniform(0, BIAS)).exp_()
        grain = tuple(max(2, n // 2) for n in shape)
        texture = _upsampled(rng.standard_normal(grain, dtype=np.float32), shape).mul_(rng.uniform(0, TEXTURE)).add_(1)
        noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).mul_(rng.uniform(*NOISE))
        seen = image.mul_(bias).mul_(texture).add_(noise).abs_()
        if not head:
            seen.mul_(inside)
        # The exponent goes with the brightest, so that it is about as bright as before.
        brightest = max(float(seen.max()), 1e-6)
        seen.div_(brightest).pow_(float(np.exp(GAMMA * rng.standard_normal())))
        if rng.random() < CUT:
            axis, lost = int(rng.integers(3)), rng.uniform(0, CUT_SHARE)
            gone = seen.narrow(axis, 0, round(lost * shape[axis]))
            (
                gone if rng.random() < 0.5 else seen.narrow(axis, shape[axis] - gone.shape[axis], gone.shape[axis])
            ).zero_()
        return seen.numpy()


def _blur(voxels: int, spacing: float, width_mm: float, step_mm: float, rng: np.random.Generator) -> torch.Tensor:
    """(n, n) what a scanner does along an axis: a Gaussian profile, slices a step apart, and lines in between.

    Args:
        width_mm: of the profile, full at half maximum.
        step_mm: between slices; 0 for none.
    """
    at = np.arange(voxels) * spacing
    step = max(step_mm, spacing)
    first = -rng.uniform(0, step) if step_mm else 0.0
    slices = np.arange(first, at[-1] + step, step)
    profile = np.exp(-0.5 * ((slices[:, None] - at) / (width_mm / WIDTH)) ** 2)
    profile /= np.maximum(profile.sum(axis=1, keepdims=True), 1e-12)
    between = np.maximum(0, 1 - np.abs(at[:, None] - slices) / step)
    between /= np.maximum(between.sum(axis=1, keepdims=True), 1e-12)
    return torch.from_numpy((between @ profile).astype(np.float32))


def _upsampled(nodes: npt.NDArray[Any], shape: tuple[int, ...]) -> torch.Tensor:
    """Values of a few nodes spread smoothly over a grid, their standard deviation about that of the nodes."""
    values = torch.from_numpy(nodes.astype(np.float32))
    for axis in range(3):
        values = _along(values, _smooth_steps(nodes.shape[axis], shape[axis]), axis)
    return values


@cache
def _smooth_steps(nodes: int, voxels: int) -> torch.Tensor:
    """(voxels, nodes) weights of each node, a bell of its distance; the sum of their squares is 1."""
    place = np.linspace(0, nodes - 1, voxels)
    bells = np.exp(-0.5 * ((place[:, None] - np.arange(nodes)) / 0.6) ** 2)
    return torch.from_numpy((bells / np.sqrt((bells**2).sum(axis=1, keepdims=True))).astype(np.float32))


def _along(volume: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """(n, m) matrix applied along an axis of m voxels."""
    return torch.tensordot(matrix, volume, dims=([1], [axis])).movedim(0, axis)
