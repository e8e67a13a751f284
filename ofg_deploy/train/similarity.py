"""Similarities and regularisers beside the published ones: other contrasts, other smoothness, labels."""

from __future__ import annotations

from itertools import combinations

import torch
from torch.nn import functional

from ofg_deploy.train.losses import warp

MIND_RADIUS, MIND_DILATION = 2, 2


def mse_loss(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of (N, 1, X, Y, Z) images in 0..1."""
    return functional.mse_loss(warped, fixed)


def mind_loss(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the MIND-SSC descriptors of (N, 1, X, Y, Z) images, for unlike modalities."""
    return functional.mse_loss(mind_ssc(warped), mind_ssc(fixed))


def mind_ssc(image: torch.Tensor, radius: int = MIND_RADIUS, dilation: int = MIND_DILATION) -> torch.Tensor:
    """Self-similarity context of (N, 1, X, Y, Z): (N, 12, X, Y, Z) in 0..1.

    Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using self-similarities",
    MICCAI 2013, eq. 2-3: for each of the 12 pairs of face neighbours (``dilation`` voxels away) that do not lie
    opposite each other, D is the mean squared difference of the patches (2 radius + 1 voxels wide) around them;
    exp(-(D - min D) / V), where V, the mean of D over the pairs, is kept within a factor of 1000 of its mean over the
    image. Edges are replicated.
    """
    neighbours = [tuple(s * dilation * (axis == a) for a in range(3)) for axis in range(3) for s in (-1, 1)]
    pad = functional.pad(image, (dilation,) * 6, mode="replicate")
    shape = image.shape[2:]
    shifted = {
        offset: pad[(..., *(slice(dilation + o, dilation + o + n) for o, n in zip(offset, shape, strict=True)))]
        for offset in neighbours
    }
    pairs = [(a, b) for a, b in combinations(neighbours, 2) if any(x + y for x, y in zip(a, b, strict=True))]
    squared = torch.cat([(shifted[a] - shifted[b]).square() for a, b in pairs], dim=1)
    distance = functional.avg_pool3d(functional.pad(squared, (radius,) * 6, mode="replicate"), 2 * radius + 1, 1)
    distance = distance - distance.amin(dim=1, keepdim=True)
    variance = distance.mean(dim=1, keepdim=True)
    middle = variance.mean(dim=(2, 3, 4), keepdim=True).detach()
    return torch.exp(-distance / variance.clamp(middle * 1e-3, middle * 1e3).clamp_min(1e-12))


def bending(field: torch.Tensor) -> torch.Tensor:
    """Bending energy of (N, 3, X, Y, Z): mean over voxels and components of the squared second differences.

    Mixed derivatives count twice; Rueckert et al., IEEE TMI 1999, eq. 4. Each derivative is averaged where it exists.
    """
    total = field.new_zeros(())
    for axis in (2, 3, 4):
        total = total + torch.diff(field, n=2, dim=axis).square().mean()
        for other in range(axis + 1, 5):
            total = total + 2 * torch.diff(torch.diff(field, dim=axis), dim=other).square().mean()
    return total


def soft_dice_loss(field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """1 - mean Dice of linearly warped moving labels and fixed labels, each label other than 0 one volume of 0 and 1.

    Args:
        field: (N, 3, X, Y, Z) voxels.
        moving, fixed: (N, X, Y, Z) whole numbers on the grid of the field; labels in either map count.
    """
    losses = []
    for one, source, target in zip(field, moving, fixed, strict=True):
        for label in torch.cat([source.unique(), target.unique()]).unique():
            if label != 0:
                wanted = (target == label).to(field.dtype)
                found = warp((source == label).to(field.dtype)[None, None], one[None])[0, 0]
                losses.append(1 - 2 * (found * wanted).sum() / (found.sum() + wanted.sum() + 1e-5))
    return torch.stack(losses).mean() if losses else field.sum() * 0
