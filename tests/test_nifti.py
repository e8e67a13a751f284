"""Reading against nibabel and SimpleITK, and every way a file can be unusable."""

from __future__ import annotations

import gzip
import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ofg_deploy.errors import FormatError, GeometryError, InputError, SizeError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import load_grid, load_image, load_labels, load_transform, save_transform, save_volume, stem

SHAPE = (5, 7, 4)
# Offsets in a NIfTI-1 header (348 bytes).
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, XYZT_UNITS, SFORM_CODE, QUATERN_B, SROW_X = (
    40, 70, 76, 108, 112, 116, 123, 254, 256, 280,
)  # fmt: skip


@pytest.fixture(scope="module")
def affine(make_grid) -> np.ndarray:
    return make_grid("oblique-permuted", SHAPE, (1.5, 2.0, 3.1), (4.0, -8.0, 15.0)).world_from_vox


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 120, SHAPE).astype(np.int16)


@pytest.fixture
def plain(tmp_path, data, affine, write_nifti) -> Path:
    """An uncompressed NIfTI-1 to be damaged."""
    return write_nifti(tmp_path / "plain.nii", data, affine)


def patch(path: Path, offset: int, layout: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8", "i8"])
def test_every_layout_gives_the_same_voxels(tmp_path, data, affine, kind, endian, cls, ending):
    path = tmp_path / f"image{ending}"
    image = cls(data.astype(kind), affine, cls.header_class(endianness=endian))
    image.set_data_dtype(np.dtype(kind).newbyteorder(endian))
    nib.save(image, path)
    volume = load_image(path)
    assert volume.data.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.grid.world_from_vox, affine, atol=1e-5)
    assert volume.warnings == ()


def test_scaling_is_applied_as_simpleitk_does(tmp_path, data, affine):
    path = tmp_path / "scaled.nii.gz"
    image = nib.Nifti1Image(data, affine, nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(0.25, -12.5)
    nib.save(image, path)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    assert expected.min() < 0
    np.testing.assert_allclose(load_image(path).data, expected, rtol=1e-6)


def test_flipped_axes_are_voxels_in_memory_order(tmp_path, data, affine, write_nifti):
    flipped = affine @ nib.orientations.inv_ornt_aff(np.array([[0, -1], [1, 1], [2, -1]]), SHAPE)
    path = write_nifti(tmp_path / "flip.nii", data[::-1, :, ::-1], flipped)
    volume = load_image(path)
    np.testing.assert_array_equal(volume.data, data[::-1, :, ::-1])
    np.testing.assert_allclose(volume.grid.world_from_vox @ [4, 2, 3, 1], affine @ [0, 2, 0, 1], atol=1e-4)


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_trailing_axes_of_one_are_one_volume(tmp_path, data, affine, write_nifti, extra):
    path = write_nifti(tmp_path / "one.nii.gz", data.reshape(*SHAPE, *extra), affine)
    np.testing.assert_array_equal(load_image(path).data, data)


def test_qform_alone_is_used(tmp_path, data, affine, write_nifti):
    volume = load_image(write_nifti(tmp_path / "q.nii.gz", data, affine, sform=0, qform=2))
    np.testing.assert_allclose(volume.grid.world_from_vox, affine, atol=1e-5)
    assert volume.space_code == 2
    assert volume.warnings == ()


def test_sform_alone_is_used(tmp_path, data, affine, write_nifti):
    volume = load_image(write_nifti(tmp_path / "s.nii.gz", data, affine, sform=4, qform=0))
    np.testing.assert_allclose(volume.grid.world_from_vox, affine, atol=1e-5)
    assert volume.space_code == 4


def test_neither_sform_nor_qform_is_refused(tmp_path, data, affine, write_nifti):
    path = write_nifti(tmp_path / "none.nii.gz", data, affine, sform=0, qform=0)
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        load_image(path)
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        load_grid(path)


def test_a_conflict_of_sform_and_qform_is_measured_and_the_sform_wins(tmp_path, data, affine):
    image = nib.Nifti1Image(data, affine)
    other = affine.copy()
    other[:3, 3] += (3, -4, 0)
    image.set_sform(affine, 1)
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "conflict.nii.gz")
    volume = load_image(tmp_path / "conflict.nii.gz")
    np.testing.assert_allclose(volume.grid.world_from_vox, affine, atol=1e-5)
    [line] = volume.warnings
    assert line.startswith("conflict.nii.gz: sform and qform disagree by up to 5.00 mm; the sform is used, as by nib")


