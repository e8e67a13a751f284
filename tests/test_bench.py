"""Bench: operations counted right, ratios that survive a busy machine, memory of the model alone, reasons for gaps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.stats
import torch
from bench_stub import Stub
from onnx import TensorProto, helper
from test_networks import awake
from torch.utils.flop_counter import FlopCounterMode
from traced import trace_once
from training_runs import EXPECTS, find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy.bench.plan import TableOptions
from ofg_deploy.bench.proof import ProofOptions, prove
from ofg_deploy.bench.table import measure_table
from ofg_deploy.bench.timing import Taken, interleaved, latency
from ofg_deploy.bench.worker import Worker
from ofg_deploy.errors import DeviceError, InputError, ParityError
from ofg_deploy.export.flops import count_flops
from ofg_deploy.export.form import choose_form
from ofg_deploy.export.onnx import export_onnx
from ofg_deploy.export.parity import Tolerance
from ofg_deploy.export.source import from_run
from ofg_deploy.export.topology import topology, weights
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, read_model, seal
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.run import Run

RunCli = Callable[[list[object]], tuple[int, str, str]]
LINUX = Path("/proc/self/clear_refs").exists()
IMAGE = np.zeros((4, 5, 6), np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("run")
    pairs = find_tiny_pairs(*make_subjects(base, 4))
    return run_training(base / "run", pairs, tiny_config(lr=5e-3, epochs=1), base / "cache")[0]


@pytest.fixture(scope="module")
def model(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with guidance."""
    out = tmp_path_factory.mktemp("models") / "fp32.onnx"
    return export_onnx(from_run(run.folder, lambda: None), out, Tolerance(), False, []).model


@pytest.fixture(scope="module")
def unguided(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph with other weights."""

    def other_weights(graph: onnx.ModelProto) -> None:
        for tensor in weights(graph):
            value = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value * np.float32(1.25), tensor.name))

    out = tmp_path_factory.mktemp("unguided") / "without.onnx"
    return changed(model, out, other_weights, weights_sha256="0" * 64, training={"guidance": "none"})


def changed(
    source: Path, out: Path, change: Callable[[onnx.ModelProto], None] = lambda _: None, **contract: Any
) -> Path:
    """A sealed copy with another graph or contract."""
    graph = onnx.load(source)
    change(graph)
    old: Contract = read_model(source).contract
    helper.set_model_props(graph, {CONTRACT_KEY: replace(old, **contract).to_json(), SEAL_KEY: UNSEALED})
    out.write_bytes(seal(graph.SerializeToString()))
    return out


# Timing


def test_ratio_survives_a_machine_that_slows_down() -> None:
    """Ten times slower at the end, one turn disturbed: the ratio of each turn is what counts."""
    drift = np.linspace(1, 10, 201)
    noise = np.random.default_rng(3).normal(1, 0.1, 201)
    baseline = [Taken(d, 2 * d) for d in drift]
    other = [Taken(1.5 * d * n, 1.8 * d) for d, n in zip(drift, noise, strict=True)]
    other[4] = Taken(400.0, 1.8 * drift[4])
    found = latency(other, baseline)
    ratios = np.array([a.clock_s / b.clock_s for a, b in zip(other, baseline, strict=True)])
    assert found.ratio.median == pytest.approx(1.5, rel=0.02)
    assert found.processor_ratio.median == pytest.approx(0.9, rel=1e-12)
    assert found.processor_ratio.low == pytest.approx(found.processor_ratio.high, rel=1e-12)
    independent = scipy.stats.bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(5))
    assert found.ratio.low == pytest.approx(independent.confidence_interval.low, abs=0.002)
    assert found.ratio.high == pytest.approx(independent.confidence_interval.high, abs=0.002)
    assert found.p50_s == pytest.approx(sorted(t.clock_s for t in other)[100])


def test_turns_hold_everybody_once_in_changing_order() -> None:
    called: list[str] = []

    def call(name: str) -> Taken:
        called.append(name)
        return Taken(1.0, 1.0)

    taken = interleaved({"a": lambda: call("a"), "b": lambda: call("b")}, 12)
    turns = ["".join(called[n : n + 2]) for n in range(0, 24, 2)]
    assert {len(values) for values in taken.values()} == {12}
    assert set(turns) == {"ab", "ba"}


# Operations


def small_graph(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("moving", TensorProto.FLOAT, ["N", 1, "X", "Y", "Z"])
    field = helper.make_tensor_value_info("field", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", [value], [field], initializers))


def test_operations_of_one_convolution_in_closed_form() -> None:
    """Stride 2, two groups, kernel 3x2x1: 2 x multiply-adds; transposed, each value read meets the kernel once."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Concat", ["moving"] * 4, ["four"], axis=1),
        helper.make_node("Conv", ["four", "down"], ["small"], strides=[2, 2, 2], group=2),
        helper.make_node("Relu", ["small"], ["positive"]),
        helper.make_node("ConvTranspose", ["positive", "up"], ["field"], strides=[2, 2, 2]),
    ]
    model = small_graph(nodes, [weight("down", 6, 2, 3, 2, 1), weight("up", 6, 5, 2, 3, 2)])
    found = count_flops(model, (11, 8, 9))
    values = 5 * 4 * 5  # of (11 - 3) // 2 + 1, (8 - 2) // 2 + 1, (9 - 1) // 2 + 1
    assert found.products == 2 * 6 * values * 2 * 6 + 2 * 6 * values * 5 * 12
    assert (found.elementwise, found.normalisation, found.uncounted) == (6 * values, 0, ())


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph-half", "lku-net", "vit-v-net", "transmorph-small"])
def test_operations_are_those_torch_counts(name: str) -> None:
    shape = (32, 48, 32) if name == "transmorph-small" else (32, 64, 32)  # as test_networks has traced them
    network = awake(name, shape)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, *shape), torch.zeros(1, 1, *shape))
    exported = network.inference_copy(choose_form(network, False).sizes == "multiples")
    found = count_flops(trace_once(exported, shape), shape)
    assert found.products == counter.get_total_flops()
    assert found.uncounted == ()
    assert found.elementwise > 0


