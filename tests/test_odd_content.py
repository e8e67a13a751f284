"""Content nobody expects, wherever it is read: one line, the right exit code, and no waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hostile_nifti import no_hang

from ofg_deploy.errors import InputError
from ofg_deploy.outputs import read_csv, sha256_file

ROOT = Path(__file__).parents[1]
ODD = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 50_000,
    "digits": '{"schema": ' + "9" * 5_000 + "}",
    "infinite": '{"schema": 1e999, "format": "ofg-deploy dataset"}',
    "a list": "[1, 2]",
    "a number": "17",
    "null": "null",
    "not UTF-8": b"\xff\xfe{",
    "empty": "",
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_json_is_one_line_everywhere(tmp_path, run_cli, kind) -> None:
    content = ODD[kind] if isinstance(ODD[kind], bytes) else ODD[kind].encode()
    folders = {name: tmp_path / name for name in ("run", "results", "learn2reg")}
    for folder in folders.values():
        folder.mkdir()
    (tmp_path / "model.engine").write_bytes(b"plan")
    names = ("dataset.json", "list.json", "model.engine.json", "limits.json", "run/config.json", "results/a_to_b.json")
    for name in (*names, "learn2reg/L2R_dataset.json"):
        (tmp_path / name).write_bytes(content)
    commands = {
        "train": ["train", tmp_path / "list.json", "-o", tmp_path / "out"],
        "data set": ["train", tmp_path / "dataset.json", "-o", tmp_path / "out"],
        "resume": ["train", "-o", tmp_path / "run", "--resume"],
        "run": ["info", tmp_path / "run"],
        "engine": ["info", tmp_path / "model.engine"],
        "list": ["register", "--pairs", tmp_path / "list.json", "-m", "m.onnx", "-o", tmp_path / "out"],
        "eval": ["eval", tmp_path / "list.json", "-o", tmp_path / "out"],
        "limits": ["report", tmp_path / "results", "--limits", tmp_path / "limits.json"],
        "report": ["report", tmp_path / "results", "-o", tmp_path / "r.html"],
    }
    for name, line in commands.items():
        code, _, stderr = run_cli(line)
        assert code in (2, 3, 6), (name, stderr)
        last = stderr.splitlines()[-1]
        assert last.startswith("ofg: error:"), (name, stderr)
        assert "internal" not in last, (name, last)
        assert len(last) < 1500, (name, last)


def test_a_sidecar_with_numbers_beyond_use(tmp_path, files, engine, run_cli) -> None:
    """Their differences and sums would be infinite, and so would the axes of a picture."""
    from ofg_deploy.serve.job import Job
    from ofg_deploy.serve.register import register

    out = tmp_path / "out"
    sidecar = register(Job(*files[:2], out), engine).outputs["sidecar"]
    good = json.loads(sidecar.read_text())
    for value in (1e308, -1e308, 10**400, "1e308", [1], {"a": 1}, True):
        for place in ("ncc_before", "displacement_mm_max", "seconds", "start"):
            record = json.loads(json.dumps(good))
            if place == "seconds":
                record["seconds"] = {"read": value, "write": value}
            elif place == "start":
                record["start"]["moving_from_fixed"] = [[value] * 4] * 4
            else:
                record["metrics"][place] = value
            sidecar.write_text(json.dumps(record))
            code, _, stderr = run_cli(["report", out, "--overwrite"])
            assert code in (0, 6), (place, value, stderr)
            assert "Warning" not in stderr
            assert "internal" not in stderr


def test_a_damaged_cache_is_made_again(tmp_path, make_grid, world_image) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    from batches import write_subjects

    from ofg_deploy.preprocess import Intensity, NetworkInput
    from ofg_deploy.train.dataset import appearance, load_cached, misfits, prepare_all
    from ofg_deploy.train.pairs import PairFiles

    paths = sorted(write_subjects(tmp_path / "images", 2, make_grid, world_image).iterdir())
    expects = NetworkInput((16, 16, 16), (4.0, 4.0, 4.0), Intensity("minmax"), "none", "RAS")
    pairs = [PairFiles(*paths)]

    def prepare() -> Path:
        return prepare_all(pairs, expects, tmp_path / "cache", 1, lambda: None)[0]

    content = prepare().read_bytes()
    header = content.index(b"NUMPY")
    damages = {
        "empty": b"",
        "short": content[: len(content) // 2],
        "no zip": b"x" * len(content),
        "other": (tmp_path / "images" / paths[0].name).read_bytes(),
        "end": content[:-30] + bytes(30),
        "header": content[:header] + b"\xff" * 20 + content[header + 20 :],
    }
    said = "made anew"
    for name, damaged in damages.items():
        file = prepare()
        file.write_bytes(damaged)
        prepare()
        try:
            found = load_cached(file)
        except InputError as error:  # what shows only where the voxels are read
            said = str(error)
            found = load_cached(prepare())
        assert found.fixed.shape == (16, 16, 16), name
        assert "made anew" in said
        assert misfits(pairs, [file]) is not None
        assert appearance([file]) is not None
        assert file.read_bytes() == content, name
    changed = bytearray(content)
    changed[content.index(b"NUMPY") + 4000] ^= 1  # a voxel
    file.write_bytes(changed)
    with pytest.raises(InputError, match="made anew"):
        load_cached(prepare())
    assert load_cached(prepare()).fixed.shape == (16, 16, 16)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("line", [["--help"], ["--version"], ["check", "absent.nii"], ["check", "FILE", "--json"]])
def test_a_full_standard_output(tmp_path, files, line) -> None:
    line = [str(files[0]) if word == "FILE" else word for word in line]
    code = "from ofg_deploy.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *line],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment,
        )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("ofg: error:")


def test_nobody_at_the_other_end_of_a_pipe(files) -> None:
    code = "from ofg_deploy.cli import main; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code, "check", files[0]], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_table_of_very_many_columns(tmp_path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(",".join(f"c{n}" for n in range(60_000)) + "\n" + "1," * 59_999 + "1\n")
    start = time.monotonic()
    header, rows = read_csv(path)
    assert (len(header), len(rows[0])) == (60_000, 60_000)
    assert time.monotonic() - start < 5  # it took 80 s where every name was looked for among all


def test_devices_behind_links(tmp_path, run_cli) -> None:
    for name in ("zero.csv", "zero.json", "zero.mat", "zero.onnx", "zero.pt", "zero.nii", "zero.h5"):
        (tmp_path / name).symlink_to("/dev/zero")
    with no_hang(), pytest.raises(OSError, match="not a file"):
        sha256_file(tmp_path / "zero.nii")
    for line in (
        ["train", tmp_path / "zero.csv", "-o", tmp_path / "out"],
        ["train", tmp_path / "zero.json", "-o", tmp_path / "out"],
        ["info", tmp_path / "zero.pt"],
        ["info", tmp_path / "zero.onnx"],
        ["check", tmp_path / "zero.nii"],
        ["apply", "a.nii", "-r", "b.nii", "-t", tmp_path / "zero.h5", "-o", tmp_path / "o.nii"],
        ["eval", tmp_path / "zero.csv", "-o", tmp_path / "out"],
        ["register", "--pairs", tmp_path / "zero.csv", "-m", "m.onnx", "-o", tmp_path / "out"],
    ):
        with no_hang():
            code, _, stderr = run_cli(line)
        assert code == 3, (line, stderr)
        assert "internal" not in stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from /proc")
@pytest.mark.parametrize("kind", [np.float64, np.int16, np.uint8])
def test_checking_takes_little_more_than_the_voxels(tmp_path, kind) -> None:
    """A few kilobytes of gzip can promise very many voxels. It was 18, 8 and 6 bytes for each of them."""
    shape = (400, 300, 200)
    data = np.zeros(shape, kind)
    data[5:50, 7:80, 9:90] = np.random.default_rng(0).integers(0, 200, (45, 73, 81))
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1.1, 1.2, 1.0])), tmp_path / "big.nii.gz")
    code = (
        "import sys\nfrom pathlib import Path\nfrom ofg_deploy.check.examine import examine\n"
        "def peak():\n    return [int(r.split()[1]) for r in open('/proc/self/status') if r.startswith('VmHWM')][0]\n"
        "before = peak()\nfound = examine(Path(sys.argv[1]), 10**9)\nassert found.look is not None\n"
        "print((peak() - before) * 1024 / found.data.size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "big.nii.gz"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < {8: 9, 2: 5, 1: 4}[np.dtype(kind).itemsize], f"{done.stdout} bytes for each voxel"
