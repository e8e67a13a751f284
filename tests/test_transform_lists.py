"""ITK files that list transforms, and B-splines: as ANTs composes them, as SimpleITK evaluates them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.errors import InputError
from ofg_deploy.transform import itk_list
from ofg_deploy.transform.dialects import load_linear, load_map
from ofg_deploy.transform.inverse import invert
from ofg_deploy.transform.maps import Chain, LinearMap
from ofg_deploy.transform.spline import SplineMap

LPS = np.array([-1.0, -1.0, 1.0])
POINTS = np.random.default_rng(5).uniform(-15, 15, (3, 40))  # RAS
CLASSES = {
    "IdentityTransform": ([], []),
    "TranslationTransform": ([4, 5, 6], []),
    "ScaleTransform": ([1.1, 0.9, 1.2], [3, -4, 5]),
    "ScaleLogarithmicTransform": ([0.1, -0.2, 0.15], [3, -4, 5]),
    "AffineTransform": ([1.1, 0.1, -0.05, 0.02, 0.9, 0.06, -0.1, 0.03, 1.05, 3, -2, 1], [12, -30, 44]),
    "Euler3DTransform": ([0.1, -0.2, 0.15, 5, -3, 2], [12, -30, 44, 1]),
    "VersorTransform": ([0.1, -0.2, 0.15], [12, -30, 44]),
    "VersorRigid3DTransform": ([0.1, -0.2, 0.15, 5, -3, 2], [12, -30, 44]),
    "QuaternionRigidTransform": ([0.1, -0.2, 0.15, 0.963, 5, -3, 2], [0, 0, 0]),
    "Similarity3DTransform": ([0.1, -0.2, 0.15, 5, -3, 2, 1.1], [12, -30, 44]),
    "ScaleVersor3DTransform": ([0.1, -0.2, 0.15, 5, -3, 2, 1.1, 0.9, 1.05], [12, -30, 44]),
    "ScaleSkewVersor3DTransform": ([0.1, -0.2, 0.15, 5, -3, 2, 1.1, 0.9, 1.05, *(np.arange(6) / 50)], [1, 2, 3]),
}


def text_of(*names: str) -> str:
    lines = ["#Insight Transform File V1.0"]
    for number, name in enumerate(names):
        parameters, fixed = (" ".join(map(str, numbers)) for numbers in CLASSES[name])
        lines += [f"#Transform {number}", f"Transform: {name}_double_3_3"]
        lines += [f"Parameters: {parameters}", f"FixedParameters: {fixed}"]
    return "\n".join(lines) + "\n"


def matlab_of(*names: str) -> bytes:
    """Matrices of Matlab 4, written down by its format's description."""
    content = b""
    for name in names:
        for called, numbers in zip((f"{name}_double_3_3", "fixed"), CLASSES[name], strict=True):
            header = np.array([0, len(numbers), 1, 0, len(called) + 1], "<i4").tobytes()
            content += header + called.encode() + b"\0" + np.array(numbers, "<f8").tobytes()
    return content


def single(folder: Path, name: str) -> sitk.Transform:
    (folder / "single.txt").write_text(text_of(name))
    return sitk.ReadTransform(str(folder / "single.txt"))


def by_sitk(transform: sitk.Transform, points: np.ndarray = POINTS) -> np.ndarray:
    """(3, N) RAS -> where SimpleITK takes them."""
    return np.array([transform.TransformPoint((p * LPS).tolist()) for p in points.T]).T * LPS[:, None]


def reached(path: Path, points: np.ndarray = POINTS) -> np.ndarray:
    displacement, inside = load_map(path).displacement_mm(points)
    assert inside.all()
    return points + displacement


