"""TensorRT engines, really built by tensorrt_rtx without a GPU: what they hold, what is refused, what is kept."""

# ruff: noqa: E402
from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="models are made with onnx (pip install ofg-deploy[train])")
torch = pytest.importorskip("torch", reason="networks are traced with torch (pip install ofg-deploy[train])")
rtx = pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt_rtx (pip install ofg-deploy[rtx])")

from batches import children
from test_networks import awake
from traced import trace_once

from ofg_deploy.cli.verbs.building import BuildProgress
from ofg_deploy.errors import DeviceError, InputError
from ofg_deploy.export import engine_cache
from ofg_deploy.export.engine import EngineJob, export_engine
from ofg_deploy.export.tensorrt import build_here, refusal
from ofg_deploy.export.toolchain import BuildOptions, choose_toolchain
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, read_model, seal
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve.cuda import present_gpu
from ofg_deploy.serve.engine_file import file_mismatches, read_record, record_path
from ofg_deploy.serve.tensorrt import TensorRT
from ofg_deploy.train.networks import build_network

RunCli = Callable[[list[object]], tuple[int, str, str]]
TARGETS = ("sm86", "sm89", "sm120")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OFG_CACHE", str(folder))
    return folder


@pytest.fixture
def no_gpu() -> None:
    try:
        present_gpu()
    except DeviceError:
        return
    pytest.skip("this test is about a machine without a GPU")


def sealed(path: Path, model: Any, name: str, grid: tuple[int, int, int]) -> Path:
    contract = Contract(name, NetworkInput(grid, (1.5, 2.0, 1.0), Intensity("minmax"), "none"), 16, "ab" * 32, {})
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json(), SEAL_KEY: UNSEALED})
    path.write_bytes(seal(model.SerializeToString()))
    return path


def traced(path: Path, name: str, grid: tuple[int, int, int], diffeomorphic: bool = False) -> Path:
    return sealed(path, trace_once(awake(name, grid, diffeomorphic), grid), name, grid)


@pytest.fixture(scope="module")
def voxelmorph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traced(tmp_path_factory.mktemp("voxelmorph") / "model.onnx", "voxelmorph", (16, 32, 48))


def cpu_job(*targets: str, **changes: Any) -> EngineJob:
    return EngineJob(choose_toolchain(BuildOptions(targets=targets or ("sm86",))), **changes)


def built_by_hand(model: Path, grid: tuple[int, int, int], targets: tuple[str, ...]) -> bytes:
    """The module's own API, nothing of ours: builds are deterministic, so the bytes can be compared."""
    logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, logger).parse(model.read_bytes())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name in ("moving", "fixed"):
        profile.set_shape(name, *[(1, 1, *grid)] * 3)
    config.add_optimization_profile(profile)
    config.clear_flag(rtx.BuilderFlag.TF32)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(getattr(rtx.ComputeCapability, target.upper()), index)
    return bytes(builder.build_serialized_network(network, config))


# Building


