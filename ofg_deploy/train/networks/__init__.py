"""Registration networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ofg_deploy.errors import UsageError
from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.options.words import NetworkName
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.half_resolution import VoxelMorphHalf
from ofg_deploy.train.networks.lku_net import LKUNet, of_width
from ofg_deploy.train.networks.transmorph import TransMorph, TransMorphLarge, TransMorphLPBA, TransMorphSmall
from ofg_deploy.train.networks.vit_v_net import ViTVNet
from ofg_deploy.train.networks.voxelmorph import VoxelMorph, VoxelMorph2
from ofg_deploy.train.networks.vxm_dense import NAME as VXM_DENSE
from ofg_deploy.train.networks.vxm_dense import Layout, vxm_dense

NETWORKS: dict[NetworkName, type[RegistrationNetwork]] = {
    "voxelmorph": VoxelMorph,
    "voxelmorph-2": VoxelMorph2,
    "voxelmorph-half": VoxelMorphHalf,
    "vit-v-net": ViTVNet,
    "transmorph": TransMorph,
    "transmorph-small": TransMorphSmall,
    "transmorph-large": TransMorphLarge,
    "transmorph-lpba": TransMorphLPBA,
    "lku-net": LKUNet,
}


def network_class(name: str) -> type[RegistrationNetwork]:
    """The architecture of that name: its divisor and ``check_grid`` are known without building it.

    Raises:
        UsageError: no network of that name.
    """
    if name not in NETWORKS:
        raise UsageError(f"network {name!r} is unknown: use one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def fitting_class(
    name: str, state: Mapping[str, Any], training: Mapping[str, Any] | None = None
) -> type[RegistrationNetwork]:
    """The architecture of that name in the width of these weights.

    Args:
        state: tensors by published name.
        training: the record of a model, which describes a network that VoxelMorph's own code made.

    Raises:
        UsageError: no network of that name. InputError: a record that describes none.
    """
    if name == VXM_DENSE:
        return vxm_dense(Layout.from_record((training or {}).get("layout") or {}))
    architecture = network_class(name)
    first = state.get("eninput.0.weight")
    if architecture is LKUNet and first is not None and first.ndim == 5 and first.shape[0] > 0:
        return of_width(int(first.shape[0]))
    return architecture


def recorded_form(training: Mapping[str, Any] | None) -> bool | Integration:
    """What ``diffeomorphic`` a network has to be built with by the record of a checkpoint or model of ours.

    Raises:
        InputError: an integration that this version does not know.
    """
    return Integration.from_training(training) if (training or {}).get("diffeomorphic") else False


def build_network(name: str, grid: Shape, diffeomorphic: bool | Integration = False) -> RegistrationNetwork:
    """A freshly initialised network for images of one grid.

    Args:
        name: key of ``NETWORKS``.
        grid: (X, Y, Z) voxels, any size the network's ``check_grid`` accepts.
        diffeomorphic: the network predicts a stationary velocity, which is integrated as the architecture does, or as
            given (see ``velocity``). The weights have the same names and shapes in both forms.

    Raises:
        UsageError: no network of that name, or a grid too small for it.
    """
    return network_class(name)(grid, diffeomorphic)
