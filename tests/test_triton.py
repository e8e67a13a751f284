"""``ofg export --triton``: what is written parses as Triton's message; a client gets the command line's field."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_records import engine_record
from triton_stand_in import parsed, proto, triton

from ofg_deploy.errors import DeviceError, InputError, UsageError
from ofg_deploy.export.api import export_model
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, read_model, seal
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.engine_file import record_path
from ofg_deploy.serve.model import load_model

ROOT = Path(__file__).parents[1]
GAINS = {"gain_moving": (0.7, -0.4, 0.2), "gain_fixed": (-0.3, 0.5, 0.9)}


@pytest.fixture(scope="module")
def client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("triton_client", ROOT / "examples/triton_client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(path: Path, to: Path, dims: str | None = None, opset: int = 20, **contract: object) -> Path:
    """A model with other words in its contract, and names in place of the sizes of its grid."""
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    record = {**json.loads(properties[CONTRACT_KEY]), **contract}
    onnx.helper.set_model_props(model, {CONTRACT_KEY: json.dumps(record), SEAL_KEY: UNSEALED})
    model.opset_import[0].version = opset
    for value in (*model.graph.input, *model.graph.output):
        for name, dim in zip(dims or "", value.type.tensor_type.shape.dim[2:], strict=False):
            dim.dim_param = f"2*{name}"
    to.write_bytes(seal(model.SerializeToString()))
    return to


def test_the_configuration_is_a_message_of_tritons(tmp_path, tiny_model, run_cli) -> None:
    tiny = tiny_model()
    source = tmp_path / "brain-2.onnx"
    source.write_bytes(tiny.path.read_bytes())
    code, out, err = run_cli(["export", source, "--triton", tmp_path / "models", "--max-batch", 4, "--instances", 2])
    assert (code, err) == (0, "")
    folder = tmp_path / "models/brain-2"
    assert f"triton: {folder} (onnxruntime_onnx, batches of at most 4)" in out
    assert f"tritonserver --model-repository={tmp_path / 'models'}" in out
    assert sorted(path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models").rglob("*")) == [
        "brain-2", "brain-2/1", "brain-2/1/model.onnx", "brain-2/config.pbtxt"
    ]  # fmt: skip
    assert (folder / "1/model.onnx").read_bytes() == source.read_bytes()
    assert oct((folder / "config.pbtxt").stat().st_mode & 0o444) == oct(0o444)  # Triton runs as another user
    config, message = parsed(folder), proto()
    assert (config.name, config.platform, config.max_batch_size) == ("brain-2", "onnxruntime_onnx", 4)
    session = onnxruntime.InferenceSession(folder / "1/model.onnx", providers=["CPUExecutionProvider"])
    for given, own in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(each.name, list(each.dims)) for each in given] == [(each.name, each.shape[1:]) for each in own]
        assert {each.data_type for each in given} == {message.TYPE_FP32}
    [group] = config.instance_group
    assert (group.count, group.kind) == (2, message.ModelInstanceGroup.KIND_AUTO)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    [cuda] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    assert [each.batch_size for each in config.model_warmup] == [1, 4]
    for each in config.model_warmup:
        assert {name: list(value.dims) for name, value in each.inputs.items()} == {
            "moving": [1, *tiny.expects.shape], "fixed": [1, *tiny.expects.shape]
        }  # fmt: skip
        assert all(value.zero_data for value in each.inputs.values())
    stored = {key: value.string_value for key, value in config.parameters.items()}
    assert json.loads(stored["ofg_deploy.contract"]) == json.loads(read_model(source).contract.to_json())
    assert stored["ofg_deploy.sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_one_pair_at_a_time_unless_asked_for(tmp_path, tiny_model) -> None:
    made = export_model(tiny_model().path, triton=tmp_path)
    assert made.triton.max_batch == 1
    config = parsed(made.triton.folder)
    assert config.max_batch_size == 1
    assert config.HasField("dynamic_batching")
    assert len(config.model_warmup) == 1
    assert list(config.input[0].dims) == [1, *tiny_model().expects.shape]


def test_sizes_and_precisions(tmp_path, tiny_model) -> None:
    """Any grid: -1, warmed up on the model's own; int8 on the CPU, where its kernels are; bf16 is refused."""
    source = tiny_model().path
    several = changed(source, tmp_path / "any.onnx", "xyz", sizes="multiples")
    config = parsed(export_model(several, triton=tmp_path / "m").triton.folder)
    assert [list(each.dims) for each in (*config.input, *config.output)] == [[1, -1, -1, -1]] * 2 + [[3, -1, -1, -1]]
    assert list(config.model_warmup[0].inputs["moving"].dims) == [1, *tiny_model().expects.shape]
    int8 = changed(source, tmp_path / "small.onnx", precision="int8")
    config = parsed(export_model(int8, triton=tmp_path / "m").triton.folder)
    assert config.instance_group[0].kind == proto().ModelInstanceGroup.KIND_CPU
    assert not config.HasField("optimization")
    bf16 = changed(source, tmp_path / "bf16.onnx", precision="bf16", opset=22)
    with pytest.raises(UsageError, match="bf16 model: ONNX Runtime does not run it everywhere, add trt=True"):
        export_model(bf16, triton=tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["any", "small"]
    single = onnx.load(source)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    properties = {entry.key: entry.value for entry in single.metadata_props}
    onnx.helper.set_model_props(single, {**properties, SEAL_KEY: UNSEALED})
    one = tmp_path / "one.onnx"
    one.write_bytes(seal(single.SerializeToString()))
    config = parsed(export_model(one, triton=tmp_path / "m").triton.folder)
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [1, 1, *tiny_model().expects.shape])
    assert not config.HasField("dynamic_batching")
    with pytest.raises(UsageError, match="max_batch 2: this model takes one pair at a time"):
        export_model(one, triton=tmp_path / "n", max_batch=2)


