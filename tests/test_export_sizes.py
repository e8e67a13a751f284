"""What a graph takes and returns: any multiples of the divisor, another grid than the trained one, the warped image."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.ndimage import map_coordinates
from tensorrt_support import refusals
from test_golden import REFERENCE, golden_state, needs_reference
from test_networks import awake, constant_nodes, images
from traced import trace_once
from training_runs import EXPECTS

from ofg_deploy.errors import UsageError
from ofg_deploy.export.form import choose_form, elsewhere
from ofg_deploy.export.onnx import export_onnx, trace
from ofg_deploy.export.parity import Tolerance
from ofg_deploy.export.request import BareOptions, find_source
from ofg_deploy.export.source import from_checkpoint
from ofg_deploy.export.topology import topology
from ofg_deploy.model_file import SEAL_KEY, UNSEALED, read_model, seal
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.engine_file import read_record
from ofg_deploy.train.checkpoint import Checkpoint, load_weights, save_checkpoint, weights_sha256
from ofg_deploy.train.networks import build_network, lku_net
from ofg_deploy.train.networks.velocity import Sampler

RunCli = Callable[[list[object]], tuple[int, str, str]]
GRID = (32, 16, 48)


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that export the same network again and change nothing about how it is traced."""
    monkeypatch.setattr("ofg_deploy.export.onnx.trace", trace_once)


def checkpoint(
    path: Path, name: str = "voxelmorph", grid: tuple[int, int, int] = GRID, gain: float = 1, **training: Any
) -> Path:
    """One of ours, with weights as far from their start as trained ones; VoxelMorph's field times ``gain``."""
    expects = replace(EXPECTS, shape=grid)
    state = awake(name, grid, bool(training.get("diffeomorphic"))).state_dict()
    if gain != 1:
        state["flow.weight"] = state["flow.weight"] * gain
    save_checkpoint(path, Checkpoint(state, name, expects, {"diffeomorphic": False, **training}, {}))
    return path


def run_graph(path: Path, moving: torch.Tensor, fixed: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"moving": moving.numpy(), "fixed": fixed.numpy()})


@pytest.mark.parametrize("name", ["voxelmorph-2", "voxelmorph-half", "lku-net"])
def test_one_graph_does_for_every_grid_of_multiples(name: str, tmp_path: Path, run_cli: RunCli) -> None:
    code, out, err = run_cli(["export", checkpoint(tmp_path / "c.pt", name), "-o", tmp_path / "m.onnx"])
    assert code == 0, err
    assert "sizes: any multiples of 16, as it is fully convolutional\non another grid" in out
    contract = read_model(tmp_path / "m.onnx").contract
    assert (contract.sizes, contract.outputs, contract.expects.shape) == ("multiples", ("field",), GRID)
    model = onnx.load(tmp_path / "m.onnx")
    found = [node.op_type for node in model.graph.node]
    network = awake(name, GRID)
    assert set(found) == network.onnx_ops | network.size_operators
    assert not {"Gather", "Slice", "Expand"} & set(found)
    assert found.count("Shape") == (name == "lku-net")
    assert refusals(model, (10, 15)) == []
    assert constant_nodes(model) == []
    for grid in [GRID, (64, 48, 16), (16, 16, 80)]:
        moving, fixed = images(grid)
        other = build_network(name, grid).eval()
        load_weights(other, network.state_dict(), Path("x"))
        with torch.inference_mode():
            eager = other(moving, fixed).numpy()
        [field] = run_graph(tmp_path / "m.onnx", torch.cat([moving, fixed]), torch.cat([fixed, moving]))
        assert np.abs(eager).max() > 1e-2
        assert np.percentile(np.linalg.norm(field[0] - eager[0], axis=0), 99.9) <= 1e-3
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["parity_elsewhere"]["grid"] == [48, 32, 64]
    assert 0 < record["parity_elsewhere"]["field_mm_max"] < 0.01
    again = trace(build_network(name, (48, 32, 64)).inference_copy(any_size=True), (48, 32, 64))
    assert topology(again) == topology(model)
    assert elsewhere(replace(EXPECTS, shape=(48, 32, 64)), 16).shape == (64, 48, 32)


