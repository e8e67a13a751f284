"""The code blocks of README.md and of pages of docs/, run in order in one folder as a reader would, on small images."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of each block of a page (path in the checkout) in one of ``languages``, in their order."""
    found = BLOCK.findall((ROOT / page).read_text())
    return [(language, text) for language, text in found if language in languages]


def commands(page: str) -> list[str]:
    """Every line of its blocks without a language, comments and continuations taken away."""
    return [line for _, text in blocks(page, "") for line in lines(text)]


def lines(text: str) -> list[str]:
    """Those of a block, comments taken away and continued lines joined."""
    joined = text.replace("\\\n", " ")
    return [line for whole in joined.splitlines() if (line := whole.split("  #")[0].strip())]


# A reader's real run is long: the same command with these options after it is short.
SHORT = {
    "train": [
        "--epochs",
        "1",
        "--steps-per-epoch",
        "2",
        "--ncc-window",
        "5",
        "--max-pairs",
        "2",
        "--init",
        "none",
        "--threads",
        "1",
    ],
    "bench": ["--repeats", "2", "--threads", "1"],
}


def run_ofg(
    line: str, run_cli: Callable[[Sequence[str]], tuple[int, str, str]], short: Mapping[str, Sequence[str]] = SHORT
) -> tuple[int, str, str]:
    """Run a line that begins with ``ofg``, its verb made short: (exit code, stdout, stderr)."""
    verb, *arguments = shlex.split(line)[1:]
    more = ["--threads", "1"] if verb == "train" and "--resume" in arguments else short.get(verb, [])
    return run_cli([verb, *arguments, *more])


FILE = re.compile(r"[Ss]ave this as `([^`]+)`[^`]*$")
# What a reader types that is not for a test: installing, viewers, a cluster.
ELSEWHERE = ("pip ", "python -m venv", "source ", "fsleyes ", "sbatch ", "antsApplyTransforms ", "applywarp ")


def follow(
    page: str,
    run_cli: Callable[[Sequence[str]], tuple[int, str, str]],
    short: Mapping[str, Sequence[str]] = SHORT,
    codes: Mapping[str, int] | None = None,
    changed: Callable[[str], str] = str,
    cluster: Callable[[str], None] | None = None,
) -> list[str]:
    """Do what a page says, in the current folder: files are saved under the names it gives, commands are run in order.

    Args:
        short: options added to a verb of ofg.
        codes: exit code of a command where it is not 0.
        changed: what becomes of a command or file before it is used.
        cluster: what runs the script that is given to ``sbatch``.

    Returns:
        The commands of ofg that were run.
    """
    text, run, last = (ROOT / page).read_text(), [], 0
    for block in BLOCK.finditer(text):
        saved, last = FILE.search(text[last : block.start()]), block.end()
        if saved:
            Path(saved[1]).write_text(changed(block[2]))
        elif not block[1]:
            for line in lines(block[2]):
                if line.startswith("ofg "):
                    code, _, err = run_ofg(changed(line), run_cli, short)
                    assert code == (codes or {}).get(line, 0), (page, line, code, err)
                    run.append(line)
                elif line.startswith("python ") and not line.startswith(ELSEWHERE):
                    exec(Path(line.split()[1]).read_text(), {})
                elif line.startswith("sbatch ") and cluster:
                    cluster(line.split()[1])
                elif not line.startswith(ELSEWHERE):
                    subprocess.run(line, shell=True, check=True)
    return run


def ofg_lines(script: str) -> list[str]:
    """The lines of a shell script that run ofg."""
    return [line for line in lines(script) if line.startswith("ofg ")]
