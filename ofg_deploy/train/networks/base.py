"""What every registration network promises."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class RegistrationNetwork(nn.Module):
    """Takes ``moving`` and ``fixed``, (N, 1, X, Y, Z) in 0..1; returns a field (N, 3, X, Y, Z).

    The field is in voxels, components in array-axis order, and maps fixed voxels to moving voxels.

    Attributes:
        divisor: every axis of the grid must be a multiple of this.
        onnx_ops: all operators its exported graph may hold.
    """

    divisor: ClassVar[int]
    onnx_ops: ClassVar[frozenset[str]]
