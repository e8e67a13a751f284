"""The networks beyond their golden figures: any grid, the diffeomorphic form, recomputing, lean exported graphs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.linalg import expm
from scipy.ndimage import gaussian_filter
from tensorrt_support import SAMPLES_VOLUMES, VERSIONS, refusals
from torch import nn
from traced import trace_once
from training_runs import EXPECTS, find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy.cli import main
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.export.onnx import check_graph, export_onnx
from ofg_deploy.export.parity import Tolerance
from ofg_deploy.export.source import from_run
from ofg_deploy.field import jacobian_determinant
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.losses import warp
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.networks.base import RegistrationNetwork
from ofg_deploy.train.networks.swin import WindowLayout, _relative_positions
from ofg_deploy.train.networks.transmorph import StepwiseInstanceNorm
from ofg_deploy.train.networks.velocity import VelocityIntegration

GRID = (24, 33, 18)  # multiples of nothing


def images(grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth images in 0..1, no two axes alike."""
    rng = np.random.default_rng(4)
    smooth = [gaussian_filter(rng.standard_normal(grid), 2.0) for _ in range(2)]
    moving, fixed = (torch.from_numpy((s - s.min()) / (s.max() - s.min())).float()[None, None] for s in smooth)
    return moving, fixed


def awake(name: str, grid: tuple[int, int, int], diffeomorphic: bool = False) -> RegistrationNetwork:
    """A network whose head and norms are as far from their start as trained ones: fields of voxels, not of 1e-5."""
    torch.manual_seed(0)
    network = build_network(name, grid, diffeomorphic).eval()
    [head] = [m for key, m in network.named_modules() if key in ("flow", "reg_head.0", "dc9.0")]
    nn.init.normal_(head.weight, std=0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias, std=0.1)
    return network


def constant_nodes(model: onnx.ModelProto) -> list[str]:
    """Nodes that depend on stored tensors alone, directly or through others: they could be stored as well."""
    known, found = {"", *(tensor.name for tensor in model.graph.initializer)}, []
    for node in model.graph.node:
        if set(node.input) <= known:
            found.append(f"{node.op_type} {node.name}")
            known.update(node.output)
    return found


def smooth_velocity(grid: tuple[int, int, int], largest: float) -> torch.Tensor:
    """Random velocity (1, 3, X, Y, Z), smooth over about five voxels."""
    rng = np.random.default_rng(7)
    v = np.stack([gaussian_filter(rng.standard_normal(grid), 5.0) for _ in range(3)])
    return torch.from_numpy(v * largest / np.abs(v).max()).float()[None]


