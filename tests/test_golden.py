"""The method and its networks against figures of the published implementation (../shared/reference).

``golden.json`` holds a few figures of our own networks, computed when they agreed with the published ones to 1e-4; with
it a clone without ../shared keeps its main oracle.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_inputs import golden_pair, golden_state, probes
from torch.nn import functional

from ofg_deploy.errors import InputError
from ofg_deploy.field import jacobian_determinant
from ofg_deploy.metrics import folding_percent
from ofg_deploy.train.checkpoint import load_checkpoint, load_weights, weights_sha256
from ofg_deploy.train.guidance import refine
from ofg_deploy.train.losses import diffusion, local_ncc_loss, ofg_loss, warp
from ofg_deploy.train.networks import build_network

REFERENCE = Path(__file__).resolve().parents[2] / "shared/reference"
STEPS = [(1, 0.1), (5, 0.1), (10, 0.05)]

needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return json.loads((REFERENCE / "figures.json").read_text())["guidance"]


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(REFERENCE / "guidance.npz") as stored:
        return {name: torch.from_numpy(v[None] if v.ndim == 4 else v[None, None]) for name, v in stored.items()}


def published_ncc(a: torch.Tensor, b: torch.Tensor, window: int = 9) -> torch.Tensor:
    """Dense box convolutions and autograd, terms added in the published order: the oracle of ``local_ncc_loss``."""
    kernel = torch.ones(1, 1, window, window, window, dtype=a.dtype)
    sum_a, sum_b, sum_aa, sum_bb, sum_ab = (
        functional.conv3d(x, kernel, padding=window // 2) for x in (a, b, a * a, b * b, a * b)
    )
    size = float(window**3)
    mean_a, mean_b = sum_a / size, sum_b / size
    cross = sum_ab - mean_b * sum_a - mean_a * sum_b + mean_a * mean_b * size
    var_a = sum_aa - 2 * mean_a * sum_a + mean_a * mean_a * size
    var_b = sum_bb - 2 * mean_b * sum_b + mean_b * mean_b * size
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()


@needs_reference
def test_energy_terms(figures: dict[str, float], arrays: dict[str, torch.Tensor]) -> None:
    moving, fixed, field = arrays["moving"], arrays["fixed"], arrays["field0"]
    assert float(local_ncc_loss(moving, fixed)) == pytest.approx(figures["ncc_loss_before_warp"], rel=1e-4)
    assert float(local_ncc_loss(warp(moving, field), fixed)) == pytest.approx(figures["ncc_loss_warped0"], rel=1e-4)
    assert float(diffusion(field)) == pytest.approx(figures["diffusion_field0"], rel=1e-4)
    assert warp(moving, field).numpy() == pytest.approx(arrays["warped0"].numpy(), abs=1e-5)


@needs_reference
@pytest.mark.parametrize(("steps", "lr"), STEPS)
def test_guidance_figures(figures: dict[str, float], arrays: dict[str, torch.Tensor], steps: int, lr: float) -> None:
    predicted = arrays["field0"].clone().requires_grad_()
    target = refine(predicted, arrays["moving"], arrays["fixed"], steps, lr)
    loss = ofg_loss(predicted, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(figures[f"ofg_loss_K{steps}_lr{lr}"], rel=1e-4)
    norm = float(predicted.grad.norm())
    assert norm == pytest.approx(figures[f"ofg_loss_grad_l2_K{steps}_lr{lr}"], rel=1e-4)


@needs_reference
@pytest.mark.parametrize(("steps", "lr"), STEPS)
def test_refined_fields(arrays: dict[str, torch.Tensor], steps: int, lr: float) -> None:
    """The optimiser, warp and schedule reproduce the published fields when the sums are rounded as published."""
    golden = arrays[f"field_K{steps}_lr{lr}"]
    pair = arrays["field0"], arrays["moving"], arrays["fixed"], steps, lr
    exact = refine(*pair, similarity=published_ncc)
    assert float((exact - golden).norm() / golden.norm()) <= 1e-4
    # Separable sums round otherwise. Adam divides by the size of the gradient, so where the images are flat and the
    # gradient is rounding alone, single voxels go another way; double precision does so too (1.3e-4 at K = 5).
    double = refine(*(t.double() for t in pair[:3]), steps, lr, backend="torch").float()
    for backend, to_double in (("numba", 1e-5), ("torch", 1e-3)):
        ours = refine(*pair, backend=backend)
        assert float((ours - golden).norm() / golden.norm()) <= 1e-3
        assert float(((ours - golden).abs() > 1e-3).float().mean()) <= 2e-4
        assert float((ours - double).norm() / double.norm()) <= to_double


@needs_reference
def test_folding_figures(figures: dict[str, float], arrays: dict[str, torch.Tensor]) -> None:
    field = arrays["field0"][0].numpy()
    for scale, name in ((1, "field0"), (6, "6x_field0")):
        found = folding_percent(jacobian_determinant(scale * field))
        assert found == pytest.approx(figures[f"nonpositive_jacobian_percent_{name}"], rel=1e-4)


@needs_reference
@pytest.mark.parametrize("name", ["voxelmorph", "vit-v-net", "transmorph", "lku-net"])
def test_network_and_published_checkpoint(name: str, tmp_path: Path) -> None:
    spec = json.loads((REFERENCE / f"{name}.json").read_text())
    network = build_network(name, tuple(spec["input_shape"]))
    own = {key: list(value.shape) for key, value in network.state_dict().items() if value.is_floating_point()}
    assert own == spec["state"]
    assert sum(p.numel() for p in network.parameters()) == spec["parameters"]
    # As published: counters of batch norms, buffers that follow from the shape, the best Dice as a numpy scalar.
    state = golden_state(spec["state"])
    state |= {key: torch.tensor(9) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    buffers = {"spatial_trans.grid": torch.zeros(1, 3, 2, 2, 2), "x.relative_position_index": torch.zeros(2, 2)}
    published = {"epoch": 3, "state_dict": {**state, **buffers}}
    torch.save({**published, "best_dsc": np.float64(0.75), "optimizer": {}}, tmp_path / "dsc0.750.pth.tar")
    checkpoint = load_checkpoint(tmp_path / "dsc0.750.pth.tar")
    load_weights(network, checkpoint.state, tmp_path)
    assert weights_sha256(network.state_dict()) == weights_sha256(checkpoint.state) == weights_sha256(state)
    with np.load(REFERENCE / f"{name}.npz") as stored, torch.inference_mode():
        golden = {name: torch.from_numpy(stored[name])[None] for name in stored}
        flow = network.eval()(golden["moving"][None], golden["fixed"][None])
        # LKU-Net's figure is in coordinates that span the volume from -1 to 1, along array axes; ours are voxels.
        half = (torch.tensor(flow.shape[2:]) - 1).view(3, 1, 1, 1) / 2 if name == "lku-net" else 1
        assert float((flow / half - golden["flow"]).norm() / golden["flow"].norm()) <= 1e-4
        warped = warp(golden["moving"][None], flow)
        assert warped[0].numpy() == pytest.approx(golden["warped"].numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["voxelmorph", "vit-v-net", "transmorph", "lku-net"])
def test_network_figures_without_the_reference(name: str) -> None:
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())[name]
    network = build_network(name, tuple(golden["shape"])).eval()
    own = {key: list(value.shape) for key, value in network.state_dict().items() if value.is_floating_point()}
    assert own == golden["state"]
    assert sum(p.numel() for p in network.parameters()) == golden["parameters"]
    load_weights(network, golden_state(golden["state"]), Path("golden"))
    moving, fixed = golden_pair(tuple(golden["shape"]))
    with torch.inference_mode():
        flow = network(moving[None, None], fixed[None, None])[0].numpy()
    assert np.abs(flow).mean() == pytest.approx(golden["absolute_mean"], rel=1e-4)
    assert flow[probes(flow.shape)] == pytest.approx(golden["probes"], abs=1e-3 * golden["absolute_mean"])


@pytest.mark.parametrize("steps", [1, 5])
def test_refinement_is_the_published_one_without_the_reference(steps: int) -> None:
    """Every backend on a small pair, against dense convolutions with autograd and torch's Adam in double precision."""
    shape = (22, 26, 24)
    moving, fixed = (image[None, None] for image in golden_pair(shape))
    field = torch.from_numpy(np.stack([golden_pair(shape)[0].numpy().transpose(0, 1, 2) - 0.5] * 3))[None]
    field = field * torch.tensor([1.5, -1.0, 0.7]).view(1, 3, 1, 1, 1)
    exact = refine(field.double(), moving.double(), fixed.double(), steps, 0.1, similarity=published_ncc)
    for backend in ("numba", "torch"):
        ours = refine(field, moving, fixed, steps, 0.1, backend=backend).double()
        assert float((ours - exact).norm() / (exact - field.double()).norm()) <= 1e-3, backend