def test_one_plan_for_three_targets_is_the_pure_plan_with_its_record(
    voxelmorph: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(voxelmorph.read_bytes())
    code, out, err = run_cli(["export", model, "--trt", "--cpu-build", "--target", "sm120,sm86,sm89"])
    assert code == 0, err
    assert f"tensorrt_rtx {rtx.__version__} for sm86 sm89 sm120" in out
    plan = (tmp_path / "model.engine").read_bytes()
    assert plan == built_by_hand(model, (16, 32, 48), TARGETS)
    assert plan != built_by_hand(model, (16, 32, 48), ("sm86",)), "the targets would not matter"
    record = json.loads((tmp_path / "model.engine.json").read_text())
    shape = [1, 1, 16, 32, 48]
    expected = {
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "onnx": "model.onnx",
        "onnx_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "module": "tensorrt_rtx",
        "module_version": rtx.__version__,
        "gpu": None,
        "capabilities": list(TARGETS),
        "precision": "fp32",
        "profile": {"moving": [shape] * 3, "fixed": [shape] * 3},
    }
    assert {key: record[key] for key in expected} == expected
    graph = onnx.load(str(model)).graph
    assert {t["name"] for t in record["tensors"]} == {v.name for v in [*graph.input, *graph.output]}
    assert {tuple(t["shape"]) for t in record["tensors"]} == {(-1, 1, 16, 32, 48), (-1, 3, 16, 32, 48)}
    assert {t["dtype"] for t in record["tensors"]} == {"float32"}
    # Concat of the images, then a layer for each node: the parser neither drops nor splits any of them here.
    assert record["layers"] == len(graph.node)
    assert Contract.from_json(json.dumps(record["contract"]), model) == read_model(model).contract
    blank = {k: v for k, v in record.items() if k != "sha256"}
    assert record["sha256"] == hashlib.sha256(json.dumps(blank, sort_keys=True).encode()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.engine", "model.engine.json", "model.onnx"]


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("name", "grid", "diffeomorphic"),
    [
        ("voxelmorph", (16, 32, 48), True),  # integrates in the graph, with the GridSample of volumes
        ("voxelmorph", (17, 30, 16), False),  # no multiple of the divisor: padded and cropped in the graph
        ("voxelmorph-half", (16, 32, 48), False),
        ("vit-v-net", (32, 64, 32), False),
        ("transmorph-small", (32, 48, 32), False),
        ("lku-net", (16, 32, 16), False),
    ],
)
def test_every_architecture_builds(tmp_path: Path, name: str, grid: tuple[int, int, int], diffeomorphic: bool) -> None:
    model = traced(tmp_path / "model.onnx", name, grid, diffeomorphic)
    published = export_engine(model, tmp_path / "model.engine", cpu_job(*TARGETS), False)
    weights = sum(np.prod(t.dims) for t in onnx.load(str(model)).graph.initializer if t.data_type == 1)
    assert published.engine.stat().st_size > 4 * weights, "the weights are in the plan, in float32"
    assert published.record.layers >= len(onnx.load(str(model)).graph.node) / 2
    assert published.record.capabilities == TARGETS
    assert read_record(published.engine) == published.record
    assert file_mismatches(published.engine, published.engine.read_bytes(), published.record) == []


def test_a_checkpoint_becomes_model_and_engine_at_once(tmp_path: Path, run_cli: RunCli) -> None:
    torch.manual_seed(0)
    state = build_network("voxelmorph", (16, 16, 32)).state_dict()
    torch.save({"state_dict": state}, tmp_path / "c.pth.tar")
    line = ["export", tmp_path / "c.pth.tar", "--network", "voxelmorph", "--grid", 16, 16, 32]
    line += ["--trt", "--cpu-build", "--target", "sm86", "--max-batch", 4, "-o"]
    assert run_cli([*line, tmp_path / "out" / "m.onnx"])[0] == 0
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["m.engine", "m.engine.json", "m.json", "m.onnx"]
    record = read_record(tmp_path / "out" / "m.engine")
    assert record.profile["fixed"] == ((1, 1, 16, 16, 32), (1, 1, 16, 16, 32), (4, 1, 16, 16, 32))
    assert record.onnx_sha256 == json.loads((tmp_path / "out" / "m.json").read_text())["model_sha256"]
    # All or none: what cannot be built takes the model with it.
    state["unet_model.downarm.0.main.weight"][0, 0, 0, 0, 0] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "c.pth.tar")
    code, _, err = run_cli([*line, tmp_path / "nan" / "m.onnx"])
    assert (code, err.count("\n")) == (3, 1)
    assert "1 of 432 values of 'unet_model.downarm.0.main.weight' are NaN or infinite" in err
    assert not (tmp_path / "nan").exists()