def sampled(field: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """A field at voxel + ``where``, edge values held."""
    lattice = torch.stack(torch.meshgrid(*(torch.arange(n) for n in field.shape[2:]), indexing="ij"))
    upper = torch.tensor(field.shape[2:]).view(3, 1, 1, 1) - 1
    held = torch.minimum((lattice + where).clamp(min=0), upper.float()) - lattice
    return warp(field, held)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("voxelmorph-2", (16, 32, 16)),
        ("voxelmorph-half", (16, 32, 16)),
        ("voxelmorph-half", GRID),
        ("lku-net", (16, 32, 16)),
        ("lku-net", GRID),
        ("transmorph-small", (32, 48, 32)),
        ("vit-v-net", (32, 64, 32)),
    ],
)
def test_export_reproduces_the_network(name: str, grid: tuple[int, int, int]) -> None:
    network = awake(name, grid)
    model = trace_once(network, grid)
    check_graph(model, network)
    found = {node.op_type for node in model.graph.node}
    # The exporter may merge the padding into the first convolution.
    assert found == network.onnx_ops if network.padded == grid else network.onnx_ops - {"Pad"} <= found
    assert all("Scatter" not in op and op != "NonZero" for op in network.onnx_ops)
    assert constant_nodes(model) == []
    assert [refusals(model, version) for version in VERSIONS] == [[]] * len(VERSIONS)
    slices = [node.op_type for node in model.graph.node].count("Slice")
    assert slices <= (0 if network.padded == grid else 3)  # the crop
    moving, fixed = images(grid)
    with torch.inference_mode():
        eager = network(moving, fixed).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = {"moving": torch.cat([moving, fixed]).numpy(), "fixed": torch.cat([fixed, moving]).numpy()}
    field = session.run(["field"], batch)[0]  # any batch size
    assert field.shape == (2, 3, *grid)
    assert np.abs(eager).max() > 1e-2
    assert np.percentile(np.linalg.norm(field[0] - eager[0], axis=0), 99.9) <= 1e-3
    assert np.abs(field[1] - eager[0]).max() > 1e-2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_norms_of_an_exported_graph_add_up_large_volumes(tmp_path: Path) -> None:
    """On a volume with a large constant part, against double precision; the runtime's own operator is not enough."""
    x = torch.rand(1, 2, 96, 128, 112, generator=torch.Generator().manual_seed(0)) + 5
    exact = nn.InstanceNorm3d(2)(x.double()).numpy()
    errors = {}
    for norm in (StepwiseInstanceNorm(1e-5), nn.InstanceNorm3d(2)):
        program = torch.onnx.export(norm.eval(), (x,), opset_version=20, dynamo=True, verbose=False)
        path = tmp_path / f"{type(norm).__name__}.onnx"
        program.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        errors[type(norm).__name__] = float(np.abs(found - exact).max())
    assert errors["StepwiseInstanceNorm"] < 2e-5
    assert errors["InstanceNorm3d"] > 4e-5, "if the runtime has become exact, its own operator will do again"


def test_diffeomorphic_export_and_its_inverse() -> None:
    grid = (30, 33, 26)
    network = awake("voxelmorph", grid, diffeomorphic=True)
    model = trace_once(network, grid)
    check_graph(model, network)
    assert {node.op_type for node in model.graph.node} == network.onnx_ops
    assert constant_nodes(model) == []
    assert refusals(model, SAMPLES_VOLUMES) == []
    moving, fixed = images(grid)
    with torch.inference_mode():
        eager = network(moving, fixed)
        velocity = network.velocity(moving, fixed)
        assert torch.equal(eager, network.integrate(velocity))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    field = session.run(["field"], {"moving": moving.numpy(), "fixed": fixed.numpy()})[0]
    assert np.percentile(np.linalg.norm(field - eager.numpy(), axis=1), 99.9) <= 1e-3
    assert float((eager - velocity).abs().max()) > 1e-3
    with pytest.raises(UsageError, match="diffeomorphic=True"):
        build_network("voxelmorph", grid).velocity(moving, fixed)


