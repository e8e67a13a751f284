"""``benchmarks/gpu.py``: all its steps in small on a CPU, and that nothing which goes wrong in one is the end."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_steps import plan, report  # noqa: E402
from gpu_steps.plan import Settings, Step  # noqa: E402
from gpu_steps.verdicts import verdicts  # noqa: E402

Row = dict[str, Any]
NEEDED = ("torch", "onnx", "onnxruntime", "triton", "lightning_fabric", "tensorboard")


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The results of a dry run, made by two processes at once and merged: a folder, and all rows."""
    for name in NEEDED:
        pytest.importorskip(name, reason=f"a dry run needs {name} (pip install ofg-deploy[train,dev])")
    folder = tmp_path_factory.mktemp("gpu")
    halves = {"abf": folder / "first", "cde": folder / "second"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                ROOT / "benchmarks/gpu.py",
                "--out",
                out,
                "--work",
                out / "work",
                "--dry-run",
                "--steps",
                s,
                "--minutes",
                "20",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for s, out in halves.items()
    ]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    first, second = halves.values()
    merged = report.Report(first)
    assert merged.merge(second / "gpu.json") == 1
    assert merged.merge(second / "gpu.json") == 0
    return first, [row for run in merged.runs for row in run["rows"]]


def of(rows: list[Row], start: str) -> Row:
    [row] = [row for row in rows if row["what"].startswith(start)]
    assert row["why_not"] is None, row
    return row["figures"]


def test_every_step_ran_and_says_where(dry: tuple[Path, list[Row]]) -> None:
    folder, rows = dry
    assert {row["step"] for row in rows if row["figures"]} == set("abcdef")
    assert {row["on"] for row in rows} == {"cpu"}, "nothing of a dry run may look like a GPU's"
    assert [row for row in rows if row["why_not"] and row["step"] != "d"] == []
    runs = report.read_runs(folder / "gpu.json")
    assert [run["dry_run"] for run in runs] == [True, True]
    assert all("cpu (dry run)" in run["machine"] and run["versions"]["torch"] != "missing" for run in runs)
    page = (folder / "gpu.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| ") and line[2] in "abcdef" and line[3] == " "] == [
        report.line(row) for row in rows
    ]
    assert "Nothing was measured on a GPU so far" in page


def test_inner_steps_are_those_of_double_precision(dry: tuple[Path, list[Row]]) -> None:
    rows = [row for row in dry[1] if row["what"].endswith(": relative error")]
    forms = [row["what"].split(", ")[1] for row in rows]
    assert sorted(forms) == ["Triton", "Triton", "compiled", "compiled", "plain torch", "plain torch", "plain torch"]
    errors = [value for row in rows for value in row["figures"].values()]
    assert min(errors) > 1e-9, "an error of nothing was compared with itself"
    assert max(errors) <= 1e-5
    figures = of(dry[1], "published step, Triton,")
    assert figures["GB moved a step"] == pytest.approx(77 * 4 * 8 * 7 * 9 / 1e9)
    bandwidth = of(dry[1], "copy of")["GB/s"]
    expected = figures["GB moved a step"] / (figures["ms a step"] / 1e3) / bandwidth
    assert figures["share of the copy bandwidth"] == pytest.approx(expected)
    published = of(dry[1], "published step, published formulation,")
    assert figures["times the published formulation"] == pytest.approx(published["ms a step"] / figures["ms a step"])


def test_the_oracle_is_not_the_code_under_test() -> None:
    """Its gradient against finite differences; its steps against the closed form in double precision."""
    torch = pytest.importorskip("torch")
    from gpu_steps.inner import LR, Published
    from gpu_steps.timing import smooth_pair

    from ofg_deploy.train.guidance import refine

    pair = smooth_pair((7, 5, 6), "cpu", torch.float64)
    loss, gradient = Published(pair, 3).loss_and_gradient()
    place = (0, 1, 3, 2, 4)
    values = []
    for change in (1e-6, -1e-6):
        moved = pair[0].clone()
        moved[place] += change
        values.append(Published([moved, *pair[1:]], 3).loss_and_gradient()[0])
    assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    assert -1 < loss < 1
    steps = Published(pair, 3).steps(3)
    assert float((steps - refine(*pair, 3, LR, window=3, backend="torch")).abs().max()) < 1e-8
    assert float((steps - pair[0]).abs().max()) > 0.1