@pytest.mark.parametrize("window", [3, 5, 9])
def test_ncc_matches_dense_autograd(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 1, 11, 13, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    values, gradients = [], []
    for loss in (local_ncc_loss, published_ncc):
        x = a.clone().requires_grad_()
        value = loss(x, b, window)
        value.backward()
        values.append(float(value.detach()))
        gradients.append(x.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) <= 1e-8
    x = a[:, :, :5, :4, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(partial(local_ncc_loss, b=b[:, :, :5, :4, :6], window=3), x)


def test_refine_leaves_the_prediction_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    moving, fixed = (torch.rand(1, 1, 12, 14, 10, generator=generator) for _ in range(2))
    field = torch.zeros(1, 3, 12, 14, 10, requires_grad=True)
    refined = refine(field, moving, fixed, steps=2, lr=0.1, similarity=partial(local_ncc_loss, window=5))
    assert not refined.requires_grad
    assert field.grad is None
    assert float(field.detach().abs().max()) == 0.0
    before, after = (float(local_ncc_loss(warp(moving, f), fixed, 5)) for f in (field.detach(), refined))
    assert after < before


def test_untrusted_or_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    network = build_network("voxelmorph", (16, 16, 16))
    state = network.state_dict()
    for name, content, message in [
        ("pickle.pt", {"state_dict": {"x": Path("y")}}, "refused"),
        ("empty.pt", {"state_dict": {}}, "no state_dict"),
    ]:
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path / name)
    (tmp_path / "garbage.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "garbage.pt")
    with pytest.raises(InputError, match="is not a file"):
        load_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(InputError, match=r"flow\.bias.*shape \(4,\), expected \(3,\)"):
        load_weights(network, {**state, "flow.bias": torch.zeros(4)}, tmp_path)
    with pytest.raises(InputError, match=r"has no 'flow\.bias'"):
        load_weights(network, {k: v for k, v in state.items() if k != "flow.bias"}, tmp_path)
    with pytest.raises(InputError, match=r"has 'other\.weight'"):
        load_weights(network, {**state, "other.weight": torch.zeros(1)}, tmp_path)
