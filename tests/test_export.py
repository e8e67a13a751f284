"""Export: only the network leaves, and nothing leaves that does not reproduce it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from training_runs import EXPECTS, find_tiny_pairs, make_subjects, run_training, tiny_config

from ofg_deploy.errors import InputError, ParityError, UsageError
from ofg_deploy.export.api import export_model
from ofg_deploy.export.onnx import Exported, check_graph, export_onnx, trace
from ofg_deploy.export.parity import Tolerance, compare, synthetic_pair
from ofg_deploy.export.source import from_checkpoint, from_run
from ofg_deploy.export.topology import topology
from ofg_deploy.model_file import CONTRACT_KEY
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.train.checkpoint import load_checkpoint, load_weights, weights_sha256
from ofg_deploy.train.losses import warp
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.networks.voxelmorph import VoxelMorph
from ofg_deploy.train.run import Run
from ofg_deploy.train.validation import predict

RunCli = Callable[[list[object]], tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One run with guidance and one without, on the same pairs."""
    base = tmp_path_factory.mktemp("runs")
    pairs = find_tiny_pairs(*make_subjects(base))
    configs = {guidance: tiny_config(guidance=guidance, lr=5e-3) for guidance in ("ofg", "none")}
    return {g: run_training(base / g, pairs, config, base / "cache")[0] for g, config in configs.items()}


