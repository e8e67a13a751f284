"""The gate: what is wrong between trace and file is not published, what merely rounds is."""

# ruff: noqa: E402
from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="models are made with onnx (pip install ofg-deploy[train])")
pytest.importorskip("torch", reason="networks are traced with torch (pip install ofg-deploy[train])")

from parity_sources import make_source
from traced import trace_once

from ofg_deploy.errors import InputError, ParityError
from ofg_deploy.export.onnx import export_onnx
from ofg_deploy.export.parity import BOUNDS, Tolerance, compare, synthetic_pair
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve.engine import open_engine

Change = Callable[[Any], None]


def set_attribute(op: str, name: str, value: bytes | int) -> Change:
    def change(model: Any) -> None:
        nodes = [node for node in model.graph.node if node.op_type == op]
        [attribute] = [a for a in nodes[-1].attribute if a.name == name]
        assert onnx.helper.get_attribute_value(attribute) != value
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    return change


def one_weight(model: Any) -> None:
    """One number of 29000 in the middle of the network, off by three times the spread of its neighbours."""
    [tensor] = [t for t in model.graph.initializer if t.name == "unet_model.extras.0.main.weight"]
    value = onnx.numpy_helper.to_array(tensor).copy()
    value[3, 5, 1, 1, 1] += 3 * value.std()
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ofg_deploy.export.onnx.trace", trace_once)


