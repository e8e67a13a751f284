"""A network that never ends can be interrupted, alone and in a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ofg_deploy.model_file import SEAL_KEY, UNSEALED, seal

ROOT = Path(__file__).parents[1]


@pytest.fixture
def endless(tiny_model, tmp_path) -> Path:
    """The tiny model, whose field waits for a loop without an end."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(tiny_model().path)
    graph = model.graph
    values = [("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, [1])]
    inputs = [helper.make_tensor_value_info(*value) for value in values]
    outputs = [helper.make_tensor_value_info(f"{name}_", kind, shape) for name, kind, shape in values[1:]]
    nodes = [helper.make_node("Identity", ["c"], ["c_"]), helper.make_node("Sin", ["v"], ["v_"])]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "on"))
    graph.node[-1].output[0] = "known_field"
    graph.node.append(helper.make_node("ReduceMean", ["from_images"], ["mean"], keepdims=0))
    graph.node.append(helper.make_node("Reshape", ["mean", "one"], ["start"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    graph.node.append(helper.make_node("Loop", ["", "on", "start"], ["end"], body=body))
    graph.node.append(helper.make_node("Add", ["known_field", "end"], ["field"]))
    onnx.checker.check_model(model)
    for entry in model.metadata_props:
        if entry.key == SEAL_KEY:
            entry.value = UNSEALED
    path = tmp_path / "endless.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    return path


@pytest.mark.parametrize(("runtime", "batch"), [("onnxruntime", False), ("onnxruntime", True), ("openvino", False)])
def test_ctrl_c_ends_it(tmp_path, files, endless, foreign, runtime, batch) -> None:
    foreign(runtime)
    given = [*files[:2]]
    if batch:
        (tmp_path / "moving").mkdir()
        given[1] = files[1].rename(tmp_path / "moving" / "mov.nii.gz").parent
    line = ["register", *given, "-m", endless, "-o", tmp_path / "out", "--runtime", runtime]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from ofg_deploy.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert any(row.startswith("network tiny") for row in process.stdout)
        time.sleep(4)  # for the images, and the loop to begin
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1].startswith("ofg: error:")
    assert "Traceback" not in stderr