@pytest.fixture(scope="module")
def models(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    base = tmp_path_factory.mktemp("models")
    return {g: export(run, base / f"{g}.onnx") for g, run in runs.items()}


def export(run: Run, out: Path, tolerance: Tolerance | None = None) -> Exported:
    return export_onnx(from_run(run.folder, lambda: None), out, tolerance or Tolerance(), False, ["test"])


def test_python_exports_what_the_command_exports(
    runs: dict[str, Run], models: dict[str, Exported], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """To the byte; prints nothing; parameters in its errors, which the command line spells as options."""
    exported = export_model(runs["ofg"].folder, tmp_path / "m.onnx")
    assert capfd.readouterr().out == ""
    assert (exported.path, exported.engines) == (tmp_path / "m.onnx", ())
    assert exported.path.read_bytes() == models["ofg"].model.read_bytes()
    assert exported.parity == json.loads((tmp_path / "m.json").read_text())["parity"]
    assert 0 < exported.parity["field_mm_max"] < 1e-3
    for options, words in [
        ({"target": "sm86"}, "cpu_build, target, trt_module, max_batch and rebuild go with trt=True"),
        ({"trt": True, "target": "sm86"}, "cpu_build and target go together: cpu_build=True target=sm86,sm89,sm120"),
        ({"trt": True, "precision": "int8"}, "trt=True precision=int8: int8 models are for the CPU runtimes"),
        ({"precision": "half"}, 'precision "half" is unknown: use fp32, fp16, bf16, int8 or auto'),
        ({"atol_mm": 0}, "atol_mm 0: give a number above 0"),
        ({"tolerance": 1}, "there is no option 'tolerance'"),
        ({"network": "voxelmorph"}, "network: these describe a bare checkpoint; a run folder knows its own"),
    ]:
        with pytest.raises(UsageError, match=re.escape(words)):
            export_model(runs["ofg"].folder, tmp_path / "x.onnx", **options)
    for source, path, options, words in [
        (runs["ofg"].folder, "x.pt", {}, "must end in .onnx"),
        (exported.path, "x.engine", {}, "is exported already: add trt=True for an engine"),
        (exported.path, "x.engine", {"trt": True, "precision": "fp16"}, "precision and atol_mm go with its export"),
        (exported.path, "x.onnx", {"with_warp": True}, "with_warp=True: "),
    ]:
        with pytest.raises(UsageError, match=re.escape(words)):
            export_model(source, tmp_path / path, **options)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.json", "m.onnx"]


def test_exported_field_is_the_eager_field(runs: dict[str, Run], models: dict[str, Exported]) -> None:
    """ONNX Runtime by hand, on another pair than the parity check's, against the checkpoint loaded by hand."""
    network = VoxelMorph(EXPECTS.shape)
    load_weights(network, load_checkpoint(runs["ofg"].best).state, runs["ofg"].best)
    pair = synthetic_pair(EXPECTS)
    eager = predict(network, pair.moving, pair.fixed, "cpu")
    session = onnxruntime.InferenceSession(models["ofg"].model, providers=["CPUExecutionProvider"])
    batch = {"moving": np.stack([pair.moving, pair.fixed])[:, None], "fixed": np.stack([pair.fixed] * 2)[:, None]}
    [field] = session.run(["field"], batch)  # any batch size
    assert field.shape == (2, 3, *EXPECTS.shape)
    assert np.abs(eager).max() > 1e-3, "an untrained network would pass with any input order"
    assert field[0] == pytest.approx(eager, abs=1e-5)
    assert np.abs(field[1] - eager).max() > 1e-4


def test_contract_and_record(runs: dict[str, Run], models: dict[str, Exported]) -> None:
    engine = open_engine(models["ofg"].model, "cpu")
    assert engine.contract == models["ofg"].contract
    assert engine.contract.expects == EXPECTS
    assert engine.contract.training["guidance"] == "ofg"
    assert engine.contract.weights_sha256 == weights_sha256(load_checkpoint(runs["ofg"].best).state)
    record = json.loads(models["ofg"].record.read_text())
    assert record["model_sha256"] == engine.model_sha256
    assert record["parity_pairs"] == "validation pairs of the run"
    assert record["parity"]["pairs"] == 2
    assert record["parity"]["dice_difference"] is not None
    model = onnx.load(models["ofg"].model)
    assert {p.key for p in model.metadata_props} >= {CONTRACT_KEY}
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert model.opset_import[0].version >= 20
    assert [v.name for v in model.graph.input] == ["moving", "fixed"]
    assert [v.name for v in model.graph.output] == ["field"]


def test_guidance_leaves_no_trace_in_the_graph(models: dict[str, Exported]) -> None:
    a, b = (topology(onnx.load(models[g].model)) for g in ("ofg", "none"))
    assert a == b
    assert set(a.nodes) == {"Conv", "LeakyRelu", "Resize", "Concat"}
    assert a.nodes.count("Conv") == 12
    assert a.parameters == sum(p.numel() for p in VoxelMorph(EXPECTS.shape).parameters())
    assert models["ofg"].contract.weights_sha256 != models["none"].contract.weights_sha256


def test_topology_sees_wiring_and_settings_but_not_weights() -> None:
    network = VoxelMorph((16, 16, 32))
    model = trace(network, (16, 16, 32))
    same = trace(VoxelMorph((16, 16, 32)), (16, 16, 32))
    assert topology(model) == topology(same)
    other_scale, other_slope, other_order = (onnx.ModelProto() for _ in range(3))
    for changed in (other_scale, other_slope, other_order):
        changed.CopyFrom(model)
    [scales] = {n.input[2] for n in other_scale.graph.node if n.op_type == "Resize"}
    for tensor in other_scale.graph.initializer:
        if tensor.name == scales:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, 3, 2, 2], np.float32), scales))
    next(n for n in other_slope.graph.node if n.op_type == "LeakyRelu").attribute[0].f = 0.1
    concat = next(n for n in other_order.graph.node if n.op_type == "Concat")
    concat.input[:] = list(concat.input)[::-1]
    for changed in (other_scale, other_slope, other_order):
        assert topology(changed).sha256 != topology(model).sha256


class WithWarp(VoxelMorph):
    """A sampler in the graph: not the network alone."""

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        field = super().forward(moving, fixed)
        return field * warp(moving, field)


class WithExtraWeights(VoxelMorph):
    """A buffer of training that the graph would carry along."""

    def __init__(self) -> None:
        super().__init__((16, 16, 32))
        self.register_buffer("momentum", torch.rand(3, 1, 1, 1))

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(moving, fixed), self.momentum.expand(len(moving), 3, 16, 16, 32)], dim=1)


