"""Files of FSL, FreeSurfer, elastix, Greedy: beside the tools' own results, or refused by name."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from ofg_deploy.errors import GeometryError, InputError, UsageError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import load_grid
from ofg_deploy.transform.dialects import load_linear, load_map
from ofg_deploy.transform.maps import FieldMap, LinearMap

FAULTS = Path(__file__).parents[2] / "shared" / "faults"
LPS = np.array([-1.0, -1.0, 1.0])
POINTS = np.random.default_rng(5).uniform(-15, 15, (3, 40))  # RAS


@pytest.fixture
def pair(make_grid) -> tuple[Grid, Grid]:
    return (
        make_grid("oblique", (11, 14, 9), (3.1, 2.4, 3.9), (2.0, -4.0, 3.0)),
        make_grid("left-handed", (12, 10, 13), (2.7, 3.3, 2.9), (-3.0, 5.0, -2.0)),
    )


def matrix_of(path: Path, form: str = "itk", *grids: Grid) -> np.ndarray:
    found = load_map(path, form, *grids)
    assert isinstance(found, LinearMap)
    return found.moving_from_fixed


# FLIRT and Greedy.


def scaled(grid: Grid) -> np.ndarray:
    """(4, 4) voxel -> FSL's coordinates, written down anew."""
    matrix = np.diag([*grid.spacing_mm, 1.0])
    if np.linalg.det(grid.world_from_vox[:3, :3]) > 0:
        matrix[0] = [-grid.spacing_mm[0], 0, 0, grid.spacing_mm[0] * (grid.shape[0] - 1)]
    return matrix


@pytest.mark.parametrize("name", ["flirt.mat", "flirt.txt", "flirt"])
def test_a_flirt_matrix_maps_the_input_to_the_reference(tmp_path, pair, some_affine, name):
    fixed, moving = pair
    np.savetxt(tmp_path / name, some_affine, fmt="%.8f")
    found = matrix_of(tmp_path / name, "fsl", fixed, moving)
    voxel = np.random.default_rng(0).uniform(0, 9, (20, 3))  # of the input
    in_reference = apply_affine(np.linalg.inv(scaled(fixed)) @ some_affine @ scaled(moving), voxel)
    reached = apply_affine(found, apply_affine(fixed.world_from_vox, in_reference))
    np.testing.assert_allclose(reached, apply_affine(moving.world_from_vox, voxel), atol=1e-5)


def test_a_flirt_matrix_as_nitransforms_reads_it(tmp_path, pair, some_affine, foreign):
    foreign("nitransforms")
    from nitransforms.linear import load

    fixed, moving = (nib.Nifti1Image(np.zeros(g.shape, np.float32), g.world_from_vox) for g in pair)
    for image, name in ((fixed, "f.nii.gz"), (moving, "m.nii.gz")):
        nib.save(image, tmp_path / name)
    np.savetxt(tmp_path / "flirt.mat", some_affine, fmt="%.10f")
    theirs = load(
        tmp_path / "flirt.mat", fmt="fsl", reference=str(tmp_path / "f.nii.gz"), moving=str(tmp_path / "m.nii.gz")
    )
    np.testing.assert_allclose(matrix_of(tmp_path / "flirt.mat", "fsl", *pair), theirs.matrix, atol=1e-4)