def test_a_graph_that_is_right_on_its_own_grid_alone_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    """LKU-Net scales its field by the grid: frozen to the trained one, the validation pairs would not tell."""
    monkeypatch.setattr(lku_net, "_sizes", lambda images: torch.tensor(GRID))
    code, _, err = run_cli(["export", checkpoint(tmp_path / "c.pt", "lku-net"), "-o", tmp_path / "m/m.onnx"])
    assert code == 4
    assert "field_mm_max" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt"]


def test_all_else_is_for_one_grid_and_says_why() -> None:
    for name, grid, form, with_warp, why in [
        ("voxelmorph", (32, 17, 48), False, False, "(32 17 48): it is padded to multiples of 16"),
        ("voxelmorph", GRID, True, False, "integration"),
        ("lku-net", GRID, False, True, "its sampler has a lattice of it"),
        ("vit-v-net", (64, 32, 32), False, False, "attention"),
        ("transmorph-small", (32, 32, 64), False, False, "attention"),
    ]:
        found = choose_form(build_network(name, grid, form), with_warp)
        assert found.sizes == "fixed"
        assert why in found.reason


@pytest.mark.usefixtures("traced_once")
def test_exported_for_another_grid_than_trained_on(tmp_path: Path, run_cli: RunCli) -> None:
    """The record knows both grids; weights that belong to places are refused."""
    ours = checkpoint(tmp_path / "c.pt", guidance="ofg")
    code, out, err = run_cli(["export", ours, "--shape", 20, 24, 18, "-o", tmp_path / "m.onnx"])
    assert code == 0, err
    assert "sizes: this grid alone (20 24 18): it is padded to multiples of 16" in out
    contract = read_model(tmp_path / "m.onnx").contract
    assert contract.expects == replace(EXPECTS, shape=(20, 24, 18))
    assert contract.training == {"diffeomorphic": False, "guidance": "ofg", "grid": list(GRID)}
    moving, fixed = images((20, 24, 18))
    with torch.inference_mode():
        eager = awake("voxelmorph", (20, 24, 18))(moving, fixed).numpy()
    assert np.abs(run_graph(tmp_path / "m.onnx", moving, fixed)[0] - eager).max() < 1e-4
    vit = checkpoint(tmp_path / "v.pt", "vit-v-net", (32, 64, 32))
    for file, grid, words in [
        (vit, (64, 32, 32), "grid 32 64 32"),  # same shapes
        (ours, (16, 7, 16), "grid 16 7 16: this network needs at least 8 voxels along each axis"),
        (ours, (0, 16, -16), "grid 0 16 -16: this network needs at least 8 voxels along each axis"),
    ]:
        code, _, err = run_cli(["export", file, "--grid", *grid, "-o", tmp_path / "no.onnx"])
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
        assert not (tmp_path / "no.onnx").exists()