@pytest.mark.parametrize("times", [1e-4, 0.01, 1.0, 1e4])
def test_limits_go_by_the_voxel_in_any_unit_of_length(tmp_path, times):
    """A conflict of 0.2 voxel is reported and one of 0.05 is not; half a million voxels away is refused."""

    def load(qform_vox, away_vox=10.0):
        affine = np.diag([2 * times, 3 * times, 2.5 * times, 1])
        affine[0, 3] = away_vox * 3 * times
        image = nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine)
        other = affine.copy()
        other[1, 3] += qform_vox * 2 * times
        image.set_sform(affine, 1)
        image.set_qform(other, 1)
        nib.save(image, tmp_path / "x.nii")
        return load_image(tmp_path / "x.nii")

    assert load(0.05).warnings == ()
    assert "sform and qform disagree" in load(0.2).warnings[0]
    load(0, 4e5)
    with pytest.raises(GeometryError, match="more than 500000 voxels: the header is damaged"):
        load(0, 6e5)


def test_a_conflict_in_rotation_counts_at_the_far_corner(tmp_path, data):
    image = nib.Nifti1Image(data, np.eye(4))
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]
    image.set_sform(np.eye(4), 1)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "turn.nii.gz")
    gap = 2 * np.sin(0.025) * np.hypot(4, 6)  # chord at voxel (4, 6), the corner furthest from the axis
    assert f"{gap:.2f} mm" in load_image(tmp_path / "turn.nii.gz").warnings[0]


def test_how_far_itk_places_a_slightly_sheared_grid_is_said(tmp_path, make_grid):
    """Our affine keeps the shear; what ITK makes of the same file is measured corner by corner."""
    straight = make_grid("oblique-permuted", (250, 9, 8), (1.1, 1.9, 2.3), (30.0, -12.0, 7.0))

    def saved(cosine: float) -> tuple[Path, Grid]:
        matrix = straight.world_from_vox.copy()
        matrix[:3, 0] += cosine * matrix[:3, 1] * 1.1 / 1.9
        grid = Grid(straight.shape, matrix)
        path = tmp_path / "sheared.nii.gz"
        save_volume(path, np.arange(grid.shape[0] * 72, dtype=np.float32).reshape(grid.shape), grid)
        return path, grid

    path, grid = saved(9e-4)
    image = sitk.ReadImage(str(path))
    ends = [(x, y, z) for x in (0, 249) for y in (0, 8) for z in (0, 7)]
    there = np.array([image.TransformIndexToPhysicalPoint(end) for end in ends]) * [-1, -1, 1]
    moved = nib.affines.apply_affine(np.linalg.inv(grid.world_from_vox), there) - ends
    moved = np.linalg.norm(moved, axis=1).max()
    assert moved > 0.055
    said = f"axes are off right angles: tools built on ITK place it up to {moved:.2f} voxel elsewhere"
    [warning] = load_image(path).warnings  # a qform without the shear is no conflict
    assert warning.startswith("sheared.nii.gz: ")
    assert said in warning
    save_transform(tmp_path / "sheared_Warp.nii.gz", np.zeros((3, *grid.shape), np.float32), grid)
    assert said in load_transform(tmp_path / "sheared_Warp.nii.gz")[2][0]
    alone = nib.load(path)
    alone.set_qform(None, 0)
    nib.save(alone, path)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))
    assert load_image(saved(4e-4)[0]).warnings == ()  # less than anybody sees


