"""Processes that find affine starts: it is many small calls, for each of which the engine would wait."""

from __future__ import annotations

from ofg_deploy.affine import Alignment
from ofg_deploy.child import Children, Died
from ofg_deploy.errors import InputError
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import IMAGE_BASED, Start


class Aligners:
    """Does what ``Start.align`` does; where that looks at voxels, in another process, with the same result.

    Args:
        count: processes; each is started when there is something for it to do.
    """

    def __init__(self, count: int) -> None:
        self._children = Children("that looked for the affine start", count)

    def align(self, start: Start, fixed: Volume, moving: Volume) -> Alignment:
        """The start of a pair.

        Raises:
            AlignerDied: this start ends the process that looks for it. CancelledError: ``close`` was called. Otherwise
                as ``Start.align``.
        """
        if start.matrix is not None or start.init not in IMAGE_BASED:
            return start.align(fixed, moving)
        try:
            return self._there(start, fixed, moving)
        except Died:
            pass  # of this start, or for want of memory, or by somebody's signal: which shows when it is tried alone
        try:
            return self._there(start, fixed, moving, alone=True)
        except Died as error:
            raise AlignerDied(
                f"{error}, for {moving.path} on {fixed.path}: align them first and use `init=none`, or use fewer "
                "`workers` if memory is short"
            ) from error

    def _there(self, start: Start, fixed: Volume, moving: Volume, alone: bool = False) -> Alignment:
        alignment: Alignment = self._children.call(_align, start, fixed, moving, alone=alone)
        return alignment

    def close(self) -> None:
        """End the processes, at once: they write nothing."""
        self._children.close()


class AlignerDied(InputError):
    """A start that ends its process also when it is the only one."""


def _align(start: Start, fixed: Volume, moving: Volume) -> Alignment:
    return start.align(fixed, moving)