def some_spline(order: int = 3, size: float = 3.0) -> sitk.BSplineTransform:
    """On an oblique lattice that covers 20 mm around the origin; up to some mm."""
    spline = sitk.BSplineTransform(3, order)
    direction = np.linalg.qr(np.array([[1, 0.2, 0.1], [-0.2, 1, 0.05], [0.1, 0.3, 1]]))[0]
    direction *= np.sign(np.diag(direction))
    lengths = np.array([110.0, 100.0, 90.0])
    spline.SetTransformDomainMeshSize((5, 4, 6))
    spline.SetTransformDomainDirection(direction.ravel().tolist())
    spline.SetTransformDomainPhysicalDimensions(lengths.tolist())
    spline.SetTransformDomainOrigin((-direction @ lengths / 2).tolist())
    count = len(spline.GetParameters())
    spline.SetParameters(np.random.default_rng(1).normal(0, size, count).tolist())
    return spline


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_simpleitks(tmp_path, name):
    (tmp_path / "x.tfm").write_text(text_of(name))
    expected = by_sitk(sitk.ReadTransform(str(tmp_path / "x.tfm")))
    np.testing.assert_allclose(reached(tmp_path / "x.tfm"), expected, atol=1e-9)
    (tmp_path / "x.mat").write_bytes(matlab_of(name))
    np.testing.assert_allclose(reached(tmp_path / "x.mat"), expected, atol=1e-9)
    (tmp_path / "float.txt").write_text(text_of(name).replace("_double_", "_float_"))
    np.testing.assert_allclose(reached(tmp_path / "float.txt"), expected, atol=1e-9)


@pytest.mark.parametrize("ending", [".txt", ".tfm", ".mat"])
@pytest.mark.parametrize(
    "names",
    [
        ("Euler3DTransform", "TranslationTransform"),
        ("AffineTransform", "Similarity3DTransform", "IdentityTransform", "VersorRigid3DTransform"),
    ],
)
def test_a_list_is_composed_as_ants_does_the_last_one_first(tmp_path, foreign, names, ending):
    ants = foreign("ants")
    pd = foreign("pandas")
    path = tmp_path / f"list{ending}"
    path.write_bytes(matlab_of(*names) if ending == ".mat" else text_of(*names).encode())
    table = pd.DataFrame((POINTS.T * LPS), columns=list("xyz"))
    expected = ants.apply_transforms_to_points(3, table, [str(path)]).to_numpy().T * LPS[:, None]
    np.testing.assert_allclose(reached(path), expected, atol=1e-4)  # float32 there
    composed = sitk.CompositeTransform([single(tmp_path, name) for name in names])
    np.testing.assert_allclose(reached(path), by_sitk(composed), atol=1e-9)
    other_order = sitk.CompositeTransform([single(tmp_path, name) for name in reversed(names)])
    assert np.abs(by_sitk(other_order) - reached(path)).max() > 1
    np.testing.assert_allclose(load_linear(path) @ [*POINTS[:, 0], 1], [*by_sitk(composed)[:, 0], 1], atol=1e-9)
    back = invert(load_map(path))
    np.testing.assert_allclose(reached(path) + back.displacement_mm(reached(path))[0], POINTS, atol=1e-9)


def test_with_a_composite_in_front_it_is_the_same(tmp_path):
    names = ("Euler3DTransform", "AffineTransform")
    composed = sitk.CompositeTransform([single(tmp_path, name) for name in names])
    for ending in (".txt", ".tfm", ".h5"):
        sitk.WriteTransform(composed, str(tmp_path / f"c{ending}"))
        np.testing.assert_allclose(reached(tmp_path / f"c{ending}"), by_sitk(composed), atol=1e-9)


def test_lists_of_nitransforms_itself(foreign):
    """Its own test files: nine affines about a centre, and about none; eight of a run."""
    folder = Path(foreign("nitransforms").__file__).parent / "tests" / "data"
    for name in ("itktflist.tfm", "itktflist2.tfm", "hmc-itk.tfm"):
        if not (folder / name).is_file():
            pytest.skip("nitransforms is installed without its tests")
        listed = itk_list.read_list(folder / name)
        assert len(listed) > 7
        composed = np.eye(4)
        for each in listed:  # x -> M (x - c) + c + t, the last one first
            matrix = np.eye(4)
            matrix[:3, :3] = each.parameters[:9].reshape(3, 3)
            matrix[:3, 3] = each.parameters[9:] + each.fixed - matrix[:3, :3] @ each.fixed
            composed = composed @ matrix
        found = LPS[:, None] * reached(folder / name)
        np.testing.assert_allclose(found, composed[:3, :3] @ (POINTS * LPS[:, None]) + composed[:3, 3:], rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("ending", [".txt", ".tfm", ".h5"])
def test_b_splines_are_simpleitks(tmp_path, order, ending):
    spline = some_spline(order)
    path = tmp_path / f"spline{ending}"
    sitk.WriteTransform(spline, str(path))
    expected = by_sitk(spline)
    assert np.abs(expected - POINTS).max() > 1
    np.testing.assert_allclose(reached(path), expected, atol=1e-9)


def test_identity_and_b_spline_as_3d_slicer_writes_it(tmp_path, foreign):
    """And an affine after it; ANTs and SimpleITK alike, points at the edge of the lattice included."""
    spline = some_spline()
    identity = sitk.Transform(3, sitk.sitkIdentity)
    for first in (identity, single(tmp_path, "AffineTransform")):
        path = tmp_path / "list.txt"
        sitk.WriteTransform(sitk.CompositeTransform([first, spline]), str(path))
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *lines[3:]]) + "\n")  # without the composite's own entry
        composed = sitk.CompositeTransform([first, spline])
        np.testing.assert_allclose(reached(path), by_sitk(composed), atol=1e-9)
        ants, pd = foreign("ants"), foreign("pandas")
        table = pd.DataFrame((POINTS.T * LPS), columns=list("xyz"))
        expected = ants.apply_transforms_to_points(3, table, [str(path)]).to_numpy().T * LPS[:, None]
        np.testing.assert_allclose(reached(path), expected, atol=1e-4)
        assert sitk.ReadTransform(str(path)).GetNumberOfParameters() != spline.GetNumberOfParameters()
    with pytest.raises(InputError, match="is not a linear 3-D transform"):
        load_linear(path)


