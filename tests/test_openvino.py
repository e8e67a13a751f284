"""OpenVINO: the same field as ONNX Runtime from the same file, and a choice of runtime that says why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_networks import awake
from traced import trace_once

from ofg_deploy.errors import DeviceError, InputError, ParityError, UsageError
from ofg_deploy.export.onnx import trace
from ofg_deploy.export.velocity import name_velocity
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.kernels.velocity import integrate
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, seal
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve import runtimes
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.openvino import VELOCITY, merge_upsampling
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.networks.velocity import VelocityIntegration
from ofg_deploy.train.validation import predict

openvino = pytest.importorskip("openvino", reason="not installed (pip install ofg-deploy[openvino])")


def make_model(
    path: Path,
    name: str,
    grid: tuple[int, int, int],
    diffeomorphic: bool = False,
    any_size: bool = False,
    with_warp: bool = False,
) -> torch.nn.Module:
    """A sealed model of a random network whose field is some voxels long."""
    network = awake(name, grid, diffeomorphic)
    rng = np.random.default_rng(1)
    images = [torch.from_numpy(rng.random(grid, dtype=np.float32))[None, None] for _ in range(2)]
    with torch.inference_mode():
        head = {"voxelmorph": "flow", "voxelmorph-half": "flow"}.get(name)
        for key, value in network.named_parameters():
            if head and key.startswith(head) and key.endswith("weight"):
                value.mul_(2 / network._predict(*images).abs().max())
    expects = NetworkInput(grid, (1.5, 1.0, 2.0), Intensity("minmax"), "none")
    training = {} if network.integrate is None else {"integration": network.integrate.how.to_record()}
    contract = Contract(name, expects, network.divisor, "ab" * 32, training)
    deployed = network.inference_copy(any_size, with_warp)
    # As other tests trace it, where this is the same graph; then with a longer field, in the graph as in the network.
    model = trace_once(deployed if any_size or with_warp else network, grid)
    if name in ("vit-v-net", "transmorph-small"):
        last = "reg_head.0.weight"
        [stored] = [tensor for tensor in model.graph.initializer if tensor.name == last]
        with torch.inference_mode():
            factor = 2 / network._predict(*images).abs().max().numpy()
        value = onnx.numpy_helper.to_array(stored) * np.float32(factor)
        stored.CopyFrom(onnx.numpy_helper.from_array(value, last))
        network.get_parameter(last).data = torch.from_numpy(value)
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json(), SEAL_KEY: UNSEALED})
    path.write_bytes(seal(model.SerializeToString()))
    return network


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("name", "grid", "form"),
    [
        ("voxelmorph", (32, 16, 48), {"any_size": True}),
        # Padded, so the velocity is cropped before it is integrated; the output that is not computed is in the graph.
        ("voxelmorph", (21, 26, 19), {"diffeomorphic": True, "with_warp": True}),
        ("voxelmorph-half", (32, 16, 48), {"any_size": True}),
        ("voxelmorph-half", (21, 26, 19), {"diffeomorphic": True, "with_warp": True}),
        ("lku-net", (16, 32, 16), {}),
        ("lku-net", (21, 26, 19), {"diffeomorphic": True}),
        ("vit-v-net", (32, 64, 32), {}),
        ("transmorph-small", (32, 48, 32), {}),
    ],
)
def test_same_field_as_onnx_runtime_and_eager(
    tmp_path: Path, name: str, grid: tuple[int, int, int], form: dict[str, bool]
) -> None:
    path = tmp_path / "model.onnx"
    network = make_model(path, name, grid, **form)
    engine = open_engine(path, "cpu", 1, runtime="openvino")
    other = open_engine(path, "cpu", 1, runtime="onnxruntime")
    rng = np.random.default_rng(0)
    moving, fixed = (rng.random(grid, dtype=np.float32) for _ in range(2))
    field = engine.predict(moving, fixed)
    kept = field.copy()
    assert field.shape == (3, *grid)
    assert np.abs(field).max() > 0.3, "a field of zeros would always pass"
    assert np.abs(field - other.predict(moving, fixed)).max() < 1e-3
    assert np.abs(field - predict(network, moving, fixed, "cpu")).max() < 1e-3
    assert np.abs(engine.predict(fixed, moving) - field).max() > 1e-2  # another pair, another field ...
    assert np.array_equal(field, kept)  # ... in memory of its own
    assert (engine.contract, engine.model_sha256) == (other.contract, other.model_sha256)
    assert engine.runtime.startswith("openvino 20")
    assert engine.provider == "CPU (f32)"


def test_upsampling_is_merged_into_the_convolution_after_it(tmp_path: Path) -> None:
    grid = (16, 32, 48)
    make_model(tmp_path / "m.onnx", "voxelmorph", grid, any_size=True)
    core = openvino.Core()
    rng = np.random.default_rng(0)
    images = {name: rng.random((1, 1, *grid), dtype=np.float32) for name in ("moving", "fixed")}
    fields, operators = [], []
    for merge in (False, True):
        model = core.read_model(tmp_path / "m.onnx")
        model.reshape(dict.fromkeys(images, (1, 1, *grid)))
        if merge:
            merge_upsampling(model)
        operators.append([op.get_type_name() for op in model.get_ordered_ops()])
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        fields.append(compiled(images)[0])
    assert (operators[0].count("Interpolate"), operators[1].count("Interpolate")) == (4, 0)
    assert operators[1].count("ConvolutionBackpropData") == 4
    assert np.abs(fields[0] - fields[1]).max() < 1e-5 * np.abs(fields[0]).max() + 1e-6


@pytest.mark.parametrize("how", [Integration(), Integration(5, 1), Integration(7, 2, "zeros", nominal=True)])
@pytest.mark.parametrize("shape", [(8, 14, 10), (21, 16, 30)])
def test_integration_is_the_networks(shape: tuple[int, int, int], how: Integration) -> None:
    rng = np.random.default_rng(0)
    velocity = np.stack([60 * gaussian_filter(rng.standard_normal(shape), 3) for _ in range(3)]).astype(np.float32)
    eager = VelocityIntegration(shape, how)(torch.from_numpy(velocity)[None])[0].numpy()
    assert np.abs(eager - velocity).max() > 0.3, "far from the velocity itself"
    assert np.abs(integrate(velocity, how) - eager).max() < 1e-4
    others = {Integration(), Integration(5, 1), Integration(7, 2, "zeros", nominal=True)} - {how}
    assert all(np.abs(integrate(velocity, other) - eager).max() > 1e-2 for other in others)


def test_only_the_integration_may_follow_the_velocity() -> None:
    network = build_network("voxelmorph", (16, 16, 32), True)
    model = trace(network, (16, 16, 32))
    assert any(VELOCITY in node.output for node in model.graph.node)
    last = next(node for node in model.graph.node if "field" in node.output)
    last.output[0] = "unscaled"
    image = onnx.helper.make_node("Add", ["unscaled", "moving"], ["leaky"])
    model.graph.node.extend([image, onnx.helper.make_node("Neg", ["leaky"], ["field"])])
    with pytest.raises(ParityError, match="not its integration alone"):
        name_velocity(model, network.integrate)


def test_what_cannot_run_is_refused(
    tiny_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model().path
    with pytest.raises(DeviceError, match="OpenVINO runs on the CPU"):
        open_engine(path, "cuda", runtime="openvino")
    with pytest.raises(UsageError, match=r"runs an \.engine"):
        open_engine(path, runtime="tensorrt")
    with pytest.raises(UsageError, match=r"runs an \.onnx"):
        open_engine(tmp_path / "x.engine", runtime="openvino")
    damaged = tmp_path / "damaged.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(InputError, match="changed or damaged"):
        open_engine(damaged, runtime="openvino")
    foreign = onnx.load(path)
    foreign.graph.node[0].op_type = "NoSuchOperator"
    next(p for p in foreign.metadata_props if p.key == SEAL_KEY).value = UNSEALED
    damaged.write_bytes(seal(foreign.SerializeToString()))
    with pytest.raises(InputError, match=r"cannot be loaded by OpenVINO: .*NoSuchOperator") as caught:
        open_engine(damaged, runtime="openvino")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"pip install ofg-deploy\[openvino\]"):
        open_engine(path, runtime="openvino")


def test_auto_takes_what_was_measured_and_says_why(
    tiny_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model().path
    monkeypatch.setattr(runtimes, "_offers_cuda", lambda: False)
    unknown = runtimes.choose(path, "cpu")
    assert (unknown.runtime, unknown.reason) == ("onnxruntime", "openvino is not known to be faster for tiny fp32")
    monkeypatch.setitem(runtimes.OPENVINO_FASTER, ("tiny", "fp32"), 1.7)
    faster = runtimes.choose(path, "auto")
    assert faster.runtime == "openvino"
    assert faster.reason == "openvino is 1.7x ONNX Runtime for tiny fp32 in benchmarks/results/runtimes.json"
    assert open_engine(path, "cpu", runtime="auto").runtime.startswith("openvino")
    assert runtimes.choose(path, "cuda").runtime == "onnxruntime"
    monkeypatch.setattr(runtimes, "_offers_cuda", lambda: True)
    assert runtimes.choose(path, "auto").reason == "it runs models on CUDA"
    assert runtimes.choose(path, "cpu").runtime == "openvino"
    monkeypatch.setattr(runtimes, "_installed", lambda package: package != "openvino")
    absent = runtimes.choose(path, "cpu")
    assert absent.runtime == "onnxruntime"
    assert "openvino is not installed: pip install ofg-deploy[openvino]" in str(absent.reason)
    monkeypatch.setattr(runtimes, "_installed", lambda package: package == "openvino")
    assert runtimes.choose(path, "cpu").runtime == "openvino"
    assert runtimes.choose(tmp_path / "x.engine", "auto").runtime == "tensorrt"


def test_the_table_of_auto_is_the_benchmarks() -> None:
    record = json.loads((Path(__file__).parents[1] / runtimes.MEASURED).read_text())
    rows = {(n, p): run["table"][f"openvino {p}"] for n, run in record.items() for p in ("fp32", "int8")}
    # int8 is compared in OpenVINO when it is exported; in float32 rounding alone may differ.
    taken = {key: row for key, row in rows.items() if key[1] == "int8" or row["field_mm_max"] < 1e-3}
    assert {key: row["to_onnxruntime"] for key, row in taken.items()} == runtimes.OPENVINO_FASTER


def test_register_with_openvino(
    tiny_model: Callable[..., Any], files: tuple[Any, ...], tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    fields = {}
    for runtime in ("openvino", "onnxruntime", "auto"):
        line = ["register", *files[:2], "-m", tiny_model().path, "-o", tmp_path / runtime, "--device", "cpu"]
        code, out, err = run_cli([*line, "--runtime", runtime])
        assert code == 0, err
        if runtime == "auto":
            assert "runtime onnxruntime: openvino is not known to be faster for tiny fp32" in " ".join(out.split())
            continue
        record = json.loads(next((tmp_path / runtime).glob("*.json")).read_text())
        assert record["runtime"]["name"].startswith(runtime)
        fields[runtime] = record["metrics"]["ncc_after"]
    assert fields["openvino"] == pytest.approx(fields["onnxruntime"], abs=1e-5)


INTERRUPTED = """
import signal, sys
from pathlib import Path
from ofg_deploy.serve.openvino import OpenVinoEngine
engines = [OpenVinoEngine(Path(sys.argv[1]), "cpu", 1) for _ in range(2)]
while engines:
    del engines[0]
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_after_two_engines_is_an_interrupt(tiny_model: Callable[..., Any]) -> None:
    """With an ``openvino.Core`` for each it was a segmentation fault where OpenVINO sets a signal stack."""
    line = [sys.executable, "-c", INTERRUPTED, str(tiny_model().path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
