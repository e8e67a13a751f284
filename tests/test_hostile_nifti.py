"""Malformed and hostile files: one line or nibabel's voxels, bounded memory, no hang, nothing half written."""

from __future__ import annotations

import gzip
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hostile_nifti import FIELDS, GZIP, VALUES, examine, hunt, mutate, no_hang, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ofg_deploy.errors import InputError
from ofg_deploy.nifti import load_grid, load_image, load_labels
from ofg_deploy.nifti_file import MAX_VOXELS, open_nifti


def test_two_thousand_mutated_files_are_read_as_nibabel_reads_them_or_refused(tmp_path):
    outcomes, kept, steps = hunt(tmp_path, runs=2000, seed=0)
    assert sum(outcomes.values()) == 2000
    assert outcomes["read/read"] > 100  # the hunt must reach the voxels ...
    assert outcomes["GeometryError/GeometryError"] > 100
    assert len(kept) > 15  # ... and be led by what it finds: without coverage nothing is kept
    assert steps > 250


changes = st.one_of([st.tuples(st.just((at, kind)), st.sampled_from(VALUES[kind])) for at, kind in FIELDS])


@settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, len(seeds()) - 1), changed=st.lists(changes, max_size=6), compressed=st.booleans())
def test_any_combination_of_header_fields(tmp_path, seed, changed, compressed):
    content = bytearray(seeds()[seed])
    for (at, kind), value in changed:
        struct.pack_into("<" + kind, content, at, value)
    path = tmp_path / f"any.nii{'.gz' * compressed}"
    path.write_bytes(gzip.compress(content, 1, mtime=0) if compressed else content)
    with no_hang():
        examine(path)


@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=1000), ending=st.sampled_from([".nii", ".nii.gz", ".hdr", ".img.gz"]))
def test_any_bytes_under_any_name(tmp_path, content, ending):
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.37, -12.5), (-3, 7)])
def test_voxels_are_nibabels_bit_for_bit(tmp_path, make_grid, kind, cls, endian, scaling, monkeypatch):
    """Of several chunks, which end inside rows."""
    monkeypatch.setattr("ofg_deploy.nifti_file.CHUNK_BYTES", 1000)
    grid = make_grid("oblique-permuted", (9, 7, 11), (1.5, 2.0, 3.1))
    data = np.random.default_rng(8).normal(60, 30, grid.shape).clip(0, 120).astype(kind)
    image = cls(data, grid.world_from_vox, cls.header_class(endianness=endian), dtype=kind)
    image.header.set_slope_inter(*scaling)
    path = tmp_path / "image.nii.gz"
    # Raw voxels with this scaling: nibabel's own writing would divide by it.
    header = image.header.copy()
    header.set_data_offset(header.single_vox_offset)
    stored = data.astype(image.get_data_dtype()).tobytes(order="F")
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + stored))
    expected = nib.load(path)
    assert expected.dataobj.slope == np.float32(scaling[0])
    np.testing.assert_array_equal(load_image(path).data, expected.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(open_nifti(path).read(), np.asanyarray(expected.dataobj))


def plain(folder: Path, shape=(40, 30, 20), kind="i2") -> tuple[Path, bytes]:
    data = np.random.default_rng(2).integers(0, 200, shape).astype(kind)
    image = nib.Nifti1Image(data, np.diag([2.0, 2.5, 3.0, 1]), dtype=kind)
    image.set_qform(image.affine, 1)
    nib.save(image, folder / "plain.nii")
    return folder / "plain.nii", (folder / "plain.nii").read_bytes()


def peak_of(path: Path, said: str, max_voxels: int = MAX_VOXELS) -> int:
    """Bytes it took to refuse this file."""
    tracemalloc.start()
    try:
        with no_hang(), pytest.raises(InputError, match=said):
            load_image(path, max_voxels)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_costs_no_more_than_its_header_promises(tmp_path):
    """1 GiB of zeros in 1 MiB behind a small header; members one after another, and one inside."""
    _, content = plain(tmp_path)
    zeros = gzip.compress(bytes(2**26), 9) * 16
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(content) + zeros)
    assert path.stat().st_size < 2**20 + 2**16
    assert peak_of(path, "goes on after the 24000 voxels") < 8 * 2**20
    header = bytearray(content[:352])
    struct.pack_into("<f", header, 108, 2.0**26)  # the voxels behind as much
    path.write_bytes(gzip.compress(bytes(header)) + zeros)
    assert peak_of(path, "goes on after the 24000 voxels") < 16 * 2**20


@pytest.mark.parametrize("dims", [(32767, 32767, 32767), (32767, 8000, 1), (640, 640, 640), (-640, 640, 640)])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_dimensions_the_file_cannot_hold_are_refused_before_anything_is_allocated(tmp_path, dims, ending):
    _, content = plain(tmp_path)
    damaged = bytearray(content)
    struct.pack_into("<3h", damaged, 42, *dims)
    path = tmp_path / f"dims.{ending}"
    path.write_bytes(gzip.compress(damaged) if ending == "nii.gz" else damaged)
    assert peak_of(path, "header damaged|cannot hold|3-D volume") < 2**20