def test_a_spline_is_known_where_all_its_control_points_are(tmp_path):
    spline = some_spline()
    sitk.WriteTransform(spline, str(tmp_path / "s.tfm"))
    world_map = load_map(tmp_path / "s.tfm")
    assert isinstance(world_map, SplineMap)
    far = np.random.default_rng(2).uniform(-75, 75, (3, 400))
    displacement, inside = world_map.displacement_mm(far)
    assert 0.2 < inside.mean() < 0.9
    np.testing.assert_allclose((far + displacement)[:, inside], by_sitk(spline, far)[:, inside], atol=1e-9)
    np.testing.assert_array_equal(by_sitk(spline, far)[:, ~inside], far[:, ~inside])  # there ITK stands still
    corners = world_map.domain.corners_mm()
    centre = corners.mean(axis=1, keepdims=True)
    assert world_map.displacement_mm(centre + (corners - centre) * (1 - 1e-6))[1].all()
    assert not world_map.displacement_mm(centre + (corners - centre) * (1 + 1e-3))[1].any()


def test_the_inverse_of_a_spline(tmp_path):
    sitk.WriteTransform(some_spline(size=4.0), str(tmp_path / "s.tfm"))
    forward = load_map(tmp_path / "s.tfm")
    there = reached(tmp_path / "s.tfm")
    back, inside = invert(forward).displacement_mm(there)
    assert inside.all()
    np.testing.assert_allclose(there + back, POINTS, atol=1e-6)
    assert invert(invert(forward)) is forward
    lost, inside = invert(forward).displacement_mm(there + 500)
    assert not inside.any()
    assert not lost.any()


def test_a_displacement_field_in_a_text_list(tmp_path, make_grid, to_sitk):
    grid = make_grid("oblique", (9, 8, 7), (6.0, 7.0, 8.0))
    vectors = np.random.default_rng(4).normal(0, 3, (*grid.shape, 3))
    like = to_sitk(np.zeros(grid.shape, np.float32), grid)
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors.transpose(2, 1, 0, 3)), isVector=True)
    image.CopyInformation(like)
    field = sitk.DisplacementFieldTransform(image)
    composed = sitk.CompositeTransform([single(tmp_path, "Euler3DTransform"), field])
    sitk.WriteTransform(composed, str(tmp_path / "f.txt"))
    np.testing.assert_allclose(reached(tmp_path / "f.txt"), by_sitk(composed), atol=1e-4)


def test_an_h5_list_without_a_composite_is_refused(tmp_path, foreign):
    h5py = foreign("h5py")
    names = ("Euler3DTransform", "AffineTransform")
    sitk.WriteTransform(sitk.CompositeTransform([single(tmp_path, n) for n in names]), str(tmp_path / "c.h5"))
    with h5py.File(tmp_path / "c.h5") as whole, h5py.File(tmp_path / "list.h5", "w") as listed:
        for key in set(whole) - {"TransformGroup"}:
            whole.copy(key, listed)
        for number in (1, 2):
            whole.copy(f"TransformGroup/{number}", listed.require_group("TransformGroup"), name=str(number - 1))
    with pytest.raises(InputError, match="lists several transforms without a CompositeTransform"):
        load_map(tmp_path / "list.h5")


