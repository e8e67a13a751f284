"""What verbs print: whole at 80 columns on a terminal, without a limit elsewhere, nothing with --quiet."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ofg_deploy.cli import terminal
from ofg_deploy.cli.verbs import bench, evaluate, export
from ofg_deploy.evaluate.compare import BETTER, Comparison
from ofg_deploy.evaluate.pair import Evaluation
from ofg_deploy.evaluate.pairs import Pair
from ofg_deploy.evaluate.results import MEASURES, TITLES

# Values as long as they get.
ROW = {
    "candidate": "model 2 and 12 steps on the pair",
    "guidance": "none",
    "model": "/somewhere/far/away/" + "x" * 100 + ".onnx",
    "p50_s": 12.3456,
    "p95_s": 45.678,
    "peak_bytes": 12_345_600_000,
    "file_bytes": 345_600_000,
    "ratio": {"median": 123.456, "low": 100.123, "high": 200.456},
    "processor_ratio": {"median": 123.456, "low": 100.123, "high": 200.456},
    "runtime": "torch-channels-last",
    "precision": "fp32",
    "why_not": None,
    "difference": dict.fromkeys(bench.DIFFERENCES, 1.23e-08),
}
REPORT: dict[str, Any] = {
    "network": "transmorph-large",
    "grid": [160, 192, 224],
    "threads": 16,
    "repeats": 20,
    "latency": [ROW],
    "rows": [ROW],
    "pairs": {"count": 20, "from": "a list"},
    "flops": {"products": 1e12, "elementwise": 1e9, "normalisation": 1e9, "resampling": 1e9, "uncounted": []},
    "same_topology": True,
    "nodes": 1234,
    "parameters": 123456789,
    "topology_sha256": "0" * 64,
    "load_average": None,
    "cores": 8,
}


def at(columns: int) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=columns, force_terminal=True, color_system=None, markup=False), text


def tables(text: str) -> list[list[str]]:
    """Header and rows of every table."""
    lines = text.splitlines()
    found = []
    for n, line in enumerate(lines):
        if re.fullmatch(r"[─ ]+", line) and line.strip():
            rows = []
            for row in lines[n + 1 :]:
                if not row.strip() or len(row) != len(line):
                    break
                rows.append(row)
            found.append([lines[n - 1], *rows])
    return found


def evaluations(shift: float) -> list[Evaluation]:
    numbers = {measure: -0.0123456 * (n + 1) * shift for n, measure in enumerate(MEASURES)}
    return [Evaluation(Pair(f"p{n}"), {k: v * (n + shift) for k, v in numbers.items()}, (), {}, ()) for n in range(3)]


def test_tables_are_whole_at_80_columns() -> None:
    assert {*TITLES} == {*MEASURES}
    console, text = at(80)
    bench._print_proof(console, REPORT)
    bench._print_rows(console, REPORT)
    export._print_parity(
        console, "fp16 mixed ONNX against eager", {**dict.fromkeys(export.ROWS, 1e-8), "pairs": 8, "emulated": True}
    )
    with terminal.talking(quiet=False, verbose=True):
        evaluate._show(console, evaluations(1.5), None)
    evaluate._show_comparison(console, ("first", "second"), Comparison.of(evaluations(1.0), evaluations(-7.5)))
    found = tables(text.getvalue())
    assert len(found) == 7
    assert [len(rows) - 1 for rows in found] == [1, 1, 1, 5, len(MEASURES), 3, len(BETTER)]
    for rows in found:
        assert max(map(len, rows)) <= 80
        assert "…" not in "".join(rows)
    assert ROW["model"] in text.getvalue()  # whole, on one line
    assert "123.456 (100.123-200.456)" in text.getvalue()


def test_lines_have_no_limit_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    console = terminal.terminal()
    table = terminal.plain_table("measure", "a value with a long name")
    table.add_row("x" * 200, "y" * 50)
    console.print(table)
    console.print("z" * 300)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["x" * 200, "y" * 50]
    assert lines[-1] == "z" * 300


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.talking(quiet=True, verbose=False):
        console, stderr = terminal.both()
        console.print("a figure")
        terminal.warn(stderr, ["something about `refine`"])
        assert not terminal.shows_progress(at(80)[0])
    assert terminal.shows_progress(at(80)[0])
    terminal.terminal().print("another")
    printed = capsys.readouterr()
    assert printed.out == "another\n"
    assert printed.err.startswith("ofg: warning: something about --refine")


def test_quiet_verbs_print_nothing(
    tmp_path: Path, files: Any, tiny_model: Any, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFG_MODELS", str(tmp_path / "models"))
    fixed, moving, *_ = files
    model = tiny_model().path
    warp = tmp_path / "out/mov_to_fix_Warp.nii.gz"
    for line in (
        ["register", fixed, moving, "-m", model, "-o", tmp_path / "out", "--report"],
        ["apply", moving, "-t", warp, "-r", fixed, "-o", tmp_path / "again.nii.gz"],
        ["eval", tmp_path / "out", "-o", tmp_path / "scores"],
        ["report", tmp_path / "out", "--overwrite"],
        ["check", fixed, moving],
        ["info", model],
        ["models", "add", model, "--name", "quiet"],
    ):
        code, printed, err = run_cli([*line, "--quiet"])
        assert (code, printed) == (0, ""), line
        assert all(text.startswith("ofg: warning: ") for text in err.splitlines()), line
