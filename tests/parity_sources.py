"""Networks whose fields are large enough to be wrong, and a pair to see it on, without any training."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from ofg_deploy.export.parity import synthetic_pair
from ofg_deploy.export.source import ExportSource
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.validation import predict


def make_source(
    name: str = "voxelmorph", shape: tuple[int, int, int] = (16, 32, 48), diffeomorphic: bool = False
) -> ExportSource:
    """A network whose largest displacement on its pair is 4 voxels: the last convolution is scaled to that."""
    torch.manual_seed(0)
    expects = NetworkInput(shape, (1.5, 2.0, 1.0), Intensity("minmax"), "none")
    network = build_network(name, shape, diffeomorphic).eval()
    head = [module for module in network.modules() if isinstance(module, nn.Conv3d) and module.out_channels == 3][-1]
    with torch.no_grad():
        head.weight *= 1e-3 / head.weight.std()
        pair = synthetic_pair(expects)
        for _ in range(3):  # an integrated field does not scale with its velocity
            head.weight *= 4 / np.abs(predict(network, pair.moving, pair.fixed, "cpu")).max()

    def dice(field: np.ndarray) -> float:
        """Of the bright halves of fixed and warped image."""
        warped = map_coordinates(pair.moving, np.indices(shape) + field, order=1, mode="nearest") > 0.5
        return float(2 * (warped & (pair.fixed > 0.5)).sum() / (warped.sum() + (pair.fixed > 0.5).sum()))

    return ExportSource(network, name, expects, {}, [pair], [dice], "a synthetic pair")