def test_training_steps_are_compared_with_the_one_without_guidance(dry: tuple[Path, list[Row]]) -> None:
    alone = of(dry[1], "training step, voxelmorph-half, fp32, guidance none")["ms"]
    for guidance in ("published, K = 5, torch", "greedy, K = 6, torch"):
        figures = of(dry[1], f"training step, voxelmorph-half, fp32, guidance {guidance}")
        assert figures["times the step without guidance"] == pytest.approx(figures["ms"] / alone)


def test_runtimes_hold_their_gate_and_say_what_ran_them(dry: tuple[Path, list[Row]]) -> None:
    for precision, most in (("fp32", 1e-4), ("fp16", 0.05)):
        figures = of(dry[1], f"voxelmorph-half 16x32x48, onnxruntime {precision}")
        assert figures["gate"] == "holds"
        assert most / 1e4 < figures["field_mm_max"] < most
        assert "CPUExecutionProvider" in figures["provider"]
    assert of(dry[1], "voxelmorph-half 16x32x48, eager torch")["field_mm_max"] == 0
    assert of(dry[1], "voxelmorph-half 16x32x48, torch.compile")["field_mm_max"] < 1e-4
    pair = of(dry[1], "zero overhead")
    assert pair["interval low"] <= pair["times without"] <= pair["interval high"]


def test_engines_are_built_and_refusals_quoted(dry: tuple[Path, list[Row]]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt_rtx (pip install ofg-deploy[rtx])")
    assert "sm86" in of(dry[1], "what is offered")["targets"].split()
    assert of(dry[1], "ofg export --trt --cpu-build --target sm80")["for"].endswith("for sm80")
    [refused] = [row for row in dry[1] if row["what"] == "ofg export --trt for this GPU"]
    assert refused["why_not"].startswith("DeviceError: no usable GPU")
    [raw] = [row for row in dry[1] if row["what"].startswith("the runtime itself")]
    assert len(raw["why_not"]) > 30


def test_registration_counts_its_pairs(dry: tuple[Path, list[Row]]) -> None:
    one = of(dry[1], "ofg register, one pair, voxelmorph-half, cold")
    assert 0 < one["network s"] < one["seconds"]
    assert one["provider"] == "CPUExecutionProvider"
    batches = [row for row in dry[1] if "pairs a second" in row["figures"]]
    assert len(batches) == 2
    for row in batches:
        assert row["figures"]["pairs a second"] * row["figures"]["seconds"] == pytest.approx(2)


def test_a_training_goes_on_and_comes_back(dry: tuple[Path, list[Row]]) -> None:
    from ofg_deploy.train.checkpoint import load_checkpoint

    folder, rows = dry
    figures = of(rows, "training of tiny goes on")
    assert figures["epochs before"] == 1
    assert figures["epochs after"] >= 2
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("run.tar.*")))
    assert hashlib.sha256(content).hexdigest() == figures["sha256 of run.tar"]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == ["metrics.csv", "last.pt", "best.pt"]
        tar.extractall(folder / "back", filter="data")
    assert load_checkpoint(folder / "back/last.pt").training["epoch"] == figures["epochs after"]
    assert load_checkpoint(folder / "work/tiny/last.pt").training["epoch"] == 1, "the run that was given is not touched"


def test_paths_of_another_machine_are_found_by_their_last_parts(tmp_path: Path) -> None:
    from gpu_steps.brain import here

    (tmp_path / "build/images").mkdir(parents=True)
    (tmp_path / "build/images/a.nii.gz").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.nii.gz").touch()
    assert here("/elsewhere/build/images/a.nii.gz", tmp_path) == str(tmp_path / "build/images/a.nii.gz")
    assert here("/elsewhere/b.nii.gz", tmp_path) == "/elsewhere/b.nii.gz"


