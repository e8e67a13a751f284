"""Which affine other readers take where a header has two that differ.

nibabel, FSL, SPM and FreeSurfer take the sform wherever it is coded. ITK (5.3 and later: SimpleITK, ANTs, 3D Slicer)
takes it only where its code is 1 or the qform is not coded, and otherwise the qform; before, it always took a coded
qform. Tried with SimpleITK 2.5 on every combination of codes 0 to 5 (``tests/test_readers.py``).
"""

from __future__ import annotations


def itk_takes_qform(sform_code: int, qform_code: int) -> bool:
    """Whether ITK reads the qform of a header whose forms differ."""
    return qform_code > 0 and sform_code != 1


def conflict_said(sform_code: int, qform_code: int, gap_mm: float) -> str:
    """What to know of two forms, both coded, that differ by so many mm at most."""
    said = f"sform and qform disagree by up to {gap_mm:.2f} mm; the sform is used"
    if itk_takes_qform(sform_code, qform_code):
        return (
            f"{said}, as by nibabel, FSL and SPM; ITK (SimpleITK, ANTs, 3D Slicer) takes the qform of these codes "
            f"(sform {sform_code}, qform {qform_code}): there results of this image lie up to {gap_mm:.2f} mm off"
        )
    return f"{said}, as by nibabel, FSL, SPM and ITK of today (SimpleITK, ANTs); older ITK takes the qform"