def test_apply_takes_flirt_and_greedy(tmp_path, files, run_cli, some_affine, to_sitk, sitk_affine, sitk_resample):
    fixed_file, moving_file, fixed, moving = files
    k_fixed, k_moving = (scaled(grid) @ np.linalg.inv(grid.world_from_vox) for grid in (fixed, moving))
    np.savetxt(tmp_path / "greedy.mat", some_affine)
    np.savetxt(tmp_path / "flirt.mat", k_fixed @ np.linalg.inv(some_affine) @ np.linalg.inv(k_moving))
    images = (to_sitk(nib.load(f).get_fdata(), g) for f, g in ((moving_file, moving), (fixed_file, fixed)))
    expected = sitk_resample(*images, sitk_affine(some_affine))
    line = ["apply", moving_file, "-r", fixed_file, "-o", tmp_path / "o.nii.gz", "--overwrite"]
    for form, name in (("greedy", "greedy.mat"), ("fsl", "flirt.mat")):
        code, _, err = run_cli([*line, "-t", tmp_path / name, "--format", form])
        assert code == 0, err
        np.testing.assert_allclose(nib.load(tmp_path / "o.nii.gz").get_fdata(), expected, atol=1e-3 * np.ptp(expected))
        code, _, err = run_cli([*line, "-t", tmp_path / name])
        assert code == 3
        assert "--format fsl" in err
        assert "--format greedy" in err
    points = ["apply", "--points", tmp_path / "p.csv", "-o", tmp_path / "o.csv"]
    assert run_cli([*points, "-t", tmp_path / "flirt.mat", "--format", "fsl"])[0] == 2


def test_matrices_that_are_none(tmp_path, pair):
    for rows, said in (
        (np.diag([1, 1, 0, 1]), "singular"),
        (np.diag([1, 1, 1, 2]), "no affine map"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.diag([1e9, 1, 1, 1]), "singular, not finite"),
    ):
        np.savetxt(tmp_path / "m.mat", rows)
        for form in ("fsl", "greedy"):
            with pytest.raises(GeometryError, match=said):
                load_map(tmp_path / "m.mat", form, *pair)
    np.savetxt(tmp_path / "m.mat", np.eye(4))
    with pytest.raises(UsageError, match="means nothing without both images"):
        load_map(tmp_path / "m.mat", "fsl")
    np.savetxt(tmp_path / "m.mat", np.eye(3))
    with pytest.raises(InputError, match="cannot be read as an ITK transform"):
        load_map(tmp_path / "m.mat", "greedy")


# FNIRT.


@pytest.fixture
def fnirt(tmp_path, make_grid) -> tuple[Path, Grid, Grid]:
    """The file that was reported, its reference and some source image."""
    if not FAULTS.is_dir():
        pytest.skip("../shared/faults is not here")
    folder = FAULTS / "fnirt_coefficients"
    source = make_grid("oblique", (20, 30, 25), (2.1, 2.3, 1.9), (4.0, -3.0, 30.0))
    return folder / "coefficientfield.nii.gz", load_grid(folder / "ref.nii.gz"), source


def test_fnirt_coefficients_are_expanded_as_fslpy_does(fnirt):
    """fslpy 3.29, readFnirt(...).asDeformationField('relative', premat=True): vectors at four voxels."""
    path, reference, source = fnirt
    found = load_map(path, "fsl", reference, source)
    assert isinstance(found, FieldMap)
    golden = {
        (0, 0, 0): (1.2392456397502658, -6.361096165222009, -1.2291571973061677),
        (5, 20, 11): (-1.7516333265569806, -11.795749439491072, 5.014176125414316),
        (17, 53, 22): (-5.7847688860152715, -19.97948941801087, 17.643566664342643),
        (9, 31, 3): (-1.1245973668968539, -9.99060810808463, 11.907216896312285),
    }
    for voxel, vector in golden.items():
        there = apply_affine(scaled(reference), voxel) + vector  # in the source's coordinates
        world = apply_affine(source.world_from_vox @ np.linalg.inv(scaled(source)), there)
        at = apply_affine(reference.world_from_vox, voxel)
        np.testing.assert_allclose(found.field[(slice(None), *voxel)], world - at, atol=2e-5)