WRONG: dict[str, tuple[bool, Change]] = {
    "one weight": (False, one_weight),
    "align_corners of the sampler": (True, set_attribute("GridSample", "align_corners", 0)),
    "padding of the sampler": (True, set_attribute("GridSample", "padding_mode", b"zeros")),
    "coordinates of the resize": (True, set_attribute("Resize", "coordinate_transformation_mode", b"half_pixel")),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_after_tracing_is_caught(
    case: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a lower type was asked, whose own bounds one weight would not leave."""
    diffeomorphic, change = WRONG[case]

    def wrong(*arguments: Any) -> Any:
        model = trace_once(*arguments)
        change(model)
        return model

    monkeypatch.setattr("ofg_deploy.export.onnx.trace", wrong)
    source = make_source(diffeomorphic=diffeomorphic)
    with pytest.raises(ParityError, match="not published"):
        export_onnx(source, tmp_path / "new" / "m.onnx", Tolerance(), False, [], precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_what_rounds_is_far_within_and_a_lower_type_is_not(tmp_path: Path) -> None:
    """The bounds of a type hold it twice over, and are no bounds for the next lower one: they are not slack."""
    source = make_source()
    types = ("fp32", "fp16", "bf16")
    found = {p: export_onnx(source, tmp_path / f"{p}.onnx", Tolerance(), False, [], precision=p).parity for p in types}
    for precision, parity in found.items():
        bounds = BOUNDS[precision]
        assert parity.beyond(replace(bounds, field_mm_max=bounds.field_mm_max / 2)) == [], precision
        assert 2 * (parity.field_vox_p999 or 0) <= (bounds.field_vox_p999 or 0)
    for lower, higher in (("fp16", "fp32"), ("bf16", "fp16")):
        assert found[lower].beyond(BOUNDS[higher]), f"{lower} would pass as {higher}"


def test_the_bound_in_mm_replaces_those_of_the_field_alone() -> None:
    usual, asked = Tolerance().bounds("fp32"), Tolerance(0.5).bounds("fp32")
    assert usual.field_vox_p999 == 1e-3, "what the float32 model must hold"
    assert (asked.field_mm_max, asked.field_mm_p99, asked.field_vox_p999) == (0.5, 0.1, None)
    assert (asked.warped, asked.dice, asked.folding_percent) == (usual.warped, usual.dice, usual.folding_percent)


def test_percentiles_are_those_of_the_error_in_voxels_and_mm() -> None:
    """A known error: 0.01 voxel along y (2.5 mm) in 1 of 200 voxels, none elsewhere."""
    pair = synthetic_pair(NetworkInput((10, 20, 50), (2.0, 2.5, 1.0), Intensity("minmax"), "none"))
    error = np.zeros((3, 10, 20, 50), np.float32)
    error.reshape(3, -1)[1, ::200] = 0.01
    found = compare(lambda m, f: np.zeros_like(error), lambda m, f: error, [pair], [None])
    assert found.field_vox_p99 == pytest.approx(0, abs=1e-6)
    assert found.field_vox_p999 == pytest.approx(0.01, rel=1e-4)
    assert found.field_mm_p999 == pytest.approx(0.025, rel=1e-4)
    assert found.dice_difference is None


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        export_onnx(make_source(), tmp_path / "new" / "m.onnx", Tolerance(), False, [], precision="fp16")
    assert list(tmp_path.iterdir()) == []


# Engines

rtx_only = pytest.mark.skipif(
    not pytest.importorskip("importlib.util").find_spec("tensorrt_rtx"), reason="needs tensorrt_rtx (ofg-deploy[rtx])"
)


@rtx_only
@pytest.mark.parametrize("gain", [-2.0, -2.1])
def test_an_engine_for_the_gpu_here_is_compared_with_its_model(
    gain: float, tiny_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really built, loaded by the stand-in that computes (moving, fixed, moving - 2 fixed): the right model or not."""
    import tensorrt_rtx as rtx
    from tensorrt_stand_ins import FakeCuda, fake_module

    from ofg_deploy.export.engine import EngineJob, export_engine
    from ofg_deploy.export.toolchain import BuildOptions, choose_toolchain
    from ofg_deploy.serve import cuda as cuda_leaf
    from ofg_deploy.serve import tensorrt as leaf
    from ofg_deploy.serve.engine_file import read_record
    from ofg_deploy.serve.tensorrt import TensorRT

    monkeypatch.setenv("OFG_CACHE", str(tmp_path / "cache"))
    grid = (6, 8, 10)
    gains = {"gain_moving": (1, 0, 1), "gain_fixed": (0, 1, gain)}
    model = tiny_model(grid, field=np.zeros((3, *grid)), **gains).path
    tools = choose_toolchain(BuildOptions(targets=("sm86",)))
    out = tmp_path / "out" / "m.engine"

    without = export_engine(model, out, EngineJob(tools), False).record
    assert without.parity is None
    assert without.compared_with == "not compared: built without a GPU, which alone could load it"

    # The build that a GPU would do, taken from the cache: it was made above for the same capability.
    cuda = FakeCuda()
    found = TensorRT("tensorrt_rtx", fake_module(cuda, grid, captures_itself=True))
    monkeypatch.setattr(cuda_leaf, "_api", lambda: cuda)
    monkeypatch.setattr(leaf, "find_module", lambda name: found if name == "tensorrt_rtx" else None)
    real = __import__("ofg_deploy.export.tensorrt", fromlist=["build"]).build
    monkeypatch.setattr("ofg_deploy.export.engine.build", lambda m, p, t, *rest: real(m, p, tools, *rest))
    here = EngineJob(replace(tools, gpu="Fake GPU"))
    before = {path: path.read_bytes() for path in out.parent.iterdir()}
    if gain != -2.0:
        with pytest.raises(ParityError, match="field_mm_max"):
            export_engine(model, out, here, True)
        assert {path: path.read_bytes() for path in out.parent.iterdir()} == before, "the older engine is untouched"
        return
    record = export_engine(model, out, here, True).record
    assert record == read_record(out)
    assert record.compared_with == f"{model.name} in {open_engine(model, 'cpu').runtime}, one synthetic pair"
    assert record.parity is not None
    assert record.parity["field_mm_max"] < 1e-5
    assert json.loads(out.with_name("m.engine.json").read_text())["parity"]["pairs"] == 1
    assert cuda.memory == {}, "the engine is closed"
    assert rtx.__version__ in str(record.module_version)
