"""Options of training: stated once, and the same through the command line, --set, --config and Python."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from training_runs import EXPECTS, make_subjects

from ofg_deploy.errors import InputError, Interrupted, UsageError
from ofg_deploy.options import page
from ofg_deploy.options.export import EXPORT
from ofg_deploy.options.training import TRAINING, Resources, Selection
from ofg_deploy.options.words import NetworkName
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train import session
from ofg_deploy.train.api import Run, train_network
from ofg_deploy.train.checkpoint import load_checkpoint
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.networks import NETWORKS
from ofg_deploy.train.observer import Progress
from ofg_deploy.train.settings_file import configured

ROOT = Path(__file__).parents[1]
RunCli = Callable[[list[object]], tuple[int, str, str]]
Started = list[tuple[TrainConfig, Resources]]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_subjects(tmp_path_factory.mktemp("subjects"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Configurations of runs that would begin; none does."""
    found: Started = []

    def start(out: Path, config: TrainConfig, pairs: object, cache: object, resources: Resources, *_: object) -> None:
        found.append((config, resources))
        raise Interrupted("enough")

    monkeypatch.setattr(session, "start", start)
    return found


def test_the_default_configuration_is_what_the_command_trains(
    subjects: tuple[Path, Path], tmp_path: Path, run_cli: RunCli, started: Started
) -> None:
    assert run_cli(["train", subjects[0], "-o", tmp_path / "run"])[0] == 130
    with pytest.raises(Interrupted):
        train_network(subjects[0], tmp_path / "run")
    (config, resources), again = started
    assert again == (config, resources)
    assert resources == Resources()
    assert config.lr == 1.0 * TrainConfig().decay(0) * config.lr > 0
    assert replace(config, expects=None, frame=None, lr=None) == TrainConfig()
    assert config.expects == NetworkInput((32, 16, 32), (2.0, 2.5, 2.0), Intensity(), "affine", "RAS")
    assert str(Intensity()) == Selection.intensity


SHORT: dict[str, Any] = {
    "grid": (32, 16, 32),
    "spacing": (2.0, 2.5, 2.0),
    "init": "none",
    "pairs": 3,
    "epochs": 2,
    "steps_per_epoch": 2,
    "ncc_window": 5,
    "guidance_start": 0.5,
    "guidance_steps": 2,
    "threads": 1,
    "workers": 1,
}


def as_flags(options: dict[str, Any]) -> list[object]:
    flags: list[object] = []
    for name, value in options.items():
        flags += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,))]
    return flags


def test_python_trains_what_the_command_trains(
    subjects: tuple[Path, Path],
    tmp_path: Path,
    run_cli: RunCli,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = subjects
    cache = tmp_path / "cache"
    code, out, err = run_cli(
        ["train", images, "-o", tmp_path / "a", "--labels", labels, "--cache", cache, *as_flags(SHORT)]
    )
    assert code == 0, err
    assert f"next: ofg export {tmp_path / 'a'} -o model.onnx" in out
    steps: list[Progress] = []
    with caplog.at_level(logging.INFO, "ofg_deploy"):
        run = train_network(images, tmp_path / "b", labels=labels, cache=cache, progress=steps.append, **SHORT)
    assert capfd.readouterr() == ("", "")
    assert isinstance(run, Run)
    assert (run.folder, run.best, run.last) == tuple(tmp_path / "b" / n for n in (".", "best.pt", "last.pt"))
    a, b = (load_checkpoint(tmp_path / name / "last.pt").state for name in ("a", "b"))
    assert a.keys() == b.keys()
    # The second training in a process may add up in another order; in two processes not a bit differs.
    assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-5) for name in a)
    record = json.loads((tmp_path / "a/config.json").read_text())["config"]
    assert TrainConfig.from_record(record) == run.config
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    assert run.metrics[-1]["val_dice"] == load_checkpoint(run.last).training["val_dice"]
    rows = [step.row for step in steps if step.row]
    assert [row.epoch for row in rows] == [1, 2]
    assert {step.stage for step in steps} == {"preparing", "training"}
    assert [step.done for step in steps if step.stage == "training" and not step.row] == [1, 2, 3, 4]
    assert max(step.total for step in steps if step.stage == "training") == 4
    assert "guidance begins in epoch 2" in caplog.text
    assert "no GPU: hours=H plans a run" in caplog.text
    assert "`" not in caplog.text

    # Refused where a run is, replaced where that is asked for, and resumed without options.
    before = run.last.read_bytes()
    with pytest.raises(InputError, match=r"holds a run already: add resume=True to continue it, overwrite=True"):
        train_network(images, run.folder, **SHORT)
    with pytest.raises(UsageError, match="lr cannot change with resume=True"):
        train_network(None, run.folder, resume=True, lr=1e-3)
    assert train_network(None, run.folder, resume=True, threads=1, workers=1) == run
    assert run.last.read_bytes() == before

    # A replacement leaves the run as it is until its own pairs are prepared.
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    files = {path: path.read_bytes() for path in run.folder.glob("*.*")}
    with monkeypatch.context() as patch:
        patch.setattr(session, "prepare_all", stopped)
        with pytest.raises(Interrupted, match="is unchanged"):
            train_network(images, run, overwrite=True, **SHORT)
    assert {path: path.read_bytes() for path in run.folder.glob("*.*")} == files
    # It takes the options of another run, but for those that are named.
    changed = {"guidance": "none", "epochs": 1, "threads": 1, "workers": 1, "pairs": 3}
    other = train_network(images, run, config=tmp_path / "a", overwrite=True, cache=cache, **changed)
    assert other.config == replace(run.config, guidance="none", epochs=1)
    assert [row["val_dice"] for row in other.metrics] == [None]
    c = load_checkpoint(other.last)
    assert c.training["epoch"] == 1
    assert max((a[name] - c.state[name]).abs().max() for name in a) > 1e-3