def test_what_comes_back_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts below 16 MiB, no more than six; the best checkpoint stays behind first, and half a file is not sent."""
    from gpu_steps import brain

    assert brain.PART_BYTES < 16 * 2**20
    assert brain.MOST_PARTS + len(report.NAMES) <= 8
    monkeypatch.setattr(brain, "PART_BYTES", 20_480)
    for name, size in (("last.pt", 60_000), ("best.pt", 60_000), ("metrics.csv", 100)):
        (tmp_path / name).write_bytes(bytes(size))
    figures = brain.pack(tmp_path, tmp_path)
    assert (figures["packed"], figures["parts"]) == ("metrics.csv last.pt", 4)
    assert sum(path.stat().st_size for path in tmp_path.glob("run.tar.*")) == 1e6 * figures["MB"]
    (tmp_path / "last.pt").write_bytes(bytes(130_000))
    with pytest.raises(RuntimeError, match="does not fit into 6 parts"):
        brain.pack(tmp_path, tmp_path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """For steps that lie as modules in ``tmp_path``."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Settings(tmp_path / "work", tmp_path / "out", True, None, None)


BEFORE = "def measure(context):\n    context.add('before', {'n': 1, 'nan': float('nan')}, on='cpu')\n"


@pytest.mark.parametrize(
    ("code", "why_not"),
    [
        ("    raise ValueError('word for\\nword')", "ValueError: word for\nword"),
        ("    import no_such_package", "no_such_package is not installed (No module named 'no_such_package')"),
        ("    import os, sys; print('last words', flush=True); os._exit(7)", "its process ended with 7: last words"),
        ("    import os; os.kill(os.getpid(), 11)", "its process ended with -11: it printed nothing"),
    ],
)
def test_a_step_that_fails_is_a_row(code: str, why_not: str, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "failing.py").write_text(BEFORE + code)
    before, last = plan.run_step(Step("x", "failing", "fails", 30), 30, settings)
    assert (before["figures"], before["why_not"]) == ({"n": 1, "nan": "nan"}, None)
    assert (last["step"], last["figures"], last["why_not"]) == ("x", {}, why_not)


def test_a_step_over_its_limit_is_a_row_and_leaves_no_process(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "slow.py").write_text(
        f"import subprocess, time\n{BEFORE}"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    (context.work / 'child').write_text(str(child.pid))\n    time.sleep(600)\n"
    )
    start = time.monotonic()
    rows = plan.run_step(Step("x", "slow", "sleeps", 600), 3, settings)
    assert time.monotonic() - start < 60
    assert [row["why_not"] for row in rows] == [None, "killed at its limit of 3 s; rows before this one are whole"]
    child = int((tmp_path / "work/child").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and running(child):
        time.sleep(0.05)
    assert not running(child)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_steps_beyond_the_minutes_are_rows(settings: Settings) -> None:
    found: list[Row] = []
    plan.run_steps(plan.STEPS, 1.0, settings, lambda _, rows: found.extend(rows))
    assert [row["step"] for row in found] == list("abcdef")
    assert {row["why_not"] for row in found} == {"no time left: 1 s of 1 s"}
    assert sum(step.seconds for step in plan.STEPS[:-1]) < 540, "the last step has what is left"


def test_without_a_gpu_every_step_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    before = {"began": "once", "command": "", "machine": "", "dry_run": False, "versions": {}}
    report.Report(tmp_path).begin(before)
    program = [sys.executable, ROOT / "benchmarks/gpu.py"]
    command = [*program, "--out", tmp_path, "--work", tmp_path / "work", "--steps", "d"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    runs = report.read_runs(tmp_path / "gpu.json")
    assert runs[0] == {**before, "rows": []}, "a later run is appended"
    [found] = runs[1]["rows"]
    assert found["why_not"].startswith(f"RuntimeError: torch {torch.__version__} sees no CUDA device")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--steps", "a,z"], "--steps 'a,z': give some of a,b,c,d,e,f ('z' is none)"),
        (["--steps", ","], "--steps ',': give some of a,b,c,d,e,f"),
        (["--minutes", "0"], "--minutes 0 must be above 0"),
        (["--merge", "no.json"], "No such file or directory: 'no.json'"),
    ],
)
def test_bad_requests_are_one_line(given: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--out", tmp_path / "out", *given]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(message)
    assert len(done.stderr.strip().splitlines()) == 1


def test_results_of_something_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"schema": 2, "runs": []}')
    with pytest.raises(ValueError, match="schema 2, expected 1"):
        report.Report(tmp_path)
    (tmp_path / "gpu.json").write_text("[1]")
    with pytest.raises(ValueError, match="does not hold results"):
        report.Report(tmp_path)
    assert (tmp_path / "gpu.json").read_text() == "[1]"


