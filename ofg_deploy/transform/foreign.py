"""Transforms of other tools that are recognised and not read, with the command that converts them."""

from __future__ import annotations

from pathlib import Path

from ofg_deploy.errors import InputError

NITRANSFORMS = "nitransforms converts it (nitransforms.linear.load(FILE, fmt='{}', ...).to_filename(OUT, fmt='itk'))"
BY_ENDING = {
    ".x5": ("an X5 transform", NITRANSFORMS.format("X5")),
    ".xfm": (
        "an MNI transform",
        "lta_convert --inmni FILE --src MOVING --trg FIXED --outlta OUT.lta makes an .lta, which is read",
    ),
    ".aff12.1d": ("an AFNI matrix", NITRANSFORMS.format("afni")),
    ".1d": ("an AFNI matrix", NITRANSFORMS.format("afni")),
    ".m3z": (
        "a FreeSurfer morph",
        "mri_warp_convert --inm3z FILE --outitk OUT_Warp.nii.gz makes a displacement field of ITK",
    ),
    ".mgz": ("a FreeSurfer volume", "mri_warp_convert with --outitk OUT_Warp.nii.gz makes a displacement field of ITK"),
    ".mgh": ("a FreeSurfer volume", "mri_warp_convert with --outitk OUT_Warp.nii.gz makes a displacement field of ITK"),
    ".dat": (
        "a register.dat of FreeSurfer",
        "lta_convert --inreg FILE --src MOVING --trg FIXED --outlta OUT.lta makes an .lta, which is read",
    ),
    ".dof": ("a transform of MIRTK", "mirtk convert-dof converts it"),
}
AFNI = b"# 3dvolreg matrices"
MNI = b"MNI Transform File"
FIELD_IMAGES = (".mha", ".mhd", ".nrrd", ".nhdr", ".mnc", ".vtk")


def refuse_foreign(path: Path, content: bytes) -> None:
    """Raises InputError where the name or the content of a file is that of a tool whose transforms are not read."""
    name = path.name.lower()
    ending = next((ending for ending in BY_ENDING if name.endswith(ending)), None)
    if content.lstrip().startswith(AFNI):
        ending = ".aff12.1d"
    elif content.lstrip().startswith(MNI):
        ending = ".xfm"
    if ending is not None:
        what, command = BY_ENDING[ending]
        raise InputError(f"{path} is {what}, which is not read: {command}")
    if name.endswith(FIELD_IMAGES):
        raise InputError(
            f'{path} is a field in another image format: python -c "import SimpleITK as s; '
            "s.WriteImage(s.ReadImage('FILE'), 'OUT_Warp.nii.gz')\" writes it as NIfTI, which is read"
        )