def test_max_voxels_is_the_last_size_allowed(tmp_path):
    path, _ = plain(tmp_path)
    assert load_image(path, 24000).data.shape == (40, 30, 20)
    with pytest.raises(InputError, match="40x30x20 voxels, more than max_voxels 23999"):
        load_image(path, 23999)
    with pytest.raises(InputError, match="max_voxels"):
        load_labels(path, 23999)


def test_a_large_valid_file_costs_its_float32_and_little_more(tmp_path):
    shape = (160, 192, 128)
    path = tmp_path / "large.nii.gz"
    data = np.tile(np.arange(64, dtype=np.float64), 61440).reshape(shape)
    header = nib.Nifti1Image(data, np.eye(4)).header
    header.set_data_offset(352)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + data.tobytes(order="F"), 1))
    size = 4 * data.size
    del data
    tracemalloc.start()
    load_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.25 * size + 12 * 2**20  # a mask of one byte a voxel; two chunks


@pytest.mark.parametrize("tail", [b"\0", b"x" * 5000])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_what_follows_the_voxels_is_refused(tmp_path, tail, ending):
    _, content = plain(tmp_path)
    path = tmp_path / f"tail.{ending}"
    path.write_bytes(gzip.compress(content + tail) if ending == "nii.gz" else content + tail)
    with pytest.raises(InputError, match="goes on after the 24000 voxels"):
        load_image(path)


def test_gzip_members_one_after_another_are_one_file(tmp_path):
    """As bgzip and pigz -i write them; two whole images one after another are not."""
    path, content = plain(tmp_path)
    members = [gzip.compress(content[start : start + 7001]) for start in range(0, len(content), 7001)]
    (tmp_path / "members.nii.gz").write_bytes(b"".join(members))
    np.testing.assert_array_equal(load_image(tmp_path / "members.nii.gz").data, load_image(path).data)
    (tmp_path / "twice.nii.gz").write_bytes(gzip.compress(content) * 2)
    with pytest.raises(InputError, match="goes on after"):
        load_image(tmp_path / "twice.nii.gz")
    (tmp_path / "tail.nii.gz").write_bytes(gzip.compress(content) + b"not gzip")
    with pytest.raises(InputError, match="truncated or damaged"):
        load_image(tmp_path / "tail.nii.gz")


def test_gzip_is_known_by_content(tmp_path):
    path, content = plain(tmp_path)
    (tmp_path / "plain.nii.gz").write_bytes(content)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(load_image(tmp_path / name).data, load_image(path).data)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "said"),
    [
        (108, "<f", 0, "start at byte 0"),
        (108, "<f", 348, "vox offset 348 too low"),
        (108, "<f", 352.5, "start at byte 352.5"),
        (108, "<f", np.nan, "start at byte nan"),
        (108, "<f", np.inf, "start at byte inf"),
        (112, "<f", np.inf, "scl_slope"),
        (116, "<f", np.nan, "scl_slope"),
        (280 + 12, "<f", 2e6, "from the world's origin"),
        (280 + 12, "<f", 3e38, "from the world's origin"),
        (344, "<4s", b"ni1\0", "header of a .hdr beside an .img"),
    ],
)
def test_one_field_that_cannot_be_true(tmp_path, offset, layout, value, said):
    path, content = plain(tmp_path)
    damaged = bytearray(content)
    struct.pack_into(layout, damaged, offset, value)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=said):
        load_image(path)


@pytest.mark.parametrize("size", [0.0, -2.0, np.nan, np.inf])
def test_voxel_sizes_that_the_qform_needs_are_not_made_up(tmp_path, size):
    """nibabel would go on with 1 mm, or with the sign dropped."""
    path, content = plain(tmp_path)
    damaged = bytearray(content)
    struct.pack_into("<f", damaged, 80, size)
    path.write_bytes(damaged)
    load_grid(path)  # the sform needs none of them
    struct.pack_into("<h", damaged, 254, 0)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="voxel sizes"):
        load_grid(path)


@pytest.mark.parametrize("ending", ["img", "img.gz"])
def test_either_file_of_a_pair_reads_the_pair(tmp_path, ending):
    path, _ = plain(tmp_path)
    nib.save(nib.Nifti1Pair.from_image(nib.load(path)), tmp_path / "pair.hdr")
    if ending == "img.gz":
        (tmp_path / "pair.img.gz").write_bytes(gzip.compress((tmp_path / "pair.img").read_bytes()))
        (tmp_path / "pair.img").unlink()
    for name in ("pair.hdr", f"pair.{ending}"):
        volume = load_image(tmp_path / name)
        np.testing.assert_array_equal(volume.data, load_image(path).data)
        np.testing.assert_array_equal(volume.grid.world_from_vox, load_image(path).grid.world_from_vox)
    (tmp_path / f"pair.{ending}").unlink()
    with pytest.raises(InputError, match=r"pair.img is not beside it"):
        load_image(tmp_path / "pair.hdr")