@pytest.mark.usefixtures("traced_once")
def test_registering_on_another_grid(tmp_path: Path, files: Any, run_cli: RunCli) -> None:
    """With one model for all grids as with a model exported for that grid."""
    fixed, moving, *_ = files
    ours = checkpoint(tmp_path / "c.pt")
    for name, more in (("any", []), ("larger", ["--shape", 48, 32, 64, "--with-warp"])):
        assert run_cli(["export", ours, "-o", tmp_path / f"{name}.onnx", *more])[0] == 0
    warped = {}
    for name, model, more in [
        ("own", "any", []),
        ("given", "any", ["--grid", 48, 32, 64]),
        ("exported", "larger", []),
        ("same", "larger", ["--grid", 48, 32, 64]),
    ]:
        line = ["register", fixed, moving, "-m", tmp_path / f"{model}.onnx", "-o", tmp_path / name, *more]
        code, _, err = run_cli(line)
        assert code == 0, err
        warped[name] = nib.load(tmp_path / name / "mov_to_fix_Warp.nii.gz").get_fdata()
    record = json.loads((tmp_path / "given/mov_to_fix.json").read_text())
    assert record["network_grid"] == {"shape": [48, 32, 64], "spacing_mm": pytest.approx([2.0, 2.5, 2.0])}
    assert record["model"]["expects"]["shape"] == list(GRID)
    assert np.abs(warped["given"] - warped["exported"]).max() < 1e-3
    assert np.array_equal(warped["same"], warped["exported"])
    assert np.abs(warped["given"] - warped["own"]).max() > 0.1
    for model, grid, words in [
        ("any", (48, 33, 64), "grid 48 33 64: this model takes multiples of 16, the next are 48 48 64"),
        ("any", (0, 16, -5), "the next are 16 16 16"),
        ("larger", (32, 32, 32), "this model takes 48 32 64 alone, export one with --grid 32 32 32"),
    ]:
        line = ["register", fixed, moving, "-m", tmp_path / f"{model}.onnx", "-o", tmp_path / "no", "--grid", *grid]
        code, _, err = run_cli(line)
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
        assert not (tmp_path / "no").exists()