def test_a_qform_which_is_not_a_number_is_reported(plain):
    assert "disagree" in load_image(patch(plain, QUATERN_B, "<f", np.nan)).warnings[0]


def test_a_damaged_qform_is_refused(plain):
    with pytest.raises(GeometryError, match="damaged orientation"):
        load_image(patch(plain, QUATERN_B, "<f", 5.0))


@pytest.mark.parametrize(
    ("offset", "layout", "value", "said"),
    [(SFORM_CODE, "<h", 99, "sform_code 99"), (PIXDIM + 4, "<f", 0.0, "pixdim"), (0, "<i", 12345, "sizeof_hdr")],
)
def test_what_nibabel_mends_is_a_warning_with_the_files_name(plain, capfd, offset, layout, value, said):
    warnings = load_image(patch(plain, offset, layout, value)).warnings
    assert any(w.startswith("plain.nii: header mended") and said in w for w in warnings)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("code", [1, 3, 5, 7])
def test_other_units_than_mm_are_refused(plain, code):
    with pytest.raises(GeometryError, match="rewrite the header in mm"):
        load_image(patch(plain, XYZT_UNITS, "<B", code))


@pytest.mark.parametrize("code", [0, 2, 10])  # 10 is mm and seconds
def test_mm_and_unset_units_are_read(plain, data, code):
    np.testing.assert_array_equal(load_image(patch(plain, XYZT_UNITS, "<B", code)).data, data)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (DIM, "<h", 0, "3-D volume"),
        (DIM + 2, "<h", -5, "3-D volume"),
        (DIM + 2, "<h", 30000, "truncated or damaged"),
        (DATATYPE, "<h", 999, "cannot be read as NIfTI"),
        (VOX_OFFSET, "<f", 1e6, "truncated or damaged"),
        (VOX_OFFSET, "<f", 1e9, "cannot be read as NIfTI"),
        (VOX_OFFSET, "<f", -50, "cannot be read as NIfTI"),
        (INTERCEPT, "<f", np.inf, "cannot be read as NIfTI"),
        (SLOPE, "<f", 1e38, "infinite"),
        (344, "<4s", b"what", "cannot be read as NIfTI"),
    ],
)
def test_a_damaged_header_is_one_clean_error(plain, capfd, offset, layout, value, message):
    with pytest.raises(InputError, match=message) as caught:
        load_image(patch(plain, offset, layout, value))
    assert "plain.nii" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_header_claiming_huge_dimensions_is_refused_before_reading(plain):
    patch(plain, DIM + 2, "<hhh", 30000, 30000, 30000)
    with pytest.raises(InputError, match="is the header damaged"):
        load_image(plain)


def test_missing_folder_and_foreign_files(tmp_path, data, affine):
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "nothing.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(InputError, match="not a file"):
        load_image(tmp_path / "folder.nii")
    (tmp_path / "text.nii.gz").write_text("hello")
    (tmp_path / "text.nii").write_text("hello")
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "plain.txt").write_text("hello")
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "good.nii")
    (tmp_path / "compressed.nii.zst").write_bytes((tmp_path / "good.nii").read_bytes())
    for name in ("text.nii.gz", "text.nii", "empty.nii.gz", "plain.txt", "compressed.nii.zst"):
        with pytest.raises(InputError, match="cannot be read as NIfTI"):
            load_image(tmp_path / name)
    nib.save(nib.MGHImage(data.astype(np.float32), affine), tmp_path / "other.mgz")
    with pytest.raises(InputError, match="another format"):
        load_image(tmp_path / "other.mgz")


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_truncated_gz_is_refused(tmp_path, make_grid, world_image, write_nifti, kept):
    grid = make_grid("RAS", (20, 18, 16), (2, 2, 2))
    whole = write_nifti(tmp_path / "whole.nii.gz", world_image(grid), grid.world_from_vox).read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError, match="truncated"):
        load_image(path)