def row(what: str, on: str = "GPU", **figures: Any) -> Row:
    named = {name.replace("_", " "): value for name, value in figures.items()}
    return {"step": "a", "what": what, "on": on, "figures": named, "aim": None, "why_not": None}


def measured(error: float, milliseconds: float) -> list[Row]:
    speed = {"times_the_published_formulation": 40 / milliseconds, "share_of_the_copy_bandwidth": 0.5}
    return [
        row("published steps, Triton, 48x40x56: relative error", field=error, gradient=error / 2),
        row("published step, plain torch, 160x192x224", ms_a_step=4.0),
        row("published step, Triton, 160x192x224", ms_a_step=milliseconds, **speed),
        row("published step, plain torch, 160x192x160", ms_a_step=4.0),
        row("published step, Triton, 160x192x160", ms_a_step=1.0, **speed),
    ]


def told(rows: list[Row], dry_run: bool = False) -> str:
    return "\n".join(verdicts([{"dry_run": dry_run, "rows": rows}]))


def test_verdicts_go_by_their_rules() -> None:
    text = told(measured(9e-5, 2.0))
    assert "`adam` on CUDA: let `auto` take Triton (relative error 9e-05, 2.00 times as fast at 160x192x224" in text
    assert "`greedy` on CUDA: undecided" in text
    assert (
        "20.0 times the published formulation (aim 15: reached), 50% of the copy bandwidth (aim 40%: reached)" in text
    )
    for error, milliseconds in ((1.1e-4, 2.0), (9e-5, 3.2), ("nan", 2.0)):
        assert "`adam` on CUDA: delete the Triton kernels" in told(measured(float(error), milliseconds))
    assert "Nothing was measured on a GPU" in told(measured(9e-5, 2.0), dry_run=True)
    failed = [r | {"why_not": "no"} for r in measured(9e-5, 2.0)]
    assert "Nothing was measured on a GPU" in told(failed)


def test_verdicts_on_training_runtimes_and_batches() -> None:
    step = "training step, voxelmorph, fp32, guidance greedy, K = 6, torch"
    guided = {"times_the_step_without_guidance": 1.5, "share_of_the_inner_steps": 1 / 3}
    batch = "ofg register, batch of 20, voxelmorph-half"
    text = told(
        [
            row(step, **guided),
            row("voxelmorph 160x192x224, onnxruntime fp16", gate="field_mm_max 0.1 > 0.05", times_eager_torch=2.0),
            row(batch, pairs_a_second=4.0),
            row(f"{batch}, onnxruntime on 16 cores", on="cpu", pairs_a_second=0.5),
        ]
    )
    assert "fp32, guidance greedy, K = 6, torch: 1.50 times the step without guidance (aim 1.3: not reached)" in text
    assert "take up to 33% of a training step: kernels of their own are needed" in text
    assert "voxelmorph, onnxruntime fp16: 2.00 times eager torch, out of bounds (field_mm_max 0.1 > 0.05)" in text
    assert "the GPU does 8.00 times the pairs of onnxruntime on 16 cores" in text


def test_heads_are_labelled_and_no_two_alike() -> None:
    import numpy as np
    from gpu_steps.phantom import head, oblique

    image, labels = head((40, 48, 44), 3)
    assert set(np.unique(labels)) == set(range(9))
    assert 0.2 < (labels > 0).mean() < 0.45
    assert np.abs(image[labels == 0]).max() < np.percentile(image[labels > 0], 60), "background is empty but for blur"
    other = head((40, 48, 44), 4)[1]
    assert 0.6 < 2 * ((labels > 0) & (other > 0)).sum() / ((labels > 0).sum() + (other > 0).sum()) < 0.99
    matrix = oblique((40, 48, 44), 3)
    assert np.linalg.norm(matrix[:3, :3], axis=0) == pytest.approx([1, 1, 1])
    assert math.dist((matrix @ [19.5, 23.5, 21.5, 1])[:3], (0, 0, 0)) < 8


def test_json_stays_whole_when_it_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = report.Report(tmp_path)
    results.begin({"began": "1", "command": "", "machine": "", "dry_run": True, "versions": {}})
    before = (tmp_path / "gpu.json").read_text()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        results.add([row("new")])
    assert (tmp_path / "gpu.json").read_text() == before
    assert json.loads(before)["runs"][0]["rows"] == []
