"""One registration on disk: its sidecar, checked, and the files it names."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Matrix
from ofg_deploy.locations import located
from ofg_deploy.nifti import FARTHEST_MM
from ofg_deploy.outputs import parse_json, read_text, sha256_file
from ofg_deploy.report.measures import GAINS

MOST = 1e30  # of any measure
SCHEMA = 1  # of the sidecars this version reads


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
    def record(self) -> dict[str, Any]:
        """The sidecar's content. Raises InputError if it is missing, damaged or not one of ours."""
        try:
            record = parse_json(read_text(self.sidecar))
            known = record["tool"] == "ofg_deploy" and record["schema"] == SCHEMA
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.sidecar} is not a readable sidecar of ofg register: {error!r}") from error
        if not known:
            raise InputError(f"{self.sidecar} is not a sidecar this version reads (ofg_deploy, schema {SCHEMA})")
        return dict(record)

    @cached_property
    def numbers(self) -> dict[str, float | None]:
        """Every single number by name: metrics, gains, inverse consistency, and the time of all stages.

        Raises:
            InputError: a metric is no finite number, or there are none.
        """
        try:
            found = {key: self._number(key, v) for key, v in self.record["metrics"].items() if not isinstance(v, dict)}
            gap = self.record.get("inverse", {}).get("consistency_mm", {})
            found |= {f"inverse_{key}_mm": self._number(key, gap[key]) for key in ("mean", "p99", "max") if key in gap}
            found["seconds"] = sum(self._number(key, v) or 0.0 for key, v in self.record["seconds"].items())
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.sidecar} is a damaged sidecar: {error!r}") from error
        for gain, (later, earlier) in GAINS.items():
            after, before = found.get(later), found.get(earlier)
            if before is not None and after is not None:
                found[gain] = after - before
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the registration itself warned about, a line each. Raises InputError if the sidecar is damaged."""
        found = self.record.get("warnings", [])
        if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
            raise InputError(f"{self.sidecar} is a damaged sidecar: warnings are no list of texts")
        return tuple(" ".join(line.split()) for line in found)

    @property
    def about(self) -> dict[str, str]:
        """Images, model and program by name, as far as the sidecar has them: file names without their folders."""
        record, found = self.record, {}
        for role in ("fixed", "moving"):
            with suppress(KeyError, TypeError):
                found[f"{role} image"] = Path(str(record["inputs"][role]["path"])).name
        with suppress(KeyError, TypeError):
            found["network"] = str(record["model"]["network"])
            found["model"] = f"sha256 {str(record['model']['sha256'])[:12]}"
        with suppress(KeyError, TypeError):
            found["runtime"] = f"{record['runtime']['name']} ({record['runtime']['provider']})"
        with suppress(KeyError, TypeError):
            found["initial alignment"] = str(record["init"])
        with suppress(KeyError):
            found["program"] = f"ofg_deploy {record['version']}"
        return found

    @property
    def per_label(self) -> dict[str, dict[str, float | None]]:
        """``dice_before``, ``dice_start``, ``dice``, ``hd95_mm`` of each label, as far as they are known, by label."""
        found: dict[str, dict[str, float | None]] = {}
        for column in ("dice_before", "dice_start", "dice", "hd95_mm"):
            values = self.record["metrics"].get(f"{column}_per_label", {})
            if not isinstance(values, dict):
                raise InputError(f"{self.sidecar} is a damaged sidecar: {column}_per_label is no table of labels")
            for label, value in values.items():
                found.setdefault(label, {})[column] = self._number(f"{column} of label {label}", value)
        return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))

    @property
    def labelled(self) -> bool:
        """Whether both images had label maps."""
        return "fixed_labels" in self.record["inputs"] and "warped_labels" in self.record["outputs"]

    @property
    def moving_from_fixed(self) -> Matrix:
        """(4, 4) world mm, where the registration started. Raises InputError if the sidecar does not say so."""
        try:
            matrix = np.array(self.record["start"]["moving_from_fixed"], dtype=np.float64)
            if matrix.shape == (4, 4) and (np.abs(matrix) <= FARTHEST_MM).all() and np.linalg.det(matrix):
                return matrix
        except (KeyError, TypeError, ValueError, OverflowError):
            pass
        raise InputError(f"{self.sidecar} is a damaged sidecar: start.moving_from_fixed is no 4x4 matrix")

    def file(self, role: str) -> Path:
        """An input or output by its role in the sidecar. Raises InputError if there is none, or the input changed."""
        try:
            if (name := self.record["outputs"].get(role)) is not None:
                # A name, not a path: a sidecar must not lead anywhere else.
                return self.sidecar.parent / Path(name).name
            known = self.record["inputs"][role]
            path, digest = located(known["path"], self.sidecar.parent), known["sha256"]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.sidecar} names no file for '{role}'") from error
        try:
            status = path.stat()
            changed = _digest(path, status.st_size, status.st_mtime_ns) != digest
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or error
            raise InputError(f"{path}, the {role} image of {self.sidecar.name}, cannot be read: {told}") from error
        if changed:
            raise InputError(f"{path} has changed since {self.sidecar} was written: register it again")
        return path

    def _number(self, key: str, value: Any) -> float | None:
        if value is None:
            return None
        try:
            # Beyond it differences and sums would be infinite.
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST:
                return float(value)
        except OverflowError:  # whole numbers of JSON have no end
            pass
        raise InputError(f"{self.sidecar} is a damaged sidecar: {key} is {repr(value)[:40]}, no finite number")


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """An atlas is one side of every pair: its bytes are read once. Size and time are the key of an unchanged file."""
    if not os.path.isfile(path):  # noqa: PTH113  # a pipe would never end
        raise OSError(None, "not a regular file")
    return sha256_file(path)