@pytest.mark.parametrize(
    ("network", "message"), [(WithWarp((16, 16, 32)), "GridSample"), (WithExtraWeights(), "Expand|no weight")]
)
def test_anything_but_the_network_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        check_graph(trace(network, (16, 16, 32)), network)


def test_a_corrupted_weight_is_not_published(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    """One weight of the flow head off by a thousandth after tracing: exit 4, nothing written."""

    def corrupted(network: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
        model = trace(network, shape)
        for tensor in model.graph.initializer:
            if tensor.name == "flow.bias":
                value = onnx.numpy_helper.to_array(tensor) + np.array([0, 1e-2, 0], np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        return model

    monkeypatch.setattr("ofg_deploy.export.onnx.trace", corrupted)
    code, _, stderr = run_cli(["export", runs["ofg"].folder, "-o", tmp_path / "m/model.onnx"])
    assert code == 4
    assert "field_mm_max 0.025 > 0.01" in stderr
    assert list(tmp_path.iterdir()) == []


def test_parity_figures_are_in_voxels_and_mm() -> None:
    """A known error in one component: 0.01 voxel along y, 2.5 mm spacing there."""
    pair = synthetic_pair(EXPECTS)

    def constant(value: float) -> np.ndarray:
        return np.full((3, *EXPECTS.shape), np.array([0.3, value, -0.2]).reshape(3, 1, 1, 1), np.float32)

    found = compare(lambda m, f: constant(0.5), lambda m, f: constant(0.51), [pair], [lambda field: field[1].mean()])
    assert found.field_vox_max == pytest.approx(0.01, rel=1e-4)
    assert found.field_mm_mean == pytest.approx(0.025, rel=1e-4)
    assert found.dice_difference == pytest.approx(0.01, rel=1e-3)
    assert 0 < found.warped_difference_max < 0.02
    with pytest.raises(ParityError, match=r"field_mm_max.*dice_difference"):
        found.check(Tolerance())
    with pytest.raises(ParityError, match="field_mm_p99 nan"):
        replace(found, field_mm_p99=float("nan"), field_mm_max=0.0).check(Tolerance())


def test_bare_checkpoint(tmp_path: Path, run_cli: RunCli) -> None:
    torch.manual_seed(0)
    published = build_network("voxelmorph", (16, 32, 16))
    torch.save({"epoch": 1, "state_dict": published.state_dict()}, tmp_path / "dsc0.7.pth.tar")
    line = ["export", tmp_path / "dsc0.7.pth.tar", "--network", "voxelmorph", "--grid", 16, 32, 16]
    line += ["--spacing", 1.5, 1, 2, "--intensity", "window:-100,400", "-o", tmp_path / "model.onnx"]
    assert run_cli(line)[0] == 0
    contract = open_engine(tmp_path / "model.onnx", "cpu").contract
    assert (contract.expects.shape, contract.expects.spacing_mm) == ((16, 32, 16), (1.5, 1.0, 2.0))
    assert str(contract.expects.intensity) == "window:-100,400"
    assert contract.weights_sha256 == weights_sha256(published.state_dict())
    assert json.loads((tmp_path / "model.json").read_text())["parity_pairs"] == "one synthetic pair"


def test_bare_checkpoint_on_real_pairs(runs: dict[str, Run], tmp_path: Path) -> None:
    images, _ = make_subjects(tmp_path / "subjects", 4)
    source = from_checkpoint(runs["ofg"].best, "voxelmorph", False, EXPECTS, images, tmp_path / "cache", lambda: None)
    assert len(source.pairs) == 2
    assert source.pairs_from == str(images)


def test_our_own_checkpoint_knows_what_it_expects(runs: dict[str, Run], tmp_path: Path, run_cli: RunCli) -> None:
    older = Run(tmp_path / "older")
    shutil.copytree(runs["ofg"].folder, older.folder)
    record = json.loads(older.config.read_text())
    del record["config"]["guidance_similarity"]
    older.config.write_text(json.dumps(record))
    code, _, err = run_cli(["export", older.folder, "-o", tmp_path / "m.onnx"])
    assert code == 3
    assert "another version of ofg train started this run (guidance_similarity" in err
    assert "export its best.pt" in err
    code, _, err = run_cli(["export", older.best, "-o", tmp_path / "m.onnx"])
    assert code == 0, err
    contract = open_engine(tmp_path / "m.onnx", "cpu").contract
    assert (contract.network, contract.expects) == ("voxelmorph", EXPECTS)


def test_bad_requests(
    runs: dict[str, Run],
    models: dict[str, Exported],
    tmp_path: Path,
    run_cli: RunCli,
) -> None:
    best, folder = runs["ofg"].best, runs["ofg"].folder
    published = tmp_path / "published.pth.tar"
    torch.save({"state_dict": load_checkpoint(best).state}, published)
    model = models["ofg"].model
    before = model.read_bytes()
    for line, code, words in [
        (["export", folder, "-o", model], 3, "--overwrite"),
        (["export", folder, "-o", tmp_path / "model.bin"], 2, ".onnx"),
        (["export", folder, "-o", model / "x.onnx"], 3, "not a writable folder"),
        (["export", tmp_path / "none", "-o", tmp_path / "m.onnx"], 3, "does not exist"),
        (["export", tmp_path, "-o", tmp_path / "m.onnx"], 3, "not a run"),
        (["export", published, "-o", tmp_path / "m.onnx"], 2, "--network"),
        (
            ["export", published, "--network", "voxelmorph", "--grid", 9, 9, 7, "-o", tmp_path / "m.onnx"],
            2,
            "at least 8",
        ),
        (
            ["export", published, "--network", "voxelmorph", "--grid", 0, 0, 0, "-o", tmp_path / "m.onnx"],
            2,
            "grid 0 0 0: this network needs at least 8 voxels along each axis",
        ),
        (["export", best, "--spacing", 1, 1, 1, "-o", tmp_path / "m.onnx"], 2, "was trained as voxelmorph on"),
        (["export", folder, "--axes", "LIA", "-o", tmp_path / "m.onnx"], 2, "--axes"),
        (["export", folder, "--network", "voxelmorph", "-o", tmp_path / "m.onnx"], 2, "bare checkpoint"),
        (["export", folder, "--atol-mm", 0, "-o", tmp_path / "m.onnx"], 2, "above 0"),
    ]:
        found, _, stderr = run_cli(line)
        assert found == code, (line, stderr)
        assert words in stderr
        assert stderr.count("\n") == 1
    assert model.read_bytes() == before
    assert list(tmp_path.iterdir()) == [published]


def test_a_model_is_kept_without_overwrite(runs: dict[str, Run], models: dict[str, Exported]) -> None:
    with pytest.raises(InputError, match="overwrite=True"):
        export(runs["ofg"], models["ofg"].model)


def test_a_model_knows_what_its_training_images_looked_like(runs: dict[str, Run], models: dict[str, Exported]) -> None:
    """The share that is cut out, and where they are bright, by hand from the files of the training pairs."""
    record = open_engine(models["ofg"].model, "cpu").contract.training["images"]
    _, pairs, _ = runs["ofg"].read()
    images = [nib.load(pair.fixed).get_fdata() for pair in pairs.training]
    assert record["stripped"] == np.mean([(i == 0).mean() > 0.35 and (i[[0, -1]] == 0).all() for i in images])
    mean = np.frombuffer(base64.b64decode(record["mean"]), np.uint8).reshape(8, 8, 8)
    known = mean < 255
    assert known.sum() > 100
    inner = mean[3:5, 3:5, 3:5]
    assert inner.min() > mean[known].mean(), "the ellipsoids are bright in the middle"
