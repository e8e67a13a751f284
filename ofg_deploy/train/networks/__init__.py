"""Registration networks by name."""

from __future__ import annotations

from ofg_deploy.errors import UsageError
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.voxelmorph import VoxelMorph

NETWORKS: dict[str, type[RegistrationNetwork]] = {"voxelmorph": VoxelMorph}


def build_network(name: str) -> RegistrationNetwork:
    """A freshly initialised network.

    Raises:
        UsageError: no network of that name.
    """
    if name not in NETWORKS:
        raise UsageError(f"network {name!r} is unknown: use one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()
