"""Training that stays steady: which optimiser a run has, and what is said where it breaks down all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from training_runs import find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy.errors import Interrupted
from ofg_deploy.train.checkpoint import load_checkpoint
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.loop import Trainer
from ofg_deploy.train.run import EpochRecord, breakdown
from ofg_deploy.train.steady_adam import SteadyAdam
from ofg_deploy.train.validation import Scores


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_subjects(tmp_path_factory.mktemp("subjects"))


@pytest.mark.parametrize("steady", [True, False])
def test_the_optimiser_is_the_one_asked_for(
    subjects: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady: bool
) -> None:
    used: list[type] = []
    setup = Fabric.setup
    monkeypatch.setattr(Fabric, "setup", lambda self, net, opt: (used.append(type(opt)), setup(self, net, opt))[1])
    config = tiny_config(epochs=1, steady=steady)
    run_training(tmp_path / "run", find_tiny_pairs(*subjects), config, tmp_path / "cache")
    assert used == [SteadyAdam if steady else torch.optim.Adam]


def test_what_breaks_down_is_a_fall_from_something() -> None:
    def said(scores: list[float | None]) -> str | None:
        return breakdown([EpochRecord(n, 0, 0, 0, 0, 0, None, s, None, 0) for n, s in enumerate(scores, start=1)])

    for silent in ([], [None], [0.7], [0.7, None], [-0.3, -0.301], [-0.3, -0.2], [0.02, 0.009], [0.6, 0.4], [0.1, 0.6]):
        assert said(silent) is None
    assert "fell from 0.700 in epoch 3 to 0.200 in epoch 5" in str(said([0.6, 0.7, 0.7, None, 0.2]))
    assert said([0.7, 0.2, 0.2]) is None, "said once"
    assert said([0.7, 0.2, 0.2, 0.8]) is None
    assert "fell from 0.800" in str(said([0.7, 0.2, 0.8, 0.2]))


def test_a_training_that_breaks_down_says_so_once(
    subjects: tuple[Path, Path],
    tmp_path: Path,
    run_cli: Callable[[list[object]], tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = subjects
    options = ["--grid", 32, 16, 32, "--spacing", 2, 2.5, 2, "--init", "none", "--max-pairs", 3, "--steps-per-epoch", 1]
    options += ["--epochs", 6, "--guidance", "none", "--cache", tmp_path / "cache", "--workers", 1]
    for name, given, words in (
        ("labelled", ["--labels", labels], "validation Dice fell from 0.700 in epoch 2 to 0.300 in epoch 5: "),
        ("images", [], "validation similarity fell from 0.800 in epoch 2 to 0.200 in epoch 5: "),
    ):
        values = {"labelled": [0.6, 0.7, 0.4, 0.65, 0.3, 0.2], "images": [0.5, 0.8, 0.5, 0.7, 0.2, 0.1]}[name]
        monkeypatch.setattr(Trainer, "_validate", lambda self, v=values, n=name: _scores_of(v, self, n))
        code, _, err = run_cli(["train", images, "-o", tmp_path / name, *given, *options])
        assert code == 0, err
        broke = "the training broke down; best.pt keeps epoch 2, a new run needs a lower --lr"
        assert [line for line in err.splitlines() if "broke" in line] == [f"ofg: warning: {words}{broke}"]
        assert load_checkpoint(tmp_path / name / "best.pt").training["epoch"] == 2


def _scores_of(values: list[float], trainer: Trainer, name: str) -> Scores:
    value = values[len(trainer.history)]
    return Scores(value, 0.5, 0.0) if name == "labelled" else Scores(None, value, 0.0)


@pytest.mark.parametrize(
    ("options", "steady"),
    [([], True), (["--no-steady"], False), (["--recipe", "paper"], False), (["--recipe", "paper", "--steady"], True)],
)
def test_steps_are_steady_unless_the_recipe_is_published(
    subjects: tuple[Path, Path],
    tmp_path: Path,
    run_cli: Callable[[list[object]], tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    steady: bool,
) -> None:
    started: list[TrainConfig] = []

    def start(out: Path, config: TrainConfig, *_: object) -> None:
        started.append(config)
        raise Interrupted("enough")

    monkeypatch.setattr("ofg_deploy.train.session.start", start)
    code, _, err = run_cli(["train", subjects[0], "-o", tmp_path / "run", *options])
    assert code == 130, err
    assert [config.steady for config in started] == [steady]
