"""What a run says of its own length, of its best epoch, and of a stop before its first one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch")

from training_runs import make_subjects, tiny_config

from ofg_deploy.cli.verbs import train as train_terminal
from ofg_deploy.train import session
from ofg_deploy.train.budget import rate_for, updates_of
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.pairs import PairFiles, PairList
from ofg_deploy.train.preparing import seen_pairs
from ofg_deploy.train.run import EpochRecord
from ofg_deploy.train.validation import Scores
from ofg_deploy.train.verdict import judged


def row(epoch: int, dice: float | None, ncc: float = 0.5) -> EpochRecord:
    return EpochRecord(epoch, 1e-3, 1.0, 1.0, 0.1, 0.0, dice, ncc, 0.0, 1.0)


def test_the_best_epoch_is_named_with_how_little_says_so() -> None:
    history = [row(1, 0.71), *(row(n, 0.70 - 0.001 * n) for n in range(2, 41))]
    chosen, doubts = judged(history, 2, Scores(0.60, 0.4, 0.0))
    assert chosen == "best: epoch 1 of 40, by 2 validation pairs (Dice 0.7100)"
    assert len(doubts) == 2
    assert "2 validation pairs cannot tell" in doubts[0]
    assert "came early (1 of 40)" in doubts[1]
    assert judged([row(n, 0.6 + 0.01 * n) for n in range(1, 9)], 12, Scores(0.55, 0.4, 0.0))[1] == []


def test_a_network_that_never_left_its_start_is_doubted() -> None:
    chosen, [doubt] = judged([row(n, None, 0.5001) for n in range(1, 4)], 9, Scores(None, 0.5, 0.0))
    assert chosen == "best: epoch 3 of 3, by 9 validation pairs (NCC 0.5001)"
    assert "gains nothing over the initial alignment (NCC 0.5000 -> 0.5001)" in doubt


def test_the_rate_follows_the_length() -> None:
    """Rate x steps is the published product, 500 epochs of 400 pairs at 1e-4, up to what was tried."""
    published = TrainConfig(tiny_config().expects, network="voxelmorph", steady=True, epochs=500, steps_per_epoch=400)
    assert rate_for(published, updates_of(published, 1000, 1)) == 1e-4
    shorter = TrainConfig(tiny_config().expects, network="voxelmorph", steady=True, epochs=50, steps_per_epoch=400)
    assert rate_for(shorter, updates_of(shorter, 1000, 1)) == pytest.approx(1e-3)
    tiny = TrainConfig(tiny_config().expects, network="voxelmorph", steady=True, epochs=4, steps_per_epoch=100)
    assert rate_for(tiny, updates_of(tiny, 1000, 1)) == 3e-3
    assert updates_of(shorter, 1000, 4) == 50 * 400 / 4


def test_pairs_that_a_short_run_never_sees_are_not_prepared() -> None:
    pairs = tuple(PairFiles(Path(f"{n}.nii"), Path("m.nii")) for n in range(100))
    short = seen_pairs(PairList(pairs, pairs[:3]), tiny_config(epochs=2, steps_per_epoch=10, batch_size=3), 1)
    assert short.training == pairs[:24]  # whole steps: 12 pairs an epoch
    assert short.validation == pairs[:3]
    every = seen_pairs(PairList(pairs, ()), tiny_config(epochs=1, steps_per_epoch=None), 1)
    assert every.training == pairs


def test_stopped_while_preparing_it_goes_on_and_a_finished_run_says_so(
    tmp_path: Path, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = make_subjects(tmp_path)
    monkeypatch.setattr(train_terminal, "PLAIN_EVERY_S", 0.0)
    short = ["--epochs", 2, "--steps-per-epoch", 2, "--ncc-window", 5, "--init", "none", "--threads", 1, "--workers", 1]
    first = ["train", images, "--labels", labels, "-o", tmp_path / "run", "--guidance-start", 0.5, *short]
    whole, count = session.prepare_all, 0

    def stopped(*arguments: object) -> list[Path]:
        nonlocal count
        count += 1
        if count == 2:  # the training pairs are prepared, the validation pairs are not
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(session, "prepare_all", stopped)
        code, _, err = run_cli(first)
    assert code == 130
    assert f"continue with: ofg train -o {tmp_path / 'run'} --resume" in err
    assert not (tmp_path / "run/config.json").exists()
    code, out, err = run_cli(["train", "-o", tmp_path / "run", "--resume", "--threads", 1, "--workers", 1])
    assert code == 0, err
    assert not (tmp_path / "run/preparing.json").exists()
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["epochs"], config["steps_per_epoch"]) == (2, 2)
    assert config["lr"] == 3e-3  # a short run
    assert "preparing pairs: 1 of " in out
    assert "% done, about" in out
    assert "guidance begins in epoch 2" in out
    assert "of the initial alignment" in out
    assert "best: epoch " in out
    assert "validation pairs cannot tell" in err
    before = (tmp_path / "run/last.pt").read_bytes()
    code, out, _ = run_cli(["train", "-o", tmp_path / "run", "--resume", "--threads", 1, "--workers", 1])
    assert code == 0
    assert "is finished: 2 of 2 epochs" in out
    assert "nan" not in out
    assert "epoch 3/2" not in out
    assert (tmp_path / "run/last.pt").read_bytes() == before