def test_bad_requests_are_one_line_and_write_nothing(
    voxelmorph: Path, tmp_path: Path, run_cli: RunCli, no_gpu: None
) -> None:
    cpu = ["--trt", "--cpu-build", "--target"]
    changed = bytearray(voxelmorph.read_bytes())
    changed[1000] ^= 1
    truncated, damaged = tmp_path / "truncated.onnx", tmp_path / "damaged.onnx"
    truncated.write_bytes(voxelmorph.read_bytes()[:-5000])
    damaged.write_bytes(changed)
    there = sorted(tmp_path.iterdir())
    for line, code, words in [
        ([voxelmorph], 2, "add --trt"),
        ([voxelmorph, "--trt"], 5, "--cpu-build --target"),
        ([voxelmorph, "--trt", "--cpu-build"], 2, "--target"),
        ([voxelmorph, "--trt", "--target", "sm86"], 2, "--cpu-build"),
        ([voxelmorph, "--max-batch", 2], 2, "go with --trt"),
        ([voxelmorph, *cpu, "sm86", "--max-batch", 0], 2, "1 or more"),
        ([voxelmorph, *cpu, "86"], 2, "sm86,sm89"),
        ([voxelmorph, *cpu, "sm86,sm86"], 2, "twice"),
        ([voxelmorph, *cpu, "sm90"], 5, "sm75 sm80 sm86 sm89 sm120"),
        ([voxelmorph, *cpu, "sm86", "-o", tmp_path / "m.onnx"], 2, ".engine"),
        ([voxelmorph, *cpu, "sm86", "--network", "voxelmorph"], 2, "bare checkpoint"),
        ([voxelmorph, *cpu, "sm86", "--trt-module", "tensorrt"], 5, "tensorrt is not installed"),
        ([truncated, *cpu, "sm86"], 3, "no contract"),
        ([damaged, *cpu, "sm86"], 3, "changed or damaged"),
        ([tmp_path / "none.onnx", *cpu, "sm86"], 3, "is not a file"),
    ]:
        given = line if "-o" in line else [*line, "-o", tmp_path / "m.engine"]
        found, _, err = run_cli(["export", *given])
        assert (found, err.count("\n")) == (code, 1), (line, err)
        assert words in err, (line, err)
    assert sorted(tmp_path.iterdir()) == there


def graph(
    nodes: list[Any],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    output: tuple[str, int] = ("field", 3),
) -> Any:
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    images = [h.make_tensor_value_info(name, kind, ["N", 1, 8, 10, 12]) for name in ("moving", "fixed")]
    field = h.make_tensor_value_info(output[0], kind, ["N", output[1], 8, 10, 12])
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    body = h.make_graph(nodes, "g", images, [field], stored)
    return h.make_model(body, opset_imports=[h.make_opsetid("", opset)], ir_version=9)


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(op, inputs, [output], **attributes)