def test_an_operator_nobody_counts_is_named() -> None:
    """And a shape that depends on values is an error, not a zero."""
    model = small_graph([helper.make_node("CumSum", ["moving", "axis"], ["field"])], [])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "axis"))
    assert count_flops(model, (4, 5, 6)).uncounted == ("CumSum",)
    model = small_graph(
        [helper.make_node("NonZero", ["moving"], ["at"]), helper.make_node("Cast", ["at"], ["field"], to=1)], []
    )
    with pytest.raises(InputError, match="which shape"):
        count_flops(model, (4, 5, 6))


def test_quantised_weights_count_by_shape_not_by_value() -> None:
    def quantised(value: int, zero_point: int, axis: int = 0) -> onnx.ModelProto:
        tensors = {
            "w": np.full((2, 3), value, np.int8),
            "scale": np.full(2, 0.1 * value, np.float32),
            "zero": np.full(2, zero_point, np.int8),
        }
        node = helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["field"], axis=axis)
        return small_graph([node], [onnx.numpy_helper.from_array(v, k) for k, v in tensors.items()])

    assert topology(quantised(1, 0)) == topology(quantised(7, 3))
    assert topology(quantised(1, 0)).sha256 != topology(quantised(1, 0, axis=1)).sha256
    assert topology(quantised(1, 0)).parameters == 10


# The process of a candidate