def test_set_and_config_and_flags_are_one(
    subjects: tuple[Path, Path], tmp_path: Path, run_cli: RunCli, started: Started
) -> None:
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"epochs": 7, "flip": True, "grid": [32, 32, 48], "lr": 1, "steps_per_epoch": None}))
    line = ["train", subjects[0], "-o", tmp_path / "run", "--config", file]
    more = ["--set", "guidance-steps=4", "--set", "guidance_sobolev=3", "--set", "spacing=2, 2.5 2", "--set"]
    assert run_cli([*line, *more, "two_way=true", "--epochs", 9, "--set", "threads=2"])[0] == 130
    [(config, resources)] = started
    assert resources == Resources(threads=2)
    assert config == TrainConfig(
        replace(EXPECTS, shape=(32, 32, 48), init="affine"),
        epochs=9,
        flip=True,
        two_way=True,
        lr=1.0,
        guidance_steps=4,
        guidance_sobolev=3.0,
        frame=config.frame,
    )
    # The configuration of that run, as it is.
    record = {"config": config.to_record(), "pairs": {}, "cache": "cache"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    again = ["train", subjects[0], "-o", tmp_path / "run", "--config", tmp_path / "config.json"]
    assert run_cli(again)[0] == 130
    assert started.pop()[0] == config
    for extra, words in [
        (["--epochs", 5, "--set", "epochs=6"], "--epochs is given twice"),
        (["--set", "epochs=5", "--set", "epochs=6"], "--epochs is given twice"),
        (["--set", "epochs"], "--set epochs: give NAME=VALUE"),
        (["--set", "epoch=3"], "there is no option 'epoch': epochs is meant?"),
        (["--set", "epochs=many"], '--epochs "many": expected a whole number'),
        (["--set", "epochs=0"], "--epochs 0: give 1 or more"),
        (["--set", "flip=1"], '--flip "1": expected true or false'),
        (["--set", "grid=3,4"], "--grid [3, 4]: expected three whole numbers"),
        (["--set", "guidance=other"], '--guidance "other" is unknown: use ofg or none'),
        (["--set", "guidance_lr=0.1"], "--guidance-lr has no effect with --guidance-optimiser greedy"),
        (["--recipe", "ixi"], "--recipe and --config both decide flip, grid"),
        (["--resume"], "cannot change with --resume"),
    ]:
        code, _, err = run_cli([*line, *extra])
        assert (code, err.count("\n")) == (2, 1), (extra, err)
        assert words in err
    assert len(started) == 1


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"epoch": 3}, "there is no option 'epoch': epochs is meant?"),
        ({"epochs": "3"}, 'epochs "3": expected a whole number'),
        ({"epochs": 0}, "epochs 0: give 1 or more"),
        ({"epochs": None}, "epochs null: expected a whole number"),
        ({"ncc_window": 4}, "ncc_window 4: give an odd number, 3 or more"),
        ({"flip": 1}, "flip 1: expected true or false"),
        ({"lr": float("inf")}, "lr inf: expected a finite number"),
        ({"hours": -1}, "hours -1: give a number above 0"),
        ({"labels": 3}, "labels 3: expected a path"),
        ({"grid": [1, 2]}, "grid [1, 2]: expected three whole numbers"),
        ({"similarity": "mse", "guidance_optimiser": "greedy"}, "guidance_optimiser=greedy knows the local NCC only"),
        ([1], "expected a JSON object"),
        ({"config": {"epochs": 3}}, "expects"),
        ({"config": {"expects": None, "epochs": 3}}, "of another version: it does not say accumulate, "),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, run_cli: RunCli, record: object, words: str) -> None:
    file = tmp_path / "options.json"
    file.write_text(json.dumps(record))
    code, _, err = run_cli(["train", tmp_path, "-o", tmp_path / "run", "--config", file])
    assert (code, err.count("\n")) == (3, 1), err
    assert err.startswith(f"ofg: error: {file}: ")
    assert words in err
    assert not (tmp_path / "run").exists()


