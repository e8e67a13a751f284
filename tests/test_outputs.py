"""Files appear whole or not at all, and nothing that exists is touched unasked."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ofg_deploy.errors import InputError
from ofg_deploy.outputs import check_writable, sha256_file, staged, to_json, write_bytes


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def test_files_appear_together_in_the_order_given(tmp_path, monkeypatch):
    moved = []
    original = os.link
    monkeypatch.setattr(os, "link", lambda file, target: moved.append(target.name) or original(file, target))
    finals = [tmp_path / "new" / "deep" / name for name in ("b.txt", "a.txt", "last.json")]
    with staged(finals, overwrite=False) as partials:
        for path in partials:
            path.write_text(path.name)
        assert [p for p in finals if p.exists()] == []
    assert moved == ["b.txt", "a.txt", "last.json"]
    assert tree(tmp_path / "new" / "deep") == {n: n.encode() for n in ("a.txt", "b.txt", "last.json")}


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), MemoryError(), SystemExit(3)])
def test_a_failure_leaves_no_trace(tmp_path, error):
    (tmp_path / "kept").mkdir()
    before = tree(tmp_path)

    def fail(folder: Path) -> None:
        with staged([folder / "a", folder / "b"], overwrite=False) as partials:
            partials[0].write_text("half")
            raise error

    for folder in (tmp_path / "new" / "deep", tmp_path / "kept"):
        with pytest.raises(type(error)):
            fail(folder)
        assert tree(tmp_path) == before


def test_a_failure_keeps_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "b").write_text("old b")
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt), staged([tmp_path / "a", tmp_path / "b"], overwrite=True) as partials:  # noqa: PT012
        partials[0].write_text("new")
        raise KeyboardInterrupt
    assert tree(tmp_path) == before


def test_an_interrupted_replacement_does_not_look_complete(tmp_path, monkeypatch):
    """The old sidecar must not stand beside a mixture of old and new files."""
    finals = [tmp_path / name for name in ("a", "b", "sidecar.json")]
    for path in finals:
        path.write_text("old")
    original = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "b":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(finals, overwrite=True) as partials:  # noqa: PT012
        for path in partials:
            path.write_text("new")
    assert tree(tmp_path) == {"a": b"new", "b": b"old"}


def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(InputError, match=r"cannot write into .*No space left"),
        staged([tmp_path / "new" / "a"], overwrite=False),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert tree(tmp_path) == {}


def test_existing_files_need_overwrite(tmp_path):
    (tmp_path / "b").write_text("old")
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(InputError, match=r"b exists already.*overwrite=True"), staged(paths, overwrite=False):
        pytest.fail("the body must not run")
    assert tree(tmp_path) == {"b": b"old"}
    check_writable(paths, overwrite=True)
    with staged(paths, overwrite=True) as partials:
        for path in partials:
            path.write_text("new")
    assert tree(tmp_path) == {"a": b"new", "b": b"new"}


def test_what_is_obsolete_goes_with_overwrite_alone(tmp_path):
    paths, old = [tmp_path / "a", tmp_path / "b"], tmp_path / "old"
    old.write_text("somebody's")
    for overwrite in (False, True):
        with staged(paths, overwrite, lambda: [old]) as partials:
            for path in partials:
                path.write_text("new")
        assert old.exists() is not overwrite


def test_places_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    for path, message in (
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "file" / "a", "not a writable folder"),
        (tmp_path / "file" / "deep" / "a", "not a writable folder"),
        (tmp_path / ("long" * 100), "cannot write .*too long"),
        (tmp_path / ("long" * 100) / "a", "cannot write .*too long"),
    ):
        with pytest.raises(InputError, match=message):
            check_writable([path], overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="not a writable folder"):
        check_writable([tmp_path / "locked" / "a"], overwrite=False)


def test_write_bytes_replaces_one_file(tmp_path):
    for content in (b"first", b"second"):
        write_bytes(tmp_path / "new" / "a.bin", content)
        assert tree(tmp_path / "new") == {"a.bin": content}


def test_json_is_for_every_reader():
    assert to_json({"b": 1, "a": "ü"}).endswith("}\n")
    with pytest.raises(ValueError, match="Out of range float"):
        to_json({"a": float("nan")})


def test_sha256_of_a_file_longer_than_a_block(tmp_path):
    content = os.urandom(2_500_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


KILLED = """
import os, signal, sys
from pathlib import Path
from ofg_deploy.outputs import staged
with staged([Path(sys.argv[1])], overwrite=True) as [partial]:
    partial.write_text("half")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs locks that end with their process")
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path), "die"], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".partial-*"))) == 1
    command = [sys.executable, "-c", KILLED, str(path), "live"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        assert len(list(tmp_path.glob(".partial-*"))) == 1  # the dead one's went when the living one began
        with staged([path], overwrite=False) as [partial]:
            partial.write_text("whole")
        assert len(list(tmp_path.glob(".partial-*"))) == 1
        other.communicate("")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "half"  # it asked to overwrite, and came last


def test_a_name_that_no_disk_takes_is_refused_before_any_work(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not/there/yet"):
        check_writable([folder / ("\N{LATIN SMALL LETTER E WITH ACUTE}" * 127 + "x")], overwrite=False)
        with pytest.raises(InputError, match="too long, 256 bytes where 255"):
            check_writable([folder / ("\N{LATIN SMALL LETTER E WITH ACUTE}" * 128)], overwrite=False)
