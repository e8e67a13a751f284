"""Checkpoints that were changed, damaged or made up: never other weights in silence, never torch's own advice."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints need torch")

from training_runs import EXPECTS  # noqa: E402

from ofg_deploy.errors import InputError  # noqa: E402
from ofg_deploy.train import checkpoint as module  # noqa: E402
from ofg_deploy.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402

STATE = {
    "conv.weight": torch.arange(2000, dtype=torch.float32).reshape(20, 100) / 7,
    "conv.bias": torch.linspace(-1, 1, 20),
}


def ours(path: Path) -> Path:
    save_checkpoint(path, Checkpoint(STATE, "voxelmorph", EXPECTS, {"epoch": 3, "val_dice": 0.5}, {"history": []}))
    return path


def same(found: Checkpoint) -> bool:
    return (
        all(torch.equal(found.state[name], value) for name, value in STATE.items())
        and (found.network, found.expects) == ("voxelmorph", EXPECTS)
        and found.training == {"epoch": 3, "val_dice": 0.5}
    )


def test_a_flipped_bit_is_found(tmp_path) -> None:
    """Anywhere in the file: what loads is what was saved. Without the checks nearly all of them load."""
    path = ours(tmp_path / "best.pt")
    content = path.read_bytes()
    assert same(load_checkpoint(path))
    rng, said = np.random.default_rng(5), []
    for at in rng.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            assert same(load_checkpoint(path)), at
        except InputError as error:
            said.append(str(error))
    assert all(str(path) in line and "weights_only" not in line and "\n" not in line for line in said)
    assert len(said) > 80  # the rest are bytes that nobody reads, which line up what is read


def test_weights_that_were_exchanged_with_their_checksums(tmp_path, monkeypatch) -> None:
    path = ours(tmp_path / "best.pt")
    record = torch.load(path, weights_only=True)
    record["state_dict"]["conv.bias"][3] += 1e-3
    torch.save(record, path)
    with pytest.raises(InputError, match="weights are not those it was written with"):
        load_checkpoint(path)
    del record["weights_sha256"]  # written before there was one
    torch.save(record, path)
    assert load_checkpoint(path).network == "voxelmorph"


def test_checkpoints_that_torch_wrote_without_checksums(tmp_path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "published.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_checkpoint(tmp_path / "published.pt").state["conv.bias"], STATE["conv.bias"])
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(tmp_path / "old.pt").state["conv.bias"], STATE["conv.bias"])


def record(**changed: Any) -> dict[str, Any]:
    known = {"schema": 2, "network": "voxelmorph", "expects": None, "training": None, "resume": None}
    return {**known, "state_dict": STATE, **changed}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({3: torch.ones(2)}, "names a tensor 3"),
        ({"a": torch.eye(3).to_sparse()}, "not a dense tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "not a dense tensor of real numbers"),
        ({"a": torch.ones(1).expand(10**9)}, "more numbers than"),
        ({"a": torch.empty(5, device="meta")}, "not a dense tensor"),
        ({"state_dict": {}}, "no state_dict"),
        ([1, 2], "no state_dict"),
        (record(schema="2"), "schema '2'"),
        (record(schema=torch.tensor([2, 2])), "schema"),
        (record(network=5), "damaged record"),
        (record(training=[1]), "damaged record"),
        (record(training={"val_dice": float("nan")}), "damaged record"),
        (record(training={"weights": torch.ones(2)}), "damaged record"),
        (record(resume="x"), "damaged record"),
        (record(expects=5), "damaged record"),
        (record(expects={"shape": (4, 4, 10**400)}), "damaged record"),
    ],
)
def test_odd_content_is_one_line(tmp_path, content, said) -> None:
    path = tmp_path / "odd.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about sparse and quantised tensors
        torch.save(content, path)
        with pytest.raises(InputError, match=said) as caught:
            load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_advice_to_read_it_without_protection_is_not_repeated(tmp_path, capsys) -> None:
    torch.save({"state_dict": STATE, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"refused \(it would run \S*print\)") as caught:
        load_checkpoint(tmp_path / "evil.pt")
    assert not any(word in str(caught.value) for word in ("weights_only", "safe_globals", "trust"))
    assert "ran" not in capsys.readouterr().out


def test_a_zip_that_grows(tmp_path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    (tmp_path / "bomb.pt").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="claims more than it holds"):
        load_checkpoint(tmp_path / "bomb.pt")
    assert module.MOST_GROWN == 4