def test_the_configuration_of_a_run_gives_all_its_options(tmp_path: Path) -> None:
    expects = NetworkInput((48, 32, 64), (1.1, 0.7, 2.0), Intensity("window", -160.1234567, 240.25), "rigid", "LIA")
    config = TrainConfig(expects, frame="a.nii", lr=3e-4, guidance="none", seed=7, steady=False, smoothness=0.3)
    (tmp_path / "config.json").write_text(json.dumps({"config": config.to_record(), "pairs": {}}))
    found = configured(tmp_path / "config.json")
    assert found == configured(config)
    assert Intensity.parse(found["intensity"]) == expects.intensity
    assert (found["grid"], found["spacing"], found["init"], found["axes"]) == (
        (48, 32, 64),
        (1.1, 0.7, 2.0),
        "rigid",
        "LIA",
    )
    assert found["starts"] == "frame"
    assert TrainConfig(expects, frame="a.nii", **{n: v for n, v in found.items() if n in config.to_record()}) == config
    (tmp_path / "mine.json").write_text('{"labels": "seg", "cache": "/cache"}')
    assert configured(tmp_path / "mine.json") == {"labels": tmp_path / "seg", "cache": Path("/cache")}


def test_options_in_python_are_checked(tmp_path: Path) -> None:
    for options, words in [
        ({"epoch": 3}, "no option 'epoch': epochs is meant"),
        ({"epochs": 3.0}, "epochs 3.0: expected a whole number"),
        ({"flip": "yes"}, 'flip "yes": expected true or false'),
        ({"device": "gpu"}, 'device "gpu" is unknown: use auto, cpu or cuda'),
        ({"recipe": ("oasis", "ixi")}, "one data set at a time"),
        ({"threads": -1}, "threads -1: give 1 or more, or 0 for all cores"),
    ]:
        with pytest.raises(UsageError, match=re.escape(words)):
            train_network(tmp_path, tmp_path / "run", **options)
    with pytest.raises(UsageError, match="images is missing"):
        train_network(None, tmp_path / "run")
    with pytest.raises(InputError, match="does not exist"):  # None is not given
        train_network(tmp_path / "nothing", tmp_path / "run", epochs=None, flip=None)
    named = inspect.signature(train_network).parameters
    assert {*TRAINING} < {*named}
    assert named["epochs"].default == 500
    assert named["labels"].default is None


@pytest.mark.parametrize(("verb", "most", "options"), [("train", 24, TRAINING), ("export", 21, EXPORT)])
def test_help_lists_what_people_reach_for(verb: str, most: int, options: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ofg_deploy", verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"},
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    listed = re.findall(r"^  (?:-\w, )?--([a-z-]+)", done.stdout, re.MULTILINE)
    assert len(listed) <= most
    assert {name.replace("_", "-") for name, one in options.items() if one.about.shown} <= {*listed}
    hidden = {name.replace("_", "-") for name, one in options.items() if not one.about.shown}
    assert not hidden & {*listed}
    assert "`" not in done.stdout
    for word in ("Network:", "Guidance:") if verb == "train" else ("Engine:",):
        assert word in lines


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs/training-options.md").read_text()
    assert written == page.page(), f"make it anew: python -m {page.__name__} > docs/training-options.md"


def test_networks_are_named_once() -> None:
    assert (*NETWORKS,) == get_args(NetworkName)


def test_options_are_light() -> None:
    """What the command line needs at each start loads no array library."""
    code = "import sys, ofg_deploy.options.training, ofg_deploy.options.export; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "typer", "rich"} & {*json.loads(done.stdout.replace("'", '"'))}
