"""Checkpoints that VoxelMorph's own code saved, and what others wrap around theirs: network and integration."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import official_voxelmorph as official
import onnxruntime
import pytest
import torch
from test_networks import awake, images

from ofg_deploy.bench.candidate import load_network
from ofg_deploy.export.request import BareOptions, find_source
from ofg_deploy.info import describe
from ofg_deploy.model_file import read_model
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.train.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from ofg_deploy.train.networks import build_network, fitting_class, recorded_form
from ofg_deploy.train.networks.velocity import VelocityIntegration
from ofg_deploy.train.networks.vxm_dense import read_config, vxm_dense

RunCli = Callable[[list[object]], tuple[int, str, str]]
GRID = (32, 48, 16)
FEATURES = [[8, 12, 16], [16, 12, 8, 6]]
PLACES = ((0, 0, 0), (15, 20, 9), (31, 47, 15), (30, 2, 7))
# Of VoxelMorph's packages 0.1 (strided) and 0.2 (pooled) on weights and images by rule: the field at PLACES.
PUBLISHED = [
    (
        False,
        {},
        [
            (-0.0319, 0.02409, -0.21859),
            (-0.09984, -0.00774, -1.5811),
            (0.21123, -0.01121, -0.30566),
            (0.17628, 0.09614, -0.92214),
        ],
    ),
    (
        False,
        {"int_downsize": 1, "int_steps": 5},
        [
            (-0.0301, 0.0227, -0.20603),
            (-0.02753, 0.07643, -1.65722),
            (0.18632, -0.01339, -0.2799),
            (0.07191, 0.13265, -0.83663),
        ],
    ),
    (
        True,
        {},
        [
            (-0.00659, -0.41542, -0.54497),
            (-0.16977, 0.11518, 0.3734),
            (-0.05551, 0.17834, -0.62008),
            (-0.05477, 0.15171, -0.36762),
        ],
    ),
    (
        True,
        {"unet_half_res": True},
        [
            (0.00558, 0.1886, -0.47058),
            (0.28285, 0.21589, -1.12915),
            (-0.20988, 0.31665, -0.3459),
            (-0.21549, 0.33414, -1.13748),
        ],
    ),
]
OTHERS = [(False, {"int_steps": 0}), (True, {"int_downsize": 4, "int_steps": 3}), (True, {"int_downsize": 1})]


def save_official(path: Path, pooled: bool, prefix: str = "", **extra: Any) -> dict[str, Any]:
    config = {"inshape": GRID, "nb_unet_features": FEATURES, **extra}
    state = official.weights(official.shapes(config, pooled))
    saved = OrderedDict((prefix + name, value) for name, value in state.items())
    torch.save({"config": config, "model_state": saved}, path)
    return config


def run_model(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    moving, fixed = official.pair(GRID)
    return session.run(["field"], {"moving": moving.numpy(), "fixed": fixed.numpy()})[0][0]


@pytest.mark.parametrize(("pooled", "extra", "values"), [*PUBLISHED, *((*other, None) for other in OTHERS)])
def test_computed_as_voxelmorph_does(pooled: bool, extra: dict[str, Any], values: Any, tmp_path: Path) -> None:
    config = save_official(tmp_path / "vxm.pt", pooled, **extra)
    source = find_source(tmp_path / "vxm.pt", BareOptions(*[None] * 8), tmp_path)
    assert source.expects.shape == GRID
    moving, fixed = official.pair(GRID)
    with torch.inference_mode():
        field = source.network.eval()(moving, fixed)[0].numpy()
    state = load_checkpoint(tmp_path / "vxm.pt").state
    expected = official.forward(config, state, moving, fixed)
    assert np.abs(expected).max() > 0.5
    assert np.abs(field - expected).max() < 1e-4
    if values is not None:
        np.testing.assert_allclose([field[:, i, j, k] for i, j, k in PLACES], values, atol=1e-4)
    if config.get("int_steps", 7) and not config.get("unet_half_res"):  # what must not pass
        plain = official.forward({**config, "int_steps": 0}, state, moving, fixed)
        assert np.abs(plain - expected).max() > 0.05


@pytest.mark.parametrize(("pooled", "extra"), [(False, {}), (True, {"unet_half_res": True})])
def test_exported_so_and_run_so_by_both_runtimes(
    pooled: bool, extra: dict[str, Any], tmp_path: Path, run_cli: RunCli
) -> None:
    config = save_official(tmp_path / "vxm.pt", pooled, **extra)
    code, _, err = run_cli(["export", tmp_path / "vxm.pt", "-o", tmp_path / "m.onnx"])
    assert code == 0, err
    expected = official.forward(config, load_checkpoint(tmp_path / "vxm.pt").state, *official.pair(GRID))
    assert np.abs(run_model(tmp_path / "m.onnx") - expected).max() < 1e-4
    contract = read_model(tmp_path / "m.onnx").contract
    assert contract.expects.shape == GRID
    bench = load_network(tmp_path / "vxm.pt", contract, GRID).eval()
    moving, fixed = official.pair(GRID)
    with torch.inference_mode():
        assert np.abs(bench(moving, fixed)[0].numpy() - expected).max() < 1e-4
    pytest.importorskip("openvino", reason="not installed (pip install ofg-deploy[openvino])")
    engine = open_engine(tmp_path / "m.onnx", "cpu", 1, runtime="openvino")
    assert np.abs(engine.predict(moving[0, 0].numpy(), fixed[0, 0].numpy()) - expected).max() < 1e-3


def test_features_as_one_number_and_levels() -> None:
    """As ``Unet`` makes them: 8 x 1.5^level, every convolution twice."""
    config = {"nb_unet_features": 8, "nb_unet_levels": 3, "unet_feat_mult": 1.5, "nb_unet_conv_per_level": 2}
    grid, layout = read_config({"inshape": GRID, **config}, ["unet_model.encoder.0.0.main.weight"])
    shapes = {k: tuple(v.shape[:2]) for k, v in vxm_dense(layout)(grid, layout.integration).state_dict().items()}
    blocks = [shapes[k] for k in shapes if k.startswith("unet_model") and k.endswith("weight")]
    # Down 8 8, 12 12; up from 12: 18 18 (+12), 12 12 (+8); what is left of the reversed list at full resolution: 8 8.
    assert blocks == [(8, 2), (8, 8), (12, 8), (12, 12), (18, 12), (18, 18), (12, 30), (12, 12), (8, 20), (8, 8)]
    assert shapes["flow.weight"] == (3, 8)


def test_options_may_agree_with_the_config_and_not_contradict_it(tmp_path: Path, run_cli: RunCli) -> None:
    features = [[16, 32, 32, 32], [32, 32, 32, 32, 32, 16, 16]]
    config = save_official(tmp_path / "vxm.pt", False, nb_unet_features=features)
    save_official(tmp_path / "plain.pt", False, int_steps=0)
    options = BareOptions("voxelmorph-2", True, GRID, (1.0, 1.5, 2.0), *[None] * 4)
    source = find_source(tmp_path / "vxm.pt", options, tmp_path)
    assert source.expects.spacing_mm == (1.0, 1.5, 2.0)
    expected = official.forward(config, load_checkpoint(tmp_path / "vxm.pt").state, *official.pair(GRID))
    with torch.inference_mode():
        field = source.network.eval()(*official.pair(GRID))[0].numpy()
    assert np.abs(field - expected).max() < 1e-4
    for given, words in [
        (["vxm.pt", "--network", "voxelmorph"], "leave out --network voxelmorph"),
        (["vxm.pt", "--network", "lku-net"], "leave out --network lku-net"),
        (["plain.pt", "--diffeomorphic"], "int_steps 0"),
        (["vxm.pt", "--grid", 30, 48, 16], "multiples of 16"),
    ]:
        code, _, err = run_cli(["export", tmp_path / given[0], *given[1:], "-o", tmp_path / "no.onnx"])
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"inshape": (32, 48)}, "3-D images"),
        ({"use_probs": True}, "use_probs True"),
        ({"src_feats": 2}, "src_feats 2"),
        ({"unet_half_res": True, "int_steps": 0}, "unet_half_res"),
        ({"int_steps": -1}, "int_steps -1"),
        ({"int_steps": 99}, "steps 99"),
        ({"nb_unet_features": "16"}, "nb_unet_features"),
        ({"int_step": 7}, "'int_step'"),
        ({"nb_unet_features": [[8, 12, 16], [16, 12, 8, 7]]}, "has shape"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(
    extra: dict[str, Any], words: str, tmp_path: Path, run_cli: RunCli
) -> None:
    save_official(tmp_path / "vxm.pt", True)
    record = torch.load(tmp_path / "vxm.pt", weights_only=True)
    torch.save({**record, "config": {**record["config"], **extra}}, tmp_path / "vxm.pt")
    code, _, err = run_cli(["export", tmp_path / "vxm.pt", "-o", tmp_path / "m.onnx"])
    assert (code, err.count("\n")) == (3, 1), err
    assert words in err
    assert "vxm.pt" in err
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net", "network", "model_state"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.", "model._orig_mod.module.", "module.network."])
def test_wrappers_and_prefixes_are_seen_through(wrapper: str, prefix: str, tmp_path: Path) -> None:
    state = build_network("voxelmorph", (16, 16, 32)).state_dict()
    record = {"epoch": 3, "optimizer": {"state": {}}, wrapper: {prefix + name: v for name, v in state.items()}}
    torch.save(record, tmp_path / "a.pt")
    torch.save({"model": record}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        found = load_checkpoint(tmp_path / name).state
        assert found.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in found.items())


def test_parts_compiled_by_themselves_and_missing_counts(tmp_path: Path) -> None:
    network = awake("vit-v-net", (32, 64, 32))
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(network.state_dict())
    renamed = {k.replace("decoder.", "decoder._orig_mod.", 1): v for k, v in state.items()}
    torch.save({"net": renamed}, tmp_path / "a.pt")
    other = build_network("vit-v-net", (32, 64, 32)).eval()
    load_weights(other, load_checkpoint(tmp_path / "a.pt").state, tmp_path / "a.pt")
    with torch.inference_mode():
        assert torch.equal(other(*images((32, 64, 32))), network(*images((32, 64, 32))))


def test_what_holds_no_weights_says_what_it_holds(tmp_path: Path, run_cli: RunCli) -> None:
    tensor = torch.zeros(2)
    for record, words in [
        ({"generator": {"a": tensor}, "epoch": 1}, "it has the keys 'generator', 'epoch'"),
        ({f"k{n}": n for n in range(20)}, "'k7' and 12 more"),
        ([tensor], "it has a list"),
        ({}, "no key at all"),
    ]:
        torch.save(record, tmp_path / "a.pt")
        code, _, err = run_cli(["export", tmp_path / "a.pt", "--network", "voxelmorph", "--grid", 16, 16, 16])
        assert (code, err.count("\n")) == (3, 1), err
        assert words in err
    torch.save({"model": {"features.0.weight": tensor}}, tmp_path / "a.pt")
    code, _, err = run_cli(["export", tmp_path / "a.pt", "--network", "voxelmorph", "--grid", 16, 16, 16])
    assert (code, err.count("\n")) == (3, 1), err
    assert "it has the keys 'features.0.weight'" in err


@pytest.mark.parametrize("start", [4, 16])
def test_lku_net_of_any_width_integrates_at_full_resolution(start: int, tmp_path: Path) -> None:
    """Flow against scipy: seven squarings on the grid itself, edge values held."""
    grid = (16, 32, 16)
    torch.manual_seed(start)
    network = fitting_class("lku-net", {"eninput.0.weight": torch.zeros(start, 2, 3, 3, 3)})(grid).eval()
    torch.nn.init.normal_(network.dc9[0].weight, std=0.3)
    assert network.ec8[0].weight.shape[:2] == (8 * start, 8 * start)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "lku.pth.tar")
    moving, fixed = images(grid)
    fields = []
    for form in (None, True):
        options = BareOptions("lku-net", form, grid, *[None] * 5)
        found = find_source(tmp_path / "lku.pth.tar", options, tmp_path).network.eval()
        with torch.inference_mode():
            fields.append(found(moving, fixed)[0].numpy())
    expected = official.squared(fields[0].astype(float), 7, "nearest")
    assert np.abs(fields[1] - expected).max() < 1e-4
    assert np.abs(fields[0] - expected).max() > 0.05
    at_half = VelocityIntegration(grid)(torch.from_numpy(fields[0])[None])[0].numpy()
    assert np.abs(at_half - expected).max() > 0.05


def test_our_own_earlier_checkpoints_keep_the_integration_they_were_trained_with(tmp_path: Path) -> None:
    """Before it was recorded, every network integrated at half resolution."""
    network = awake("lku-net", (16, 32, 16), diffeomorphic=True)
    expects = find_expects((16, 32, 16))
    for training, downsize in (({}, 2), ({"integration": network.integrate.how.to_record()}, 1)):
        record = Checkpoint(network.state_dict(), "lku-net", expects, {"diffeomorphic": True, **training}, {})
        save_checkpoint(tmp_path / "best.pt", record)
        source = find_source(tmp_path / "best.pt", BareOptions(*[None] * 8), tmp_path)
        assert source.network.integrate.how.downsize == downsize
        assert recorded_form(source.training).downsize == downsize


def find_expects(grid: tuple[int, int, int]) -> Any:
    return NetworkInput(grid, (1.0, 1.0, 1.0), Intensity("minmax"), "none")


def test_info_knows_it(tmp_path: Path) -> None:
    save_official(tmp_path / "vxm.pt", True, prefix="module.")
    found = describe(tmp_path / "vxm.pt")
    assert found["config"]["inshape"] == GRID
    assert "flow.weight" in found["tensors"]