TRIPLE = node("Concat", ["moving", "fixed", "moving"], "field", axis=1, name="triple")
BROKEN = {
    "unknown operator": (graph([node("Frobnicate", ["moving"], "field", name="my_frob")]), ["my_frob", "(Frobnicate)"]),
    "an operator without a name": (graph([node("Frobnicate", ["moving"], "field")]), ["node 0", "(Frobnicate)"]),
    "wrong rank": (
        graph([node("Conv", ["moving", "w"], "field", name="flow_head")], {"w": np.ones((3, 1, 1, 1), np.float32)}),
        ["flow_head", "(Conv)", "number of kernel dimensions = 4"],
    ),
    "missing input": (
        graph([node("Concat", ["moving", "nowhere"], "field", axis=1, name="join")]),
        ["join", "(Concat)", "input was not registered"],
    ),
    "shapes that do not fit": (
        graph(
            [
                node("Transpose", ["moving"], "turned", perm=[0, 1, 4, 3, 2]),
                node("Concat", ["turned", "fixed", "fixed"], "field", axis=1, name="skip"),
            ]
        ),
        ["skip", "(Concat)", "must have the same dimensions"],
    ),
    "no such output": (graph([TRIPLE], output=("flow", 3)), ["refused by the ONNX parser"]),
    "another output": (
        graph([node("Concat", ["moving", "fixed"], "field", axis=1)], output=("field", 2)),
        ["output field float32 (-1, 2, 8, 10, 12)"],
    ),
    "opset": (graph([TRIPLE], opset=99), ["opset 99"]),
    "older opset": (graph([TRIPLE], opset=5), ["opset 5"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_graph_is_refused_with_node_and_operator(
    tmp_path: Path, case: str, run_cli: RunCli, cache: Path
) -> None:
    model, words = BROKEN[case]
    source = sealed(tmp_path / "model.onnx", model, "broken", (8, 10, 12))
    code, _, err = run_cli(["export", source, "--trt", "--cpu-build", "--target", "sm86"])
    assert (code, err.count("\n")) == (3, 1), err
    assert str(source) in err
    assert [word for word in words if word not in err] == [], err
    assert "cuda" not in err.lower(), "noise of a build without a GPU"
    assert list(tmp_path.iterdir()) == [source]
    assert not list(cache.rglob("*.engine"))


def test_an_intact_graph_of_the_same_making_builds(tmp_path: Path) -> None:
    source = sealed(tmp_path / "model.onnx", graph([TRIPLE]), "triple", (8, 10, 12))
    assert export_engine(source, tmp_path / "m.engine", cpu_job(), False).built_now


def parser_error(name: str, operator: str, text: str) -> SimpleNamespace:
    return SimpleNamespace(node_name=lambda: name, node_operator=lambda: operator, desc=lambda: text, node=lambda: 7)


def test_a_missing_sampler_is_refused_with_the_reason() -> None:
    """TensorRT before 11.2 says it of the rank; no such version is at hand, so its error is made here."""
    old = TensorRT("tensorrt", SimpleNamespace(__version__="10.13.0"))
    said = "Input rank must be 4\n[x.cpp] In y (cudaError 35: no driver)"
    error = refusal([parser_error("sample", "GridSample", said)], Path("m.onnx"), old)
    assert isinstance(error, DeviceError)
    for words in ("m.onnx integrates", "tensorrt 10.13.0 lacks", "11.2", ".onnx model", "sample (GridSample)"):
        assert words in str(error)
    assert str(error).endswith("Input rank must be 4")
    other = refusal([parser_error("", "Det", "no"), parser_error("", "", "odd")], Path("m.onnx"), old)
    assert isinstance(other, InputError)
    assert "node 7 (Det): no; odd" in str(other)


# Progress


def test_the_build_reports_nested_phases_and_stops_when_interrupted(voxelmorph: Path, tmp_path: Path) -> None:
    from rich.progress import Progress

    bars = Progress(disable=True)
    seen: list[str] = []

    class Watched(BuildProgress):
        def start(self, phase: str, parent: str | None, steps: int) -> None:
            super().start(phase, parent, steps)
            seen.extend(task.description for task in bars.tasks if task.description not in seen)

    done = export_engine(voxelmorph, tmp_path / "m.engine", cpu_job(progress=Watched(bars)), False)
    assert done.built_now
    depth = {phase.strip(): len(phase) - len(phase.lstrip()) for phase in seen}
    assert depth["Building engine"] == 0
    assert depth["Optimizing graph"] == 4, "two phases contain it"
    assert bars.tasks == [], "every phase ends"

    class Interrupted(BuildProgress):
        steps = 0

        def step(self, phase: str, done: int) -> None:
            self.steps += 1
            signal.raise_signal(signal.SIGINT)

    interrupted = Interrupted(bars)
    with pytest.raises(KeyboardInterrupt):
        export_engine(voxelmorph, tmp_path / "n.engine", cpu_job("sm89", progress=interrupted), False)
    assert interrupted.steps == 1
    assert children() == [], "the build ends with it"
    assert not (tmp_path / "n.engine").exists()


def crash(self: BuildProgress, phase: str, done: int) -> None:
    """In the middle of a build, as a native library would."""
    for builder in children():  # none at the steps that were on their way when it died
        os.kill(builder, signal.SIGSEGV)


def test_a_builder_that_crashes_is_one_line(
    voxelmorph: Path, tmp_path: Path, cache: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BuildProgress, "step", crash)
    engine = tmp_path / "m.engine"
    code, _, err = run_cli(["export", voxelmorph, "--trt", "--cpu-build", "--target", "sm86", "-o", engine])
    assert (code, err.count("\n")) == (5, 1)
    assert f"the process that built {voxelmorph} with tensorrt_rtx" in err
    assert "(crashed, SIGSEGV)" in err
    assert list(tmp_path.iterdir()) == []
    assert not list(cache.rglob("*.engine"))


# The cache

RACER = """
import sys, time
from pathlib import Path
from ofg_deploy.export import engine
real, me = engine.build, sys.argv.pop(1)
def slow(*arguments):
    Path(f"{me}.build").touch()
    time.sleep(1.5)
    return real(*arguments)
engine.build = slow
from ofg_deploy.cli import main
Path(f"{me}.ready").touch()
while not Path("go").exists():
    time.sleep(0.01)
main()
"""


def test_two_processes_at_once_build_once(voxelmorph: Path, tmp_path: Path) -> None:
    """Both start the export at the same moment, and a build takes longer than their starts can differ."""
    line = ["export", str(voxelmorph), "--trt", "--cpu-build", "--target", "sm86", "-o"]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, me, *line, f"{me}/model.engine"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in ("a", "b")
    ]
    while not all((tmp_path / f"{me}.ready").exists() for me in ("a", "b")):
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.02)
    (tmp_path / "go").touch()
    results = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], results
    assert len(list(tmp_path.glob("*.build"))) == 1
    printed = [out for out, _ in results]
    assert sorted("from the cache" in out for out in printed) == [False, True]
    assert sum("another process is building" in out for out in printed) == 1
    assert (tmp_path / "a/model.engine").read_bytes() == (tmp_path / "b/model.engine").read_bytes()


