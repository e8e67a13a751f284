"""The network of a run or a checkpoint as it was trained, run by torch: what ``load`` takes besides exported models."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ofg_deploy.export.request import BareOptions, find_source
from ofg_deploy.field import Field
from ofg_deploy.model_file import Contract
from ofg_deploy.train.checkpoint import weights_sha256
from ofg_deploy.train.devices import choose_device
from ofg_deploy.train.validation import predict


class EagerEngine:
    """See ``serve.engine.Engine``.

    Raises:
        InputError: no run folder and no checkpoint of ours. DeviceError: CUDA was asked for and is not there.
        UsageError: a published checkpoint, which does not say what it expects.
    """

    model_sha256 = None  # of a file that was exported; the contract has the digest of the weights

    def __init__(self, path: Path, device: str = "auto", threads: int = 0) -> None:
        self._device = choose_device(device)
        nothing_said = BareOptions(*[None] * 8)
        with tempfile.TemporaryDirectory() as scratch:
            source = find_source(path, nothing_said, Path(scratch), with_pairs=False)
        self._network = source.network.eval().to(self._device)
        self._threads = threads
        self.contract = Contract(
            network=source.name,
            expects=source.expects,
            divisor=source.network.divisor,
            weights_sha256=weights_sha256(source.network.state_dict()),
            training=source.training,
            passes=source.passes,
        )
        self.runtime = f"torch {torch.__version__}"
        self.provider = "CUDA" if self._device == "cuda" else "CPU"

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> Field:
        """(X, Y, Z) twice -> (3, X, Y, Z)."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            return predict(self._network, moving, fixed, self._device)
        finally:
            torch.set_num_threads(before)
