"""What a client may use of the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ofg_deploy.errors import UsageError, check_count
from ofg_deploy.nifti_file import MAX_VOXELS

LABEL_MAPS = 8  # in one request
OPTIONS_BYTES = 64 * 2**10
CHUNK_S = 30.0  # an upload that rests longer is given up
UPLOAD_S = 900.0  # all of one
FREE_BYTES = 2**30  # of the disk that stay free: results of jobs that are accepted already need room
ATTEMPTS = 3  # times that the service may end in the middle of a job before that job is taken for the reason
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Each may be set on the command line.

    Attributes:
        queue: jobs that wait, uploads included; beyond it clients are asked to come back (429).
        upload_mib: of one request, all its files together, compressed as they are.
        max_voxels: of each image, as its header promises.
        keep_hours: results are deleted so long after a job has ended.

    Raises:
        UsageError: a limit of nothing.
    """

    queue: int = 32
    upload_mib: int = 1024
    max_voxels: int = MAX_VOXELS
    keep_hours: float = 24.0

    def __post_init__(self) -> None:
        for name in ("queue", "upload_mib", "max_voxels"):
            check_count(f"`{name}`", getattr(self, name))
        if not (math.isfinite(self.keep_hours) and self.keep_hours > 0):
            raise UsageError(f"`keep_hours` {self.keep_hours:g}: give a number above 0")

    @property
    def upload_bytes(self) -> int:
        """Of one request."""
        return self.upload_mib * MIB

    @property
    def keep_s(self) -> float:
        """Seconds."""
        return self.keep_hours * 3600