def test_analyze_is_told_from_nifti(tmp_path):
    path, _ = plain(tmp_path)
    nib.save(nib.AnalyzeImage(nib.load(path).get_fdata().astype(np.int16), None), tmp_path / "old.hdr")
    with pytest.raises(InputError, match=r"Analyze 7\.5, which knows no orientation"):
        load_image(tmp_path / "old.img")


def test_links_pipes_devices_and_locked_files(tmp_path, monkeypatch):
    path, _ = plain(tmp_path)
    (tmp_path / "good link.nii").symlink_to(path)
    assert load_image(tmp_path / "good link.nii").data.size == 24000
    (tmp_path / "dangling.nii").symlink_to(tmp_path / "nothing.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "to folder.nii").symlink_to(tmp_path)
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    cases = {
        "dangling.nii": "is a link to a file that does not exist",
        "loop.nii": "cannot be read",
        "folder.nii.gz": "is not a file",
        "to folder.nii": "is not a file",
        "zero.nii": "is not a file",
        "pipe.nii.gz": "is not a file",
        f"{'long' * 100}.nii": "cannot be read",
    }
    for name, said in cases.items():
        with no_hang(), pytest.raises(InputError, match=said):
            load_image(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root every file is readable
    with pytest.raises(InputError, match="permission denied"):
        load_image(path)


@pytest.fixture
def registered(tmp_path, files, tiny_model):
    """Arguments of a registration that works."""
    fixed, moving, *_ = files
    return ["register", fixed, moving, "-m", tiny_model().path, "-o", tmp_path / "out", "--device", "cpu"]


ROLES = ["fixed", "moving", "moving-labels", "fixed-mask", "also", "transform", "reference", "image"]


def test_a_sample_through_the_commands(tmp_path, registered, run_cli, world_labels, write_nifti, files):
    """In every role: refused with 3, one line and nothing written, or done with everything written."""
    fixed, moving, fixed_grid, moving_grid = files
    write_nifti(tmp_path / "labels.nii.gz", world_labels(moving_grid), moving_grid.world_from_vox)
    write_nifti(tmp_path / "mask.nii.gz", np.ones(fixed_grid.shape, np.uint8), fixed_grid.world_from_vox)
    assert run_cli(registered)[0] == 0
    warp = tmp_path / "out" / "mov_to_fix_Warp.nii.gz"
    good = {"moving-labels": tmp_path / "labels.nii.gz", "fixed-mask": tmp_path / "mask.nii.gz", "transform": warp}
    rng, codes = np.random.default_rng(5), []
    for number in range(32):
        role = ROLES[number % len(ROLES)]
        content = good.get(role, fixed).read_bytes()
        content = gzip.decompress(content) if number % 3 else content
        for _ in range(int(rng.integers(1, 3))):
            content = mutate(rng, content)
        bad = tmp_path / (f"bad{number}.nii.gz" if content[:2] == GZIP else f"bad{number}.nii")
        bad.write_bytes(content)
        given = {"fixed": fixed, "moving": moving, "transform": warp, "reference": fixed, "image": moving, role: bad}
        out = tmp_path / str(number)
        if role in ("transform", "reference", "image"):
            line = ["apply", given["image"], "-t", given["transform"], "-r", given["reference"], "-o", out / "o.nii"]
        else:
            line = ["register", given["fixed"], given["moving"], *registered[3:5], "-o", out, "--max-voxels", 2**22]
            line += [] if role in ("fixed", "moving") else [f"--{role}", bad]
            line += ["--init", "centre"] if role == "fixed-mask" else []
        with no_hang():
            code, _, err = run_cli(line)
        codes.append(code)
        if code == 0:
            assert sum(path.suffix == ".json" for path in out.iterdir()) == 1
            continue
        assert (code, len(err.strip().splitlines())) == (3, 1), err
        assert err.startswith("ofg: error: ")
        assert bad.name in err
        assert not out.exists()
    assert 5 < codes.count(0) < 28


def test_max_voxels_of_the_command(registered, run_cli, tmp_path):
    code, _, err = run_cli([*registered, "--max-voxels", 7000])
    assert code == 3
    assert "more than --max-voxels 7000" in err
    assert not (tmp_path / "out").exists()
    assert run_cli([*registered, "--max-voxels", 0])[0] == 2


def test_names_with_spaces_and_letters_of_the_world(registered, run_cli, tmp_path):
    odd = tmp_path / "größe 脳 [bold]:smile: \u202e'.nii.gz"
    registered[1].rename(odd)
    code, _, err = run_cli(["register", odd, *registered[2:]])
    assert (code, err.count("error")) == (0, 0)
    assert (tmp_path / "out" / f"mov_to_{odd.name.removesuffix('.nii.gz')}.json").exists()


@pytest.mark.parametrize("limit", [100, 20_000, 60_000])
def test_a_full_disk_leaves_nothing(registered, tmp_path, limit):
    """Files cannot grow beyond a limit, in a process of its own: the header alone, some voxels, the field's middle."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from ofg_deploy.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, registered)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "cannot write into" in done.stderr
    assert not (tmp_path / "out").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
