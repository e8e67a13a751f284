"""The whole way of a pair: what is written, read back by other people's tools.

The warped image is compared with the original moving image resampled through the written transform by SimpleITK,
ANTsPy and nitransforms; the transform itself with a map worked out here, from files alone and without our field code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine, voxel_sizes
from scipy.interpolate import RegularGridInterpolator

from ofg_deploy.geometry import Grid
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register
from ofg_deploy.serve.saving import Saved

IMAGE_TOLERANCE = 1e-3  # of the intensity range
CASES = [
    ("RAS", "LAS", "none"),
    ("LAS", "LPS", "none"),
    ("LPS", "oblique", "none"),
    ("oblique-permuted", "left-handed", "none"),
    ("left-handed", "RAS", "none"),
    ("RAS", "oblique-permuted", "affine"),
    ("oblique", "LAS", "affine"),
    ("left-handed", "LPS", "affine"),
]


@dataclass(frozen=True)
class Case:
    """One registered pair with labels."""

    fixed: Path
    moving: Path
    moving_labels: Path
    fixed_labels: Path
    init: str
    field: np.ndarray  # what the network predicts, voxels of its grid
    spacing_mm: tuple[float, float, float]
    result: Saved

    def read(self, role: str) -> np.ndarray:
        return np.asarray(nib.load(self.result.outputs[role]).dataobj)

    def fill(self) -> float:
        return float(self.result.sidecar["fill"]["moving"]["value"])

    def transform(self) -> sitk.DisplacementFieldTransform:
        path = str(self.result.outputs["transform"])
        return sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))

    def moving_from_fixed(self) -> np.ndarray:
        """(4, 4) RAS, from the written .mat as SimpleITK reads it; the identity without a start."""
        if self.init == "none":
            return np.eye(4)
        affine = sitk.ReadTransform(str(self.result.outputs["affine"]))
        corners = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], dtype=float)
        lps = np.array([-1, -1, 1])
        images = np.array([affine.TransformPoint((c * lps).tolist()) for c in corners]) * lps
        matrix = np.eye(4)
        matrix[:3, :3] = (images[1:] - images[0]).T
        matrix[:3, 3] = images[0]
        return matrix


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory, make_grid, world_image, world_labels, write_nifti, tiny_model, some_affine) -> Case:
    first, second, init = request.param
    folder = tmp_path_factory.mktemp("case")
    # Odd and even sizes, larger than the network's field of view (62 x 70 x 66 mm), on different grids.
    fixed = make_grid(first, (27, 29, 24), (3.0, 2.7, 3.3), (1.0, -2.0, 1.5))
    moving = make_grid(second, (26, 25, 30), (2.9, 3.3, 2.6), (4.0, -3.0, 2.5))
    paths = {name: folder / f"{name}.nii.gz" for name in ("fix", "mov", "fix_seg", "mov_seg")}
    shift = np.linalg.inv(some_affine) if init == "affine" else np.eye(4)
    write_nifti(paths["fix"], world_image(fixed), fixed.world_from_vox)
    write_nifti(paths["mov"], world_image(moving, shift) + 150, moving.world_from_vox)
    write_nifti(paths["fix_seg"], world_labels(fixed), fixed.world_from_vox)
    write_nifti(paths["mov_seg"], world_labels(moving), moving.world_from_vox)
    model = tiny_model(init=init)
    job = Job(
        paths["fix"], paths["mov"], folder / "out", moving_labels=(paths["mov_seg"],), fixed_labels=paths["fix_seg"]
    )
    result = register(job, open_engine(model.path, "cpu"))
    return Case(
        paths["fix"],
        paths["mov"],
        paths["mov_seg"],
        paths["fix_seg"],
        init,
        model.field,
        model.expects.spacing_mm,
        result,
    )


def read_sitk(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path))


def expected_moving_points(
    fixed: Path, field: np.ndarray, spacing_mm: tuple[float, float, float], moving_from_fixed: np.ndarray
) -> np.ndarray:
    """(X, Y, Z, 3) RAS mm: where each fixed voxel comes from, by nibabel, numpy and scipy.

    The network's grid lies along the canonical axes of the fixed image, centred on its field of view; its field is in
    voxels of that grid, holds its edge value beyond it, and the affine follows it.
    """
    image = nib.load(fixed)
    canonical = nib.as_closest_canonical(image)
    directions = canonical.affine[:3, :3] / voxel_sizes(canonical.affine)
    centre = apply_affine(canonical.affine, (np.array(canonical.shape) - 1) / 2)
    points = apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
    last = np.array(field.shape[1:]) - 1
    index = (points - centre) @ directions / spacing_mm + last / 2
    axes = [np.arange(n) for n in field.shape[1:]]
    in_voxels = RegularGridInterpolator(axes, np.moveaxis(field, 0, -1))(np.clip(index, 0, last))
    return apply_affine(moving_from_fixed, points + in_voxels * spacing_mm @ directions.T)


def moving_points(path: Path) -> np.ndarray:
    """(X, Y, Z, 3) RAS mm: where the written transform sends each voxel, by nibabel."""
    image = nib.load(path)
    points = apply_affine(image.affine, np.moveaxis(np.indices(image.shape[:3]), 0, -1))
    return points + np.asarray(image.dataobj)[:, :, :, 0] * [-1, -1, 1]


def test_the_transform_is_the_map_worked_out_by_hand(case):
    expected = expected_moving_points(case.fixed, case.field, case.spacing_mm, case.moving_from_fixed())
    found = moving_points(case.result.outputs["transform"])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    still = apply_affine(nib.load(case.fixed).affine, np.moveaxis(np.indices(expected.shape[:3]), 0, -1))
    assert np.abs(expected - still).max(axis=(0, 1, 2)).min() > 2  # along every world axis it moves by millimetres


def test_simpleitk_maps_points_as_worked_out_by_hand(case):
    expected = expected_moving_points(case.fixed, case.field, case.spacing_mm, case.moving_from_fixed())
    transform, image = case.transform(), nib.load(case.fixed)
    for voxel in ((1, 2, 3), (25, 3, 20), (13, 27, 11), (6, 14, 1)):
        point = apply_affine(image.affine, voxel) * [-1, -1, 1]
        np.testing.assert_allclose(
            transform.TransformPoint(point.tolist()) * np.array([-1, -1, 1]), expected[voxel], atol=1e-3
        )


def test_the_affine_is_about_the_known_one(case, some_affine):
    assert ("affine" in case.result.outputs) == (case.init == "affine")
    points = np.array([[-25, 10, 5], [20, -15, 18], [3, 22, -20]])
    truth = some_affine if case.init == "affine" else np.eye(4)
    error = apply_affine(case.moving_from_fixed(), points) - apply_affine(truth, points)
    assert np.abs(error).max() < 3.0  # a voxel; tests/test_affine.py asks for more, on better images


def test_simpleitk_warps_the_same_image(case, sitk_resample):
    fill = case.fill()
    assert 150 <= fill < 158  # the background that the image was given, and tails of its blobs
    expected = sitk_resample(read_sitk(case.moving), read_sitk(case.fixed), case.transform(), fill=fill)
    warped = case.read("warped")
    assert warped.dtype == np.float32
    assert 0.4 < (np.abs(expected - fill) > 1e-3).mean() < 1
    np.testing.assert_allclose(warped, expected, atol=IMAGE_TOLERANCE * np.ptp(expected))


def test_simpleitk_warps_the_same_labels(case, sitk_resample):
    expected = sitk_resample(read_sitk(case.moving_labels), read_sitk(case.fixed), case.transform(), nearest=True)
    warped = case.read("warped_labels")
    assert warped.dtype == np.int16
    assert set(np.unique(expected)) == {0, 3, 7, 12}
    np.testing.assert_array_equal(warped, expected)


def test_antspy_warps_the_same_image_and_labels(case, foreign):
    ants = foreign("ants")
    transform = [str(case.result.outputs["transform"])]
    reference = ants.image_read(str(case.fixed))
    for moving, role, method, fill in (
        (case.moving, "warped", "linear", case.fill()),
        (case.moving_labels, "warped_labels", "nearestNeighbor", 0),
    ):
        image = ants.image_read(str(moving))
        expected = ants.apply_transforms(reference, image, transform, interpolator=method, defaultvalue=fill).numpy()
        found = case.read(role)
        tolerance = IMAGE_TOLERANCE * np.ptp(expected) if role == "warped" else 0
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_nitransforms_warps_the_same_image(case, foreign):
    """Compared inside the lattice of moving voxel centres: nitransforms has no value for the outer half voxel."""
    foreign("nitransforms")
    from nitransforms.nonlinear import load
    from nitransforms.resampling import apply

    transform = load(str(case.result.outputs["transform"]), fmt="itk")
    moving = nib.load(case.moving)
    expected = apply(
        transform, moving, reference=nib.load(case.fixed), order=1, prefilter=False, mode="constant", cval=0
    )
    index = apply_affine(np.linalg.inv(moving.affine), moving_points(case.result.outputs["transform"]))
    inside = ((index > 1e-3) & (index < np.array(moving.shape) - 1 - 1e-3)).all(axis=-1)
    assert inside.mean() > 0.4
    found, expected = case.read("warped")[inside], expected.get_fdata()[inside]
    np.testing.assert_allclose(found, expected, atol=IMAGE_TOLERANCE * np.ptp(expected))


def test_outputs_lie_on_the_fixed_grid(case):
    fixed = nib.load(case.fixed)
    for role in ("warped", "transform", "warped_labels"):
        image = nib.load(case.result.outputs[role])
        assert image.shape[:3] == fixed.shape
        np.testing.assert_allclose(image.get_sform(), fixed.affine, atol=1e-5)
        np.testing.assert_allclose(image.get_qform(), fixed.affine, atol=1e-4)


def test_figures_are_those_of_the_files(case, sitk_resample):
    numbers = case.result.sidecar["metrics"]
    fixed, warped = nib.load(case.fixed).get_fdata(), case.read("warped")
    still, moving, target = sitk.Transform(3, sitk.sitkIdentity), read_sitk(case.moving), read_sitk(case.fixed)
    before = sitk_resample(moving, target, still, fill=case.fill())
    reached = [sitk_resample(moving, target, way, nearest=True, fill=-1) > 0 for way in (still, case.transform())]
    compared = np.logical_or(*reached)
    assert 0.4 < compared.mean() < 1
    assert numbers["compared_percent"] == pytest.approx(100 * compared.mean(), abs=0.01)
    for key, image, tolerance in (("ncc_after", warped, 1e-4), ("ncc_before", before, 1e-4)):
        expected = np.corrcoef(fixed[compared], image[compared])[0, 1]
        assert numbers[key] == pytest.approx(expected, abs=tolerance)
    lengths = np.linalg.norm(case.read("transform")[:, :, :, 0], axis=-1)
    assert numbers["displacement_mm_max"] == pytest.approx(lengths.max(), rel=1e-5)

    labels = sitk.LabelOverlapMeasuresImageFilter()
    labels.Execute(read_sitk(case.fixed_labels), read_sitk(case.result.outputs["warped_labels"]))
    expected = {str(label): labels.GetDiceCoefficient(label) for label in (3, 7, 12)}
    assert numbers["dice_per_label"] == pytest.approx(expected)
    assert numbers["dice_after"] == pytest.approx(np.mean(list(expected.values())))
    assert set(numbers["hd95_mm_per_label"]) == {"3", "7", "12"}


# One pair at a time, for what does not need every orientation.


@pytest.mark.parametrize("init", ["none", "affine"])
def test_the_network_sees_moving_and_fixed_each_in_its_place(
    tmp_path, files, tiny_model, to_sitk, sitk_resample, sitk_affine, init
):
    """A network whose field is made of its inputs: what it saw is checked through what it did."""
    fixed, moving, _, _ = files
    gain_moving, gain_fixed = (2.5, 0.0, -1.0), (0.0, -3.0, 2.0)
    shape, spacing = (12, 15, 13), (5.1, 4.7, 4.9)
    model = tiny_model(
        shape, spacing, init, field=np.zeros((3, *shape)), gain_moving=gain_moving, gain_fixed=gain_fixed
    )
    result = register(Job(fixed, moving, tmp_path / "out"), open_engine(model.path, "cpu"))
    start = Case(fixed, moving, moving, fixed, init, model.field, spacing, result).moving_from_fixed()

    canonical = nib.as_closest_canonical(nib.load(fixed))
    directions = canonical.affine[:3, :3] / voxel_sizes(canonical.affine)
    network = np.eye(4)
    network[:3, :3] = directions * spacing
    network[:3, 3] = apply_affine(canonical.affine, (np.array(canonical.shape) - 1) / 2) - network[:3, :3] @ (
        (np.array(shape) - 1) / 2
    )
    reference = to_sitk(np.zeros(shape), Grid(shape, network))

    def seen(path: Path, matrix: np.ndarray) -> np.ndarray:
        image = sitk.RescaleIntensity(sitk.Cast(read_sitk(path), sitk.sitkFloat64), 0, 1)
        return sitk_resample(image, reference, sitk_affine(matrix))

    field = np.array(gain_moving).reshape(3, 1, 1, 1) * seen(moving, start)
    field = field + np.array(gain_fixed).reshape(3, 1, 1, 1) * seen(fixed, np.eye(4))
    expected = expected_moving_points(fixed, field, spacing, start)
    np.testing.assert_allclose(moving_points(result.outputs["transform"]), expected, atol=5e-3)


def test_a_network_in_other_axes_is_the_same_network(tmp_path, files, tiny_model):
    """Left-inferior-anterior, as published networks see brains: the same arrays permuted and flipped by hand."""
    fixed, moving, _, _ = files
    shape, spacing = (12, 15, 13), (5.1, 4.7, 4.9)
    in_lia = tiny_model(shape, spacing, axes="LIA", gain_moving=(2.5, 0.0, -1.0), gain_fixed=(0.0, -3.0, 2.0))

    def turned(components: np.ndarray) -> np.ndarray:  # (L, I, A) -> (R, A, S)
        return np.stack([-components[0], components[2], -components[1]])

    in_ras = tiny_model(
        (shape[0], shape[2], shape[1]),
        (spacing[0], spacing[2], spacing[1]),
        field=turned(in_lia.field[:, ::-1, ::-1, :]).transpose(0, 1, 3, 2),
        gain_moving=tuple(turned(np.array((2.5, 0.0, -1.0)))),
        gain_fixed=tuple(turned(np.array((0.0, -3.0, 2.0)))),
    )
    found = [
        moving_points(register(Job(fixed, moving, tmp_path / name), open_engine(m.path, "cpu")).outputs["transform"])
        for name, m in (("lia", in_lia), ("ras", in_ras))
    ]
    np.testing.assert_allclose(*found, atol=1e-4)
    assert (
        np.abs(
            found[0]
            - moving_points(
                register(
                    Job(fixed, moving, tmp_path / "other"), open_engine(tiny_model(shape, spacing).path, "cpu")
                ).outputs["transform"]
            )
        ).max()
        > 1
    )


@pytest.mark.parametrize("shape", [(20, 24, 18), (13, 24, 11), (20, 29, 17)])
def test_at_the_networks_spacing_the_field_arrives_voxel_by_voxel(
    tmp_path, make_grid, world_image, write_nifti, tiny_model, shape
):
    """Cropped or padded by whole voxels, half a voxel rounded down: no interpolation of the field at all."""
    grid = make_grid("RAS", (20, 24, 18), (3.0, 3.5, 2.5), (4.0, 5.0, 6.0))
    fixed = write_nifti(tmp_path / "fix.nii", world_image(grid), grid.world_from_vox)
    moving = write_nifti(tmp_path / "mov.nii", 5 - world_image(grid), grid.world_from_vox)
    model = tiny_model(shape, (3.0, 3.5, 2.5))
    result = register(Job(fixed, moving, tmp_path / "out"), open_engine(model.path, "cpu"))
    start = np.floor((np.array(grid.shape) - shape) / 2).astype(int)
    index = [np.clip(np.arange(n) - s, 0, m - 1) for n, s, m in zip(grid.shape, start, shape, strict=True)]
    in_mm = model.field[(slice(None), *np.ix_(*index))] * np.array([3.0, 3.5, 2.5]).reshape(3, 1, 1, 1)
    found = np.asarray(nib.load(result.outputs["transform"]).dataobj)[:, :, :, 0]
    np.testing.assert_allclose(found, np.moveaxis(in_mm, 0, -1) * [-1, -1, 1], atol=1e-4)


def test_a_network_that_does_nothing_gives_the_moving_image_back(tmp_path, files, tiny_model, world_image, write_nifti):
    fixed, _, grid, _ = files
    data = np.random.default_rng(0).normal(50, 20, grid.shape).astype(np.float32)
    moving = write_nifti(tmp_path / "noise.nii.gz", data, grid.world_from_vox)
    engine = open_engine(tiny_model(field=np.zeros((3, 14, 18, 16))).path, "cpu")
    result = register(Job(fixed, moving, tmp_path / "out"), engine)
    np.testing.assert_array_equal(nib.load(result.outputs["warped"]).get_fdata(dtype=np.float32), data)
    np.testing.assert_allclose(nib.load(result.outputs["transform"]).get_fdata(), 0, atol=1e-5)


def test_a_network_that_does_nothing_leaves_the_affine(tmp_path, files, tiny_model, sitk_resample):
    fixed, moving, _, _ = files
    engine = open_engine(tiny_model(init="affine", field=np.zeros((3, 14, 18, 16))).path, "cpu")
    result = register(Job(fixed, moving, tmp_path / "out"), engine)
    affine = sitk.ReadTransform(str(result.outputs["affine"]))
    expected = sitk_resample(read_sitk(moving), read_sitk(fixed), affine)
    np.testing.assert_allclose(
        nib.load(result.outputs["warped"]).get_fdata(), expected, atol=IMAGE_TOLERANCE * expected.max()
    )


def test_fill_is_what_lies_outside_the_moving_image(tmp_path, files, engine, sitk_resample):
    fixed, moving, _, _ = files
    result = register(Job(fixed, moving, tmp_path / "out", fill=-77.5), engine)
    transform = sitk.DisplacementFieldTransform(
        sitk.ReadImage(str(result.outputs["transform"]), sitk.sitkVectorFloat64)
    )
    expected = sitk_resample(read_sitk(moving), read_sitk(fixed), transform, fill=-77.5)
    found = nib.load(result.outputs["warped"]).get_fdata()
    assert (expected == -77.5).mean() > 0.02
    np.testing.assert_array_equal(found == -77.5, expected == -77.5)


@pytest.mark.parametrize("kind", ["u1", "i8", "f4", "f8"])
def test_label_types_of_other_tools(tmp_path, files, engine, world_labels, sitk_resample, kind):
    fixed, moving, _, grid = files
    labels = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(world_labels(grid).astype(kind), nib.load(moving).affine, dtype=kind), labels)
    result = register(Job(fixed, moving, tmp_path / "out", moving_labels=(labels,)), engine)
    transform = sitk.DisplacementFieldTransform(
        sitk.ReadImage(str(result.outputs["transform"]), sitk.sitkVectorFloat64)
    )
    expected = sitk_resample(read_sitk(labels), read_sitk(fixed), transform, nearest=True)
    found = np.asarray(nib.load(result.outputs["warped_labels"]).dataobj)
    assert found.dtype == (np.uint8 if kind == "u1" else np.int32)
    np.testing.assert_array_equal(found, expected)
