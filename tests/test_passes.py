"""A network that is asked several times: in every runtime, in training and in its records; composed by scipy beside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from batches import GAINS, results
from scipy.ndimage import map_coordinates

import ofg_deploy as ofg
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.field import Field
from ofg_deploy.model_file import Contract, read_model
from ofg_deploy.passes import Image, Predict, in_passes
from ofg_deploy.serve.engine import open_engine

SHAPE = (9, 12, 7)


def at(values: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Values (X, Y, Z) at voxel + field, linear, edge values held: scipy in double precision."""
    where = np.indices(values.shape) + field
    return map_coordinates(values.astype(np.float64), where, order=1, mode="nearest")


def by_scipy(predict: Predict, moving: Image, fixed: Image, passes: int) -> np.ndarray:
    field = predict(moving, fixed).astype(np.float64)
    for _ in range(passes - 1):
        update = predict(at(moving, field).astype(np.float32), fixed).astype(np.float64)
        field = update + np.stack([at(component, update) for component in field])
    return field


def network(shape: tuple[int, int, int]) -> tuple[Predict, Image, Image]:
    """One whose field depends on both images and on the place, up to two voxels long; and two images."""
    rng = np.random.default_rng(3)
    x, y, z = (a / n for a, n in zip(np.indices(shape), shape, strict=True))
    still = np.stack([1.4 * np.sin(3 * x + y), 0.8 - 1.7 * z * y, np.cos(4 * z - x)])
    gains = np.array([1.1, -0.6, 0.9]).reshape(3, 1, 1, 1)
    images = rng.random((2, *shape), dtype=np.float32)
    return (lambda m, f: (still + gains * m - 0.7 * gains * f).astype(np.float32)), images[0], images[1]


@pytest.mark.parametrize("passes", [2, 4])
def test_fields_are_composed_and_the_moving_image_is_sampled_from_the_first(passes: int) -> None:
    predict, moving, fixed = network(SHAPE)
    found = in_passes(predict, passes)(moving, fixed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_scipy(predict, moving, fixed, passes), atol=2e-5)
    sums = sum(predict(moving, fixed) for _ in range(passes))
    assert np.abs(found - sums).max() > 0.5, "a sum of updates would do as well here"


def test_one_pass_is_the_network_s_own_field() -> None:
    predict, moving, fixed = network(SHAPE)
    field = predict(moving, fixed)
    assert in_passes(lambda *_: field, 1)(moving, fixed) is field


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38, "shape"])
def test_a_field_that_cannot_be_applied_ends_the_passes(bad: float | str) -> None:
    predict, moving, fixed = network(SHAPE)
    wrong = np.zeros((3, 4, 4, 4), np.float32) if bad == "shape" else predict(moving, fixed)
    if bad != "shape":
        wrong[1, 2, 3, 4] = bad
    for answers in ([wrong], [predict(moving, fixed), wrong]):
        left = iter(answers)
        assert in_passes(lambda *_, left=left: next(left), 5)(moving, fixed) is wrong


def prepared_field(model: Path, fixed: Path, moving: Path, **options: object) -> tuple[Field, Image, Image]:
    """Of ``Model.register``: the network's field, and the pair as the network saw it first."""
    result = ofg.load(model).register(fixed, moving, **options)._result
    return result.network_vox, result.prepared.pair.moving, result.prepared.pair.fixed


def test_the_contract_or_the_option_says_how_many(tmp_path, files, tiny_model) -> None:
    fixed, moving, *_ = files
    model = tiny_model(**GAINS, init="header", passes=3).path
    one = open_engine(model, "cpu").predict
    for passes, options in ((3, {}), (2, {"passes": 2}), (1, {"passes": 1})):
        field, *pair = prepared_field(model, fixed, moving, **options)
        np.testing.assert_allclose(field, by_scipy(one, *pair, passes), atol=5e-5)
    field, *pair = prepared_field(model, fixed, moving, passes=1)
    assert np.array_equal(field, one(*pair))


def test_written_transform_is_that_of_a_network_which_knew_it_at_once(tmp_path, files, tiny_model, run_cli) -> None:
    fixed, moving, *_ = files
    twice = tiny_model(init="header", passes=2)
    field = twice.field.astype(np.float64)
    whole = field + np.stack([at(component, field) for component in field])
    models = {"twice": twice.path, "once": tiny_model(init="header", field=whole).path}
    for name, model in models.items():
        assert run_cli(["register", fixed, moving, "-m", model, "-o", tmp_path / name])[0] == 0
    warps = [nib.load(tmp_path / name / "mov_to_fix_Warp.nii.gz").get_fdata() for name in models]
    np.testing.assert_allclose(warps[0], warps[1], atol=1e-4)
    records = [json.loads((tmp_path / name / "mov_to_fix.json").read_text()) for name in models]
    assert [(r["options"]["passes"], r["model"]["passes"]) for r in records] == [(2, 2), (1, 1)]


