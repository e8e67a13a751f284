"""Malformed and hostile transforms, tables and lists: one line or a sound reading, no hang, no crash."""

from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hostile_nifti import GZIP, mutate, no_hang
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ofg_deploy.errors import InputError
from ofg_deploy.evaluate.pairs import find_pairs
from ofg_deploy.outputs import read_csv, read_json, read_text
from ofg_deploy.transform import aside
from ofg_deploy.transform.dialects import Registration, load_map, write
from ofg_deploy.transform.inverse import invert
from ofg_deploy.transform.maps import FieldMap
from ofg_deploy.transform.points import carry, load_points, save_points

POINTS = np.random.default_rng(2).uniform(-9, 9, (3, 30))
often = settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(path: Path, dialect: str, grid) -> str:
    """Read it and use it both ways; one line that names the file, or finite numbers."""
    try:
        found = load_map(path, dialect, grid, grid)
    except InputError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "\n" not in refused
        assert path.name in refused
        return "refused"
    for map_ in (found, invert(found)):
        displacement, inside = map_.displacement_mm(POINTS)
        assert np.isfinite(displacement).all()
        assert not displacement[:, ~inside].any()
    return "read"


@pytest.fixture
def grid(make_grid):
    return make_grid("oblique", (5, 7, 4), (3.6, 3.1, 4.0))


def test_mutated_fields(tmp_path, grid):
    """Of every NIfTI form, and of colours and complex numbers, whose imaginary part must not go in silence."""
    field = np.random.default_rng(0).normal(0, 2, (3, *grid.shape)).astype(np.float32)
    seeds = []
    for dialect in ("itk", "fsl", "l2r"):
        write(tmp_path / "seed.nii", dialect, Registration(field, None, grid, grid))
        seeds.append((dialect, (tmp_path / "seed.nii").read_bytes()))
    for dialect, shape in (("itk", (*grid.shape, 1, 3)), ("l2r", (*grid.shape, 3))):
        for kind in (np.dtype("c8"), np.dtype([(c, "u1") for c in "RGB"])):
            image = nib.Nifti1Image(np.zeros(shape, kind), grid.world_from_vox)
            image.header.set_intent(1007 if dialect == "itk" else 0)
            (tmp_path / "seed.nii").write_bytes(image.to_bytes())
            with pytest.raises(InputError, match="scalar image"):
                load_map(tmp_path / "seed.nii", dialect, grid, grid)
            seeds.append((dialect, image.to_bytes()))
    rng, outcomes = np.random.default_rng(1), Counter[str]()
    for number in range(350):
        dialect, content = seeds[number % len(seeds)]
        for _ in range(int(rng.integers(1, 3))):
            content = mutate(rng, content)
        path = tmp_path / ("x.nii.gz" if content[:2] == GZIP else "x.nii")
        path.write_bytes(content)
        with no_hang():
            outcomes[outcome(path, dialect, grid)] += 1
    assert outcomes["read"] > 20
    assert outcomes["refused"] > 150


@pytest.mark.parametrize("length", [2e6, 1e30, 3e38])
def test_a_field_that_leads_out_of_every_scan(tmp_path, grid, length):
    field = np.zeros((3, *grid.shape), np.float32)
    field[1, 2, 3, 1] = -length
    for dialect in ("itk", "fsl", "l2r", "voxelmorph"):
        path = tmp_path / {"voxelmorph": "w.npz"}.get(dialect, f"{dialect}.nii")
        write(path, dialect, Registration(field, None, grid, grid))
        with pytest.raises(InputError, match="NaN, infinite or longer than"):
            load_map(path, dialect, grid, grid)


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(data) or 1))
        match int(rng.integers(5)):
            case 0 if data:
                data[at] = int(rng.integers(256))
            case 1:
                del data[at : at + int(rng.integers(1, 50))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 50)))
            case 3:
                data[at : at + 4] = b"\xff\xff\xff\x7f"
            case _:
                data[at:at] = bytes(data[at : at + 40])
    return bytes(data)


@pytest.mark.parametrize("ending", [".mat", ".txt", ".tfm"])
def test_mutated_linear_transforms(tmp_path, grid, sitk_affine, some_affine, ending, capfd, monkeypatch):
    path = tmp_path / f"seed{ending}"
    sitk.WriteTransform(sitk_affine(some_affine), str(path))
    content, rng, outcomes = path.read_bytes(), np.random.default_rng(3), Counter[str]()
    path = tmp_path / f"x{ending}"
    for _ in range(200):
        path.write_bytes(damaged(rng, content))
        with no_hang():
            outcomes[outcome(path, "itk", grid)] += 1
    assert outcomes["read"] > 3  # a byte in a digit or a comment
    assert outcomes["refused"] > 80
    assert capfd.readouterr() == ("", "")  # ITK's readers print what they think of a file


