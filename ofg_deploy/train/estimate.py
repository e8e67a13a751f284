"""How much memory and time a run will take, said before it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ofg_deploy.errors import DeviceError
from ofg_deploy.memory import free_ram
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.networks.base import RegistrationNetwork

# Of the energy of a pair, forward and backward, in the plain torch path. MIND keeps 12 channels several times.
ENERGY_BYTES_PER_VOXEL = {"ncc": 260, "mse": 260, "mind": 800}
DICE_BYTES_PER_VOXEL_AND_LABEL = 24
REMEDIES = "use a smaller `grid` or `batch_size`, `activation_checkpointing=True`, or `precision=bf16`"


@dataclass(frozen=True)
class Trial:
    """What a training step takes in seconds, without its data and the update."""

    seconds: float

    @classmethod
    def of(cls, step: Callable[[], object]) -> Trial:
        """Time the second of two steps; the first one chooses algorithms."""
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter() - start)


def memory_needed(config: TrainConfig, network: RegistrationNetwork, labels: int = 0) -> int:
    """Bytes that a training step of one process needs beyond what is loaded already.

    Args:
        labels: label values that the Dice loss compares, 0 without it.

    Gradients (and a copy to exchange) and three Adam moments of the weights; what autograd keeps of the network,
    counted in a dry run that computes nothing (half of it with a 16-bit precision); as much again for two of its
    largest volumes, whose gradients are alive at once; and the energy of the pairs, forward and backward.
    """
    weights = sum(p.numel() for p in network.parameters())
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    shadow = copy.deepcopy(network).to("meta").train()
    image = torch.empty((config.batch_size, 1, *config.expects.shape), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        field = shadow(image, image)  # held, or what it keeps would be freed and counted at the same address
    del field
    activations = sum(kept.values()) + 2 * max(kept.values())
    if config.precision != "fp32":
        activations //= 2
    energy = ENERGY_BYTES_PER_VOXEL[config.similarity] + DICE_BYTES_PER_VOXEL_AND_LABEL * labels
    return 5 * 4 * weights + activations + energy * image.numel()


def memory_free(device: torch.device) -> int:
    """Bytes this process may still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_ram()


def check_memory(
    config: TrainConfig, network: RegistrationNetwork, device: torch.device, processes: int, labels: int = 0
) -> str:
    """What a step needs and what is there, as a sentence.

    Args:
        processes: on this machine; on a CPU they share its memory.

    Raises:
        DeviceError: it does not fit. On a CPU nothing else would say so: the system kills the process.
    """
    need, free = memory_needed(config, network, labels), memory_free(device)
    if device.type == "cpu":
        free //= processes
    text = f"a step needs about {need / 1e9:.1f} GB on {device.type}, {free / 1e9:.1f} GB are free"
    if need > free:
        raise DeviceError(f"{text}: {REMEDIES}")
    return text


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn an allocator's failure into one line. Raises DeviceError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"out of GPU memory: {REMEDIES}") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error):
            raise
        raise DeviceError(f"out of memory: {REMEDIES}") from error
