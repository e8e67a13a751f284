"""Headers of what a client sent, before a job is accepted; voxels are read when its turn comes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ofg_deploy.nifti import check_volume
from ofg_deploy.nifti_file import open_nifti
from ofg_deploy.nifti_space import space_of


def check(paths: Iterable[Path], max_voxels: int) -> None:
    """Of each image: format, shape, size and geometry.

    Nothing is decompressed beyond the header, and later nothing beyond the voxels that it promises.

    Raises:
        FormatError: not NIfTI. SizeError: more voxels than allowed. InputError, GeometryError: a header that cannot
            be used.
    """
    for path in paths:
        nifti = open_nifti(path, max_voxels)
        check_volume(nifti)
        space_of(nifti)