def test_what_the_cache_keeps(tiny_model: Callable[..., Any], tmp_path: Path, cache: Path) -> None:
    model = tiny_model().path

    def get(out: str, *targets: str, **changes: Any) -> bool:
        return export_engine(model, tmp_path / out, cpu_job(*targets, **changes), True).built_now

    assert get("1.engine")
    assert not get("2.engine")
    assert (tmp_path / "1.engine").read_bytes() == (tmp_path / "2.engine").read_bytes()
    first, second = (asdict(read_record(tmp_path / f"{n}.engine")) for n in (1, 2))
    assert first == second
    assert get("3.engine", again=True)
    assert get("4.engine", "sm89"), "another target is another engine"
    assert get("5.engine", "sm86", "sm89")
    larger = EngineJob(choose_toolchain(BuildOptions(targets=("sm86",), max_batch=2)))
    assert export_engine(model, tmp_path / "6.engine", larger, True).built_now
    newer = replace(cpu_job().tools, trt=TensorRT("tensorrt_rtx", SimpleNamespace(**{**vars(rtx), "__version__": "9"})))
    assert export_engine(model, tmp_path / "7.engine", EngineJob(newer), True).built_now
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.with_suffix(".json").write_text("{}")):
        for kept in cache.glob("engines/*.engine"):
            damage(kept)
        assert get("8.engine"), "a damaged entry is as good as none"
        assert not get("8.engine")


def test_a_cache_that_cannot_be_written(voxelmorph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="OFG_CACHE"):
        export_engine(voxelmorph, tmp_path / "m.engine", cpu_job(), False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert engine_cache.cache_folder() == Path(os.environ["OFG_CACHE"])
    monkeypatch.delenv("OFG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_cache.cache_folder() == tmp_path / "ofg-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert engine_cache.cache_folder() == tmp_path / ".cache" / "ofg-deploy"


def test_a_full_disk_during_the_build_leaves_nothing(
    voxelmorph: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        export_engine(voxelmorph, tmp_path / "m.engine", cpu_job(), False)
    assert list(tmp_path.iterdir()) == []
    assert [path.suffix for path in (cache / "engines").iterdir()] == [".lock"]


def test_the_timing_cache_of_a_module_that_has_one(voxelmorph: Path, tmp_path: Path) -> None:
    """tensorrt cannot be installed here; RTX still has its calls, deprecated and without effect."""
    tools = replace(cpu_job().tools, trt=TensorRT("tensorrt", rtx))
    timing = engine_cache.timing_path(tmp_path, replace(tools, gpu="NVIDIA RTX A6000/x"))
    assert timing.parent == tmp_path / "timing"
    assert timing.name == f"tensorrt-{rtx.__version__}-NVIDIA_RTX_A6000_x-sm86.cache"
    for _ in range(2):  # without and with a file that is there
        with pytest.warns(DeprecationWarning, match="no-ops in TensorRT-RTX"):
            build_here(read_model(voxelmorph), voxelmorph, tools, timing, lambda *_: True)
        assert timing.stat().st_size > 0


# Using


def test_registering_with_an_engine_where_there_is_no_gpu(
    voxelmorph: Path, tmp_path: Path, files: Any, run_cli: RunCli, no_gpu: None
) -> None:
    fixed, moving, *_ = files
    engine = tmp_path / "e" / "model.engine"
    export_engine(voxelmorph, engine, cpu_job(), False)
    line = ["register", fixed, moving, "-m", engine, "-o", tmp_path / "out"]
    for more, words in [([], "no usable GPU"), (["--rebuild"], "no usable GPU"), (["--device", "cpu"], "CUDA alone")]:
        code, _, err = run_cli([*line, *more])
        assert (code, err.count("\n")) == (5, 1), err
        assert words in err
    record_path(engine).write_text(record_path(engine).read_text().replace('"init": "none"', '"init": "affine"'))
    code, _, err = run_cli(line)
    assert (code, err.count("\n")) == (3, 1)
    assert "changed or damaged" in err
    assert not (tmp_path / "out").exists()
