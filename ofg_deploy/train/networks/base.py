"""What every registration network promises, and what all of them share: any grid size, activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from ofg_deploy.errors import UsageError
from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import OWN, Integration
from ofg_deploy.preprocess import check_voxels
from ofg_deploy.train.networks.velocity import Sampler, VelocityIntegration


class HeavyBlock(nn.Module):
    """A part of a network worth computing twice: with ``recompute``, training keeps its inputs alone.

    Its activations are computed again in the backward pass, with the same random numbers; batch norms count each batch
    once.
    """

    recompute = False

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if self.recompute and self.training:
            first_and_again = lambda: (nullcontext(), _statistics_kept(self))  # noqa: E731
            return checkpoint(super().__call__, *inputs, use_reentrant=False, context_fn=first_and_again)
        return super().__call__(*inputs)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


class RegistrationNetwork(nn.Module):
    """Takes ``moving`` and ``fixed``, (N, 1, X, Y, Z) in 0..1; returns a field (N, 3, X, Y, Z).

    The field is in voxels, components in array-axis order, and maps fixed voxels to moving voxels. An architecture
    implements ``predict``. Any grid will do: where it is no multiple of the divisor, the images get zeros at the upper
    ends of their axes and the prediction is cropped back; otherwise nothing is padded and the graph has no trace of it.
    In diffeomorphic form the prediction is a stationary velocity (voxels per unit time), and the field its flow at
    time 1.

    Args:
        grid: (X, Y, Z) of the images.
        diffeomorphic: take the prediction as a velocity and integrate it, as the architecture does or as given.

    Attributes:
        integration: how this architecture integrates a velocity.
        divisor: what it computes on has axes that are multiples of this; planned grids are rounded up to it.
        minimum: fewest voxels along an axis.
        operators: operators of the exported graph of the plain form on a grid that needs no padding.
        size_operators: those it needs besides to take any size.
        fully_convolutional: nothing in it knows its grid, so one graph does for all multiples of the divisor.
        weights_know_grid: its weights belong to the places of one padded grid.
        any_size: this copy takes multiples of the divisor, whatever its grid (see ``inference_copy``).
        sampler: this copy returns the warped moving image beside the field.

    Raises:
        UsageError: the grid is too small.
    """

    divisor: ClassVar[int]
    minimum: ClassVar[int] = 8
    operators: ClassVar[frozenset[str]]
    size_operators: ClassVar[frozenset[str]] = frozenset()
    fully_convolutional: ClassVar[bool] = False
    weights_know_grid: ClassVar[bool] = False
    integration: ClassVar[Integration] = OWN
    any_size: bool = False
    sampler: Sampler | None

    def __init__(self, grid: Shape, diffeomorphic: bool | Integration = False) -> None:
        super().__init__()
        self.check_grid(grid)
        self.grid = grid
        self.padded = self.padded_grid(grid)
        how = self.integration if diffeomorphic is True else diffeomorphic
        self.integrate = VelocityIntegration(grid, how) if how else None
        self.sampler = None  # a class attribute would hide the module set later

    @classmethod
    def padded_grid(cls, grid: Shape) -> Shape:
        """The grid it computes on: every axis rounded up to the divisor."""
        x, y, z = (-(-n // cls.divisor) * cls.divisor for n in grid)
        return x, y, z

    @classmethod
    def check_grid(cls, grid: Shape) -> None:
        """Raises UsageError if the grid is too small."""
        check_voxels(grid, cls.minimum)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 2, *padded), channels moving and fixed -> (N, 3, *padded) voxels. What an architecture implements."""
        raise NotImplementedError

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(N, 1, X, Y, Z) twice -> field (N, 3, X, Y, Z), voxels, array-axis order, fixed voxel -> moving voxel.

        With a ``sampler`` (field, warped), the latter (N, 1, X, Y, Z).
        """
        predicted = self._predict(moving, fixed)
        field = predicted if self.integrate is None else self.integrate(predicted)
        return field if self.sampler is None else (field, self.sampler(moving, field))

    def velocity(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Stationary velocity (N, 3, X, Y, Z) of the diffeomorphic form, voxels per unit time, array-axis order.

        ``integrate(velocity)`` is the field, ``integrate(-velocity)`` its inverse (moving voxel -> fixed voxel).

        Raises:
            UsageError: the network was not built in diffeomorphic form.
        """
        if self.integrate is None:
            raise UsageError("this network predicts a field, not a velocity: build it with diffeomorphic=True")
        return self._predict(moving, fixed)

    @property
    def onnx_ops(self) -> frozenset[str]:
        """All operators its exported graph may hold."""
        return (
            self.operators
            | (frozenset() if self.padded == self.grid else {"Pad", "Slice"})
            | (frozenset() if self.integrate is None else self.integrate.operators)
            | (self.size_operators if self.any_size else frozenset())
            | (frozenset() if self.sampler is None else self.sampler.operators)
        )

    @property
    def activation_checkpointing(self) -> bool:
        """Trade time for memory in training: heavy blocks compute their activations again in the backward pass."""
        return any(block.recompute for block in self.modules() if isinstance(block, HeavyBlock))

    @activation_checkpointing.setter
    def activation_checkpointing(self, wanted: bool) -> None:
        for block in self.modules():
            if isinstance(block, HeavyBlock):
                block.recompute = wanted

    def inference_copy(self, any_size: bool = False, with_warp: bool = False) -> RegistrationNetwork:
        """A copy for evaluation alone, each batch norm folded into the convolution before it.

        Args:
            any_size: it takes grids of multiples of the divisor; only a plain, fully convolutional network can.
            with_warp: it returns the warped moving image too.
        """
        copy = deepcopy(self).eval()
        if any_size:
            assert self.fully_convolutional
            assert self.integrate is None
            copy.any_size = True
        if with_warp:
            copy.sampler = Sampler(self.grid)
        for module in copy.modules():
            if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm3d):
                module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
        return copy

    def _predict(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        if self.any_size:
            return self.predict(torch.cat([moving, fixed], dim=1))
        for image in (moving, fixed):
            if tuple(image.shape[1:]) != (1, *self.grid):
                raise ValueError(f"expected (N, 1, {', '.join(map(str, self.grid))}), got {tuple(image.shape)}")
        images = torch.cat([moving, fixed], dim=1)
        if self.padded == self.grid:
            return self.predict(images)
        missing = [b - a for a, b in zip(self.grid, self.padded, strict=True)]
        x, y, z = self.grid
        # `pad` counts from the last axis.
        return self.predict(functional.pad(images, [0, missing[2], 0, missing[1], 0, missing[0]]))[..., :x, :y, :z]