HEAD = "#Insight Transform File V1.0\n#Transform 0\n"
AFFINE = text_of("AffineTransform")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD, "lists no transform"),
        (HEAD + "Transform: AffineTransform_double_3_3\n", "has no Parameters line"),
        (AFFINE[: AFFINE.index("FixedParameters")], "has no FixedParameters line"),
        (AFFINE[: AFFINE.index("44")], r"12 and 2 \(fixed\) numbers, expected 12 and 3"),
        (AFFINE.replace("1.05 3 -2 1", "1.05 3"), r"has 10 and 3 \(fixed\) numbers, expected 12"),
        (AFFINE.replace("1.05", "1.05x"), "line 4 holds more than numbers"),
        (AFFINE.replace("1.05", "1e999"), "not finite"),
        (AFFINE.replace("1.05", "1_05"), "line 4 holds more than numbers"),
        (AFFINE.replace("Affine", "Azimuth"), "holds a AzimuthTransform: linear maps, B-splines"),
        (AFFINE.replace("_3_3", "_2_2"), "is not a 3-D transform"),
        (AFFINE.replace("AffineTransform_double_3_3", "rubbish"), "'rubbish' is not the name of one"),
        (AFFINE + "Parameters: 1 2 3\n", "line 6 is not a part of one"),
        (AFFINE + "#Transform 1\nTransform: CompositeTransform_double_3_3\n", "is not at its start"),
        (AFFINE.replace("#Insight", "#Outsight"), "its first line is not"),
        (AFFINE.replace("1.1 ", "0 ").replace("0.1 -0.05", "0 0"), "singular"),
        (HEAD + "Transform: BSplineTransform_double_3_3\nParameters: 1 2\nFixedParameters: 4 4 4\n", "has no size"),
        (
            HEAD + "Transform: BSplineTransform_double_3_3\nParameters: 1 2\n"
            "FixedParameters: 4 4 4 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n",
            "has 2 numbers, expected 192 for 4x4x4 points",
        ),
        (
            HEAD + "Transform: BSplineTransform_double_3_3\nParameters: 1 2\n"
            "FixedParameters: 1e9 1e9 1e9 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n",
            "has 2 numbers, expected 3e",
        ),
    ],
)
def test_what_is_cut_or_damaged_is_refused(tmp_path, text, said):
    """ITK takes the first three for the identity."""
    path = tmp_path / "x.txt"
    path.write_text(text)
    for read in (load_map, load_linear):
        with pytest.raises(InputError, match=said) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_b_spline_with_a_bulk_transform_of_old_is_refused(tmp_path):
    """ITK 3 added the two up."""
    spline = some_spline()
    sitk.WriteTransform(spline, str(tmp_path / "s.txt"))
    alone = (tmp_path / "s.txt").read_text().replace("BSplineTransform", "BSplineDeformableTransform")
    (tmp_path / "s.txt").write_text(alone)
    np.testing.assert_allclose(reached(tmp_path / "s.txt"), by_sitk(spline), atol=1e-9)
    (tmp_path / "s.txt").write_text(alone + "\n".join(text_of("Euler3DTransform").splitlines()[1:]) + "\n")
    with pytest.raises(InputError, match="added up"):
        load_map(tmp_path / "s.txt")


def test_apply_and_init_take_a_list(tmp_path, files, tiny_model, run_cli, foreign):
    ants = foreign("ants")
    fixed, moving, *_ = files
    path = tmp_path / "two.txt"
    path.write_text(text_of("Euler3DTransform", "TranslationTransform").replace("12 -30 44", "2 -3 4"))
    code, _, err = run_cli(["apply", moving, "-r", fixed, "-t", path, "-o", tmp_path / "out.nii.gz"])
    assert code == 0, err
    expected = ants.apply_transforms(ants.image_read(str(fixed)), ants.image_read(str(moving)), [str(path)]).numpy()
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").get_fdata(), expected, atol=1e-3 * np.ptp(expected))
    line = ["register", fixed, moving, "-m", tiny_model().path, "-o", tmp_path / "out", "--init", path]
    code, _, err = run_cli(line)
    assert code == 0, err
    found = load_map(tmp_path / "out" / "mov_to_fix_0GenericAffine.mat")
    listed = load_map(path)
    assert isinstance(found, LinearMap)
    assert isinstance(listed, Chain)
    np.testing.assert_allclose(found.displacement_mm(POINTS)[0], listed.displacement_mm(POINTS)[0], atol=1e-6)
