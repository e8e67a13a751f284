"""fp16 and bf16 by casts in the graph: what is lowered, what is not, and how far it is from the network."""

# ruff: noqa: E402
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="models are made with onnx (pip install ofg-deploy[train])")
torch = pytest.importorskip("torch", reason="networks are traced with torch (pip install ofg-deploy[train])")

import onnxruntime
from parity_sources import make_source
from scipy.ndimage import map_coordinates
from tensorrt_support import SAMPLES_VOLUMES, refusals
from test_networks import awake
from torch.nn import functional
from traced import trace_once

from ofg_deploy.errors import DeviceError, ParityError
from ofg_deploy.export import parity
from ofg_deploy.export.casts import emulate, lower
from ofg_deploy.export.onnx import export_onnx
from ofg_deploy.export.parity import Tolerance
from ofg_deploy.export.precision import layers
from ofg_deploy.serve.engine import open_engine

RunCli = Callable[[list[object]], tuple[int, str, str]]
FLOAT, TYPES = onnx.TensorProto.FLOAT, {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
NETWORKS = [
    ("voxelmorph", (16, 32, 48), True),
    ("voxelmorph", (17, 30, 16), False),  # padded and cropped in the graph
    ("voxelmorph-half", (16, 32, 48), False),
    ("lku-net", (16, 32, 16), False),
    ("transmorph-small", (32, 48, 32), False),
    ("vit-v-net", (32, 64, 32), False),
]
KEPT = {"LayerNormalization", "InstanceNormalization", "Softmax", "GridSample"}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ofg_deploy.export.onnx.trace", trace_once)


def run(model: Any, pair: Any, outputs: Sequence[str] = ("field",)) -> list[np.ndarray]:
    """Each output as (channels, X, Y, Z)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"moving": pair.moving[None, None], "fixed": pair.fixed[None, None]}
    return [value[0] for value in session.run(list(outputs), given)]


def types_of(model: Any) -> dict[str, int]:
    """By onnx's own inference from inputs and weights alone."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("name", "grid", "diffeomorphic"), NETWORKS)
def test_every_network_in_low_precision(
    name: str, grid: tuple[int, int, int], diffeomorphic: bool, tmp_path: Path
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="plans are built with tensorrt_rtx (pip install ofg-deploy[rtx])")
    model = trace_once(awake(name, grid, diffeomorphic), grid)
    before = Counter(node.op_type for node in model.graph.node)
    weights = sum(4 * np.prod(t.dims) for t in model.graph.initializer if t.data_type == FLOAT)
    for precision, low in TYPES.items():
        lowered = lower(model, precision)
        assert refusals(lowered, SAMPLES_VOLUMES) == []
        if not diffeomorphic:
            assert refusals(lowered, (10, 15)) == []
        types = types_of(lowered)
        after = Counter(node.op_type for node in lowered.graph.node)
        assert set(after - before) == {"Cast"}
        assert not before - after
        graph = lowered.graph
        assert {types[v.name] for v in [*graph.input, *graph.output]} == {FLOAT}
        made_by = {value: node for node in graph.node for value in node.output}
        for node in graph.node:
            if node.op_type in KEPT:
                assert {types[value] for value in node.input[:2]} <= {FLOAT, onnx.TensorProto.INT64}
            if node.op_type == "Cast":
                assert types[node.input[0]] != types[node.output[0]], "a Cast that does nothing"
                assert node.input[0] not in made_by or made_by[node.input[0]].op_type != "Cast", "a pair of Casts"
        casts = [(node.input[0], types[node.output[0]]) for node in graph.node if node.op_type == "Cast"]
        assert len(set(casts)) == len(casts), "one value cast twice"
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert [types[node.input[1]] for node in convolutions] == [low] * (len(convolutions) - 1) + [FLOAT]
        assert {types[n.output[0]] for n in graph.node if n.op_type == "MatMul"} <= {low}
        # The weights dominate the file: it is about half as large.
        assert lowered.ByteSize() < 0.6 * model.ByteSize() + 60_000 + diffeomorphic * 3e5
        # Small networks' kernels weigh as much as their weights; a plan in float32 has all of these and more.
        assert len(build_plan(rtx, lowered, grid)) < weights + 1.2e6


def test_the_warped_image_is_sampled_in_float32(tmp_path: Path) -> None:
    """It differs from the float32 graph's by what the field's rounding makes, and not by a rounding of its own."""
    source = make_source(diffeomorphic=True)
    out = export_onnx(source, tmp_path / "m.onnx", Tolerance(), False, [], with_warp=True, precision="bf16")
    lowered = onnx.load(out.model)
    assert (out.contract.precision, out.contract.outputs) == ("bf16", ("field", "warped"))
    types = types_of(lowered)
    samplers = [node for node in lowered.graph.node if node.op_type == "GridSample"]
    assert len(samplers) == 8
    assert {types[value] for node in samplers for value in node.input} == {FLOAT}
    [pair] = source.pairs
    field, warped = run(emulate(lowered), pair, ["field", "warped"])
    padded = np.pad(pair.moving, 1)  # past the edge the graph falls to zero within a voxel
    where = np.indices(pair.moving.shape) + field + 1
    expected = map_coordinates(padded, where, order=1, mode="constant")
    assert warped[0] == pytest.approx(expected, abs=1e-5)


def test_a_graph_for_any_size_in_low_precision(tmp_path: Path) -> None:
    source = make_source()
    out = export_onnx(source, tmp_path / "m.onnx", Tolerance(), False, [], precision="fp16")
    assert (out.contract.precision, out.contract.sizes) == ("fp16", "multiples")
    [pair] = source.pairs
    larger = replace(pair, moving=np.pad(pair.moving, [(0, 16)] * 3), fixed=np.pad(pair.fixed, [(0, 16)] * 3))
    exact = trace_once(source.network.inference_copy(any_size=True), source.expects.shape)
    error = np.abs(run(emulate(onnx.load(out.model)), larger)[0] - run(exact, larger)[0]).max()
    assert 0 < error < 0.02


def build_plan(rtx: Any, model: Any, grid: tuple[int, int, int]) -> bytes:
    """The module's own API, strongly typed, nothing of ours."""
    logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name in ("moving", "fixed"):
        profile.set_shape(name, *[(1, 1, *grid)] * 3)
    config.add_optimization_profile(profile)
    config.clear_flag(rtx.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
    return bytes(builder.build_serialized_network(network, config))


@pytest.mark.parametrize(("precision", "kind", "apart"), [("fp16", "float16", 0.6), ("bf16", "bfloat16", 0.05)])
def test_the_emulation_is_the_network_with_every_layer_rounded(precision: str, kind: str, apart: float) -> None:
    """Against VoxelMorph written out in eager torch, rounding by hand; the head's weights are not rounded.

    Sums in another order fall to the other side of a rounding now and then; in float16 eight times as often.
    """
    source = make_source()
    network, [pair] = source.network, source.pairs

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(getattr(torch, kind)).float()

    def block(layer: Any, x: torch.Tensor) -> torch.Tensor:
        conv = layer.main
        x = functional.conv3d(x, rounded(conv.weight), rounded(conv.bias), conv.stride, conv.padding)
        return rounded(functional.leaky_relu(rounded(x), 0.2))

    unet = network.unet_model
    with torch.inference_mode():
        images = rounded(torch.from_numpy(np.stack([pair.moving, pair.fixed])[None]))
        levels = [images]
        for layer in unet.downarm:
            levels.append(block(layer, levels[-1]))
        x = levels.pop()
        for layer in unet.uparm:
            x = functional.interpolate(block(layer, x), scale_factor=2.0, mode="nearest")
            x = torch.cat([x, levels.pop()], dim=1)
        for layer in unet.extras:
            x = block(layer, x)
        expected = network.flow(x)[0].numpy()
    model = trace_once(network, source.expects.shape)
    [exact], [found] = run(model, pair), run(emulate(lower(model, precision)), pair)
    error = np.abs(expected - exact).max()
    assert error > 1e-3, "rounding must show for the comparison to mean something"
    assert np.abs(found - expected).mean() < apart * np.abs(expected - exact).mean()
    assert np.abs(found - exact).max() == pytest.approx(error, rel=0.2)


def test_layers_kept_in_float32_are_exact() -> None:
    source = make_source()
    model = trace_once(source.network, source.expects.shape)
    parts = layers(model, "fp16")
    assert "unet_model.downarm.0.main" in parts
    assert 8 < len(parts) <= 24
    everything = [name for part in parts.values() for name in part]
    same = lower(model, "fp16", everything)
    assert [n.op_type for n in same.graph.node] == [n.op_type for n in model.graph.node]
    np.testing.assert_array_equal(run(same, source.pairs[0])[0], run(model, source.pairs[0])[0])


def test_a_published_model_says_its_precision_and_how_it_was_compared(tmp_path: Path) -> None:
    found = {p: export_onnx(make_source(), tmp_path / f"{p}.onnx", Tolerance(), False, [], precision=p) for p in TYPES}
    half, brain = (json.loads(found[p].record.read_text()) for p in TYPES)
    assert half["parity"]["emulated"]
    assert 0 < half["parity_in_runtime"]["field_mm_max"] <= 0.05
    assert half["tolerance"]["field_mm_max"] == parity.BOUNDS["fp16"].field_mm_max
    assert (half["opset"], brain["opset"]) == (20, 22)
    assert brain["parity"]["emulated"]
    assert brain["parity_in_runtime"] is None
    assert brain["parity"]["field_mm_max"] > 2 * half["parity"]["field_mm_max"]
    engine = open_engine(found["fp16"].model, "cpu")
    assert engine.contract.precision == "fp16"
    [pair] = make_source().pairs
    assert engine.predict(pair.moving, pair.fixed).dtype == np.float32
    with pytest.raises(DeviceError, match=r"bf16\.onnx is bf16, which ONNX Runtime does not run on a CPU"):
        open_engine(found["bf16"].model, "cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> list[object]:
    """The arguments that export a network of ``make_source``."""
    path = tmp_path / "in" / "c.pth.tar"
    path.parent.mkdir()
    torch.save({"state_dict": make_source().network.state_dict()}, path)
    return ["export", path, "--network", "voxelmorph", "--grid", 16, 32, 48, "--spacing", 1.5, 2, 1]


def test_out_of_bounds_is_exit_4_and_no_file(checkpoint: list[object], tmp_path: Path, run_cli: RunCli) -> None:
    code, _, err = run_cli([*checkpoint, "--precision", "fp16", "--atol-mm", 1e-4, "-o", tmp_path / "out/m.onnx"])
    assert (code, err.count("\n")) == (4, 1)
    assert "field_mm_max" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_auto_steps_down_and_says_what_hurt(checkpoint: list[object], tmp_path: Path, run_cli: RunCli) -> None:
    """Bounds just below what float16 makes: a mixed model holds; far below: float32 alone does."""
    plain = export_onnx(make_source(), tmp_path / "fp16.onnx", Tolerance(), False, [], precision="fp16")
    error = plain.parity.field_mm_max
    out = tmp_path / "mixed.onnx"
    line = [*checkpoint, "--precision", "auto", "-o"]
    code, said, err = run_cli([*line, out, "--atol-mm", max(0.97 * error, 4.85 * plain.parity.field_mm_p99)])
    assert code == 0, err
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["contract"]["precision"] == "fp16"
    first, *_, last = record["attempts"]
    assert first["beyond"]
    assert first["float32_layers"] == {}
    assert last["beyond"] == []
    assert 1 <= len(last["float32_layers"]) <= 12
    worst = list(last["float32_layers"].values())
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > 0
    for layer in last["float32_layers"]:
        assert f"float32: {layer} ({last['float32_layers'][layer]:.2e} mm" in said
    assert "fp16: field_mm" in said
    casts = [sum(n.op_type == "Cast" for n in onnx.load(p).graph.node) for p in (plain.model, out)]
    assert casts[1] > casts[0], "more islands"

    exact = tmp_path / "exact.onnx"
    code, said, err = run_cli([*line, exact, "--atol-mm", error / 100])
    assert code == 0, err
    record = json.loads(exact.with_suffix(".json").read_text())
    assert record["contract"]["precision"] == "fp32"
    assert len(record["attempts"]) > 3
    assert not any(n.op_type == "Cast" for n in onnx.load(exact).graph.node)


def test_float32_out_of_bounds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake is no matter of precision: auto does not step around it."""

    def wrong(*arguments: Any) -> Any:
        model = trace_once(*arguments)
        next(n for n in model.graph.node if n.op_type == "LeakyRelu").attribute[0].f = 0.3
        return model

    monkeypatch.setattr("ofg_deploy.export.onnx.trace", wrong)
    monkeypatch.setattr("ofg_deploy.export.precision.MAX_LAYERS", 2)
    with pytest.raises(ParityError, match="field_mm_max"):
        export_onnx(make_source(), tmp_path / "m.onnx", Tolerance(), False, [], precision="auto")
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_float16_are_not_published(tmp_path: Path) -> None:
    source = make_source()
    with torch.no_grad():  # the same network: a layer times 1e7, and what reads it by that less
        source.network.unet_model.extras[2].main.weight *= 1e7
        source.network.unet_model.extras[2].main.bias *= 1e7
        source.network.flow.weight /= 1e7
    with pytest.raises(ParityError, match="nan"):
        export_onnx(source, tmp_path / "m.onnx", Tolerance(), False, [], precision="fp16")
    assert list(tmp_path.iterdir()) == []