def test_fnirt_coefficients_of_another_reference_are_refused(tmp_path, fnirt, make_grid):
    path, reference, source = fnirt
    finer = make_grid("LAS", (36, 108, 46), (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="convertwarp --ref"):
        load_map(path, "fsl", finer, source)
    mirrored = Grid(reference.shape, reference.world_from_vox @ np.diag([-1, 1, 1, 1]))
    with pytest.raises(GeometryError, match=r"stored right to left.*fnirtfileutils"):
        load_map(path, "fsl", mirrored, source)
    with pytest.raises(InputError, match=r"intent 1007.*with 2007; format=fsl of ofg apply reads it"):
        load_map(path)
    content = bytearray(nib.load(path).to_bytes())
    for code, said in ((2008, "cosine"), (2009, "quadratic"), (2016, "TOPUP")):
        content[68:70] = np.array([code], "<i2").tobytes()
        (tmp_path / "c.nii").write_bytes(content)
        with pytest.raises(InputError, match=f"{said}.*fnirtfileutils"):
            load_map(tmp_path / "c.nii", "fsl", reference, source)
    content[68:70] = np.array([2007], "<i2").tobytes()
    content[80:84] = np.array([4.5], "<f4").tobytes()  # pixdim: the distance of the knots
    (tmp_path / "c.nii").write_bytes(content)
    with pytest.raises(InputError, match="header does not fit their number"):
        load_map(tmp_path / "c.nii", "fsl", reference, source)


def test_check_says_what_a_transform_is(fnirt, run_cli):
    code, out, _ = run_cli(["check", fnirt[0]])
    assert code == 3
    assert "coefficients of FNIRT" in out
    assert "sheared" not in out


# FreeSurfer.


def lta(kind: int, matrix: np.ndarray, source: Grid, target: Grid) -> str:
    lines = [f"type      = {kind} # comment", "nxforms   = 1", "mean      = 0.0 0.0 0.0", "sigma     = 1.0", "1 4 4"]
    lines += [" ".join(f"{v:.15e}" for v in row) + " " for row in matrix]
    for name, grid in (("src", source), ("dst", target)):
        centre = apply_affine(grid.world_from_vox, np.array(grid.shape) / 2)
        axes = grid.world_from_vox[:3, :3] / grid.spacing_mm
        rows = {"volume": grid.shape, "voxelsize": grid.spacing_mm, "xras": axes[:, 0]}
        rows |= {"yras": axes[:, 1], "zras": axes[:, 2], "cras": centre}
        lines += [f"{name} volume info", "valid = 1  # volume info valid", "filename = x.mgz"]
        lines += [f"{key:<6} = {' '.join(f'{v:.15g}' for v in values)}" for key, values in rows.items()]
    return "\n".join([*lines, "subject fsaverage", "fscale 0.15", ""])


@pytest.mark.parametrize("kind", [0, 1])
def test_an_lta_maps_src_to_dst(tmp_path, pair, some_affine, foreign, kind):
    """src is what is moved. nitransforms reads the same matrix."""
    fixed, moving = pair
    matrix = some_affine
    if kind == 0:
        matrix = np.linalg.inv(fixed.world_from_vox) @ some_affine @ moving.world_from_vox
    path = tmp_path / "reg.lta"
    path.write_text(lta(kind, matrix, moving, fixed))
    np.testing.assert_allclose(matrix_of(path), np.linalg.inv(some_affine), atol=1e-9)
    np.testing.assert_allclose(load_linear(path), np.linalg.inv(some_affine), atol=1e-9)
    foreign("nitransforms")
    from nitransforms.io.lta import FSLinearTransform

    theirs = FSLinearTransform.from_string(path.read_text().replace("subject fsaverage\nfscale 0.15\n", ""))
    np.testing.assert_allclose(matrix_of(path), theirs.to_ras(), atol=1e-5)  # float32 there
    assert not load_map(path, "itk", fixed, moving).warnings
    assert "moves the reference onto the image" in load_map(path, "itk", moving, fixed).warnings[0]


def test_ltas_of_freesurfer_itself(foreign):
    """Test files of nitransforms: lta_convert wrote the ITK file from the other one."""
    folder = Path(foreign("nitransforms").__file__).parent / "tests" / "data" / "regressions"
    for ends in ("fsnative_to-bold", "fsnative_to-scanner", "scanner_to-bold"):
        name = f"from-{ends}_mode-image"
        if not (folder / f"{name}.lta").is_file():
            pytest.skip("nitransforms is installed without its tests")
        np.testing.assert_allclose(
            matrix_of(folder / f"{name}.lta"), matrix_of(folder / f"{name}.tfm"), atol=5e-4, err_msg=name
        )


def test_ltas_that_are_not_read(tmp_path, pair, some_affine):
    text = lta(1, some_affine, *pair)
    for content, said in (
        (text.replace("type      = 1", "type      = 14"), "of type 14.*lta_convert"),
        (text.replace("nxforms   = 1", "nxforms   = 2"), "of 2 transforms"),
        (text[: text.index("1 4 4")], "truncated"),
        (text.replace("type      = 1", "type      = 0").replace("valid = 1", "valid = 0"), "geometry of both volumes"),
        ("", "of type unknown"),
    ):
        (tmp_path / "x.lta").write_text(content)
        with pytest.raises(InputError, match=said):
            load_map(tmp_path / "x.lta")


# elastix.

ELASTIX = """(Transform "{kind}")
(NumberOfParameters {count})
(TransformParameters {parameters})
(InitialTransformParametersFileName "{initial}")
(HowToCombineTransforms "Compose")

// Image specific
(FixedImageDimension 3)
(MovingImageDimension 3)
(UseDirectionCosines "true")

{more}
(ResampleInterpolator "FinalBSplineInterpolator")
"""
CENTRE = "(CenterOfRotationPoint 1.5 -2 3)"
GRID = """(GridSize 6 7 8)
(GridIndex 0 0 0)
(GridSpacing 17 18 16)
(GridOrigin -10 -70 -50)
(GridDirection 0.8 0.6 0 -0.6 0.8 0 0 0 1)
(BSplineTransformSplineOrder 3)
(UseCyclicTransform "false")"""
AFFINE = (1.1, 0.05, -0.02, 0.03, 0.95, 0.04, -0.06, 0.02, 1.05, 3, -2, 1)
# (class, parameters, what else is in the file) -> LPS displacements that transformix (itk-elastix 0.25.4) gives at two
# voxels of an image: index (1, 2, 3) and (6, 5, 4), as placed below.
ANGLES = (0.1, -0.2, 0.15, 5, -3, 2)
GOLDEN = {
    "euler": (
        "EulerTransform",
        ANGLES,
        CENTRE + '\n(ComputeZYX "false")',
        [[5.783982, -3.970839, 0.019101], [3.418729, -3.599258, 2.473161]],
    ),
    "euler zyx": (
        "EulerTransform",
        ANGLES,
        CENTRE + '\n(ComputeZYX "true")',
        [[5.8427, -4.146746, 0.013146], [3.233641, -3.678762, 2.451056]],
    ),
    "affine": ("AffineTransform", AFFINE, CENTRE, [[2.009913, -2.257025, 1.453205], [3.22695, -2.52787, 1.395641]]),
    "similarity": (
        "SimilarityTransform",
        (0.05, -0.1, 0.08, 5, -3, 2, 1.1),
        CENTRE,
        [[5.026008, -4.474175, -0.384506], [2.802745, -2.735505, 2.415087]],
    ),
    "translation": ("TranslationTransform", (5, -3, 2), "", [[5, -3, 2], [5, -3, 2]]),
    "bspline": (
        "BSplineTransform",
        2 * np.sin(0.7 * np.arange(3 * 6 * 7 * 8)),
        GRID,
        [[2.394436, -2.67216, 1.82698], [3.656584, -2.946126, 1.730006]],
    ),
}


def elastix(path: Path, kind: str, parameters, more: str, initial: str = "NoInitialTransform") -> Path:
    numbers = " ".join(repr(float(p)) for p in parameters)
    path.write_text(ELASTIX.format(kind=kind, count=len(parameters), parameters=numbers, more=more, initial=initial))
    return path


def transformix_points() -> np.ndarray:
    """(3, 2) RAS mm of the two voxels."""
    turn = np.linalg.qr(np.array([[0.9553, -0.2955, 0], [0.2955, 0.9553, 0], [0, 0, 1.0]]))[0]
    turn = turn * np.sign(np.diag(turn)) * [2, 3, 2.5]
    return (turn @ np.array([[1, 2, 3], [6, 5, 4]]).T + np.array([[-8], [-10], [-6]])) * LPS[:, None]


@pytest.mark.parametrize("name", GOLDEN)
def test_elastix_as_transformix_applies_it(tmp_path, name):
    kind, parameters, more, golden = GOLDEN[name]
    initial = "NoInitialTransform"
    if name == "bspline":  # begins with an affine, whose path is of another machine
        elastix(tmp_path / "TransformParameters.0.txt", "AffineTransform", AFFINE, CENTRE)
        initial = "/home/somebody/TransformParameters.0.txt"
    path = elastix(tmp_path / "TransformParameters.1.txt", kind, parameters, more, initial)
    displacement, inside = load_map(path).displacement_mm(transformix_points())
    assert inside.all()
    np.testing.assert_allclose(displacement.T * LPS, golden, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("EulerTransform", "SplineKernelTransform", "a SplineKernelTransform.*transformix"),
        ('UseDirectionCosines "true"', 'UseDirectionCosines "false"', "without direction cosines"),
        ("FixedImageDimension 3", "FixedImageDimension 2", "not a 3-D transform"),
        ("0.15 5.0", "0.15", "has 5 and 4"),
        ("0.15 5.0", "0.15 five", "more than numbers"),
        ("(CenterOfRotationPoint 1.5 -2 3)", "", "without CenterOfRotationPoint"),
        ("NoInitialTransform", "gone.txt", "gone.txt does not exist"),
        ("NoInitialTransform", "e.txt", "never end"),
    ],
)
def test_elastix_files_that_are_not_read(tmp_path, old, new, said):
    path = elastix(tmp_path / "e.txt", "EulerTransform", (0.1, -0.2, 0.15, 5, -3, 2), CENTRE)
    assert isinstance(load_map(path), LinearMap)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=said):
        load_map(path)


