"""Training for several passes: a step begins after some of them; validation and export go by the same number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_passes import by_scipy
from test_passes import network as known_network
from training_runs import find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy.export.api import export_model
from ofg_deploy.export.eager import EagerEngine
from ofg_deploy.model_file import read_model
from ofg_deploy.passes import in_passes
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.train import loop
from ofg_deploy.train.checkpoint import load_checkpoint
from ofg_deploy.train.dataset import load_cached, prepare_all
from ofg_deploy.train.labels import load_label_pair
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.passes import passes_before, predict_after
from ofg_deploy.train.validation import score_pair


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_subjects(tmp_path_factory.mktemp("subjects"))


def test_shares_are_equal_and_the_same_for_everybody() -> None:
    config = tiny_config(passes=3, seed=4)
    drawn = np.array([[passes_before(config, epoch, step) for step in range(1, 101)] for epoch in range(6)])
    assert (np.abs(np.bincount(drawn.ravel()) / drawn.size - 1 / 3) < 0.06).all()
    assert len(np.unique(drawn, axis=0)) == 6
    assert {passes_before(tiny_config(passes=1), 0, step) for step in range(1, 101)} == {0}


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_step_predicts_the_whole_as_scipy_composes_it(before: int) -> None:
    predict, *images = known_network((9, 12, 7))
    moving, fixed = (torch.from_numpy(image)[None, None] for image in images)

    def module(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(predict(moving[0, 0].numpy(), fixed[0, 0].numpy()))[None]

    found = predict_after(module, moving, fixed, before)[0].numpy()
    np.testing.assert_allclose(found, by_scipy(predict, *images, before + 1), atol=5e-5)
    np.testing.assert_allclose(found, in_passes(predict, before + 1)(*images), atol=5e-5)


def test_only_the_last_pass_has_a_gradient() -> None:
    """Of a network w A x, u = A x (w = 1) is kept; the whole is w A x + A (x + w A x): d/dw = A x + A A x."""
    shape, a = (12, 9, 15), torch.tensor([[0.02, -0.03, 0.01], [0.04, 0.01, -0.02], [-0.01, 0.03, 0.02]])
    x = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))
    linear = torch.einsum("ij,jxyz->ixyz", a, x)
    w = torch.ones((), requires_grad=True)
    images = torch.rand(2, 1, 1, *shape)
    field = predict_after(lambda *_: w * linear[None], images[0], images[1], 1)[0]
    weights = torch.zeros(3, *shape)
    weights[:, 2:-2, 2:-2, 2:-2] = torch.rand(3, 8, 5, 11)  # where x + A x is on the grid
    (field * weights).sum().backward()
    expected = linear + torch.einsum("ij,jxyz->ixyz", a, linear)
    torch.testing.assert_close(w.grad, (expected * weights).sum(), rtol=1e-3, atol=0)


def test_one_pass_trains_as_before_there_were_others(subjects, tmp_path, monkeypatch) -> None:
    """Bit for bit the weights of a loop that asks the network once; and more passes are another training."""
    pairs, states = find_tiny_pairs(*subjects), {}
    for name, passes in (("one", 1), ("before", 1), ("two", 2)):
        if name == "before":
            monkeypatch.setattr(loop, "predict_after", lambda network, moving, fixed, _: network(moving, fixed))
        run, _ = run_training(tmp_path / name, pairs, tiny_config(epochs=1, passes=passes), tmp_path / "cache")
        monkeypatch.undo()
        checkpoint = load_checkpoint(run.last)
        states[name] = checkpoint.state
        assert checkpoint.training.get("passes") == (None if passes == 1 else passes)
    assert all(torch.equal(states["one"][key], value) for key, value in states["before"].items())
    assert any(not torch.equal(states["one"][key], value) for key, value in states["two"].items())


def test_validation_is_that_of_the_exported_model_and_its_graph_that_of_one_pass(subjects, tmp_path) -> None:
    import onnx

    pairs, config = find_tiny_pairs(*subjects), tiny_config(passes=3, epochs=1, lr=0.01)
    run, [row] = run_training(tmp_path / "run", pairs, config, tmp_path / "cache")
    path = export_model(run.folder, tmp_path / "model.onnx").path
    assert read_model(path).contract.passes == 3
    exported, eager = open_engine(path, "cpu"), EagerEngine(run.folder, "cpu")
    assert eager.contract.passes == 3
    files = prepare_all(list(pairs.validation), config.expects, tmp_path / "cache", 1, lambda: None)
    scores = {}
    for name, predict in (("exported", exported.predict), ("eager", eager.predict)):
        for passes in (1, 3):
            rows = []
            for file, pair in zip(map(load_cached, files), pairs.validation, strict=True):
                field = in_passes(predict, passes)(file.moving, file.fixed)
                rows.append(score_pair(file, load_label_pair(pair, file.grid), field))
            scores[name, passes] = np.mean(rows, axis=0)
    expected = [row.val_dice, row.val_ncc, row.val_folding_percent]
    np.testing.assert_allclose(scores["eager", 3], expected, rtol=1e-6)
    np.testing.assert_allclose(scores["exported", 3], expected, rtol=1e-3)
    assert abs(scores["eager", 1][1] - row.val_ncc) > 1e-4, "one pass scores alike: nothing is shown"
    for file in map(load_cached, files):
        np.testing.assert_allclose(*(e.predict(file.moving, file.fixed) for e in (exported, eager)), atol=1e-4)
    network = build_network("voxelmorph", config.expects.shape, False)
    convolutions = sum(isinstance(module, torch.nn.Conv3d) for module in network.modules())
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert (operators.count("Conv"), operators.count("GridSample")) == (convolutions, 0)