@pytest.mark.parametrize("grid", [(40, 52, 34), (41, 50, 35)])
def test_flow_of_an_affine_velocity_is_its_matrix_exponential(grid: tuple[int, int, int]) -> None:
    """v(x) = A (x - c): the flow at time 1 is x -> expm(A) (x - c) + c."""
    matrix = np.array([[0.05, 0.12, -0.04], [-0.09, -0.06, 0.03], [0.02, 0.05, 0.08]])
    centre = (np.array(grid) - 1) / 2 + [1.5, -2.0, 1.0]
    x = np.moveaxis(np.indices(grid, dtype=float), 0, -1) - centre
    velocity = torch.from_numpy(np.moveaxis(x @ matrix.T, -1, 0)).float()[None]
    expected = np.moveaxis(x @ (expm(matrix) - np.eye(3)).T, -1, 0)
    found = VelocityIntegration(grid)(velocity)[0].numpy()
    inner = (slice(None), *(slice(8, -8),) * 3)
    assert np.abs(expected[inner]).max() > 1.5
    assert np.abs(found - expected)[inner].max() < 0.001
    # What must not pass: no integration at all, and the half grid taken as exactly twice as coarse.
    assert np.abs(velocity[0].numpy() - expected)[inner].max() > 0.05
    ratio = np.diag([(n - 1) / (n // 2 - 1) for n in grid])
    coarse = 2 * (expm(matrix @ ratio / 2) - np.eye(3)) @ np.linalg.inv(ratio)
    assert np.abs(np.moveaxis(x @ coarse.T, -1, 0) - expected)[inner].max() > 0.0015


def test_inverse_and_no_folding() -> None:
    grid = (40, 52, 34)
    integrate = VelocityIntegration(grid)
    velocity = smooth_velocity(grid, 6.0)
    field, inverse = integrate(velocity), integrate(-velocity)
    assert jacobian_determinant(field[0].numpy()).min() > 0
    assert jacobian_determinant(inverse[0].numpy()).min() > 0
    there_and_back = field + sampled(inverse, field)
    inner = (..., *(slice(6, -6),) * 3)
    assert float(field[inner].norm(dim=1).max()) > 2
    assert float(there_and_back[inner].norm(dim=1).max()) < 0.1
    assert float(there_and_back[inner].norm(dim=1).mean()) < 0.02


def test_a_constant_velocity_moves_everything_alike_up_to_the_border() -> None:
    velocity = torch.tensor([1.5, -0.75, 2.25]).view(1, 3, 1, 1, 1).expand(1, 3, 21, 18, 25)
    assert torch.allclose(VelocityIntegration((21, 18, 25))(velocity), velocity, atol=1e-5)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph-half", "lku-net", "transmorph-small", "vit-v-net"])
def test_odd_grids_are_padded_with_zeros_at_the_upper_ends(name: str) -> None:
    small = awake(name, GRID)
    padded = small.padded
    large = awake(name, padded)
    load_weights(large, small.state_dict(), Path("x"))
    moving, fixed = (torch.zeros(1, 1, *padded) for _ in range(2))
    x, y, z = GRID
    moving[..., :x, :y, :z], fixed[..., :x, :y, :z] = images(GRID)
    with torch.inference_mode():
        field = small(moving[..., :x, :y, :z], fixed[..., :x, :y, :z])
        expected = large(moving, fixed)[..., :x, :y, :z]
        in_training = large.to(memory_format=torch.channels_last_3d)(moving, fixed)[..., :x, :y, :z]
    assert torch.allclose(field, expected, atol=1e-6)
    assert torch.allclose(field, in_training, atol=1e-3)  # instance norms of few voxels magnify rounding
    assert {"Pad", "Slice"} <= small.onnx_ops
    assert "Slice" not in large.onnx_ops
    with pytest.raises(ValueError, match=r"expected \(N, 1, 24, 33, 18\)"):
        small(moving, fixed)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph-half", "lku-net", "transmorph-small", "vit-v-net"])
def test_recomputing_activations_changes_no_gradient(name: str) -> None:
    grid = (32, 34, 16)
    moving, fixed = images(grid)
    gradients, states = [], []
    for wanted in (False, True):
        network = awake(name, grid).train()
        network.activation_checkpointing = wanted
        assert network.activation_checkpointing is wanted
        kept = _kept_by_the_graph(network, moving, fixed)
        gradients.append({k: p.grad for k, p in network.named_parameters() if p.grad is not None})
        states.append((kept, {k: b.clone() for k, b in network.named_buffers()}))
    trained = {k for k, p in network.named_parameters() if p.requires_grad}
    assert gradients[0].keys() == gradients[1].keys() == trained  # an unused one would stop several processes
    for key, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][key], rtol=1e-4, atol=1e-6 * float(value.abs().max() + 1)), key
    for key, value in states[0][1].items():
        assert torch.equal(value, states[1][1][key]), key  # running statistics moved once
    assert states[1][0] < 0.75 * states[0][0]


def _kept_by_the_graph(network: RegistrationNetwork, moving: torch.Tensor, fixed: torch.Tensor) -> int:
    """Bytes that forward keeps for backward, which is then run; weights aside."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(moving, fixed).square().mean()
    loss.backward()
    return sum(kept.values())


def test_windows_are_those_of_rolling_and_masking() -> None:
    """Against the paper's words: roll by half a window, cut, and let only tokens of one region meet."""
    shape, window, shift = (7, 8, 9), (3, 4, 5), (1, 2, 2)
    layout = WindowLayout(shape, window, shift, 8)
    padded = [-(-n // w) * w for n, w in zip(shape, window, strict=True)]
    tokens = np.full(padded, np.prod(shape))
    tokens[: shape[0], : shape[1], : shape[2]] = np.arange(np.prod(shape)).reshape(shape)
    tokens = np.roll(tokens, [-s for s in shift], (0, 1, 2))
    region = np.zeros(padded, int)
    for count, corner in enumerate(np.ndindex(3, 3, 3)):
        ends = [(0, n - w, n - s, n) for n, w, s in zip(padded, window, shift, strict=True)]
        region[tuple(slice(end[i], end[i + 1]) for end, i in zip(ends, corner, strict=True))] = count
    rows = layout.rows.view(layout.windows, layout.size).numpy()
    scores = (layout.query_sides @ layout.key_sides.transpose(-1, -2))[0, :, 0].numpy()
    starts = [np.arange(0, n, w) for n, w in zip(padded, window, strict=True)]
    for number, (x, y, z) in enumerate(np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3)):
        cut = np.s_[x : x + 3, y : y + 4, z : z + 5]
        assert (rows[number] == tokens[cut].ravel()).all()
        apart = region[cut].ravel()[:, None] != region[cut].ravel()[None]
        assert (scores[number][apart] <= -99.99).all()
        assert (scores[number][~apart] == 0).all()
    assert (layout.rows[layout.places] == torch.arange(int(np.prod(shape)))).all()
    relative = _relative_positions(window)
    assert relative.shape == (60, 60)
    assert relative.max() + 1 == len(relative.unique()) == 5 * 7 * 9


# In millions, as the variants without golden figures are published (Chen et al., Medical Image Analysis 2022).
@pytest.mark.parametrize(
    ("name", "millions"), [("voxelmorph-2", 0.30), ("transmorph-small", 11.76), ("transmorph-large", 108.34)]
)
def test_parameter_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_network(name, (160, 192, 224))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_a_flow_at_half_resolution_is_linear_in_between() -> None:
    network = awake("voxelmorph-half", (48, 64, 32))
    coarse: list[torch.Tensor] = []
    network.flow.register_forward_hook(lambda module, given, found: coarse.append(found))
    with torch.inference_mode():
        field = network(*images((48, 64, 32)))[0].numpy()
    flow = coarse[0][0].numpy()
    assert flow.shape == (3, 24, 32, 16)
    assert np.abs(flow).max() > 1e-2
    # The centre of voxel 2 j + 1 is a quarter of the way from that of coarse voxel j to that of j + 1.
    expected = np.zeros(3)
    for corner in np.ndindex(2, 2, 2):
        i, j, k = np.add((7, 9, 4), corner)
        expected += np.prod(np.take((0.75, 0.25), corner)) * flow[:, i, j, k]
    np.testing.assert_allclose(field[:, 15, 19, 9], expected, rtol=1e-4)


def test_weights_for_another_grid_window_or_architecture_are_refused() -> None:
    lpba = build_network("transmorph-lpba", (32, 32, 32))
    assert lpba.transformer.layers[0].blocks[0].attn.relative_position_bias_table.shape == (9 * 11 * 9, 4)
    voxelmorph = build_network("voxelmorph", (16, 16, 16)).state_dict()
    vit = build_network("vit-v-net", (32, 64, 32)).state_dict()
    for network, state, message in [
        (lpba, build_network("transmorph", (32, 32, 32)).state_dict(), r"bias_table.*\(1287, 4\), expected \(891, 4\)"),
        (build_network("vit-v-net", (64, 64, 33)), vit, r"position_emb.*\(1, 2, 252\), expected \(1, 8, 252\)"),
        (build_network("voxelmorph-2", (16, 16, 16)), voxelmorph, r"downarm\.0\.main\.weight.*\(8, 2, 3, 3, 3\)"),
        (build_network("lku-net", (16, 16, 16)), voxelmorph, r"x\.pth\.tar has no 'eninput\.0\.weight'"),
    ]:
        with pytest.raises(InputError, match=message):
            load_weights(network, state, Path("x.pth.tar"))


def test_grids_and_names_that_do_not_do() -> None:
    for name, grid, message in [
        ("voxelmorph", (16, 7, 16), "at least 8"),
        ("vit-v-net", (32, 32, 20), "more than 32"),
        ("other", (16, 16, 16), "voxelmorph-2, voxelmorph-half, vit-v-net"),
    ]:
        with pytest.raises(UsageError, match=message):
            build_network(name, grid)


def test_a_diffeomorphic_run_is_trained_and_exported_as_one(tmp_path: Path) -> None:
    """A grid that needs padding; the network is the best checkpoint's, loaded here by hand."""
    expects = replace(EXPECTS, shape=(28, 15, 30))
    config = replace(tiny_config(epochs=1, diffeomorphic=True, lr=1e-2), expects=expects)
    pairs = find_tiny_pairs(*make_subjects(tmp_path / "subjects"))
    run, _ = run_training(tmp_path / "run", pairs, config, tmp_path / "cache")
    source = from_run(run.folder, lambda: None)
    exported = export_onnx(source, tmp_path / "m.onnx", Tolerance(), False, [])
    assert exported.contract.training["diffeomorphic"] is True
    plain, flow = (build_network("voxelmorph", expects.shape, form).eval() for form in (False, True))
    for network in (plain, flow):
        load_weights(network, load_checkpoint(run.best).state, run.best)
    moving, fixed = images(expects.shape)
    with torch.inference_mode():
        velocity, field = plain(moving, fixed).numpy(), flow(moving, fixed).numpy()
    session = onnxruntime.InferenceSession(exported.model, providers=["CPUExecutionProvider"])
    found = session.run(["field"], {"moving": moving.numpy(), "fixed": fixed.numpy()})[0]
    assert np.abs(found - field).max() < 1e-4
    assert np.abs(field - velocity).max() > 1e-3


def test_a_diffeomorphic_checkpoint_is_exported_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = awake("voxelmorph", (16, 20, 16), diffeomorphic=True)
    expects = NetworkInput((16, 20, 16), (1.0, 1.0, 1.0), Intensity("minmax"), "none")
    for trained, given, code in ((False, ["--diffeomorphic"], 2), (True, [], 0)):  # the record knows
        training = {"diffeomorphic": trained}
        save_checkpoint(tmp_path / "best.pt", Checkpoint(network.state_dict(), "voxelmorph", expects, training, {}))
        line = ["ofg", "export", str(tmp_path / "best.pt"), "-o", str(tmp_path / "m.onnx"), *given]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == code, capsys.readouterr().err
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    moving, fixed = images((16, 20, 16))
    with torch.inference_mode():
        expected = network(moving, fixed).numpy()
    found = session.run(["field"], {"moving": moving.numpy(), "fixed": fixed.numpy()})[0]
    assert np.abs(found - expected).max() < 1e-3


def test_config_of_another_version_is_refused() -> None:
    config = TrainConfig(
        NetworkInput((16, 16, 16), (1.0, 1.0, 1.0), Intensity("minmax"), "none"), diffeomorphic=True, lr=1e-4
    )
    record = config.to_record()
    assert TrainConfig.from_record(record) == config
    older, newer = {k: v for k, v in record.items() if k != "diffeomorphic"}, {**record, "later": 1}
    for other in (older, newer):
        with pytest.raises(InputError, match="another version of ofg train started this run"):
            TrainConfig.from_record(other)