def test_mutated_text_of_other_tools(tmp_path, grid, some_affine):
    """elastix, FreeSurfer, FLIRT; a B-spline of ITK."""
    numbers = " ".join(map(str, np.random.default_rng(0).normal(0, 1, 192)))
    rows = "\n".join(" ".join(map(str, row)) for row in some_affine)
    volume = "valid = 1\nvolume = 5 7 4\nvoxelsize = 3 3 4\nxras = 1 0 0\nyras = 0 1 0\nzras = 0 0 1\ncras = 0 0 0\n"
    seeds = {
        "e.txt": f'(Transform "BSplineTransform")\n(TransformParameters {numbers})\n(GridSize 4 4 4)\n'
        "(GridOrigin -15 -15 -15)\n(GridSpacing 10 10 10)\n(GridDirection 1 0 0 0 1 0 0 0 1)\n",
        "l.lta": f"type = 0\nnxforms = 1\n1 4 4\n{rows}\nsrc volume info\n{volume}dst volume info\n{volume}",
        "m.mat": rows,
        "b.tfm": f"#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: {numbers}\n"
        "FixedParameters: 4 4 4 -15 -15 -15 10 10 10 1 0 0 0 1 0 0 0 1\n",
    }
    rng, outcomes = np.random.default_rng(4), Counter[str]()
    for number in range(200):
        name = list(seeds)[number % len(seeds)]
        (tmp_path / name).write_bytes(damaged(rng, seeds[name].encode()))
        with no_hang():
            outcomes[outcome(tmp_path / name, "fsl" if name == "m.mat" else "itk", grid)] += 1
    assert outcomes["read"] > 4  # a byte in a digit or a comment
    assert outcomes["refused"] > 60


def test_a_matlab_file_that_promises_gigabytes(tmp_path, sitk_affine, some_affine):
    path = tmp_path / "0GenericAffine.mat"
    sitk.WriteTransform(sitk_affine(some_affine), str(path))
    content = bytearray(path.read_bytes())
    for offset, value in ((4, 2**28), (4, -1), (8, 2**30), (16, 2**31 - 1), (16, 0)):
        lying = content.copy()
        struct.pack_into("<i", lying, offset, value)
        path.write_bytes(lying)
        with pytest.raises(InputError, match="not one in the form of Matlab 4"):
            load_map(path)
    path.write_bytes(content + bytes(2**20))
    with pytest.raises(InputError, match="not one in the form of Matlab 4"):
        load_map(path)
    path.write_bytes(content)
    os.truncate(path, 2**26 + 1)
    with pytest.raises(InputError, match="is larger than"):
        load_map(path)


def test_other_tools_affines_are_refused(tmp_path):
    """FLIRT's .mat is text and maps the other way between other coordinates; Greedy's looks alike."""
    for name in ("flirt.mat", "matrix.txt"):
        np.savetxt(tmp_path / name, np.eye(4))
        with pytest.raises(InputError, match=r"4x4 matrix as text.*format=fsl.*format=greedy"):
            load_map(tmp_path / name)


def test_damaged_composites_crash_a_process_of_their_own(tmp_path, grid, monkeypatch):
    """A place found by trying: with SimpleITK 2.5 it ends in signal 11, others in 6, or not at all."""
    field = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(np.zeros((2, 2, 2, 3)), isVector=True))
    path = tmp_path / "Composite.h5"
    sitk.WriteTransform(sitk.CompositeTransform([sitk.AffineTransform(3), field]), str(path))
    content = path.read_bytes()
    assert outcome(path, "itk-h5", grid) == "read"
    path.write_bytes(content[:8287] + b"\xff\xff\xff\x7f" + content[8291:])
    outcome(path, "itk-h5", grid)
    path.write_bytes(content)
    monkeypatch.setattr(aside, "LONGEST_S", -0.99)  # a hundredth of a second with this file
    with pytest.raises(InputError, match="timed out"):
        load_map(path)


