"""Several processes that write the same at the same moment, over and over: one set, whole, from one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ofg_deploy import claims
from ofg_deploy.claims import held
from ofg_deploy.errors import InputError
from ofg_deploy.outputs import staged
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register

ROOT = Path(__file__).parents[1]

# Waits until all are there, then writes a set of five files that all say who wrote them.
RACER = """
import sys, time
from pathlib import Path
from ofg_deploy.errors import InputError
from ofg_deploy.outputs import staged

folder, me, rounds, overwrite = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "overwrite"
won = []
for number in range(rounds):
    out = folder / str(number)
    extra = out / "extra" if me == "0" else None  # a file that only this one's set has
    finals = [*(out / name for name in "abc"), *([extra] if extra else []), out / "set.json"]
    (folder / f"ready-{number}-{me}").touch()
    while len(list(folder.glob(f"ready-{number}-*"))) < 3:
        time.sleep(0.0005)
    try:
        with staged(finals, overwrite, lambda: [] if extra else [out / "extra"]) as partials:
            for path in partials:
                path.write_text(me)
        won.append(number)
    except InputError as error:
        assert "exists already" in str(error), error
print(*won)
"""


NO_LINKS = "import os\ndef no(*_): raise OSError(95, 'no links')\nos.link = no\n"  # as on exFAT


def race(folder: Path, rounds: int, how: str, before: str = "") -> list[set[int]]:
    """Who won which rounds."""
    folder.mkdir(exist_ok=True)
    line = [sys.executable, "-c", before + RACER, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([*line, str(me), str(rounds), how], stdout=subprocess.PIPE, text=True, env=environment)
        for me in range(3)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:  # one that failed leaves the others waiting
            process.kill()
    assert [process.returncode for process in started] == [0, 0, 0]
    return [set(map(int, line.split())) for line in told]


def one_set(folder: Path) -> str:
    """Who wrote what is there, which is nobody else's and nothing less."""
    found = {path.name: path.read_text() for path in folder.iterdir()}
    [who] = set(found.values())
    assert found.keys() == {"a", "b", "c", "set.json"} | ({"extra"} if who == "0" else set())
    return who


@pytest.mark.parametrize("before", ["", NO_LINKS], ids=["links", "no-links"])
def test_one_wins_and_the_others_are_refused(tmp_path, before) -> None:
    folder = tmp_path / "race"
    won = race(folder, 25, "once", before)
    for number in range(25):
        assert one_set(folder / str(number)) == str([number in mine for mine in won].index(True))
    assert sum(map(len, won)) == 25


def test_sets_that_are_replaced_never_mix(tmp_path) -> None:
    won = race(tmp_path / "race", 25, "overwrite")
    assert [len(mine) for mine in won] == [25, 25, 25]
    for number in range(25):
        one_set(tmp_path / "race" / str(number))


def test_registrations_at_once(tmp_path, files, tiny_model) -> None:
    """The whole command, thrice at once into one folder that is not there yet."""
    line = [sys.executable, "-c", "from ofg_deploy.cli import main; main()", "register", *files[:2]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    models = [tiny_model(gain_moving=(gain, 0.0, 0.0)).path for gain in (0.5, 1.0, 1.5)]
    commands = [[*map(str, (*line, "-m", model, "-o", tmp_path / "out"))] for model in models]
    started = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True, env=environment) for c in commands]
    told = [process.communicate(timeout=200)[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 3, 3], told
    assert all("exists already" in err for process, err in zip(started, told, strict=True) if process.returncode)
    record = json.loads((tmp_path / "out" / "mov_to_fix.json").read_text())
    winner = [process.returncode for process in started].index(0)
    from ofg_deploy.model_file import read_model

    assert record["model"]["sha256"] == read_model(models[winner]).sha256
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"mov_to_fix.json", *record["outputs"].values()}


def test_a_folder_in_use_never_looks_dead(tmp_path, monkeypatch) -> None:
    """Not even to a process that looks just before its mark is locked."""
    lock, seen = claims.fcntl.flock, []

    def look_then_lock(handle: int, how: int) -> None:
        if not seen:
            seen.append(None)
            seen[0] = claims.is_dead(tmp_path)
        lock(handle, how)

    monkeypatch.setattr(claims.fcntl, "flock", look_then_lock)
    handle = claims.living(tmp_path)
    assert seen == [False]
    assert not claims.is_dead(tmp_path)
    os.close(handle)
    assert claims.is_dead(tmp_path)