def test_garbage_in_the_middle_of_a_gz_is_refused(tmp_path, make_grid, world_image, write_nifti):
    grid = make_grid("RAS", (20, 18, 16), (2, 2, 2))
    path = write_nifti(tmp_path / "garbage.nii.gz", world_image(grid), grid.world_from_vox)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated or damaged"):
        load_image(path)


def test_one_wrong_bit_in_a_gz_shows_in_its_checksum(tmp_path, make_grid, world_image, write_nifti):
    """Stored, not compressed, so that the bit changes one voxel and nothing else can notice."""
    grid = make_grid("RAS", (20, 18, 16), (2, 2, 2))
    plain = write_nifti(tmp_path / "good.nii", world_image(grid), grid.world_from_vox)
    content = bytearray(gzip.compress(plain.read_bytes(), compresslevel=0))
    content[len(content) // 2] ^= 1
    path = tmp_path / "bit.nii.gz"
    path.write_bytes(content)
    for load in (load_image, load_labels):
        with pytest.raises(InputError, match=r"truncated or damaged.*CRC"):
            load(path)


def test_a_short_uncompressed_file_is_refused(plain):
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_image(plain)


def test_a_gz_with_whole_header_and_no_voxels_is_refused(tmp_path, plain):
    path = tmp_path / "header.nii.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()[:352]))
    with pytest.raises(InputError, match="truncated or damaged"):
        load_image(path)


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.zeros((5, 7), np.int16), "a 3-D volume is needed"),
        (np.zeros((5, 7, 1), np.int16), "every axis at least 2"),
        (np.zeros((*SHAPE, 2), np.int16), "extract it first"),
        (np.zeros((*SHAPE, 1, 3), np.float32), "extract it first"),
        (np.zeros(SHAPE, RGB), "one real number a voxel"),
        (np.zeros(SHAPE, np.complex64), "one real number a voxel"),
        (np.full(SHAPE, 7, np.int16), r"is constant \(7 everywhere\)"),
        (np.where(np.indices(SHAPE)[0] > 1, np.nan, 1).astype(np.float32), "84 NaN or infinite"),
        (np.where(np.indices(SHAPE)[2] == 0, -np.inf, 1).astype(np.float32), "35 NaN or infinite"),
        (np.where(np.indices(SHAPE)[2] == 0, 1e300, 1), "35 NaN or infinite"),
    ],
)
def test_voxels_that_cannot_be_registered(tmp_path, affine, write_nifti, voxels, message):
    with pytest.raises(InputError, match=message) as caught:
        load_image(write_nifti(tmp_path / "bad.nii.gz", voxels, affine))
    assert str(tmp_path / "bad.nii.gz") in str(caught.value)


def test_sheared_and_singular_affines_are_refused(plain, affine):
    sheared, singular, flat, unknown = (affine.copy() for _ in range(4))
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    singular[:3, 1] = 0
    flat[:3, :3] = 0
    unknown[0, 3] = np.nan
    for matrix, message in ((sheared, "sheared"), (singular, "singular"), (flat, "singular"), (unknown, "finite")):
        with pytest.raises(GeometryError, match=message) as caught:
            load_image(patch(plain, SROW_X, "<12f", *matrix[:3].ravel()))
        assert "plain.nii" in str(caught.value)


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_integer_labels_keep_their_type(tmp_path, data, affine, kind, endian):
    path = tmp_path / "labels.nii.gz"
    labels = data.astype(kind)
    image = nib.Nifti1Image(labels, affine, nib.Nifti1Header(endianness=endian))
    image.set_data_dtype(np.dtype(kind).newbyteorder(endian))
    nib.save(image, path)
    found = load_labels(path).data
    assert found.dtype == np.dtype(kind)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("kind", ["f4", "f8", "i8", "u8"])
