"""``ofg info``: what files say about themselves, against what other readers find in them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_records import engine_record
from training_runs import find_tiny_pairs, make_subjects, tiny_config

from ofg_deploy.appearance import Appearance
from ofg_deploy.errors import InputError
from ofg_deploy.info import describe
from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, _protobuf, read_model, seal
from ofg_deploy.serve.engine_file import record_path
from ofg_deploy.train.networks import build_network
from ofg_deploy.train.run import EpochRecord, Run, save_epoch

RunCli = Callable[[list[object]], tuple[int, str, str]]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_engine(folder: Path, model: bytes = b"model") -> Path:
    engine = folder / "m.engine"
    engine.write_bytes(b"plan")
    record = engine_record(engine_sha256=sha256(engine), onnx="m.onnx", onnx_sha256=hashlib.sha256(model).hexdigest())
    record_path(engine).write_text(record.to_json())
    return engine


def test_a_model(tiny_model: Callable[..., Any], run_cli: RunCli) -> None:
    path = tiny_model(shape=(6, 8, 10), spacing_mm=(1.0, 2.0, 3.5)).path
    code, out, _ = run_cli(["info", path, "--json"])
    found = json.loads(out)
    stored = onnx.load(str(path))
    [contract] = [json.loads(entry.value) for entry in stored.metadata_props if entry.key == CONTRACT_KEY]
    assert code == 0
    assert (found["kind"], found["sha256"], found["opset"]) == ("model", sha256(path), stored.opset_import[0].version)
    assert found["contract"] == contract
    code, out, _ = run_cli(["info", path, "--verbose"])
    assert "contract.expects.spacing_mm: 1.0 2.0 3.5\n" in out
    assert f"file: {path}\n" in out


def test_an_engine(tmp_path: Path, run_cli: RunCli) -> None:
    engine = write_engine(tmp_path)
    stored = json.loads(record_path(engine).read_text())
    for content, beside in ((None, "absent"), (b"model", "same"), (b"other", "another")):
        if content:
            (tmp_path / "m.onnx").write_bytes(content)
        found = json.loads(run_cli(["info", engine, "--json"])[1])
        assert found == {"kind": "engine", "file": str(engine), "onnx_beside": beside, **stored}
    out = run_cli(["info", engine, "--verbose"])[1]
    for line in ("gpu: NVIDIA RTX A6000", "capabilities: sm86", "tensors: field output float32 [-1, 3, 6, 8, 10]"):
        assert line + "\n" in out
    engine.write_bytes(b"plan?")
    code, _, err = run_cli(["info", engine])
    assert (code, err.count("\n")) == (3, 1)
    assert "sha256 differs" in err


def test_a_checkpoint(tmp_path: Path, run_cli: RunCli) -> None:
    network = build_network("voxelmorph", (16, 32, 16))
    path = tmp_path / "dsc0.7.pth.tar"
    torch.save({"state_dict": network.state_dict()}, path)
    found = json.loads(run_cli(["info", path, "--json"])[1])
    assert (found["kind"], found["sha256"], found["network"]) == ("checkpoint", sha256(path), None)
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    shapes = {name: tuple(t["shape"]) for name, t in found["tensors"].items()}
    assert shapes == {name: tuple(value.shape) for name, value in network.state_dict().items()}
    out = run_cli(["info", path, "--verbose"])[1]
    assert f"tensors: {len(shapes) - 8} more (see --json)" in out
    assert out.count("tensors.") == 8


def test_a_run_and_its_checkpoint(tmp_path: Path, run_cli: RunCli) -> None:
    pairs, config, run = find_tiny_pairs(*make_subjects(tmp_path)), tiny_config(seed=3), Run(tmp_path / "run")
    run.start(config, pairs, tmp_path / "cache", ["test"], [])
    assert json.loads(run_cli(["info", run.folder, "--json"])[1])["epochs_finished"] == 0
    state = build_network(config.network, config.expects.shape).state_dict()
    images = Appearance.of(np.zeros(1, bool), np.zeros((1, 8, 8, 8), np.float32))
    rows = [EpochRecord(epoch, 1e-4, 0.5, 0.4, 0.1, 0.0, None, 0.7, 0.0, 1.0) for epoch in (0, 1)]
    save_epoch(run, config, state, {"optimiser": 1}, rows, images)
    found = json.loads(run_cli(["info", run.folder, "--json"])[1])
    assert (found["kind"], found["epochs_finished"]) == ("run", 2)
    assert found["pairs"] == {"training": len(pairs.training), "validation": len(pairs.validation)}
    assert (found["config"]["seed"], found["config"]["epochs"], found["best.pt"]) == (3, 2, True)
    assert "config.network: voxelmorph\n" in run_cli(["info", run.folder, "--verbose"])[1]
    best = describe(run.best)
    assert (best["network"], best["training"]["seed"], best["resumable"]) == ("voxelmorph", 3, False)
    assert describe(run.last)["resumable"]
    assert best["expects"]["spacing_mm"] == (2.0, 2.5, 2.0)


FIVE = ["network", "grid", "images", "training", "validation"]


def lines_of(out: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in out.splitlines())


def test_five_lines_come_first(tiny_model: Callable[..., Any], tmp_path: Path, run_cli: RunCli) -> None:
    look = Appearance.of(np.ones(3, bool), np.random.default_rng(0).random((3, 8, 8, 8), np.float32)).to_record()
    training = {"guidance": "ofg", "epoch": 7, "epochs": 9, "seed": 3, "version": "0.9", "images": look}
    training |= {"val_dice": 0.71234, "val_ncc": 0.5, "val_folding_percent": 0.0123}
    path = tiny_model(shape=(6, 8, 10), spacing_mm=(1.0, 2.0, 3.5), training=training).path
    code, out, _ = run_cli(["info", path])
    found = lines_of(out)
    assert code == 0
    assert [*found][:5] == FIVE
    assert "voxelmorph" in found["network"] or "tiny" in found["network"]
    assert found["grid"].startswith("6x8x10 voxels of 1x2x3.5 mm, axes RAS")
    assert "skull-stripped" in found["images"]
    assert found["training"] == "On-the-Fly Guidance, epoch 7 of 9, seed 3, ofg_deploy 0.9"
    assert found["validation"] == "Dice 0.712, NCC 0.500, folding 0.012 %"
    for flags in ([], ["--verbose"]):
        out = run_cli(["info", path, *flags])[1]
        assert look["mean"] not in out
        assert max(map(len, out.splitlines())) < 300
    assert look["mean"] in run_cli(["info", path, "--json"])[1]
    assert [*lines_of(run_cli(["info", write_engine(tmp_path)])[1])][:5] == FIVE
    torch.save({"state_dict": {"a.weight": torch.zeros(2, 3)}}, tmp_path / "bare.pt")
    bare = lines_of(run_cli(["info", tmp_path / "bare.pt"])[1])
    assert bare["network"] == "not recorded, 6 parameters"
    assert {bare[name] for name in FIVE[1:]} == {"not recorded"}


def test_the_best_epoch_of_a_run(tmp_path: Path, run_cli: RunCli) -> None:
    pairs, config, run = find_tiny_pairs(*make_subjects(tmp_path)), tiny_config(seed=3), Run(tmp_path / "run")
    run.start(config, pairs, tmp_path / "cache", ["test"], [])
    assert lines_of(run_cli(["info", run.folder])[1])["validation"] == "none so far"
    state = build_network(config.network, config.expects.shape).state_dict()
    images = Appearance.of(np.zeros(1, bool), np.zeros((1, 8, 8, 8), np.float32))
    scores = [(0.61, 0.7), (0.75, 0.4), (None, None), (0.75, 0.6), (0.2, 0.9)]
    rows = [
        EpochRecord(n, 1e-4, 0.5, 0.4, 0.1, 0.0, dice, ncc, None if dice is None else 0.25, 1.0)
        for n, (dice, ncc) in enumerate(scores, start=1)
    ]
    for n in range(len(rows)):
        save_epoch(run, config, state, {"optimiser": 1}, rows[: n + 1], images)
    count = len(pairs.validation)
    line = lines_of(run_cli(["info", run.folder])[1])["validation"]
    assert line == f"Dice 0.750, NCC 0.600, folding 0.25 % over {count} pair{'s' * (count != 1)}, best epoch 4"
    assert lines_of(run_cli(["info", run.best])[1])["validation"] == line.split(" over")[0]


def test_what_is_none_of_ours_is_one_line(tmp_path: Path, run_cli: RunCli) -> None:
    for name, content in [("a.onnx", b"x"), ("b.engine", b"x"), ("c.pt", b"x"), ("d.txt", b"x")]:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "run").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"version": 1}')
    words = {
        "a.onnx": "no contract",
        "b.engine": "beside it",
        "c.pt": "not a checkpoint",
        "d.txt": "none of .onnx",
        "run": "no config.json",
        "odd": "damaged",
        "nothing": "does not exist",
    }
    for name, said in words.items():
        code, out, err = run_cli(["info", tmp_path / name, "--json"])
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert said in err
        assert name in err


@pytest.mark.parametrize("kind", ["model", "engine"])
def test_neither_torch_nor_a_runtime_is_needed(tiny_model: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    path = tiny_model().path if kind == "model" else write_engine(tmp_path)
    absent = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "filelock")
    code = f"import sys; [sys.modules.update({{m: None}}) for m in {absent}]; from ofg_deploy.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "info", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("engine for" if kind == "engine" else "ONNX opset") in done.stdout


def test_the_header_is_read_as_onnx_reads_it(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """Other domains, more entries and an unusual order: fields of a protobuf message may come in any."""
    path = tmp_path / "m.onnx"
    model = onnx.load(str(tiny_model().path))
    model.opset_import.insert(0, onnx.helper.make_opsetid("com.other", 3))
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 4))
    model.doc_string = "x" * 300
    contract = next(entry.value for entry in model.metadata_props if entry.key == CONTRACT_KEY)
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {"a": "", CONTRACT_KEY: contract, "b": "ü" * 200, SEAL_KEY: UNSEALED})
    path.write_bytes(seal(model.SerializeToString()))
    found = read_model(path)
    assert (found.opset, found.contract.to_json(), found.sha256) == (20, contract, sha256(path))
    onnx.helper.set_model_props(model, {SEAL_KEY: UNSEALED, "b": "no contract"})
    path.write_bytes(seal(model.SerializeToString()))
    with pytest.raises(InputError, match="no contract"):
        read_model(path)


def test_no_bytes_make_the_reader_fail_otherwise(tiny_model: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    content = tiny_model(shape=(4, 4, 4)).path.read_bytes()
    for _ in range(400):
        given = rng.bytes(40) if rng.random() < 0.5 else content[: rng.integers(len(content))] + rng.bytes(3)
        try:
            total = sum(len(value) for _, value in _protobuf(memoryview(given)) if isinstance(value, memoryview))
        except (ValueError, IndexError):
            continue
        assert total <= len(given)
