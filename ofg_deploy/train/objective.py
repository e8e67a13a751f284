"""What a training step minimises: guidance or similarity, a regulariser, and labels where they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch

from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.train.compiled_loss import warped_ncc_loss
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.guidance import REGULARISERS, SIMILARITIES, Backend, inner_optimiser
from ofg_deploy.train.losses import diffusion, local_ncc_loss, ofg_loss, warp
from ofg_deploy.train.similarity import soft_dice_loss


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs on the network's grid.

    Attributes:
        moving, fixed: (N, 1, X, Y, Z) in 0..1, what the network sees.
        moving_labels, fixed_labels: (N, X, Y, Z) or None.
        moving_guide, fixed_guide: (N, 1, X, Y, Z) in 0..1 or None: other images of the same subjects, which are
            compared instead of ``moving`` and ``fixed``.
    """

    moving: torch.Tensor
    fixed: torch.Tensor
    moving_labels: torch.Tensor | None = None
    fixed_labels: torch.Tensor | None = None
    moving_guide: torch.Tensor | None = None
    fixed_guide: torch.Tensor | None = None

    @property
    def compared(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Moving and fixed as the similarity and the inner optimiser see them: the guides, where there are any."""
        if self.moving_guide is None or self.fixed_guide is None:
            return self.moving, self.fixed
        return self.moving_guide, self.fixed_guide

    def pin_memory(self) -> Batch:
        """The same in pinned memory; the loader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, work: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if tensor is None else work(tensor) for tensor in tensors))


@dataclass(frozen=True, eq=False)
class Terms:
    """Scalars of a step: ``loss`` = ``target`` + smoothness x ``regularity`` + dice_weight x ``dice_loss``."""

    loss: torch.Tensor
    target: torch.Tensor
    regularity: torch.Tensor
    dice_loss: torch.Tensor

    def numbers(self) -> list[float]:
        """Loss, target, regularity and Dice loss."""
        return [float(t.detach()) for t in (self.loss, self.target, self.regularity, self.dice_loss)]


class Objective:
    """The loss of a predicted field; keeps the working memory of the inner optimiser from step to step.

    Args:
        backend: what the inner optimiser runs on, see ``guidance.choose_backend``.
    """

    def __init__(self, config: TrainConfig, device: torch.device, backend: Backend = "auto") -> None:
        self.config = config
        self._buffers = Buffers()
        self._similarity = SIMILARITIES[config.similarity]
        self._regulariser = REGULARISERS[config.regulariser]
        self._guide = inner_optimiser(config, device, backend) if config.guidance == "ofg" else None
        self._compiled_ncc = device.type == "cpu" and self._similarity is None

    @property
    def guidance(self) -> str:
        """What guides, what it runs on, and when it begins if not at once."""
        if not self._guide:
            return "none"
        first = next(epoch for epoch in range(self.config.epochs) if self.config.guided(epoch))
        begins = f", from epoch {first + 1}" if first else ""
        return f"ofg ({self.config.guidance_optimiser}, {self._guide.backend}{begins})"

    def __call__(self, field: torch.Tensor, batch: Batch, epoch: int) -> Terms:
        """All in float32, whatever the network computed in.

        Args:
            field: (N, 3, X, Y, Z) voxels.
            epoch: counted from 0; guidance may begin later, and the inner learning rate decays with it.
        """
        config, field = self.config, field.float()
        regularity = (self._regulariser or diffusion)(field)
        if self._guide and config.guided(epoch):
            refined = self._guide(field, *batch.compared, config.decay(epoch), self._buffers)
            target = ofg_loss(field, refined, config.guidance_sobolev)
            if config.guidance_similarity:
                target = target + config.guidance_similarity * self._similarity_of(field, batch)
        else:
            target = self._similarity_of(field, batch)
        dice_loss = field.new_zeros(())
        if config.dice_weight:
            dice_loss = soft_dice_loss(field, batch.moving_labels, batch.fixed_labels)
        loss = target + config.outer_smoothness(epoch) * regularity + config.dice_weight * dice_loss
        return Terms(loss, target, regularity, dice_loss)

    def _similarity_of(self, field: torch.Tensor, batch: Batch) -> torch.Tensor:
        window, (moving, fixed) = self.config.ncc_window, batch.compared
        if self._compiled_ncc:
            return warped_ncc_loss(field, moving, fixed, window, self._buffers)
        similarity = self._similarity or partial(local_ncc_loss, window=window)
        return similarity(warp(moving, field), fixed)
