"""What concerns a run of the tests as a whole: its order, what its processes share, what it leaves behind.

Its hooks are those of ``conftest``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# Files in which a quick check on two cores would spend most of its time, the longest first: they carry the marker
# "slow" (`make check` leaves them out) and are begun before all others, so that no process is left with one at the end.
SLOW = (
    "test_gpu_program",
    "test_train",
    "test_networks",
    "test_export_sizes",
    "test_precision",
    "test_tensorrt",
    "test_train_scale",
    "test_page",
    "test_data_train",
    "test_export",
    "test_bench",
    "test_golden",
    "test_hostile_nifti",
    "test_openvino",
    "test_docs_tutorials",
    "test_readme",
    "test_batch",
    "test_batch_killed",
    "test_batch_ray",
    "test_train_steady",
    "test_train_as_typed",
    "test_apply",
    "test_guidance",
    "test_cli_register",
    "test_dialects",
    "test_docs_how_to",
    "test_docs_tools",
    "test_vxm_dense",
    "test_refine",
    "test_service_restart",
    "test_service",
    "test_kernels",
    "test_current_folder",
    "test_missing_packages",
    "test_affine",
    "test_no_network",
    "test_register_companions",
    "test_sampling",
    "test_affine_kept",
    "test_register",
    "test_odd_names",
    "test_telemetry",
    "test_quantise",
    "test_parity",
    "test_register_quality",
    "test_two_processes",
    "test_batch_engines",
    "test_correlation",
    "test_catalogue",
    "test_data_layouts",
    "test_check",
    "test_demo_subjects",
    "test_report_command",
    "test_eval_command",
    "test_hostile_transforms",
    "test_endless",
)

SHARED = "OFG_TESTS_SHARED"
BEFORE = pytest.StashKey[set[str]]()
LEFT = pytest.StashKey[list[str]]()


def status(root: Path) -> set[str] | None:
    """The lines of ``git status``, ignored files aside; None where ``root`` is not the top of a checkout."""
    if not (root / ".git").exists():
        return None
    line = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=all"]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        )
    except FileNotFoundError:
        return None
    return set(done.stdout.splitlines()) if done.returncode == 0 else None


def is_worker(config: pytest.Config) -> bool:
    """One of the processes of pytest-xdist."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: in a file that takes long, see SLOW in tests/whole_run.py")
    if is_worker(config):
        return
    os.environ[SHARED] = tempfile.mkdtemp(prefix="ofg-tests-")
    before = status(config.rootpath)
    if before is not None:
        config.stash[BEFORE] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOW)}
    for item in items:
        if item.path.stem in places:
            item.add_marker("slow")
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where the checkout holds something that it did not hold before."""
    before = session.config.stash.get(BEFORE, None)
    if before is None:
        return
    left = sorted((status(session.config.rootpath) or set()) - before)
    if left:
        session.config.stash[LEFT] = left
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT, None):
        terminalreporter.section("the tests changed the checkout")
        terminalreporter.write_line("Not there at the start; a test must write below tmp_path:")
        for line in left:
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not is_worker(config) and SHARED in os.environ:
        shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True)
