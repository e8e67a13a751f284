"""Flow of a stationary velocity by scaling and squaring (Arsigny et al., MICCAI 2006; Dalca et al., MedIA 2019).

And the sampler an exported graph may carry: both sample on a lattice that is a constant of the grid.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import OWN, Integration


class VelocityIntegration(nn.Module):
    """Velocity (N, 3, X, Y, Z) in voxels per unit time -> displacement (N, 3, X, Y, Z) in voxels at time 1.

    The velocity is resized linearly to the coarse grid with the corner voxels kept in place (``align_corners``), a
    small part of it is composed with itself, and the displacement is resized back: see ``Integration``. This project's
    own form differs from VoxelMorph's in two things. Values are rescaled by the true ratio (n - 1) / (m - 1) of the two
    voxel sizes of an axis, where VoxelMorph takes 2, so that the result is the flow of the velocity given. And beyond
    the grid the velocity keeps its edge value, as fields do everywhere here, where VoxelMorph's drops to zero and tears
    the field. VoxelMorph's own checkpoints are integrated as VoxelMorph does.

    The flow of the negated velocity is the inverse.

    Args:
        grid: (X, Y, Z) of the displacement.
        how: steps, grid and border.
    """

    def __init__(self, grid: Shape, how: Integration = OWN) -> None:
        super().__init__()
        self.grid, self.how = grid, how
        self.inner = how.coarse_grid(grid)
        half_extent_vox = torch.tensor([n / 2 for n in how.extents(grid)]).view(1, 3, 1, 1, 1)
        # -1..1 at any resolution: between the two resizes a displacement needs no rescaling.
        self.register_buffer("lattice", unit_lattice(self.inner), persistent=False)
        self.register_buffer("half_extent_vox", half_extent_vox, persistent=False)
        unit = how.downsize if how.coarse else 1
        self.register_buffer("first_step", unit / (half_extent_vox * 2**how.steps), persistent=False)

    @property
    def operators(self) -> frozenset[str]:
        """What of the exported graph it takes."""
        resized = {"Resize", "Shape", "Concat"} if self.how.downsize > 1 else set()
        return frozenset({"Slice", "Mul", "Transpose", "Add", "GridSample"} | resized)

    def forward(self, velocity: torch.Tensor) -> torch.Tensor:
        resizes = self.how.downsize > 1
        coarse = _resize(velocity, self.inner) if resizes and not self.how.coarse else velocity
        step = (coarse * self.first_step).flip(1)
        for _ in range(self.how.steps):
            where = self.lattice + step.movedim(1, -1)
            step = step + functional.grid_sample(step, where, padding_mode=self.how.beyond, align_corners=True)
        step = step.flip(1)
        return (_resize(step, self.grid) if resizes else step) * self.half_extent_vox


class Sampler(nn.Module):
    """Moving image (N, 1, X, Y, Z) at voxel + field (N, 3, X, Y, Z): ``losses.warp`` with its lattice as a constant.

    Linear; voxel centres at integers (``align_corners``), falling to zero within one voxel beyond the outermost ones.
    """

    operators = frozenset({"Mul", "Slice", "Transpose", "Add", "GridSample"})

    def __init__(self, grid: Shape) -> None:
        super().__init__()
        self.register_buffer("lattice", unit_lattice(grid), persistent=False)
        per_voxel = torch.tensor([2 / (n - 1) for n in grid]).view(1, 3, 1, 1, 1)
        self.register_buffer("per_voxel", per_voxel, persistent=False)

    def forward(self, moving: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        where = self.lattice + (field * self.per_voxel).flip(1).movedim(1, -1)
        return functional.grid_sample(moving, where, padding_mode="zeros", align_corners=True)


def unit_lattice(grid: Shape) -> torch.Tensor:
    """(1, X, Y, Z, 3) positions of the voxels as ``grid_sample`` has them: -1..1 spans the centres, last axis first."""
    axes = [torch.linspace(-1, 1, n) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]


def _resize(field: torch.Tensor, shape: Shape) -> torch.Tensor:
    return functional.interpolate(field, size=shape, mode="trilinear", align_corners=True)