def test_elastix_that_adds_is_refused(tmp_path):
    elastix(tmp_path / "a.txt", "AffineTransform", AFFINE, CENTRE)
    path = elastix(tmp_path / "b.txt", "TranslationTransform", (1, 2, 3), "", "a.txt")
    expected = shifted((-1, -2, 3)) @ load_linear(tmp_path / "a.txt")  # the initial one acts first
    np.testing.assert_allclose(load_linear(path), expected, atol=1e-9)
    path.write_text(path.read_text().replace('"Compose"', '"Add"'))
    with pytest.raises(InputError, match=r"adds its initial transform.*transformix"):
        load_map(path)


def shifted(by) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


# Others.


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.x5", b"\x89HDF\r\n", "an X5 transform.*nitransforms"),
        ("a.xfm", b"MNI Transform File\n", "an MNI transform.*lta_convert --inmni"),
        ("a.txt", b"MNI Transform File\n", "an MNI transform.*lta_convert --inmni"),
        ("a.aff12.1D", b"1 0 0 0 0 1 0 0 0 0 1 0\n", "an AFNI matrix.*nitransforms"),
        ("a.mat", b"# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n1 0 0", "an AFNI matrix"),
        ("a.m3z", b"\x1f\x8b", "a FreeSurfer morph.*mri_warp_convert --inm3z"),
        ("a.mgz", b"\x1f\x8b", "a FreeSurfer volume.*mri_warp_convert"),
        ("register.dat", b"subject\n1\n", "lta_convert --inreg"),
        ("a.nrrd", b"NRRD0004\n", "another image format.*SimpleITK"),
        ("a.bin", b"\x00\x01", "no transform in the form of itk"),
        ("a.txt", b"", "cannot be read as an ITK transform"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        load_map(tmp_path / name)
    assert "\n" not in str(caught.value)