def engine(folder: Path, **changes: object) -> Path:
    path = folder / "model.engine"
    path.write_bytes(b"a plan \0 of no particular GPU")
    record = engine_record(engine_sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **changes)
    record_path(path).write_text(record.to_json())
    return path


def test_an_engine_becomes_a_plan(tmp_path, run_cli) -> None:
    one, three = (1, 1, 6, 8, 10), (3, 1, 6, 8, 10)
    source = engine(tmp_path, profile={name: (one, one, three) for name in ("moving", "fixed")})
    code, out, err = run_cli(["export", source, "--triton", tmp_path / "m"])
    assert (code, err) == (0, ""), out
    folder = tmp_path / "m/model"
    assert (folder / "1/model.plan").read_bytes() == source.read_bytes()
    config, message = parsed(folder), proto()
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 3)
    assert config.instance_group[0].kind == message.ModelInstanceGroup.KIND_GPU
    assert [(each.name, list(each.dims)) for each in (*config.input, *config.output)] == [
        ("moving", [1, 6, 8, 10]), ("fixed", [1, 6, 8, 10]), ("field", [3, 6, 8, 10])
    ]  # fmt: skip
    assert [each.batch_size for each in config.model_warmup] == [1, 3]
    assert not config.HasField("optimization")
    assert config.parameters["ofg_deploy.made_with"].string_value == "tensorrt 11.2.1 for NVIDIA RTX A6000"
    for options, message in ((("--max-batch", 4), "--max-batch 4: this engine takes at most 3 pairs"),):
        code, _, err = run_cli(["export", source, "--triton", tmp_path / "n", *options])
        assert code == 2
        assert message in err
    rtx = engine(tmp_path, module="tensorrt_rtx")
    code, _, err = run_cli(["export", rtx, "--triton", tmp_path / "n"])
    assert code == 2
    assert f"{rtx} is of tensorrt_rtx, and Triton loads plans of tensorrt alone" in err
    engine(tmp_path).write_bytes(b"another plan")
    code, _, err = run_cli(["export", source, "--triton", tmp_path / "n"])
    assert code == 3
    assert "was changed or damaged after its build" in err
    assert not (tmp_path / "n").exists()


