"""The help of every verb: whole sentences in panels, at any width, with examples that parse."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.main import get_command

from ofg_deploy.cli.app import app
from ofg_deploy.cli.help import PANELS, Verb

RunCli = Callable[[list[object]], tuple[int, str, str]]
ROOT: Any = get_command(app)


def verbs(group: Any = ROOT, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its name in words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*names, name))
        else:
            yield (*names, name), command


VERBS = dict(verbs())
IDS = [" ".join(names) for names in VERBS]


@pytest.fixture
def help_of(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def call(*words: str, columns: int = 80, flag: str = "--help") -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        code, printed, err = run_cli([*words, flag])
        assert (code, err) == (0, "")
        return printed

    return call


def squeezed(text: str) -> str:
    """Without the boxes and the line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_list_of_commands_has_whole_summaries(help_of: Callable[..., str], columns: int) -> None:
    printed = help_of(columns=columns)
    assert max(map(len, printed.splitlines())) <= min(columns, 110)
    assert "..." not in printed.replace("[ARGS]...", "")
    for name, command in ROOT.commands.items():
        summary = " ".join(command.help.split("\n\n")[0].split())
        assert f"{name} {summary}" in squeezed(printed)
    assert [n for n in re.findall(r"^│ (\w+) ", printed, re.M) if n in ROOT.commands][:2] == ["register", "apply"]


@pytest.mark.parametrize("names", VERBS, ids=IDS)
def test_the_help_of_a_verb_is_whole(help_of: Callable[..., str], names: tuple[str, ...]) -> None:
    command = VERBS[names]
    assert isinstance(command, Verb)
    printed = help_of(*names)
    panels = [line for line in printed.splitlines() if line.startswith(("│", "╭", "╰"))]
    assert panels
    assert {len(line) for line in panels} == {80}
    assert "`" not in printed
    assert not re.search(r"<\w|list\[", printed)  # placeholders are words that people read
    for one in command.params:
        names_of = [one.metavar] if one.param_type_name == "argument" else [o for o in one.opts if o[:2] == "--"]
        listed = re.search(rf"{names_of[0]}[ /]", squeezed(printed)) is not None
        assert listed != getattr(one, "hidden", False), one.name
        assert one.help
        assert one.help.endswith((".", "]")), one.help
        if one.param_type_name == "argument" or not one.is_flag:
            assert one.metavar, one.name
        if not getattr(one, "hidden", False):
            assert squeezed(one.help) in squeezed(printed), one.name


@pytest.mark.parametrize("names", VERBS, ids=IDS)
def test_rare_options_are_listed_on_request(help_of: Callable[..., str], names: tuple[str, ...]) -> None:
    hidden = [one for one in VERBS[names].params if getattr(one, "hidden", False)]
    short = help_of(*names)
    assert ("--help-all" in short) == bool(hidden)
    if hidden:
        whole = help_of(*names, flag="--help-all")
        for one in hidden:
            assert one.opts[0] in whole
            assert squeezed(one.help) in squeezed(whole)
        assert f"{len(hidden)} rarely used option" in short


def test_options_of_register_are_in_panels(help_of: Callable[..., str]) -> None:
    titles = re.findall(r"╭─ (.*?) ─", help_of("register"))
    assert titles == [
        *("Arguments", "Basic", "Labels and points", "Output", "Quality", "Runtime", "Batch", "Other"),
    ]
    assert len(re.findall(r"^│ (?:-\w, )?--", help_of("register"), re.M)) <= 32


def test_panels_come_in_one_order(help_of: Callable[..., str]) -> None:
    for names in VERBS:
        titles = re.findall(r"╭─ (.*?) ─", help_of(*names))
        known = [title for title in titles if title in PANELS]
        assert known == sorted(known, key=PANELS.index), names
        assert titles[-1] == "Other"


def test_choices_and_defaults_are_shown(help_of: Callable[..., str]) -> None:
    words = squeezed(help_of("register"))
    assert "--device auto|cpu|cuda Device" in words
    assert "[default: auto]" in words
    assert "--threads N CPU threads; 0: automatic. [default: 0]" in words


@pytest.mark.parametrize("names", VERBS, ids=IDS)
def test_examples_are_commands_that_parse(names: tuple[str, ...]) -> None:
    command = VERBS[names]
    assert command.examples
    own = 0
    for says, line in command.examples:
        assert len(line) <= 86
        assert says[0].isupper()
        words = shlex.split(line)
        if words[0] != "ofg":
            words = ["ofg", *words[words.index("ofg_deploy") + 1 :]]
        verb: Any = ROOT
        rest = words[1:]
        while hasattr(verb, "commands"):
            verb, rest = verb.commands[rest[0]], rest[1:]
        with verb.make_context(verb.name, rest) as context:
            assert not context.args
        own += verb is command
    assert own


def test_where_no_letters_beyond_ascii_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "ofg_deploy", "info", "--help"],
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "", "COLUMNS": "80", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.isascii()
    assert b"\\x" not in done.stdout
    assert b"| MODEL " in done.stdout


def test_one_option_means_one_thing() -> None:
    """What several verbs take under one name has the same kind of value in each."""
    kinds: dict[str, dict[str, set[str]]] = {}
    for names, command in VERBS.items():
        for one in command.params:
            for name in one.opts if one.param_type_name == "option" else ():
                kind = "flag" if one.is_flag else "choices" if "|" in one.metavar else one.metavar
                kinds.setdefault(name, {}).setdefault(kind, set()).add(" ".join(names))
    # An output is a file or a folder; K is what a number of inner steps is called.
    differ = {name: found for name, found in kinds.items() if len(found) > 1 and name not in ("--out", "-o")}
    assert {*differ} == {"--guidance-steps"}
    assert kinds["--pairs"] == {"LIST": {"register", "export", "bench"}}
    assert kinds["--labels"] == {"DIR": {"train", "eval", "data folder"}}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ofg re", {"register", "report"}),
        ("ofg register --simi", {"--similarity"}),
        ("ofg register --similarity ", {"auto", "ncc", "mind"}),
        ("ofg train --max-p", set()),  # a rarely used one
        ("ofg data ", {"ixi", "oasis", "lpba40", "abdomenctct", "folder"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(
    line: str, expected: set[str], run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = line.split(" ")
    monkeypatch.setenv("_OFG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    code, printed, _ = run_cli([])
    assert code == 0
    assert {*printed.split()} == expected


def test_the_script_of_the_completion_is_printed(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_OFG_COMPLETE", "source_zsh")
    code, printed, _ = run_cli([])
    assert code == 0
    assert "_OFG_COMPLETE=complete_zsh" in printed
