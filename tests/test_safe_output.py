"""Names of files reach neither the terminal as commands nor a spreadsheet as formulas."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
from report_pairs import run_ofg, write_pair

from ofg_deploy.cli.safe_output import SafeStream, safe_output
from ofg_deploy.outputs import cell, from_cell

OSC = "\x1b]52;c;ZXZpbA==\x07"  # would write to the clipboard of many terminals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_control_sequences_are_shown_not_sent(kind: type[io.StringIO]) -> None:
    stream = kind()
    text = f"a{OSC}b\x9b31mc\x1bPd\x1b[2Jé\tf\r\n"
    assert SafeStream(stream).write(text)
    found = stream.getvalue()
    assert "\x1b]" not in found
    assert "\x9b" not in found
    assert "\\x1b]52;c;ZXZpbA==\\x07" in found
    assert found.endswith("é\tf\r\n")


def test_colours_of_our_own_stay_on_a_terminal_and_nowhere_else() -> None:
    shown = []
    for kind in (Terminal, io.StringIO):
        stream = kind()
        SafeStream(stream).write("\x1b[1;32mok\x1b[0m\x1b[2K\x1b[1A")
        shown.append(stream.getvalue())
    assert shown[0] == "\x1b[1;32mok\x1b[0m\x1b[2K\x1b[1A"
    assert "\x1b" not in shown[1]


def test_streams_come_back() -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="x"), safe_output():
        raise ValueError("x")
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.skipif(os.name != "posix", reason="such file names need a POSIX file system")
def test_a_file_called_like_a_command(tmp_path: Path, run_cli) -> None:
    code, out, err = run_cli(["check", tmp_path / f"{OSC}.nii"])
    assert code == 3
    assert "\x1b" not in out + err
    assert "\\x1b]52" in err


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-x", "@sum", "plain", "'quoted", "", "'=both"])
def test_cells_are_no_formulas_and_come_back(text: str) -> None:
    assert cell(text)[:1] not in ("=", "+", "-", "@")
    assert from_cell(cell(text)) == text or text == "'=both"


def test_tables_quote_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(tmp_path, "=cmd()_to_f", ncc_before=0.9, ncc_after=-0.5)
    assert run_ofg(monkeypatch, capsys, "report", tmp_path).returncode == 0
    with (tmp_path / "qc.tsv").open(encoding="utf-8") as stream:
        [row] = list(csv.DictReader(stream, delimiter="\t"))
    assert row["pair"] == "'=cmd()_to_f"
    assert row["ncc_after"] == "-0.5"  # a number stays one
    (tmp_path / "failures.csv").write_text("pair,error,exit_code\n'@x,'=bad,3\n")
    done = run_ofg(monkeypatch, capsys, "report", tmp_path, "--json")
    assert {row["pair"] for row in json.loads(done.stdout)} == {"=cmd()_to_f", "@x"}
