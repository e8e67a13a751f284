"""What a Learn2Reg submission calls its fields (github.com/MDL-UzL/L2R, evaluation.py)."""

from __future__ import annotations

import re
from pathlib import Path

from ofg_deploy.errors import UsageError

# Task_CASE_MODALITY.nii.gz, or imgCASE.nii.gz in the older tasks.
IMAGE_NAME = re.compile(r"(?<!\d)(?P<case>\d{4})(?:_(?P<modality>\d{4}))?\.nii(?:\.gz)?$")


def field_name(fixed: Path, moving: Path) -> str:
    """``disp_FIXED_MODALITY_MOVING_MODALITY.nii.gz``, as the evaluation looks for it.

    The short name ``disp_FIXED_MOVING.nii.gz`` is wanted for the first modality as the fixed and the second as the
    moving image, and in the older tasks, whose names have no modality.

    Raises:
        UsageError: images that are not named as Learn2Reg names them.
    """
    (case, modality), (other_case, other_modality) = _numbers(fixed), _numbers(moving)
    if (modality, other_modality) in ((None, None), ("0000", "0001")):
        return f"disp_{case}_{other_case}.nii.gz"
    return f"disp_{case}_{modality or '0000'}_{other_case}_{other_modality or '0000'}.nii.gz"


def is_named(fixed: Path, moving: Path) -> bool:
    """Whether both images are named as Learn2Reg names them."""
    return all(IMAGE_NAME.search(path.name) for path in (fixed, moving))


def _numbers(image: Path) -> tuple[str, str | None]:
    found = IMAGE_NAME.search(image.name)
    if found is None:
        raise UsageError(
            f"`format=l2r` names the field after case numbers: {image.name} must end in _CASE_MODALITY.nii.gz, four "
            "digits each"
        )
    return found["case"], found["modality"]
