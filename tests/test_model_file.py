"""The seal notices every change; the contract is read strictly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofg_deploy.errors import InputError
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, Contract, read_model, read_sealed, seal
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve.engine import open_engine

EXPECTS = NetworkInput((16, 24, 32), (1.5, 2.0, 2.5), Intensity("window", -100, 300), "affine")
CONTRACT = Contract("voxelmorph", EXPECTS, 16, "cd" * 32, {"guidance": "ofg", "epochs": 3})


def test_the_metadata_is_there_for_any_onnx_reader(tiny_model):
    onnx = pytest.importorskip("onnx")
    model = tiny_model(shape=(6, 8, 10))
    stored = {entry.key: entry.value for entry in onnx.load(str(model.path)).metadata_props}
    assert json.loads(stored[CONTRACT_KEY])["expects"]["shape"] == [6, 8, 10]
    content = model.path.read_bytes()
    blank = content.replace(stored[SEAL_KEY].encode(), b"0" * 64)
    assert len(blank) == len(content)
    assert stored[SEAL_KEY] == hashlib.sha256(blank).hexdigest()
    assert read_sealed(model.path) == content


def test_any_changed_byte_breaks_the_seal(tiny_model, tmp_path):
    content = tiny_model(shape=(6, 8, 10)).path.read_bytes()
    path = tmp_path / "changed.onnx"
    places = np.linspace(0, len(content) - 1, 60).astype(int).tolist()
    places += [content.rindex(SEAL_KEY.encode()) + offset for offset in (20, 40, 70)]  # in the seal itself
    for at in places:
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"changed or damaged|carries no contract"):
            read_sealed(path)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[: len(c) // 2], lambda c: c + c])
def test_another_length_breaks_the_seal(tiny_model, tmp_path, change):
    path = tmp_path / "changed.onnx"
    path.write_bytes(change(tiny_model(shape=(6, 8, 10)).path.read_bytes()))
    with pytest.raises(InputError, match=r"changed or damaged|carries no contract"):
        read_sealed(path)


def test_files_of_others_are_refused(tmp_path):
    for name, content in (
        ("empty.onnx", b""),
        ("text.onnx", b"hello"),
        ("key.onnx", SEAL_KEY.encode() + b"\x12\x40ab"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="carries no contract"):
            read_sealed(tmp_path / name)
    for name in ("nothing.onnx", "."):
        with pytest.raises(InputError, match="is not a file"):
            read_sealed(tmp_path / name)


def test_only_an_empty_seal_is_filled():
    content = b"abc" + SEAL_KEY.encode() + b"\x12\x40" + b"0" * 64 + b"tail"
    sealed = seal(content)
    assert sealed == content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode())
    for bad in (sealed, b"abc", content[:-10]):
        with pytest.raises(ValueError, match="no empty seal"):
            seal(bad)


def test_a_contract_survives_its_own_text():
    assert Contract.from_json(CONTRACT.to_json(), Path("m.onnx")) == CONTRACT
    assert "\n" not in CONTRACT.to_json()


def record(**changed) -> dict:
    return {**json.loads(CONTRACT.to_json()), **changed}


def expects(**changed) -> dict:
    return record(expects={**json.loads(CONTRACT.to_json())["expects"], **changed})


def without(name: str, inside: str | None = None) -> dict:
    changed = record()
    (changed[inside] if inside else changed).pop(name)
    return changed


@pytest.mark.parametrize(
    "text",
    [
        "", "not json", "[]", "3", "null",
        *(json.dumps(without(key)) for key in json.loads(CONTRACT.to_json())),
        *(json.dumps(without(key, "expects")) for key in json.loads(CONTRACT.to_json())["expects"]),
        json.dumps(record(extra=1)),
        *(json.dumps(record(passes=passes)) for passes in (0, -2, 21, 2.5, "2", True, None)),
        json.dumps(record(schema=1)),
        json.dumps(record(expects=None)),
        json.dumps(expects(extra=1)),
        json.dumps(expects(shape=[16, 24])),
        json.dumps(expects(shape=[16, 24, 1])),
        json.dumps(expects(shape=[16, 24, 32.5])),
        json.dumps(expects(shape="abc")),
        json.dumps(expects(spacing_mm=[1, 2, -3])),
        json.dumps(expects(spacing_mm=[1, 2, float("nan")])),
        json.dumps(expects(init="elastic")),
        json.dumps(expects(intensity={"kind": "zscore", "low": 0, "high": 1})),
        json.dumps(expects(intensity={"kind": "window"})),
        json.dumps(expects(intensity={})),
        json.dumps(expects(intensity="minmax")),
        json.dumps(record(field_unit="mm")),
        json.dumps(record(field_maps="moving_to_fixed")),
        json.dumps(record(precision="fp8")),
        json.dumps(record(sizes="any")),
        json.dumps(record(outputs=["warped"])),
        json.dumps(record(outputs=None)),
    ],
)  # fmt: skip
def test_any_other_contract_is_refused_with_the_files_name(text):
    with pytest.raises(InputError, match=r"given\.onnx"):
        Contract.from_json(text, Path("given.onnx"))


@pytest.mark.parametrize("opset", [5, 99])
def test_another_opset_is_refused(opset, tiny_model, tmp_path):
    """Runtimes take numbers they do not know, and read the graph as they please."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(tiny_model().path))
    model.opset_import[0].version = opset
    stored = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**stored, SEAL_KEY: UNSEALED})
    path = tmp_path / "m.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    for read in (read_model, open_engine):
        with pytest.raises(InputError, match=f"has ONNX opset {opset}, fp32 models have 20"):
            read(path)


