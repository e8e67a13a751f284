"""Graphs of networks, each traced once in a run of the tests: tracing is most of the time of an export."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import sys
from pathlib import Path

import onnx

from ofg_deploy.export.onnx import trace
from ofg_deploy.train.checkpoint import weights_sha256
from ofg_deploy.train.networks.base import RegistrationNetwork


def trace_once(network: RegistrationNetwork, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """``export.onnx.trace``, or what it gave for the same weights, form and shape in any process of this run."""
    how = network.integrate and network.integrate.how.to_record()
    form = f"{network} {network.grid} {how} {network.any_size} {shape}"
    key = hashlib.sha256(f"{weights_sha256(network.state_dict())} {form}".encode()).hexdigest()
    path = Path(os.environ["OFG_TESTS_SHARED"]) / f"{key}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_bytes(trace(network, shape).SerializeToString())
            partial.rename(path)
    return onnx.load(path)


def keep_the_exporters_table() -> None:
    """torch makes its table of 500 operators anew for every export, a third of the time of a small network's."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(module, "ONNXRegistry", None)
    make = getattr(registry, "from_torchlib", None)
    if make is not None and not hasattr(make, "cache_info"):
        registry.from_torchlib = staticmethod(functools.cache(make))
