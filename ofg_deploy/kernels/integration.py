"""How a stationary velocity becomes a displacement: what an architecture, a checkpoint or a model says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ofg_deploy.errors import InputError

MAX_STEPS = 32  # 2^32 steps are finer than float32; a number beyond it is damage


@dataclass(frozen=True)
class Integration:
    """Scaling and squaring: 1 / 2^steps of the velocity, composed with itself ``steps`` times.

    The defaults are those of this project's own networks, and of the models exported before models recorded them.

    Attributes:
        steps: squarings, at least 1.
        downsize: the integration runs on a grid of n // downsize voxels along each axis; 1 is full resolution.
        beyond: what the displacement is outside the grid while it is composed: its edge value (``border``) or 0
            (``zeros``).
        nominal: lengths change by ``downsize`` between the two grids, as VoxelMorph has it, instead of by the ratio
            (n - 1) / (m - 1) of their voxel sizes. The corner voxels lie on each other in both cases.
        coarse: the velocity is given on the coarse grid, in voxels of it.

    Raises:
        InputError: a number out of range.
    """

    steps: int = 7
    downsize: int = 2
    beyond: Literal["border", "zeros"] = "border"
    nominal: bool = False
    coarse: bool = False

    def __post_init__(self) -> None:
        for name, largest in (("steps", MAX_STEPS), ("downsize", 64)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
                raise InputError(f"integration with {name} {value!r}: a whole number of 1 to {largest} is needed")
        if self.beyond not in ("border", "zeros"):
            raise InputError(f"integration with {self.beyond!r} beyond the grid: border or zeros is needed")

    def coarse_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid on which it runs, of a field on ``grid``."""
        return tuple(n // self.downsize for n in grid)

    def extents(self, grid: tuple[int, ...]) -> tuple[float, ...]:
        """Length of each axis of ``grid`` in its voxels, as far as lengths on the coarse grid relate to it."""
        if not self.nominal:
            return tuple(float(n - 1) for n in grid)
        return tuple(float(self.downsize * (m - 1)) for m in self.coarse_grid(grid))

    def to_record(self) -> dict[str, Any]:
        """JSON-ready; ``from_record`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_training(cls, training: Mapping[str, Any] | None) -> Integration:
        """What a record of training says of it; where it says nothing, the form of the time before it was recorded.

        Raises:
            InputError: an entry that this version does not know.
        """
        record = (training or {}).get("integration")
        if record is None:
            return cls()
        if not isinstance(record, dict) or set(record) != {field.name for field in fields(cls)}:
            raise InputError(f"the record describes the integration as {record!r}: this version does not know it")
        return cls(**record)


OWN = Integration()
