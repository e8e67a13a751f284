"""Engine files: records read strictly and compared with the place; loading and running on stand-ins, in numbers."""

# ruff: noqa: E402
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rtx = pytest.importorskip("tensorrt_rtx", reason="stand-ins are checked against tensorrt_rtx (ofg-deploy[rtx])")

from engine_records import GPU, engine_record
from tensorrt_stand_ins import FakeCuda, fake_module, images

from ofg_deploy.cli.verbs.building import rebuild
from ofg_deploy.errors import DeviceError, InputError
from ofg_deploy.export.engine import EngineJob, export_engine
from ofg_deploy.export.toolchain import BuildOptions, choose_toolchain
from ofg_deploy.serve import cuda as cuda_leaf
from ofg_deploy.serve import tensorrt as leaf
from ofg_deploy.serve.cuda import Gpu
from ofg_deploy.serve.engine_file import (
    EngineRecord,
    Tensor,
    content_mismatches,
    file_mismatches,
    place_mismatches,
    read_record,
    record_path,
)
from ofg_deploy.serve.tensorrt import TensorRT, TensorRTEngine

# Records


@pytest.fixture
def record() -> EngineRecord:
    return engine_record()


def test_the_place_must_be_the_one_it_was_built_for(record: EngineRecord) -> None:
    here = {"tensorrt": "11.2.1", "tensorrt_rtx": "1.7"}
    anywhere = replace(record, gpu=None, capabilities=("sm86", "sm89"))
    assert place_mismatches(record, here, GPU) == []
    assert place_mismatches(anywhere, here, GPU) == []
    assert place_mismatches(anywhere, here, Gpu("Other", "sm89")) == []
    for changed, versions, gpu, words in [
        (record, {"tensorrt_rtx": "11.2.1"}, GPU, "needs tensorrt 11.2.1, which is not installed"),
        (record, {"tensorrt": "11.2.2"}, GPU, "with tensorrt 11.2.1 and here is 11.2.2"),
        (record, here, Gpu("NVIDIA RTX A5000", "sm86"), "on NVIDIA RTX A6000 and here is NVIDIA RTX A5000"),
        (record, here, Gpu("NVIDIA RTX A6000", "sm89"), "for sm86 and NVIDIA RTX A6000 is sm89"),
        (anywhere, here, Gpu("NVIDIA H100", "sm90"), "for sm86 sm89 and NVIDIA H100 is sm90"),
    ]:
        [problem] = place_mismatches(changed, versions, gpu)
        assert words in problem
    assert len(place_mismatches(record, {"tensorrt": "10"}, Gpu("x", "sm75"))) == 2


def test_the_loaded_plan_must_be_the_recorded_one(record: EngineRecord) -> None:
    moving, fixed, field = record.tensors
    static = replace(moving, shape=(1, *moving.shape[1:]))
    assert content_mismatches(record, (field, fixed, static), record.profile) == []
    for tensors in [
        (moving, fixed),
        (moving, fixed, replace(field, dtype="float16")),
        (moving, fixed, replace(field, shape=(-1, 3, 8, 6, 10))),
        (replace(moving, mode="output"), fixed, field),
        (replace(moving, name="image"), fixed, field),
    ]:
        [problem] = content_mismatches(record, tensors, record.profile)
        assert "inputs and outputs" in problem
    low, best, high = record.profile["fixed"]
    wider = {**record.profile, "fixed": (low, best, (2, *high[1:]))}
    assert "takes shapes" in content_mismatches(record, record.tensors, wider)[0]


def write(record: EngineRecord, folder: Path, plan: bytes = b"plan", model: bytes | None = b"model") -> Path:
    """Files that fit ``record``, its digests aside."""
    engine = folder / "model.engine"
    engine.write_bytes(plan)
    fitting = replace(
        record, engine_sha256=hashlib.sha256(plan).hexdigest(), onnx_sha256=hashlib.sha256(model or b"").hexdigest()
    )
    record_path(engine).write_text(fitting.to_json())
    if model is not None:
        (folder / "model.onnx").write_bytes(model)
    return engine


def test_files_must_be_those_of_the_record(record: EngineRecord, tmp_path: Path) -> None:
    engine = write(record, tmp_path)
    read = read_record(engine)
    assert replace(read, engine_sha256=record.engine_sha256, onnx_sha256=record.onnx_sha256) == record
    assert file_mismatches(engine, engine.read_bytes(), read) == []
    (tmp_path / "model.onnx").write_bytes(b"another")
    assert "model.onnx beside it is not the model" in file_mismatches(engine, engine.read_bytes(), read)[0]
    (tmp_path / "model.onnx").unlink()
    assert file_mismatches(engine, engine.read_bytes(), read) == []
    engine.write_bytes(b"plan ")
    assert "model.engine was changed or damaged" in file_mismatches(engine, engine.read_bytes(), read)[0]


