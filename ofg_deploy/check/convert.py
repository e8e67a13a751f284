"""Command lines that a user can copy: whole, quoted for a shell, and tried in the tests."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

OF_NIBABEL = (".mgz", ".mgh", ".mnc", ".head", ".brik", ".par", ".rec")
OF_SIMPLEITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz", ".vtk", ".tif", ".tiff", ".hdf5", ".lsm")
DICOM_AT = 128  # bytes before the magic of a DICOM file
LOOKED_AT = 50  # files of a folder


def nibabel_line(code: str) -> str:
    """Python code that ends with an image ``image`` -> a command that writes it as volume.nii.gz."""
    return _python(f"import nibabel as nib; {code}; nib.save(image, {_text('volume.nii.gz')})")


def load(path: Path) -> str:
    """The code that reads a file by nibabel into ``image``."""
    return f"image = nib.load({_text(str(path))})"


def check_line(path: Path, *options: str) -> str:
    """``ofg check`` on the file, writing a corrected copy into a new folder."""
    return " ".join(["ofg check", shlex.quote(str(path)), *options, "--fix corrected"])


def conversion_line(path: Path) -> str:
    """What makes a NIfTI file of a file or folder in another format; empty where nobody knows."""
    name = path.name.lower()
    if path.is_dir():
        return _series(path) if any(map(_is_dicom, sorted(path.iterdir())[:LOOKED_AT])) else ""
    if _is_dicom(path):
        return _series(path.parent)
    if name.endswith(OF_NIBABEL):
        return nibabel_line(f"image = nib.Nifti1Image.from_image(nib.load({_text(str(path))}))")
    if name.endswith(OF_SIMPLEITK):
        read = f"sitk.ReadImage({_text(str(path))})"
        return _python(f"import SimpleITK as sitk; sitk.WriteImage({read}, {_text('volume.nii.gz')})")
    return ""


def _series(folder: Path) -> str:
    files = f"sitk.ImageSeriesReader.GetGDCMSeriesFileNames({_text(str(folder))})"
    read = f"sitk.ReadImage({files})"
    return _python(f"import SimpleITK as sitk; sitk.WriteImage({read}, {_text('volume.nii.gz')})")


def _is_dicom(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would never end
            return False
        with path.open("rb") as stream:
            return path.name.lower().endswith(".dcm") or stream.read(DICOM_AT + 4)[DICOM_AT:] == b"DICM"
    except OSError:
        return False


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"


def _text(value: str) -> str:
    """As Python source has it, in double quotes, so that the shell's single ones stay whole."""
    return json.dumps(value, ensure_ascii=False)