@pytest.mark.skipif(not LINUX, reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_the_models_own() -> None:
    candidate: Any = Stub(megabytes=96)
    with Worker(candidate, IMAGE, IMAGE) as worker:
        assert 94 << 20 < (worker.ready.peak_bytes or 0) < 104 << 20
        assert worker.run().clock_s > 0
        assert np.array_equal(worker.predict(IMAGE + 2, IMAGE)[1], IMAGE + 2)


@pytest.mark.parametrize(
    ("how", "message"),
    [("ofg", "^no such card$"), ("other", "^RuntimeError: bad plan$"), ("os", "gone"), ("dies", "exit code 3")],
)
def test_failure_of_a_process_is_one_line(how: str, message: str) -> None:
    candidate: Any = Stub(how)
    with pytest.raises(DeviceError, match=message) as caught:
        Worker(candidate, IMAGE, IMAGE)
    assert "\n" not in str(caught.value)


# The proof


def test_proof(model: Path, unguided: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "new/bench.json"
    line = ["bench", model, unguided, "--repeats", 2, "--guidance-steps", 1, "--threads", 1, "--out", out]
    code, printed, err = run_cli(line)
    assert code == 0, err
    assert "same topology: 32 nodes" in printed
    report = json.loads(out.read_text())
    assert report["same_topology"] is True
    assert report["operators"] == {"Concat": 5, "Conv": 12, "LeakyRelu": 11, "Resize": 4}
    rows = {row["candidate"]: row for row in report["latency"]}
    assert list(rows) == ["model 1", "model 2", "model 1 again", "model 1 and 1 steps on the pair"]
    assert [row["guidance"] for row in rows.values()] == ["ofg", "none", "ofg", "ofg"]
    assert rows["model 1"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(row["processor_s"] > 0 and row["p95_s"] >= row["p50_s"] > 0 for row in rows.values())
    assert report["parameters"] == sum(p.numel() for p in build_network("voxelmorph", EXPECTS.shape).parameters())
    if LINUX:
        assert all(row["peak_bytes"] > 1e6 for row in rows.values())


def test_a_trace_of_guidance_is_found(model: Path, tmp_path: Path) -> None:
    def slope(graph: onnx.ModelProto) -> None:
        next(n for n in graph.graph.node if n.op_type == "LeakyRelu").attribute[0].f = 0.1

    other = changed(model, tmp_path / "other.onnx", slope)
    with pytest.raises(ParityError, match="guidance left a trace"):
        prove([model, other], ProofOptions(repeats=2))


# The table


def test_table_says_what_ran_and_why_the_rest_did_not(run: Run, model: Path, tmp_path: Path, run_cli: RunCli) -> None:
    line = ["bench", model, "--checkpoint", run.folder, "--runtimes", "torch,onnxruntime,tensorrt", "--repeats", 2]
    line += ["--precisions", "fp32,int8", "--threads", 1, "--out", tmp_path / "t.json", "--plot", tmp_path / "t.png"]
    code, printed, err = run_cli(line)
    assert code == 0, err
    report = json.loads((tmp_path / "t.json").read_text())
    rows = {(row["runtime"], row["precision"]): row for row in report["rows"]}
    assert list(rows) == [(r, p) for r in ("torch", "onnxruntime", "tensorrt") for p in ("fp32", "int8")]
    ran = [key for key, row in rows.items() if row["why_not"] is None]
    assert ran == [("torch", "fp32"), ("onnxruntime", "fp32")]
    eager, exported = (rows[key] for key in ran)
    assert eager["ratio"]["median"] == 1.0
    assert eager["difference"]["field_mm_max"] == 0.0
    assert 0 < exported["difference"]["field_mm_max"] < 1e-4
    assert exported["difference"]["dice_difference"] is not None
    assert exported["file_bytes"] == model.stat().st_size
    assert report["pairs"]["count"] == 2
    assert "no int8 .onnx among the files" in rows["onnxruntime", "int8"]["why_not"]
    assert "no int8 form" in rows["torch", "int8"]["why_not"]
    assert printed.count("not measured:") == 4
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    code, printed, _ = run_cli(["bench", model, "--runtimes", "onnxruntime", "--repeats", 2, "--threads", 1, "--json"])
    assert [row["file_bytes"] for row in json.loads(printed)["rows"]] == [model.stat().st_size]


def test_difference_is_that_of_the_fields_in_mm(model: Path, tmp_path: Path) -> None:
    """A bias of 0.01 voxel along y, where the spacing is 2.5 mm, in a file that says it is fp16."""

    def shift(graph: onnx.ModelProto) -> None:
        [bias] = [t for t in graph.graph.initializer if t.name == "flow.bias"]
        value = onnx.numpy_helper.to_array(bias) + np.array([0, 0.01, 0], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(value, bias.name))

    other = changed(model, tmp_path / "fp16.onnx", shift, precision="fp16")
    report = measure_table([model, other], TableOptions(("onnxruntime",), repeats=2, threads=1))
    exact, shifted = (row["difference"] for row in report["rows"])
    assert exact["field_mm_max"] == 0.0
    for figure in ("field_mm_mean", "field_mm_p99", "field_mm_max"):
        assert shifted[figure] == pytest.approx(0.025, rel=1e-3)
    assert report["pairs"] == {"count": 1, "from": "one synthetic pair"}
    alone = measure_table([other], TableOptions(("onnxruntime",), repeats=2, threads=1))
    assert [row["difference"] for row in alone["rows"]] == [None]


def test_a_gpu_that_is_not_there(model: Path, run: Run, tmp_path: Path, run_cli: RunCli) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    line = ["bench", model, "--device", "cuda", "--checkpoint", run.folder, "--repeats", 2]
    code, _, err = run_cli([*line, "--runtimes", "torch,tensorrt", "--out", tmp_path / "t.json"])
    assert code == 5
    assert "none of the 2 rows could run here; the first: no CUDA device" in err
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(model: Path, unguided: Path, run: Run, tmp_path: Path, run_cli: RunCli) -> None:
    there = tmp_path / "there.json"
    there.write_text("{}")
    other_grid = changed(model, tmp_path / "other.onnx", expects=replace(EXPECTS, shape=(16, 16, 16)))
    half = changed(model, tmp_path / "fp16.onnx", precision="fp16")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:-1] + b"\0")
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(onnx.ModelProto().SerializeToString())
    table = ["--runtimes", "onnxruntime"]
    for arguments, code, words in [
        ([model, model, model], 2, "one or two"),
        ([run.best], 3, "not an .onnx"),
        ([tmp_path / "none.onnx"], 3, "not a file"),
        ([damaged], 3, "changed or damaged"),
        ([foreign], 3, "not made by ofg export"),
        ([model, other_grid], 2, "different networks or grids"),
        ([model, half], 2, "--runtimes"),
        ([model, "--repeats", 1], 2, "2 or more"),
        ([model, "--guidance-steps", 0], 2, "1 or more"),
        ([model, "--threads", -1], 2, "--threads -1: give 1 or more, or 0 for all cores"),
        ([model, "--grid", 8, 8, 8], 2, "grid 8 8 8: this model takes"),
        ([model, *table, "--threads", -1], 2, "--threads -1: give 1 or more, or 0 for all cores"),
        ([model, *table, "--grid", 0, 0, 0], 2, "grid 0 0 0: this model takes"),
        ([model, "--out", there], 3, "--overwrite"),
        ([model, "--runtimes", "onnxrt"], 2, "'onnxrt' is unknown"),
        ([model, "--precisions", "fp8"], 2, "'fp8' is unknown"),
        ([model, "--runtimes", "torch,torch"], 2, "twice"),
        ([model, *table, "--repeats", 1], 2, "2 or more"),
        ([model, *table, "--guidance-steps", 5], 2, "--guidance-steps"),
        ([model, *table, "--plot", tmp_path / "p.jpg"], 2, ".png"),
        ([model, unguided, *table], 2, "different weights"),
        ([model, model, *table], 2, "both fp32"),
        ([model, *table, "--checkpoint", tmp_path / "nowhere"], 3, "does not exist"),
        ([unguided, *table, "--checkpoint", run.folder], 2, "other weights"),
        ([half, *table, "--plot", tmp_path / "p.png", "--repeats", 2], 2, "--plot"),
    ]:
        before = sorted(tmp_path.iterdir())
        found, _, err = run_cli(["bench", *arguments])
        assert found == code, (arguments, err)
        assert words in err
        assert err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before


def test_the_results_page_quotes_the_committed_figures() -> None:
    root = Path(__file__).resolve().parents[1]
    cases = json.loads((root / "benchmarks/results/zero_overhead.json").read_text())["cases"]
    table = (root / "docs/results.md").read_text().split("<!-- zero_overhead -->")[1]
    quoted = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
    assert len(quoted) == len(cases) == 5
    for cells, case in zip(quoted, cases, strict=True):
        rows = {row["candidate"]: row for row in case["latency"]}
        guided, other, again = (rows[name] for name in ("model 1", "model 2", "model 1 again"))
        [optimised] = [row for row in case["latency"] if row["steps_on_the_pair"]]
        assert (guided["guidance"], other["guidance"], case["same_topology"]) == ("ofg", "none", True)
        assert case["flops"]["uncounted"] == []
        assert cells[:2] == [case["network"], "x".join(map(str, case["grid"]))]
        expected = [case["nodes"], case["parameters"], case["flops"]["products"] / 1e9]
        for row in (other, again):
            expected += [row["processor_ratio"][key] for key in ("median", "low", "high")]
        expected += [other["ratio"]["median"], other["peak_bytes"] / 1e6, guided["peak_bytes"] / 1e6]
        expected += [optimised["processor_ratio"]["median"]]
        numbers = re.findall(r"[0-9][0-9.,]*", " ".join(cells[2:]))
        assert len(numbers) == len(expected)
        for text, value in zip(numbers, expected, strict=True):
            decimals = len(text.partition(".")[2])
            assert float(text.replace(",", "")) == pytest.approx(value, abs=0.51 * 10**-decimals), (cells, text)