def external(tensor: Any) -> Any:
    """The tensor with its numbers elsewhere."""
    import onnx

    moved = onnx.TensorProto()
    moved.CopyFrom(tensor)
    moved.ClearField("raw_data")
    moved.data_location = onnx.TensorProto.EXTERNAL
    entry = moved.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    return moved


@pytest.mark.parametrize(
    "where",
    [
        "initializer",
        "entries alone",
        "constant",
        "list",
        "sparse",
        "subgraph",
        "function",
        "default",
        "training",
    ],
)
def test_weights_outside_of_the_file_are_refused(tiny_model, tmp_path, where):
    """The seal covers this file alone, and ONNX Runtime would read the other one."""
    import onnx
    from onnx import helper

    model = onnx.load(tiny_model().path)
    tensor = external(onnx.numpy_helper.from_array(np.ones(3, np.float32), "w"))
    if where == "entries alone":
        tensor.ClearField("data_location")
    graph = helper.make_graph([], "inner", [], [], [tensor])
    node = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.ones(2, np.float32)))
    node.attribute.add(name="ratio", type=onnx.AttributeProto.FLOAT, f=0.25)  # a number of four bytes on the way
    model.graph.node.append(node)
    attribute = node.attribute.add(name="x")
    if where in ("initializer", "entries alone"):
        model.graph.initializer.append(tensor)
    elif where == "constant":
        attribute.t.CopyFrom(tensor)
    elif where == "list":
        attribute.tensors.append(tensor)
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    elif where == "subgraph":
        attribute.g.CopyFrom(graph)
    elif where == "function":
        model.functions.add().node.add().attribute.add(name="v").t.CopyFrom(tensor)
    elif where == "default":
        model.functions.add().attribute_proto.add(name="v").graphs.append(graph)
    else:
        model.training_info.add().algorithm.CopyFrom(graph)
    model.graph.node[-1].CopyFrom(node)
    for entry in model.metadata_props:
        if entry.key == SEAL_KEY:
            entry.value = UNSEALED
    path = tmp_path / "m.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    with pytest.raises(InputError, match="keeps weights in another file"):
        read_model(path)
    if where not in ("initializer", "entries alone"):
        return
    del model.graph.initializer[-1]
    path.write_bytes(seal(model.SerializeToString()))
    assert read_model(path).opset == 20
