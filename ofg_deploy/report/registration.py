"""One registration on disk: its sidecar, checked, and the files it names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix
from ofg_deploy.locations import located
from ofg_deploy.outputs import sha256_file
from ofg_deploy.report.measures import GAINS
from ofg_deploy.sidecar import Sidecar


@dataclass(frozen=True)
class Registration:
    """One registration on disk.

    Attributes:
        sidecar: the JSON that ``ofg register`` wrote; its other outputs lie beside it.
        method: what it is summarised and compared under, for example the name of the model.
        called: the pair's name where that of the sidecar does not tell it from others.
    """

    sidecar: Path
    method: str = ""
    called: str = ""

    @property
    def name(self) -> str:
        """What the pair is called."""
        return self.called or self.sidecar.stem

    @cached_property
    def record(self) -> Sidecar:
        """The sidecar. Raises InputError if it is missing, damaged or not one of ours."""
        return Sidecar.read(self.sidecar)

    @cached_property
    def numbers(self) -> dict[str, float | None]:
        """Every single number by name: metrics, gains, inverse consistency, and the time of all stages.

        Raises:
            InputError: as ``Sidecar.read``.
        """
        found = {
            key: None if value is None else float(value)
            for key, value in self.record.metrics.items()
            if not isinstance(value, dict)
        }
        gap = self.record.inverse.consistency_mm if self.record.inverse else {}
        found |= {f"inverse_{key}_mm": gap[key] for key in ("mean", "p99", "max") if key in gap}
        found["seconds"] = sum(self.record.seconds.values())
        for gain, (later, earlier) in GAINS.items():
            after, before = found.get(later), found.get(earlier)
            if before is not None and after is not None:
                found[gain] = after - before
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the registration itself warned about, a line each. Raises InputError if the sidecar is damaged."""
        return tuple(" ".join(line.split()) for line in self.record.warnings)

    @property
    def about(self) -> dict[str, str]:
        """Images, model and program by name, as far as the sidecar has them: file names without their folders."""
        record, found = self.record, {}
        for role in ("fixed", "moving"):
            if role in record.inputs:
                path = record.inputs[role].path
                found[f"{role} image"] = Path(path).name if path else "given in memory"
        if "network" in record.model:
            found["network"] = str(record.model["network"])
            if record.model.get("sha256"):  # there is none without a network
                found["model"] = f"sha256 {str(record.model['sha256'])[:12]}"
        if record.runtime:
            found["runtime"] = f"{record.runtime.name} ({record.runtime.provider})"
        if record.init:
            found["initial alignment"] = record.init
        if record.version:
            found["program"] = f"ofg_deploy {record.version}"
        return found

    @property
    def per_label(self) -> dict[str, dict[str, float | None]]:
        """``dice_before``, ``dice_start``, ``dice``, ``hd95_mm`` of each label, as far as they are known, by label."""
        found: dict[str, dict[str, float | None]] = {}
        for column in ("dice_before", "dice_start", "dice", "hd95_mm"):
            for label, value in self.record.per_label(column).items():
                found.setdefault(label, {})[column] = value
        return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))

    @property
    def labelled(self) -> bool:
        """Whether both images had label maps."""
        return "fixed_labels" in self.record.inputs and "warped_labels" in self.record.outputs

    @property
    def moving_from_fixed(self) -> Matrix:
        """(4, 4) world mm, where the registration started."""
        return self.record.moving_from_fixed

    def file(self, role: str) -> Path:
        """An input or output by its role in the sidecar. Raises InputError if there is none, or the input changed."""
        if role in self.record.outputs:
            # A name, not a path: a sidecar must not lead anywhere else.
            return self.sidecar.parent / Path(self.record.outputs[role]).name
        if role not in self.record.inputs:
            raise InputError(f"{self.sidecar} names no file for '{role}'")
        known = self.record.inputs[role]
        if known.path is None:
            raise InputError(f"the {role} image of {self.sidecar} was given in memory: there is no file to look at")
        path = located(known.path, self.sidecar.parent)
        try:
            status = path.stat()
            changed = _digest(path, status.st_size, status.st_mtime_ns) != known.sha256
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or error
            raise InputError(f"{path}, the {role} image of {self.sidecar.name}, cannot be read: {told}") from error
        if changed:
            raise InputError(f"{path} has changed since {self.sidecar} was written: register it again")
        return path


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """An atlas is one side of every pair: its bytes are read once. Size and time are the key of an unchanged file."""
    if not os.path.isfile(path):  # noqa: PTH113  # a pipe would never end
        raise OSError(None, "not a regular file")
    return sha256_file(path)
