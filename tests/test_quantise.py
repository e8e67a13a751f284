"""int8: small error, the same field in both runtimes, and integers where it matters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.ndimage import gaussian_filter
from traced import trace_once
from training_runs import EXPECTS, find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy.errors import UsageError
from ofg_deploy.export import precision
from ofg_deploy.export.quantise import quantise
from ofg_deploy.geometry import Grid
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, seal
from ofg_deploy.preprocess import Intensity, NetworkInput, PreparedPair
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.train.dataset import load_cached, prepare_all
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.validation import predict

GRID = (16, 32, 48)
HEADS = {"voxelmorph": "flow.weight", "voxelmorph-half": "flow.weight"}


def make_pairs(count: int) -> list[PreparedPair]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        images = [gaussian_filter(rng.standard_normal(GRID), 1.5) for _ in range(2)]
        fixed, moving = (((i - i.min()) / np.ptp(i)).astype(np.float32) for i in images)
        found.append(PreparedPair(fixed, moving, Grid(GRID, np.eye(4)), np.eye(4), overlap=1.0, outside=0.0))
    return found


def write(model: onnx.ModelProto, name: str, path: Path) -> Path:
    expects = NetworkInput(GRID, (1.0, 1.0, 1.0), Intensity("minmax"), "none")
    contract = Contract(name, expects, 16, "ab" * 32, {}, precision="int8")
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json(), SEAL_KEY: UNSEALED})
    path.write_bytes(seal(model.SerializeToString()))
    return path


@pytest.mark.parametrize(
    ("name", "diffeomorphic"),
    [("voxelmorph", False), ("voxelmorph", True), ("voxelmorph-half", False), ("lku-net", False)],
)
def test_int8_is_close_to_eager_and_the_same_in_both_runtimes(name: str, diffeomorphic: bool, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="not installed (pip install ofg-deploy[openvino])")
    torch.manual_seed(2)
    network = build_network(name, GRID, diffeomorphic).eval()
    *training, unseen = make_pairs(4)
    if name in HEADS:
        head = network.get_parameter(HEADS[name])
        head.data *= 3 / np.abs(predict(network, unseen.moving, unseen.fixed, "cpu")).max()
    model = trace_once(network, GRID)
    before = model.SerializeToString()
    made = quantise(model, training)
    assert model.SerializeToString() == before, "the float32 graph is compared with it"
    path = write(made, name, tmp_path / "int8.onnx")
    eager = predict(network, unseen.moving, unseen.fixed, "cpu")
    engines = {r: open_engine(path, "cpu", 1, runtime=r) for r in ("onnxruntime", "openvino")}
    fields = {r: engine.predict(unseen.moving, unseen.fixed) for r, engine in engines.items()}
    scale = np.abs(eager).max()
    assert scale > 0.2
    for field in fields.values():
        error = np.abs(field - eager)
        assert error.mean() < 0.02 * scale
        assert error.max() < 0.15 * scale
        assert error.max() > 1e-5 * scale, "nothing was rounded"
    # A rounding that falls to the other side shows, a zero point left out would show in every voxel.
    assert np.abs(fields["onnxruntime"] - fields["openvino"]).mean() < 0.005 * scale
    assert "int8" in engines["openvino"].provider


def test_what_is_quantised() -> None:
    model = quantise(trace_once(build_network("voxelmorph", GRID), GRID), make_pairs(1))
    made_by = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    both = [[made_by.get(i).op_type if i in made_by else None for i in conv.input[:2]] for conv in convolutions]
    # The first reads the images, the last makes the field.
    assert both[0] == ["Concat", None]
    assert both[-1] == ["LeakyRelu", None]
    assert all(pair == ["DequantizeLinear"] * 2 for pair in both[1:-1])
    assert Counter(len(c.input) for c in convolutions)[3] >= len(convolutions) - 1, "biases stay where they were"
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            weights, scales, zero = (stored[name] for name in node.input)
            assert weights.dtype == np.int8
            assert scales.shape == (weights.shape[0],), "a scale for each output channel"
            assert not zero.any()


def test_without_training_pairs_there_is_no_int8() -> None:
    with pytest.raises(UsageError, match="calibrated on training pairs"):
        quantise(onnx.ModelProto(), [])


def test_export_of_a_run_is_calibrated_on_its_training_pairs(
    tmp_path: Path, run_cli: Callable[[list[object]], tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = find_tiny_pairs(*make_subjects(tmp_path / "subjects"))
    run, _ = run_training(tmp_path / "run", pairs, tiny_config(lr=5e-3), tmp_path / "cache")
    seen = []
    monkeypatch.setattr(precision, "quantise", lambda model, given: (seen.extend(given), quantise(model, given))[1])
    out = tmp_path / "model.onnx"
    code, _, err = run_cli(["export", run.folder, "-o", out, "--precision", "int8"])
    assert code == 0, err
    training = [load_cached(f) for f in prepare_all(list(pairs.training), EXPECTS, tmp_path / "cache", 1, lambda: None)]
    assert len(seen) == len(training)
    assert all(np.array_equal(a.moving, b.moving) for a, b in zip(seen, training, strict=True))
    engine = open_engine(out, "cpu", 1)
    assert engine.contract.precision == "int8"
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["runtime"].startswith("openvino")
    assert 0 < record["parity_in_runtime"]["field_mm_max"] < 0.5
    code, _, err = run_cli(["export", run.best, "-o", tmp_path / "bare.onnx", "--precision", "int8"])
    assert (code, err.count("\n")) == (2, 1)
    assert "calibrated on training pairs" in err
    assert not (tmp_path / "bare.onnx").exists()
