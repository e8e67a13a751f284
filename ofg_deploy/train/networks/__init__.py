"""Registration networks by name."""

from __future__ import annotations

from ofg_deploy.errors import UsageError
from ofg_deploy.geometry import Shape
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.half_resolution import VoxelMorphHalf
from ofg_deploy.train.networks.lku_net import LKUNet
from ofg_deploy.train.networks.transmorph import TransMorph, TransMorphLarge, TransMorphLPBA, TransMorphSmall
from ofg_deploy.train.networks.vit_v_net import ViTVNet
from ofg_deploy.train.networks.voxelmorph import VoxelMorph, VoxelMorph2

NETWORKS: dict[str, type[RegistrationNetwork]] = {
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


def build_network(name: str, grid: Shape, diffeomorphic: bool = False) -> RegistrationNetwork:
    """A freshly initialised network for images of one grid.

    Args:
        name: key of ``NETWORKS``.
        grid: (X, Y, Z) voxels, any size the network's ``check_grid`` accepts.
        diffeomorphic: the network predicts a stationary velocity, which is integrated (see ``velocity``). The weights
            have the same names and shapes in both forms.

    Raises:
        UsageError: no network of that name, or a grid too small for it.
    """
    return network_class(name)(grid, diffeomorphic)