def test_nothing_is_overwritten_and_nothing_is_half_written(tmp_path, tiny_model, run_cli, monkeypatch) -> None:
    first, second = (tmp_path / "a/model.onnx", tmp_path / "b/model.onnx")
    for path, field in ((first, np.zeros((3, 14, 18, 16))), (second, np.ones((3, 14, 18, 16)))):
        path.parent.mkdir()
        path.write_bytes(tiny_model(field=field).path.read_bytes())
    repository = tmp_path / "m"
    export_model(first, triton=repository)
    before = (repository / "model/config.pbtxt").read_text()
    code, _, err = run_cli(["export", second, "--triton", repository])
    assert (code, err.strip().count("\n")) == (3, 0)
    assert f"{repository / 'model'} exists already: choose another output or add --overwrite" in err
    assert (repository / "model/config.pbtxt").read_text() == before

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        code, _, err = run_cli(["export", second, "--triton", repository, "--overwrite"])
        assert code == 3
        assert "No space left on device" in err
        code, _, _ = run_cli(["export", second, "--triton", tmp_path / "deep/er"])
        assert code == 3
    assert not (tmp_path / "deep").exists()
    assert (repository / "model/1/model.onnx").read_bytes() == first.read_bytes()
    assert [path.name for path in repository.iterdir()] == ["model"]
    code, _, _ = run_cli(["export", second, "--triton", repository, "--overwrite"])
    assert code == 0
    assert (repository / "model/1/model.onnx").read_bytes() == second.read_bytes()
    assert [path.name for path in repository.iterdir()] == ["model"]
    own = repository / "model/1/model.onnx"
    with pytest.raises(InputError, match=r"is an input, and would be lost: choose another triton"):
        export_model(own, triton=repository, overwrite=True)
    (repository / "model/2").mkdir()
    with pytest.raises(InputError, match="holds what ofg export did not write"):
        export_model(second, triton=repository, overwrite=True)
    (repository / "model/2").rmdir()
    (repository / "model/config.pbtxt").write_text('name: "model"\n')
    with pytest.raises(InputError, match="holds what ofg export did not write"):
        export_model(second, triton=repository, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a writable folder"):
        export_model(second, triton=tmp_path / "file/x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--instances", 2], "--instances goes with --triton"),
        (["--triton", "m", "--instances", 0], "--instances 0: give 1 or more"),
        (["--triton", "m", "-o", "other.onnx"], "is exported already, and --triton names where it goes"),
        (["--triton", "m", "--target", "sm86"], "go with --trt"),
        (["--triton", "m", "--precision", "fp16"], "has its precision already"),
        (["--triton", "m", "--spacing", "1", "1", "1"], "an exported one knows its own"),
        (["--max-batch", 2], "go with --trt"),
    ],
)
def test_options_that_contradict_each_other(tmp_path, tiny_model, run_cli, monkeypatch, options, message) -> None:
    source = tiny_model().path
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli(["export", source, *options])
    assert code == 2, err
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_triton_cannot_have(tmp_path, tiny_model) -> None:
    source = tmp_path / "my model.onnx"
    source.write_bytes(tiny_model().path.read_bytes())
    with pytest.raises(UsageError, match="'my model' cannot be a model's name in Triton"):
        export_model(source, triton=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_network_with_its_warped_image_at_once(tmp_path) -> None:
    """A checkpoint to model, record and repository in one command; refused before any work where it could not end."""
    pytest.importorskip("torch", reason="exports a network (pip install ofg-deploy[train])")
    import torch

    from ofg_deploy.train.networks.voxelmorph import VoxelMorph

    torch.manual_seed(3)
    torch.save(VoxelMorph((16, 32, 16)).state_dict(), tmp_path / "net.pth")
    options = {"network": "voxelmorph", "grid": (16, 32, 16), "with_warp": True, "triton": tmp_path / "m"}
    made = export_model(tmp_path / "net.pth", tmp_path / "brain.onnx", **options)
    config = parsed(tmp_path / "m/brain")
    assert [each.name for each in config.output] == ["field", "warped"]
    assert [list(each.dims) for each in config.output] == [[3, 16, 32, 16], [1, 16, 32, 16]]
    assert (tmp_path / "m/brain/1/model.onnx").read_bytes() == made.path.read_bytes()
    with pytest.raises(InputError, match="brain exists already"):
        export_model(tmp_path / "net.pth", tmp_path / "new/brain.onnx", **options)
    with pytest.raises(UsageError, match="bf16"):
        export_model(tmp_path / "net.pth", tmp_path / "new/b.onnx", **{**options, "precision": "bf16"})
    assert not (tmp_path / "new").exists()


def test_a_client_of_triton_gets_the_files_of_the_command(
    tmp_path, tiny_model, files, run_cli, client, monkeypatch, capfd
) -> None:
    """Prepared and finished by our code, predicted behind HTTP: bit for bit what ``ofg register`` writes."""
    source = tmp_path / "tiny.onnx"
    source.write_bytes(tiny_model(init="affine", **GAINS).path.read_bytes())
    export_model(source, triton=tmp_path / "m")
    here, there = tmp_path / "here", tmp_path / "there"
    code, _, err = run_cli(["register", *files[:2], "-m", source, "-o", here, "--device", "cpu"])
    assert code == 0, err
    with triton(tmp_path / "m") as (address, seen):
        arguments = [*files[:2], "--url", address, "--model", "tiny", "-o", there]
        monkeypatch.setattr(sys, "argv", ["triton_client.py", *map(str, arguments)])
        client.main()
        assert "transform: " in capfd.readouterr().out
        [request] = seen
        assert [each["shape"] for each in request["inputs"]] == [[1, 1, 14, 18, 16]] * 2
    names = {path.name for path in here.iterdir()}
    assert {path.name for path in there.iterdir()} == names
    sidecar = next(name for name in names if name.endswith(".json"))
    for name in names - {sidecar}:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    a, b = (json.loads((folder / sidecar).read_text()) for folder in (here, there))
    assert a["metrics"] == b["metrics"]
    assert a["model"]["sha256"] == b["model"]["sha256"]
    assert "triton 2.99.0, onnxruntime_onnx" in json.dumps(b)
    with triton(tmp_path / "m") as (address, _):
        own = client.Triton(address, "tiny")
        rng = np.random.default_rng(5)
        moving, fixed = rng.random((2, 14, 18, 16), dtype=np.float32)
        field = own.predict(moving, fixed)
        assert np.array_equal(field, open_engine(source, "cpu").predict(moving, fixed))
        assert not np.allclose(field, own.predict(fixed, moving), atol=1e-2)


def test_what_a_client_hears_when_it_goes_wrong(tmp_path, tiny_model, files, client, monkeypatch, capsys) -> None:
    export_model(tiny_model().path, triton=tmp_path / "m")
    [name] = [folder.name for folder in (tmp_path / "m").iterdir()]
    foreign = tmp_path / "m/foreign"
    (foreign / "1").mkdir(parents=True)
    (foreign / "1/model.onnx").write_bytes(tiny_model().path.read_bytes())
    (foreign / "config.pbtxt").write_text('name: "foreign"\nplatform: "onnxruntime_onnx"\n')
    with triton(tmp_path / "m") as (address, _):
        with pytest.raises(DeviceError, match=r"model nobody of http.*refuses .* \(400\): .*unknown model"):
            client.Triton(address, "nobody")
        with pytest.raises(InputError, match="carries no contract: write it with ofg export --triton"):
            client.Triton(address, "foreign")
        own = client.Triton(address, name)
        with pytest.raises(DeviceError, match=r"\(400\): .*unexpected shape"):
            own.predict(*np.zeros((2, 6, 8, 10), np.float32))
        for spoilt in ({"name": "warped"}, {"shape": [1, 3, 2, 2, 2]}, {"datatype": "FP16"}):
            right = {"name": "field", "datatype": "FP32", "shape": [1, 3, 14, 18, 16], **spoilt}
            head = json.dumps({"outputs": [right]}).encode()
            body = head + bytes(4 * 3 * 14 * 18 * 16)
            monkeypatch.setattr(own, "_ask", lambda *_, body=body, head=head: (body, len(head)))
            with pytest.raises(DeviceError, match="expected field, FP32"):
                own.predict(*np.zeros((2, 14, 18, 16), np.float32))
    with pytest.raises(DeviceError, match="cannot be reached"):
        client.Triton(address, name)
    with pytest.raises(DeviceError, match=r"give http://HOST:PORT"):
        client.Triton("localhost:8000", name)
    monkeypatch.setattr(sys, "argv", ["c", *map(str, files[:2]), "--url", address, "--model", name])
    with pytest.raises(SystemExit) as caught:
        client.main()
    assert caught.value.code == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_of_any_grid_is_asked_on_another_one(tmp_path, tiny_model, client, files) -> None:
    """The contract that the client gets is the model's: grids, start and recipe are settled by our own code."""
    source = changed(tiny_model().path, tmp_path / "any.onnx", "xyz", sizes="multiples")
    export_model(source, triton=tmp_path / "m")
    with triton(tmp_path / "m") as (address, _):
        model = load_model(client.Triton(address, "any"))
        assert model.contract == replace(read_model(tiny_model().path).contract, sizes="multiples")
        assert model.provider == "Triton CPU"
        with pytest.raises(UsageError, match="multiples of 2"):
            model.register(*files[:2], grid=(15, 18, 16))