def test_composites_where_memory_cannot_be_limited(tmp_path, grid, monkeypatch):
    """As on macOS, where the limit itself is refused."""
    (tmp_path / "resource.py").write_text(
        "RLIMIT_AS = 9\ndef setrlimit(*_):\n    raise ValueError('current limit exceeds maximum limit')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "Composite.h5"
    sitk.WriteTransform(sitk.CompositeTransform([sitk.AffineTransform(3)]), str(path))
    assert outcome(path, "itk-h5", grid) == "read"


cells = st.one_of(
    st.sampled_from(
        ["x", "Y", " z ", "name", "inside", "", "1", "-2.5e1", "nan", "inf", "1e308", "1_0", '"a\nb"', "0x1"]
    ),
    st.text(max_size=8),
)


@often
@given(
    rows=st.lists(st.lists(cells, max_size=6), max_size=6),
    headed=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.booleans(),
)
@example(rows=[["1", "2", "3", "a\x00b"]], headed=True, newline="\r\n", bom=True)
def test_any_table(tmp_path, grid, rows, headed, newline, bom):
    rows = [["x", "y", "z", "name"], *rows] if headed else rows
    path, out = tmp_path / "p.csv", tmp_path / "o.csv"
    path.write_bytes(b"\xef\xbb\xbf" * bom + newline.join(",".join(row) for row in rows).encode("utf-8", "replace"))
    try:
        points = load_points(path, "lps")
    except InputError:
        return
    assert np.isfinite(points.world).all()
    save_points(out, carry(points, ones(grid)))
    with out.open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == points.world.shape[1]
    assert all(None not in row and row["inside"] in "01" for row in table)


def ones(grid):
    return FieldMap(np.ones((3, *grid.shape), np.float32), grid)


@often
@given(content=st.binary(max_size=300))
def test_any_bytes_as_a_table_or_list(tmp_path, content):
    for name, read in (("p.csv", lambda p: load_points(p, "ras")), ("p.csv", find), ("p.json", find)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


def find(path: Path) -> None:
    find_pairs(path, None)


def test_cells_stay_what_they_are(tmp_path, grid):
    """Line ends and quotes in cells, an older ``inside``, a byte order mark, blank rows and trailing commas."""
    path, out = tmp_path / "p.csv", tmp_path / "o.csv"
    lines = [
        "\ufeffname,X, y ,z,inside,note",
        '"two\nlines",1,2,3,0,"a ""quote"""',
        *("", ",,,,", "\u2028,4,5,6", "7,1,1,1,,,,", ""),
    ]
    path.write_bytes("\r\n".join(lines).encode())
    points = load_points(path, "ras")
    np.testing.assert_array_equal(points.world.T, [[1, 2, 3], [4, 5, 6], [1, 1, 1]])
    save_points(out, carry(points, ones(grid)))
    with out.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["name", "X", " y ", "z", "note", "inside"]
    assert [row[0] for row in rows] == ["two\nlines", "\u2028", "7"]
    assert [row[4] for row in rows] == ['a "quote"', "", ""]
    assert [row[1:4] for row in rows] == [
        ["2.000000", "3.000000", "4.000000"],
        ["5.000000", "6.000000", "7.000000"],
        ["2.000000"] * 3,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,y,z,X\n1,2,3,4\n", "the column 'x' twice"),
        ("x,y,z\n1,2,3,4\n", "line 2: more cells than the header"),
        ("x,y,z\n1_5,2,3\n", "must be numbers"),
        ("x,y,z\n1,,3\n", "must be numbers"),
        ("x;y;z\n1;2;3\n", "a header with x, y, z"),
        ("x,y,z\n1,2,inf\n", "not finite"),
        ("x,y,z,n\n1,2,3," + "a" * 200_000, "line 2: field larger than field limit"),
        ("x,y,z\n" + "1,1,1\n" * 1001, "line 1002: more than 1000 rows"),
        ("", "a header with x, y, z"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path, text, said, monkeypatch):
    monkeypatch.setattr("ofg_deploy.outputs.MAX_ROWS", 1000)
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        load_points(tmp_path / "p.csv", "ras")


def test_small_files_are_files(tmp_path):
    """A pipe would hang the reader and a device fill the memory; its size is 0 for both."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    for name in ("pipe.csv", "zero.csv", "loop.csv", ".", "no.csv"):
        for read in (read_text, read_csv, read_json):
            with no_hang(), pytest.raises(InputError, match="cannot be read"):
                read(tmp_path / name)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not JSON"):
        read_json(tmp_path / "deep.json")
    (tmp_path / "list.json").write_text(json.dumps([{"transform": "a\0b"}]))
    assert find_pairs(tmp_path / "list.json", None)[0].transform is not None


THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from ofg_deploy.geometry import Grid
from ofg_deploy.transform.itk import read_composite, save_composite
grid = Grid((9, 10, 11), np.diag([2.0, 2.1, 2.2, 1.0]))
def once(number):
    path = Path(sys.argv[1], f"{number}.h5")
    field = np.full((3, *grid.shape), number, np.float32)
    save_composite(path, field, grid, np.eye(4))
    found = read_composite(path)[0].field
    assert np.allclose(np.abs(found), number), number
with ThreadPoolExecutor(6) as pool:
    list(pool.map(once, range(120)))
"""


def test_composites_of_several_threads(tmp_path):
    """HDF5 is for one thread; a batch that wrote them at once was killed, or lost a pair, every few runs."""
    done = subprocess.run([sys.executable, "-c", THREADS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_encrypted_archive_is_one_line(tmp_path, grid) -> None:
    path = tmp_path / "field.npz"
    np.savez(path, vol=np.zeros((3, *grid.shape), np.float32))
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the file's own entry, and that of the directory
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"field\.npz cannot be read as a VoxelMorph field .*encrypted"):
        load_map(path, "voxelmorph", grid, grid)
