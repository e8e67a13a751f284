"""Which engine is wanted, and what here can build it: found out before any work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from ofg_deploy.errors import DeviceError, UsageError, check_count
from ofg_deploy.options.words import EngineModule
from ofg_deploy.serve.cuda import present_gpu
from ofg_deploy.serve.tensorrt import NAMES, TensorRT, find_module, installed


@dataclass(frozen=True)
class BuildOptions:
    """What kind of engine.

    Attributes:
        module: what builds it; ``auto`` takes ``tensorrt`` for the GPU here and whichever can for ``targets``.
        targets: compute capabilities (``sm86``) to build for without a GPU, all in one plan; none for the GPU here.
        max_batch: most pairs at once; the profile is best at 1.

    Raises:
        UsageError: a value out of range.
    """

    module: EngineModule = "auto"
    targets: tuple[str, ...] = ()
    max_batch: int = 1

    def __post_init__(self) -> None:
        if self.module not in get_args(EngineModule):
            raise UsageError(f"`trt_module` {self.module!r} is unknown: use {', '.join(get_args(EngineModule))}")
        for target in self.targets:
            if not re.fullmatch(r"sm\d{2,3}", target):
                raise UsageError(f"`target` {target!r}: give compute capabilities as in sm86,sm89,sm120")
        if len(set(self.targets)) != len(self.targets):
            raise UsageError(f"`target` {','.join(self.targets)} names one twice")
        check_count("`max_batch`", self.max_batch)


@dataclass(frozen=True)
class Toolchain:
    """What builds, and for what. ``gpu`` is None for a build without one."""

    trt: TensorRT
    gpu: str | None
    capabilities: tuple[str, ...]
    max_batch: int

    def __str__(self) -> str:
        return f"{self.trt} for {' '.join(self.capabilities)}{f' ({self.gpu})' if self.gpu else ''}"


def choose_toolchain(options: BuildOptions) -> Toolchain:
    """Find out, before any work, whether and with what the engine can be built here.

    Raises:
        DeviceError: no GPU, module not installed, or one that cannot build for these targets.
    """
    found = installed() if options.module == "auto" else [m for m in [find_module(options.module)] if m]
    if not found:
        wanted = " or ".join(NAMES) if options.module == "auto" else options.module
        raise DeviceError(f"{wanted} is not installed: pip install ofg-deploy[rtx] (or [trt])")
    if options.targets:
        able = [trt for trt in found if set(options.targets) <= set(trt.targets)]
        if not able:
            offers = "; ".join(f"{trt} offers {' '.join(trt.targets) or 'none'}" for trt in found)
            raise DeviceError(f"`target` {','.join(options.targets)} cannot be built without a GPU: {offers}")
        targets = tuple(sorted(options.targets, key=lambda t: int(t[2:])))
        return Toolchain(able[0], None, targets, options.max_batch)
    gpu = present_gpu()
    able = [trt for trt in found if not trt.targets or gpu.capability in trt.targets]
    if not able:
        offers = "; ".join(f"{trt} offers {' '.join(trt.targets)}" for trt in found)
        raise DeviceError(f"{gpu.name} is {gpu.capability}: {offers}: install tensorrt")
    return Toolchain(able[0], gpu.name, (gpu.capability,), options.max_batch)
