"""Where training runs: one process, or several started by torchrun, through Lightning Fabric."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from ofg_deploy.errors import DeviceError, OfgError
from ofg_deploy.geometry import Shape

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Threads and random numbers of the process are its own again afterwards."""
    threads = torch.get_num_threads()
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        torch.set_num_threads(threads)


def choose_device(wanted: str) -> str:
    """Raises DeviceError if CUDA was asked for and is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError("`device=cuda`: this torch sees no CUDA device; use `device=cpu` or install a CUDA build")
    return wanted


def launch(device: str, precision: str) -> Fabric:
    """Join the other processes of a torchrun, or be the only one.

    Args:
        device: ``cpu`` or ``cuda``, as ``choose_device`` gave it.

    Raises:
        DeviceError: a precision the device does not have.
    """
    if precision == "fp16" and device == "cpu":
        raise DeviceError("`precision=fp16` needs a CUDA device; on a CPU use bf16 or fp32")
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError("`precision=bf16`: this GPU has no bfloat16 arithmetic; use fp16 or fp32")
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy  # type: ignore[attr-defined]  # exported in all but name

    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # The first process may prepare a large data set while the others wait. Buffers are constants of the grid, the same
    # everywhere, and batch statistics, which the loop shares once an epoch.
    strategy = DDPStrategy(timeout=timedelta(days=2), broadcast_buffers=False) if world > 1 else "auto"
    fabric = Fabric(
        accelerator=device, devices=local, num_nodes=world // local, strategy=strategy, precision=PRECISIONS[precision]
    )
    fabric.launch()
    return fabric


def first_alone(fabric: Fabric, work: Callable[[], T]) -> T:
    """The first process works while the others wait for it, then they do the same (and find its results cached).

    Raises:
        OfgError: what the first process raised; the others leave with its exit code and say nothing.
    """
    failure, result = None, None
    if fabric.is_global_zero:
        try:
            result = work()
        except OfgError as error:
            failure = error
    code = fabric.broadcast(failure.exit_code if failure else 0)
    if failure:
        raise failure
    if code:
        sys.exit(code)
    return result if fabric.is_global_zero else work()


def check_bf16_on_cpu(network: nn.Module, shape: Shape) -> None:
    """Refuse what torch gets wrong in silence.

    In its bfloat16 CPU kernels (seen in 2.13), the weight gradient of a 3-D convolution is wrong by 60 % or infinite
    where an axis has fewer voxels than the kernel; with one voxel more it is right.

    Args:
        shape: the network's grid.

    Raises:
        DeviceError: names the layer.
    """
    small: dict[str, tuple[int, ...]] = {}

    def look(name: str, layer: nn.Conv3d, inputs: tuple[torch.Tensor, ...]) -> None:
        if any(n < k for n, k in zip(inputs[0].shape[2:], layer.kernel_size, strict=True)):
            small.setdefault(name, tuple(inputs[0].shape[2:]))

    shadow = copy.deepcopy(network).to("meta")
    for name, layer in shadow.named_modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_pre_hook(partial(look, name))
    image = torch.empty((1, 1, *shape), device="meta")
    shadow(image, image)
    if small:
        name, size = next(iter(small.items()))
        raise DeviceError(
            f"`precision=bf16` on a CPU: layer {name} would see {size} voxels, and torch's gradients are wrong where "
            "an axis is shorter than the kernel: use a larger `grid` or fp32"
        )
