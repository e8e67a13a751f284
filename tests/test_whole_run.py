"""A run of the tests that leaves something in the checkout fails and says what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from whole_run import SLOW, status

TESTS = Path(__file__).parent
CASES = {
    "nothing": ("", 0, []),
    "a file": ("open('mov_to_fix.json', 'w').close()", 1, ["?? mov_to_fix.json"]),
    "an ignored file": ("open('kept.log', 'w').close()", 0, []),
    "a change": ("open('conftest.py', 'a').write('# more')", 1, [" M conftest.py"]),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With a file of somebody's that was there before, and must not be blamed on the tests."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    hooks = "pytest_collection_modifyitems, pytest_configure, pytest_sessionfinish, pytest_terminal_summary"
    (folder / "conftest.py").write_text(f"from whole_run import {hooks}, pytest_unconfigure\n")
    (folder / ".gitignore").write_text("*.log\n__pycache__\n.pytest_cache\n")
    for line in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"]):
        if subprocess.run(["git", "-C", folder, *line], check=False, capture_output=True).returncode:
            pytest.skip("no git here")
    (folder / "mine.txt").touch()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_in_the_checkout_fails_the_run(case: str, checkout: Path) -> None:
    code, expected, left = CASES[case]
    (checkout / "test_one.py").write_text(f"def test_one():\n    {code or 'pass'}\n")
    line = [sys.executable, "-m", "pytest", "-q", "-n", "1" if left else "0", "--rootdir", checkout]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stdout
    assert "1 passed" in done.stdout
    said = done.stdout.partition("a test must write below tmp_path:\n")[2]
    assert [row for row in said.splitlines() if row[:3] in ("?? ", " M ")] == left
    assert "mine.txt" not in done.stdout


def test_outside_of_a_checkout_nothing_is_compared(tmp_path: Path) -> None:
    assert status(tmp_path) is None


def test_slow_files_exist_once() -> None:
    assert len(set(SLOW)) == len(SLOW) > 5
    assert [name for name in SLOW if not (TESTS / f"{name}.py").exists()] == []