def test_a_model_asked_for_a_grid_it_does_not_take_says_so(tmp_path: Path) -> None:
    expects = NetworkInput((18, 16, 20), (1.0, 1.0, 1.0), Intensity("minmax"), "none")
    source = from_checkpoint(
        checkpoint(tmp_path / "c.pt", grid=expects.shape), "voxelmorph", False, expects, None, tmp_path, lambda: None
    )
    export_onnx(source, tmp_path / "m.onnx", Tolerance(), False, [])
    engine = open_engine(tmp_path / "m.onnx", "cpu")
    with pytest.raises(UsageError, match="this model takes 18 16 20 alone"):
        engine.predict(*(np.zeros((16, 16, 16), np.float32),) * 2)


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_the_warped_image_of_the_graph(diffeomorphic: bool, tmp_path: Path, run_cli: RunCli) -> None:
    """Against scipy: linear, zeros one voxel beyond the outermost centres."""
    ours = checkpoint(tmp_path / "c.pt", grid=(18, 16, 21), gain=20, diffeomorphic=diffeomorphic)
    code, out, err = run_cli(["export", ours, "--with-warp", "-o", tmp_path / "m.onnx"])
    assert code == 0, err
    assert "warped in the graph against ofg's own sampler: at most" in out
    contract = read_model(tmp_path / "m.onnx").contract
    assert (contract.sizes, contract.outputs) == ("fixed", ("field", "warped"))
    model = onnx.load(tmp_path / "m.onnx")
    assert [v.name for v in model.graph.output] == ["field", "warped"]
    assert constant_nodes(model) == []
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert len(samplers) == (8 if diffeomorphic else 1)
    assert json.loads((tmp_path / "m.json").read_text())["warped_error"] < 1e-4
    moving, fixed = (image * 0.5 + 0.5 for image in images((18, 16, 21)))  # bright at the border
    field, warped = run_graph(tmp_path / "m.onnx", torch.cat([moving, fixed]), torch.cat([fixed, moving]))
    assert warped.shape == (2, 1, 18, 16, 21)
    for index, image in enumerate((moving, fixed)):
        where = np.indices((18, 16, 21)) + field[index]
        expected = map_coordinates(image[0, 0].numpy(), where, order=1, mode="grid-constant", cval=0.0)
        assert np.abs(warped[index, 0] - expected).max() < 1e-4
    assert np.abs(warped - torch.cat([moving, fixed]).numpy()).max() > 0.1


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("with_warp", [False, True])
def test_engines_are_for_the_grid_of_the_contract(
    with_warp: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    """Real builds, of a graph for any multiples and of one that warps."""
    pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt_rtx (pip install ofg-deploy[rtx])")
    monkeypatch.setenv("OFG_CACHE", str(tmp_path / "cache"))
    ours = checkpoint(tmp_path / "c.pt", "voxelmorph" if with_warp else "lku-net")
    line = ["export", ours, "-o", tmp_path / "m.onnx", "--trt", "--cpu-build", "--target", "sm86"]
    code, _, err = run_cli([*line, *(["--with-warp"] if with_warp else [])])
    assert code == 0, err
    record = read_record(tmp_path / "m.engine")
    assert record.profile["moving"] == ((1, 1, *GRID),) * 3
    assert (record.contract.sizes, record.contract.outputs) == ("fixed", ("field", "warped")[: 1 + with_warp])
    sizes = GRID if with_warp else (-1, -1, -1)
    expected = {"moving": 1, "fixed": 1, "field": 3, **({"warped": 1} if with_warp else {})}
    assert {t.name: t.shape for t in record.tensors} == {n: (-1, c, *sizes) for n, c in expected.items()}


def test_a_sampler_of_another_convention_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    def other(self: Sampler, moving: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        where = self.lattice + (field * self.per_voxel).flip(1).movedim(1, -1)
        return torch.nn.functional.grid_sample(moving, where, align_corners=False)

    monkeypatch.setattr(Sampler, "forward", other)
    code, _, err = run_cli(["export", checkpoint(tmp_path / "c.pt"), "--with-warp", "-o", tmp_path / "m/m.onnx"])
    assert code == 4
    assert "warps otherwise than our own sampler" in err
    assert not (tmp_path / "m").exists()


@needs_reference
@pytest.mark.parametrize("name", ["voxelmorph", "vit-v-net", "transmorph", "lku-net"])
def test_published_files_export_with_a_recipe(name: str, tmp_path: Path, run_cli: RunCli) -> None:
    """A .pth.tar as published, from several GPUs: the graph's field is the published implementation's."""
    spec = json.loads((REFERENCE / f"{name}.json").read_text())
    state = golden_state(spec["state"])
    grid = tuple(spec["input_shape"])
    shape = {"spatial_trans.grid": torch.zeros(1, 3, *grid), "transformer.grid": torch.zeros(1, 3, *grid)}
    if name == "transmorph":
        shape["transformer.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(210, 210, dtype=torch.int64)
    network = build_network(name, grid).state_dict()
    state |= {key: value for key, value in network.items() if key.endswith("num_batches_tracked")}
    saved = {f"module.{key}": value for key, value in {**state, **shape}.items()}
    optimiser = torch.optim.Adam([torch.zeros(2, requires_grad=True)], amsgrad=True).state_dict()
    record = {"epoch": 500, "state_dict": saved, "best_dsc": np.float64(0.75), "optimizer": optimiser}
    torch.save(record, tmp_path / "dsc0.750.pth.tar")
    line = ["export", tmp_path / "dsc0.750.pth.tar", "--network", name, "--recipe", "ixi", "--grid", *grid]
    code, _, err = run_cli([*line, "-o", tmp_path / "m.onnx"])
    assert code == 0, err
    contract = read_model(tmp_path / "m.onnx").contract
    assert contract.expects == NetworkInput(grid, (1.0, 1.0, 1.0), Intensity("minmax"), "none", "LIA")
    assert contract.training["source"] == "dsc0.750.pth.tar"
    assert contract.weights_sha256 == weights_sha256(state)
    with np.load(REFERENCE / f"{name}.npz") as golden:
        moving, fixed = (torch.from_numpy(golden[k])[None, None] for k in ("moving", "fixed"))
        expected = golden["flow"]
    if name == "lku-net":  # published in normalised coordinates
        expected = expected * (np.array(grid).reshape(3, 1, 1, 1) - 1) / 2
    [field] = run_graph(tmp_path / "m.onnx", moving, fixed)
    error = np.linalg.norm(field[0] - expected, axis=0)
    assert np.percentile(error, 99.9) <= 1e-3
    assert np.linalg.norm(expected, axis=0).max() > 0.05
    model = onnx.load(tmp_path / "m.onnx")
    assert constant_nodes(model) == []
    found = [node.op_type for node in model.graph.node]
    assert "ScatterND" not in found
    assert found.count("Slice") == 0


@pytest.mark.usefixtures("traced_once")
def test_a_recipe_fills_in_what_was_not_given(tmp_path: Path, run_cli: RunCli) -> None:
    published = tmp_path / "p.pth.tar"
    torch.save({"state_dict": awake("voxelmorph", (48, 64, 48)).state_dict()}, published)
    nothing = BareOptions("voxelmorph", *[None] * 7, "hippocampus")
    found = find_source(published, nothing, tmp_path).expects
    assert found == NetworkInput((48, 64, 48), (1.0, 1.0, 1.0), Intensity.parse("percentile:0.5,99.5"), "affine")
    given = replace(nothing, intensity="minmax", init="none", recipe="lpba40", grid=(16, 32, 16), diffeomorphic=True)
    assert str(find_source(published, given, tmp_path).expects.intensity) == "minmax"
    ours = checkpoint(tmp_path / "c.pt")
    out = ["-o", tmp_path / "m.onnx"]
    for line, words in [
        ([published, "--network", "voxelmorph", "--recipe", "ixi", "--spacing", 2, 2, 2], "--grid that belongs"),
        ([published, "--network", "voxelmorph"], "needs --network and --grid X Y Z or --recipe"),
        ([published, "--network", "voxelmorph", "--recipe", "ixi", "--axes", "RAS"], "--axes RAS"),
        ([ours, "--recipe", "ixi"], "was trained as voxelmorph on"),
    ]:
        code, _, err = run_cli(["export", *line, *out])
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.usefixtures("traced_once")
def test_what_cannot_be_exported_or_read_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Any, run_cli: RunCli
) -> None:
    fixed, moving, *_ = files
    ours, out = checkpoint(tmp_path / "c.pt", grid=(16, 17, 18)), tmp_path / "m.onnx"
    torch.save({"state_dict": build_network("lku-net", (16, 16, 16)).state_dict()}, tmp_path / "lku.pth.tar")
    assert run_cli(["export", ours, "-o", out])[0] == 0
    content = out.read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(content[: len(content) // 2])
    future = onnx.load(out)
    future.opset_import[0].version = 99
    next(entry for entry in future.metadata_props if entry.key == SEAL_KEY).value = UNSEALED
    (tmp_path / "future.onnx").write_bytes(seal(future.SerializeToString()))
    register = ["register", fixed, moving, "-o", tmp_path / "no/out", "-m"]
    before = sorted(tmp_path.iterdir())
    for line, expected, words in [
        (["export", tmp_path / "no.pth.tar", "-o", tmp_path / "no.onnx"], 3, "does not exist"),
        (
            ["export", tmp_path / "lku.pth.tar", "--network", "voxelmorph", "--grid", 16, 16, 16, "-o", "no.onnx"],
            3,
            "it is a checkpoint of another network",
        ),
        (["export", out, "--with-warp", "--trt"], 2, "--with-warp"),
        (["export", out, "--shape", 16, 16, 16, "--trt"], 2, "--grid: these describe a bare checkpoint"),
        ([*register, tmp_path / "truncated.onnx"], 3, "no contract"),
        ([*register, tmp_path / "future.onnx"], 3, "has ONNX opset 99, fp32 models have 20"),
    ]:
        code, _, err = run_cli(line)
        assert (code, err.count("\n")) == (expected, 1), (line, err)
        assert words in err
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        real(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run_cli(["export", ours, "-o", tmp_path / "no/m.onnx"])
    assert (code, err.count("\n")) == (3, 1), err
    assert "No space left on device" in err
    assert sorted(tmp_path.iterdir()) == before