def test_a_name_taken_meanwhile_undoes_all(tmp_path) -> None:
    paths = [tmp_path / name for name in "abc"]
    with (  # noqa: PT012
        pytest.raises(InputError, match=r"b exists already.*overwrite=True"),
        staged(paths, overwrite=False) as partials,
    ):
        for path in partials:
            path.write_text("mine")
        paths[1].write_text("theirs")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "theirs"}


def test_who_does_not_let_go(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "PATIENCE_S", 0.1)
    with held(tmp_path / claims.LOCK, 0.0, ""):
        with pytest.raises(InputError, match="another process is writing"), staged([tmp_path / "a"], False) as [a]:
            a.write_text("x")
        assert {path.name for path in tmp_path.iterdir()} == {claims.LOCK}
    assert not list(tmp_path.iterdir())
    (tmp_path / claims.LOCK).symlink_to(tmp_path / "elsewhere")  # planted
    with pytest.raises(InputError, match="cannot write"), staged([tmp_path / "a"], False) as [a]:
        a.write_text("x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_goes_with_its_process(tmp_path) -> None:
    code = "import sys, time; from pathlib import Path; from ofg_deploy.claims import held\n"
    code += "with held(Path(sys.argv[1]), 0.0, ''):\n    print('held', flush=True); time.sleep(60)\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    lock = tmp_path / "lock"
    line = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="refused"), held(lock, 0.0, "refused"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    start = time.monotonic()
    with held(lock, 5.0, "refused"):
        assert time.monotonic() - start < 1
    assert not lock.exists()


def test_two_batches(tmp_path, images, tiny_model, run_cli) -> None:
    atlas = (images / "s0.nii.gz").rename(tmp_path / "atlas.nii.gz")
    line = ["register", atlas, images, "-m", tiny_model().path, "-o", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out" / ".batch.json.lock", 0.0, ""):
        code, _, stderr = run_cli(line)
    assert (code, "another process is at work on the batch" in stderr) == (3, True), stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_planted_sidecar_deletes_nothing(tmp_path, files, engine) -> None:
    """What it names without proof, or outside of the folder, stays; and the new set is whole."""
    out, theirs = tmp_path / "out", tmp_path / "theirs.txt"
    theirs.write_text("precious")
    register(Job(*files[:2], out, inverse=True), engine)
    record = json.loads((out / "mov_to_fix.json").read_text())
    (out / "precious.nii.gz").write_text("precious")
    (out / "link.nii.gz").symlink_to(theirs)
    (out / "folder").mkdir()
    planted = ("precious.nii.gz", "link.nii.gz", "folder", "..", ".", "", "../theirs.txt", str(theirs), 5, None)
    known = {"bytes": 8, "sha256": "0" * 64}
    for number, name in enumerate(planted):
        record["outputs"] = {f"also_{number}": name} | record["outputs"]
        record["written"] = {f"also_{number}": known} | record["written"]
    for outputs in (record["outputs"], {k: v for k, v in record["outputs"].items() if isinstance(v, str)}, [], None):
        (out / "mov_to_fix.json").write_text(json.dumps({**record, "outputs": outputs}))
        register(Job(*files[:2], out, overwrite=True), engine)
        assert (theirs.read_text(), (out / "precious.nii.gz").read_text()) == ("precious", "precious")
        assert (out / "link.nii.gz").is_symlink()
        assert (out / "folder").is_dir()
        now = json.loads((out / "mov_to_fix.json").read_text())
        assert all(
            (out / name).stat().st_size == now["written"][role]["bytes"] for role, name in now["outputs"].items()
        )
    assert not (out / "mov_to_fix_InverseWarp.nii.gz").exists()  # proven by the sidecar, among names that were not


def test_an_output_that_somebody_changed_stays(tmp_path, files, engine) -> None:
    out = tmp_path / "out"
    register(Job(*files[:2], out, inverse=True), engine)
    inverse = out / "mov_to_fix_InverseWarp.nii.gz"
    image = nib.load(inverse)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 0.5, image.affine, image.header), inverse)
    edited = inverse.read_bytes()
    register(Job(*files[:2], out, overwrite=True), engine)
    assert inverse.read_bytes() == edited