def test_a_record_is_read_strictly(record: EngineRecord, tmp_path: Path) -> None:
    engine = write(record, tmp_path)
    path = record_path(engine)
    good = json.loads(path.read_text())

    def resealed(**changes: Any) -> dict[str, Any]:
        content = {key: value for key, value in {**good, **changes}.items() if key != "sha256"}
        return {**content, "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}

    path.write_text(json.dumps(resealed()))
    read_record(engine)
    cases: list[Any] = [{**good, key: "x"} for key in good]
    cases += [{k: v for k, v in good.items() if k != key} for key in good]
    cases += [resealed(precision="fp16"), resealed(parity=[1]), resealed(parity={"field_mm_max": "small"})]
    cases += [resealed(extra=1), resealed(onnx="../model.onnx"), resealed(onnx="/model.onnx"), resealed(profile=3)]
    cases += [resealed(contract={}), resealed(schema=1), resealed(tensors=[{"name": "x"}]), [], 3, None]
    for case in cases:
        path.write_text(json.dumps(case))
        with pytest.raises(InputError, match=r"model\.engine\.json"):
            read_record(engine)
    for content in (b"", b"\xff", b"[" * 100_000, b" " * (1 << 21)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.engine\.json"):
            read_record(engine)
    path.unlink()
    with pytest.raises(InputError, match="beside it"):
        read_record(engine)


# Loading and running


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCuda]:
    """Put a stand-in GPU and TensorRT in place, for records of ``module``."""

    def place(
        module: str = "tensorrt", captures_itself: bool = False, most: int = 1, warps: bool = False, **gpu: Any
    ) -> FakeCuda:
        cuda = FakeCuda(**gpu)
        found = TensorRT(module, fake_module(cuda, (6, 8, 10), captures_itself, most, warps))
        monkeypatch.setattr(cuda_leaf, "_api", lambda: cuda)
        monkeypatch.setattr(leaf, "find_module", lambda name: found if name == module else None)
        return cuda

    return place


def fits(record: EngineRecord, **changes: Any) -> EngineRecord:
    return replace(record, module_version=rtx.__version__, gpu="Fake GPU", **changes)


def test_the_field_of_a_pair_comes_back_through_the_gpu(
    record: EngineRecord, tmp_path: Path, fake: Callable[..., FakeCuda]
) -> None:
    cuda = fake()
    path = write(fits(record), tmp_path)
    engine = TensorRTEngine(path, "auto")
    assert engine.contract == record.contract
    assert engine.model_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (engine.runtime, engine.provider) == (f"tensorrt {rtx.__version__}", "Fake GPU (sm86)")
    calls = cuda.calls
    assert calls.count("cudaMalloc") == 3
    # The device first: it is a thread's own, and a batch predicts in several.
    upload, wait = ["cudaSetDevice", "cudaMemcpyAsync", "cudaMemcpyAsync"], ["cudaMemcpyAsync", "cudaStreamSynchronize"]
    capture = ["cudaStreamBeginCapture", "execute", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]
    for run, expected in enumerate(
        [
            [*upload, "execute", *wait],
            [*upload, *capture, "cudaGraphLaunch", *wait],
            [*upload, "cudaGraphLaunch", *wait],
        ]
    ):
        before = len(calls)
        moving, fixed = images(run)
        field = engine.predict(moving, fixed)
        assert calls[before:] == expected
        np.testing.assert_array_equal(field, np.stack([moving, fixed, moving - 2 * fixed]))
    with pytest.raises(ValueError, match="grid 10 8 6: this model takes 6 8 10 alone"):
        engine.predict(*(image.T for image in images(0)))
    before = len(calls)
    engine.close()
    assert calls[before:] == ["cudaGraphExecDestroy", *["cudaFree"] * 3, "cudaStreamDestroy"]
    engine.close()
    assert len(calls) == before + 5
    assert cuda.memory == {}


def test_the_warped_image_of_a_plan_stays_on_the_gpu(
    record: EngineRecord, tmp_path: Path, fake: Callable[..., FakeCuda]
) -> None:
    cuda = fake(warps=True)
    tensors = (*record.tensors, Tensor("warped", "output", "float32", (-1, 1, 6, 8, 10)))
    contract = replace(record.contract, outputs=("field", "warped"))
    engine = TensorRTEngine(write(fits(record, tensors=tensors, contract=contract), tmp_path), "cuda")
    moving, fixed = images(0)
    field = engine.predict(moving, fixed)
    np.testing.assert_array_equal(field, np.stack([moving, fixed, moving - 2 * fixed]))
    assert cuda.calls.count("cudaMalloc") == 4
    assert cuda.calls.count("cudaMemcpyAsync") == 3  # two images there, one field back
    [warped] = [np.frombuffer(cuda.memory[a], np.float32) for n, a in engine._session.address.items() if n == "warped"]
    np.testing.assert_array_equal(warped.reshape(6, 8, 10), -moving)
    engine.close()
    assert cuda.memory == {}


def test_a_runtime_that_makes_its_own_graphs_is_told_to_and_not_captured(
    record: EngineRecord, tmp_path: Path, fake: Callable[..., FakeCuda]
) -> None:
    cuda = fake("tensorrt_rtx", captures_itself=True)
    engine = TensorRTEngine(write(fits(record, module="tensorrt_rtx"), tmp_path), "cuda")
    assert cuda.strategy == rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    for run in range(3):
        moving, fixed = images(run)
        assert engine.predict(moving, fixed)[2] == pytest.approx(moving - 2 * fixed)
    assert cuda.calls.count("execute") == 3
    assert "cudaStreamBeginCapture" not in cuda.calls
    del engine
    assert cuda.memory == {}, "GPU memory goes with the engine"


def test_too_little_gpu_memory_is_an_error_and_leaks_nothing(
    record: EngineRecord, tmp_path: Path, fake: Callable[..., FakeCuda]
) -> None:
    cuda = fake(room=4 * 480 * 4)
    with pytest.raises(DeviceError, match="out of memory"):
        TensorRTEngine(write(fits(record), tmp_path), "auto")
    assert cuda.memory == {}


def test_an_engine_that_does_not_fit_is_refused(
    record: EngineRecord, tmp_path: Path, fake: Callable[..., FakeCuda]
) -> None:
    path = write(fits(record), tmp_path)
    for gpu, module, words in [
        ({"name": "Another"}, "tensorrt", "here is Another"),
        ({"capability": (9, 0)}, "tensorrt", "is sm90"),
        ({}, "tensorrt_rtx", "needs tensorrt"),
        ({"most": 2}, "tensorrt", "takes shapes"),
    ]:
        cuda = fake(module, **gpu)
        with pytest.raises(DeviceError, match=words):
            TensorRTEngine(path, "auto")
        assert "cudaMalloc" not in cuda.calls
    fake()
    path.write_bytes(b"plan!")
    with pytest.raises(DeviceError, match=r"changed or damaged.*rebuild=True"):
        TensorRTEngine(path, "auto")
    with pytest.raises(DeviceError, match="device=cpu"):
        TensorRTEngine(path, "cpu")


def test_an_engine_that_does_not_fit_is_rebuilt_from_its_model(
    tiny_model: Callable[..., Any],
    tmp_path: Path,
    fake: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Built for sm89 and loaded on sm86; the rebuild is real, for sm86 without a GPU, where a GPU would be used."""
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model(shape=(6, 8, 10)).path.read_bytes())
    path = tmp_path / "model.engine"
    wide = EngineJob(choose_toolchain(BuildOptions(targets=("sm89",), max_batch=3)), ["first"])
    old = export_engine(model, path, wide, False).record
    asked: list[BuildOptions] = []

    def here(options: BuildOptions) -> Any:
        asked.append(options)
        return replace(real, max_batch=options.max_batch)

    real = choose_toolchain(BuildOptions(targets=("sm86",)))  # before the stand-in hides the module
    monkeypatch.setattr("ofg_deploy.export.engine.choose_toolchain", here)
    monkeypatch.setenv("OFG_CACHE", str(tmp_path / "cache"))
    fake("tensorrt_rtx", captures_itself=True, most=3)
    with pytest.raises(DeviceError, match="sm89 and Fake GPU is sm86"):
        TensorRTEngine(path, "auto")
    assert read_record(path) == old
    capsys.readouterr()
    TensorRTEngine(path, "auto", rebuild)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "it was built for sm89 and Fake GPU is sm86" in said
    assert f"rebuilding it from {model} with tensorrt_rtx {rtx.__version__} for sm86" in said
    new = read_record(path)
    assert (new.capabilities, new.profile, new.command) == (("sm86",), old.profile, old.command)
    assert new.engine_sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != old.engine_sha256
    assert asked == [BuildOptions(max_batch=3)]
    TensorRTEngine(path, "auto", lambda *_: pytest.fail("it fits"))
    model.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(DeviceError, match=r"model\.onnx, to rebuild it from, is missing"):
        TensorRTEngine(path, "auto", rebuild)
