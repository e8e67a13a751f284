"""On-the-Fly Guidance: refine a predicted field on its own pair and hand the result back as the target.

Xin et al., "On-the-Fly Guidance Training for Medical Image Registration", MICCAI 2024. Nothing of this file reaches an
exported model.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from ofg_deploy.errors import DeviceError, UsageError
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Adam, Greedy
from ofg_deploy.train import greedy
from ofg_deploy.train.losses import diffusion, local_ncc_loss, warp
from ofg_deploy.train.similarity import bending, mind_loss, mse_loss

if TYPE_CHECKING:
    from ofg_deploy.train.config import TrainConfig

Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Regulariser = Callable[[torch.Tensor], torch.Tensor]
Backend = Literal["auto", "numba", "triton", "torch"]
# The published energy has kernels of its own; None stands for it.
SIMILARITIES: dict[str, Similarity | None] = {"ncc": None, "mse": mse_loss, "mind": mind_loss}
REGULARISERS: dict[str, Regulariser | None] = {"diffusion": None, "bending": bending}


class InnerOptimiser(Protocol):
    """What makes the target of a training step."""

    @property
    def backend(self) -> str:
        """What it runs on."""
        ...

    def __call__(
        self, field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor, decay: float, buffers: Buffers
    ) -> torch.Tensor:
        """The refined field, detached; each pair by itself.

        Args:
            field: (N, 3, X, Y, Z) voxels, float32.
            moving, fixed: (N, 1, X, Y, Z) in 0..1.
            decay: factor of the learning rates in this epoch.
            buffers: working memory, kept from call to call.
        """
        ...


@dataclass(frozen=True)
class PublishedAdam:
    """K steps of a fresh Adam down the training energy, as in the paper; see ``refine``."""

    config: TrainConfig
    backend: str

    def __call__(
        self, field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor, decay: float, buffers: Buffers
    ) -> torch.Tensor:
        """As ``InnerOptimiser``."""
        config = self.config
        return refine(
            field,
            moving,
            fixed,
            config.guidance_steps,
            config.guidance_lr * decay,
            SIMILARITIES[config.similarity],
            config.guidance_smoothness,
            REGULARISERS[config.regulariser],
            config.ncc_window,
            self.backend,
            buffers,
        )


@dataclass(frozen=True)
class Steepest:
    """Smoothed steps down the local NCC, at full resolution alone or coarse to fine first; they do not decay."""

    options: Greedy | Multilevel
    backend: str

    def __call__(
        self, field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor, decay: float, buffers: Buffers
    ) -> torch.Tensor:
        """As ``InnerOptimiser``."""
        if self.backend == "numba":
            return refine_compiled(self.options, field, moving, fixed, buffers)
        if self.backend == "triton":
            from ofg_deploy.train import kernels_triton_greedy

            tensors = field.detach(), moving[:, 0], fixed[:, 0]
            return torch.stack([kernels_triton_greedy.refine(self.options, *p) for p in zip(*tensors, strict=True)])
        return greedy.refine(self.options, field, moving, fixed)


def inner_optimiser(config: TrainConfig, device: torch.device, backend: Backend = "auto") -> InnerOptimiser:
    """The one that a run is guided by.

    Args:
        backend: see ``choose_backend``.

    Raises:
        DeviceError: it does not run there. UsageError: it does not suit the grid, or that backend cannot do it.
    """
    if config.guidance_optimiser == "adam":
        custom = config.similarity != "ncc" or config.regulariser != "diffusion"
        return PublishedAdam(config, choose_backend(device, backend, custom))
    options: Greedy | Multilevel = Greedy(
        config.guidance_steps,
        config.guidance_step_voxels,
        config.guidance_step_limit,
        config.guidance_gradient_sigma,
        config.guidance_field_sigma,
        config.ncc_window,
    )
    if config.guidance_optimiser == "multilevel":
        if backend == "triton":
            raise UsageError("guidance backend triton has no multilevel steps: use torch or auto")
        options = Multilevel(options, (config.guidance_coarse_steps,) * (config.guidance_levels - 1))
        options.check_grid(config.expects.shape)
    return Steepest(options, choose_backend(device, backend))


def choose_backend(device: torch.device | str, backend: Backend = "auto", custom_energy: bool = False) -> str:
    """What ``refine`` runs on. Record the answer beside the result.

    ``numba``: compiled kernels, CPU. ``triton``: the same for CUDA (or Triton's interpreter). ``torch``: closed-form
    gradients and torch's Adam, on any device and with any energy. ``auto`` is ``numba`` on the CPU and ``torch``
    elsewhere, until somebody has measured ``triton`` on a GPU; another energy than local NCC and diffusion always goes
    to ``torch``.

    Raises:
        DeviceError: kernels that do not run on that device, or not in this installation.
        UsageError: kernels asked for with another energy, or a backend that does not exist.
    """
    device = torch.device(device)
    if backend == "auto":
        return "numba" if device.type == "cpu" and not custom_energy else "torch"
    if backend not in ("numba", "triton", "torch"):
        raise UsageError(f"guidance backend {backend!r} is unknown: use auto, numba, triton or torch")
    if backend != "torch" and custom_energy:
        raise UsageError(
            f"guidance backend {backend} knows local NCC and diffusion only: use torch or auto for another energy"
        )
    if backend == "numba" and device.type != "cpu":
        raise DeviceError(f"guidance backend numba runs on the CPU, the tensors are on {device}: use torch or auto")
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            raise DeviceError("guidance backend triton: the triton package is not installed; use torch or auto")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise DeviceError(f"guidance backend triton runs on CUDA, the tensors are on {device}: use torch or auto")
    return backend


def refine(
    field: torch.Tensor,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    steps: int,
    lr: float,
    similarity: Similarity | None = None,
    smoothness: float = 1.0,
    regulariser: Regulariser | None = None,
    window: int = 9,
    backend: Backend = "auto",
    buffers: Buffers | None = None,
) -> torch.Tensor:
    """A few steps of a fresh Adam (amsgrad) on a copy of the field.

    Energy of each pair: ``similarity`` of (warped moving, fixed) + ``smoothness`` x ``regulariser`` of the field.

    Args:
        field: (N, 3, X, Y, Z) voxels; left unchanged and out of the graph.
        moving, fixed: (N, 1, X, Y, Z) in 0..1.
        steps: K of the paper.
        lr: the inner learning rate, in voxels per step.
        similarity: loss of (warped, fixed), lower is better, averaged over the pairs; the paper's local NCC if absent.
        smoothness: weight of the regulariser.
        regulariser: of the field, lower is smoother; the paper's diffusion if absent.
        window: of the local NCC; a ``similarity`` has its own.
        backend: see ``choose_backend``.
        buffers: working memory of the kernels, to be kept from call to call: the first use of a page is slower than
            all the arithmetic on it.

    Returns:
        The refined field, detached.

    Raises:
        DeviceError, UsageError: of ``choose_backend``.
    """
    custom_energy = similarity is not None or regulariser is not None
    chosen = choose_backend(field.device, backend, custom_energy)
    if chosen == "triton":
        from ofg_deploy.train import kernels_triton

        tensors = field.detach(), moving[:, 0], fixed[:, 0]
        done = [kernels_triton.refine(*pair, steps, lr, smoothness, window) for pair in zip(*tensors, strict=True)]
        return torch.stack(done)
    if chosen == "numba":
        return refine_compiled(Adam(steps, lr, smoothness, window), field, moving, fixed, buffers)
    similarity, regulariser = similarity or partial(local_ncc_loss, window=window), regulariser or diffusion
    refined = field.detach().clone().requires_grad_()
    adam = torch.optim.Adam([refined], lr=lr, amsgrad=True)
    with torch.enable_grad():
        for _ in range(steps):
            adam.zero_grad()
            energy = similarity(warp(moving, refined), fixed) + smoothness * regulariser(refined)
            (len(field) * energy).backward()  # the mean over pairs must not weaken each of them against Adam's epsilon
            adam.step()
    return refined.detach()


def refine_compiled(
    optimiser: Adam | Greedy | Multilevel,
    field: torch.Tensor,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    buffers: Buffers | None = None,
) -> torch.Tensor:
    """Refine every pair of a batch on the CPU by a compiled optimiser; shapes, ``buffers`` and result as ``refine``."""
    from ofg_deploy.kernels.compiled import most_threads

    threads, buffers = min(torch.get_num_threads(), most_threads()), buffers or Buffers()
    pairs = zip(*(t.detach().numpy() for t in (field, moving[:, 0], fixed[:, 0])), strict=True)
    return torch.stack([torch.from_numpy(optimiser.refine(*pair, threads, buffers)) for pair in pairs])