def test_wide_whole_labels_become_int32(tmp_path, affine, kind):
    labels = np.zeros(SHAPE, kind)
    labels[1, 2, 3], labels[4, 0, 1] = 1035, 2**24
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, affine, dtype=kind), path)
    found = load_labels(path).data
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, labels.astype(np.int64))


def test_scaled_labels_are_scaled_and_a_constant_map_is_allowed(tmp_path, affine):
    image = nib.Nifti1Image(np.full(SHAPE, 3, np.uint8), affine)
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / "scaled.nii.gz")
    assert np.unique(load_labels(tmp_path / "scaled.nii.gz").data).tolist() == [7]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("f4", 2.5, "fractional"),
        ("f4", np.nan, "NaN"),
        ("f4", np.inf, "beyond 32 bits"),
        ("f8", -np.inf, "beyond 32 bits"),
        ("f4", 2.0**31, "beyond 32 bits"),
        ("f8", 1e30, "beyond 32 bits"),
        ("i8", 2**31, "beyond 32 bits"),
        ("i8", -(2**63), "beyond 32 bits"),
        ("u8", 2**64 - 1, "beyond 32 bits"),
    ],
)
def test_labels_that_are_not_whole_32_bit_numbers_are_refused(tmp_path, affine, kind, value, message):
    labels = np.ones(SHAPE, kind)
    labels[2, 3, 1] = value
    nib.save(nib.Nifti1Image(labels, affine, dtype=kind), tmp_path / "bad.nii.gz")
    with pytest.raises(InputError, match=message):
        load_labels(tmp_path / "bad.nii.gz")


def test_load_grid_is_the_grid_of_the_image(plain, affine):
    grid = load_grid(plain)
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.world_from_vox, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii", "a"),
        ("a.nii.gz", "a"),
        ("A.B.NII.GZ", "A.B"),
        ("x.nii.nii.gz", "x.nii"),
        ("odd name [1].nii", "odd name [1]"),
    ],
)
def test_stem(name, expected):
    assert stem(Path("/some.nii/folder") / name) == expected


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.img"])
def test_the_digest_is_that_of_the_file(tmp_path, make_grid, write_nifti, name):
    grid = make_grid("oblique", (9, 8, 7), (1.0, 2.0, 3.0))
    data = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    paired = name in ("a.hdr", "a.img")
    path = write_nifti(tmp_path / name, data, grid.world_from_vox, cls=nib.Nifti1Pair if paired else nib.Nifti1Image)
    assert load_image(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    if name == "a.nii.gz":  # two members are one file, and both are hashed
        whole = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(whole[:900]) + gzip.compress(whole[900:]))
        assert load_image(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        np.testing.assert_array_equal(load_image(path).data, data)


def test_readers_side_by_side_keep_their_warnings_apart(tmp_path, make_grid, write_nifti):
    """nibabel tells one logger about every header it mends, whoever reads."""
    grid = make_grid("RAS", (5, 6, 7), (1.0, 2.0, 3.0))
    data = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    good, odd = (write_nifti(tmp_path / f"{n}.nii", data, grid.world_from_vox) for n in ("good", "odd"))
    patch(odd, PIXDIM + 4, "<f", 0.0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: load_image(path).warnings, [good, odd] * 40))
    assert not any(found[0::2])
    assert all(len(lines) == 1 for lines in found[1::2])


def test_kinds_of_refusal_are_told_apart(tmp_path, files) -> None:
    """Another format, too large, and a damaged header: who answers over HTTP needs another status for each."""
    (tmp_path / "text.nii.gz").write_bytes(b"no image at all, but long enough for a header" * 20)
    with pytest.raises(FormatError, match="no NIfTI header in it"):
        load_image(tmp_path / "text.nii.gz")
    with pytest.raises(SizeError, match="19x22x17 voxels, more than max_voxels 7105"):
        load_image(files[0], max_voxels=19 * 22 * 17 - 1)
    assert load_image(files[0], max_voxels=19 * 22 * 17).data.shape == (19, 22, 17)