def test_a_batch_gives_what_single_commands_give_and_resumes(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    model = tiny_model(**GAINS, init="header", passes=2).path
    moving = [images / "s1.nii.gz", images / "s2.nii.gz"]
    (tmp_path / "pairs.csv").write_text("fixed,moving\n" + "".join(f"{atlas},{path}\n" for path in moving))
    batch = ["register", "--pairs", tmp_path / "pairs.csv", "-m", model, "-o", tmp_path / "batch", "--threads", "1"]
    assert run_cli([*batch, "--passes", "3", "--workers", "2"])[0] == 0
    for path in moving:
        line = ["register", atlas, path, "-m", model, "-o", tmp_path / "single", "--threads", "1", "--passes", "3"]
        assert run_cli(line)[0] == 0
    assert results(tmp_path / "batch") == results(tmp_path / "single")
    before = results(tmp_path / "batch")
    assert run_cli([*batch, "--passes", "3", "--resume"])[0] == 0
    for other in (["--passes", "1"], []):  # the model's own number is another one
        code, _, err = run_cli([*batch, *other, "--resume"])
        assert (code, "another option" in err) == (6, True)
    assert results(tmp_path / "batch") == before
    assert run_cli([*batch, "--overwrite", "--batch-size", "2"])[0] == 0
    assert run_cli([*batch, "--passes", "2", "--resume"])[0] == 0  # the same as the model's own
    once = results(tmp_path / "batch")
    assert run_cli([*batch, "--passes", "2", "--overwrite"])[0] == 0
    assert results(tmp_path / "batch") == once


def test_passes_that_cannot_be(tmp_path, files, tiny_model, run_cli) -> None:
    fixed, moving, *_ = files
    model = tiny_model(init="header").path
    for line, words in (
        (["-m", "none", "--passes", "2"], "--passes: there is no network"),
        (["-m", model, "--passes", "0"], "--passes 0: give 1 to 20"),
        (["-m", model, "--passes", "21"], "--passes 21: give 1 to 20"),
    ):
        code, _, err = run_cli(["register", fixed, moving, *line, "-o", tmp_path / "out"])
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    with pytest.raises(UsageError, match="passes 2 is of a network, and there is none"):
        ofg.register(fixed, moving, model="none", passes=2)
    with pytest.raises(UsageError, match="passes -1: give 1 to 20"):
        ofg.register(fixed, moving, model=model, passes=-1)
    assert not (tmp_path / "out").exists()


def test_a_record_without_passes_is_read_and_written_as_before(tiny_model, run_cli) -> None:
    contract = read_model(tiny_model().path).contract
    text = contract.to_json()
    assert "passes" not in json.loads(text)
    assert Contract.from_json(text, Path("m.onnx")) == contract
    several = replace(contract, passes=3)
    assert json.loads(several.to_json()) == {**json.loads(text), "passes": 3}
    assert Contract.from_json(several.to_json(), Path("m.onnx")) == several
    for passes, words in ((1, "network: tiny, fp32"), (3, "network: tiny in 3 passes, fp32")):
        assert run_cli(["info", tiny_model(passes=passes).path])[1].startswith(words)


def test_an_engine_of_an_older_version_has_one_pass(tmp_path) -> None:
    from engine_records import engine_record

    from ofg_deploy.outputs import to_json
    from ofg_deploy.serve.engine_file import _seal, read_record, record_path

    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    for passes, named in ((1, False), (1, True), (4, True)):
        record = engine_record(contract=replace(engine_record().contract, passes=passes))
        content = json.loads(record.to_json())
        content.pop("sha256")
        if not named:
            del content["contract"]["passes"]
        record_path(engine).write_text(to_json({**content, "sha256": _seal(content)}))
        assert read_record(engine).contract.passes == passes
    content["contract"]["passes"] = 0
    record_path(engine).write_text(to_json({**content, "sha256": _seal(content)}))
    with pytest.raises(InputError, match="passes is 0"):
        read_record(engine)


def test_bench_measures_all_passes(tiny_model) -> None:
    from ofg_deploy.bench.candidate import Candidate

    model = tiny_model(**GAINS, passes=2)
    contract = read_model(model.path).contract
    moving, fixed = np.random.default_rng(0).random((2, *model.expects.shape), dtype=np.float32)
    found = Candidate("onnxruntime", model.path, "fp32", "cpu", 1, contract, model.expects.shape).open()[0](
        moving, fixed
    )
    one = open_engine(model.path, "cpu").predict
    np.testing.assert_allclose(found, by_scipy(one, moving, fixed, 2), atol=5e-5)
