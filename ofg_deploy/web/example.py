"""The example of the page: two heads made of formulas, one of them bent, so that trying it needs nobody's scan."""

from __future__ import annotations

from functools import lru_cache

import nibabel as nib
import numpy as np
import numpy.typing as npt

SHAPE, SPACING_MM = (50, 58, 46), 4.0
ROLES = ("fixed", "moving")
Soft = npt.NDArray[np.float64]  # 1 inside, 0 outside


@lru_cache(maxsize=2)
def example(role: str) -> bytes:
    """``fixed`` or ``moving`` as a NIfTI file: (50, 58, 46) voxels of 4 mm, uint8, RAS, the same bytes each time."""
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = -SPACING_MM * (np.array(SHAPE) - 1) / 2
    points = np.indices(SHAPE, dtype=np.float64) * SPACING_MM + affine[:3, 3].reshape(3, 1, 1, 1)
    image = nib.Nifti1Image(_head(points if role == "fixed" else _bent(points)), affine)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _bent(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the moving head has what the fixed one has at (3, ...) mm: up to 9 mm away, folding nowhere."""
    x, y, z = points / 40
    return np.asarray(
        points + 5 * np.stack([np.sin(1.3 * y + 0.4) + 0.4 * z, np.cos(1.1 * x) - 0.5 * y, np.sin(1.2 * x - y)])
    )


def _head(points: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Skull, folded cortex, white matter, ventricles and some nuclei, smooth at their borders; 0..255."""

    def inside(centre: tuple[float, float, float], radii: tuple[float, float, float], wave: float = 0.0) -> Soft:
        at = [(p - c) / r for p, c, r in zip(points, centre, radii, strict=True)]
        distance = np.sqrt(sum(a**2 for a in at)) - 1 + wave * folds
        return np.asarray(1 / (1 + np.exp(np.clip(distance * min(radii) / 1.2, -30, 30))))

    x, y, z = points
    folds = np.sin(x / 5.5 + 0.6 * np.sin(z / 9)) * np.sin(y / 6.5 + 0.4) * np.cos(z / 6 - 0.3)
    head = inside((0, -4, 0), (78, 96, 80))
    skull = inside((0, -4, 0), (73, 91, 75))
    brain = inside((0, -6, 4), (64, 80, 64), 0.03)
    white = inside((0, -6, 6), (54, 69, 53), 0.16)
    value = 90 * head - 60 * skull + 80 * brain + (45 + 18 * np.sin(x / 11 + z / 17) * np.cos(y / 13)) * white
    for side in (-1, 1):
        value -= 110 * inside((10 * side, 4, 10), (6, 24, 13))
        value -= 35 * inside((21 * side, 2, 2), (8, 15, 10))
    value -= 60 * inside((0, -48, -42), (26, 20, 16), 0.3)
    return np.asarray(np.clip(value, 0, 255).astype(np.uint8))
