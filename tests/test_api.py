"""``import ofg_deploy``: the same as the command line, from arrays, nibabel images and files."""

from __future__ import annotations

import doctest
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine

import ofg_deploy as ofg
from ofg_deploy import api
from ofg_deploy.geometry import Grid

HIPPOCAMPUS = Path(__file__).resolve().parents[2] / "shared/data/hippocampus"
NAMES = [
    *("DeviceError", "Exported", "Failure", "GeometryError", "Image", "InputError", "Model", "OfgError", "ParityError"),
    *("Registration", "Run", "UsageError", "__version__", "apply", "export_model", "load", "register", "train_network"),
]
SIGNATURES = {
    "load": "(model='auto', *, device='auto', runtime='auto', threads=0)",
    "register": "(fixed, moving, *, model='auto', **options)",
    "apply": "(image, transforms, reference, *, interpolation=None, fill=None, format='itk')",
    "Image": "(array, affine, name='')",
    "Model.register": "(self, fixed, moving, *, moving_labels=(), fixed_labels=None, also=(), fixed_mask=None, "
    "moving_mask=None, fixed_points=None, moving_points=None, points_frame=None, init=None, quality=None, refine=None, "
    "similarity='auto', grid=None, passes=None, fill=None, interpolation=None, label_interpolation='nearest', "
    "inverse=False, max_voxels=268435456, progress=None)",
    "Model.register_many": "(self, pairs, workers=0, **options)",
    "Registration.warp": "(self, image, interpolation=None, fill=None)",
    "Registration.points": "(self, points, direction='fixed_to_moving')",
    "Registration.inverse": "(self)",
    "Registration.save": "(self, folder, format='itk', overwrite=False)",
    "Registration.figure": "(self)",
}


@pytest.fixture
def labelled(tmp_path, files, world_labels, write_nifti) -> tuple[Path, Path]:
    """Label maps of the fixed and of the moving image."""
    _, _, fixed, moving = files
    return tuple(
        write_nifti(tmp_path / f"{name}_seg.nii.gz", world_labels(grid).astype(np.int16), grid.world_from_vox)
        for name, grid in (("fixed", fixed), ("moving", moving))
    )


def plain(signature: inspect.Signature) -> str:
    empty = inspect.Parameter.empty
    bare = [parameter.replace(annotation=empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(bare))


def test_names_and_signatures_are_these() -> None:
    assert sorted(ofg.__all__) == sorted(NAMES)
    for name, expected in SIGNATURES.items():
        owner, _, method = name.partition(".")
        found = getattr(ofg, owner)
        assert plain(inspect.signature(getattr(found, method) if method else found)) == expected, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ofg.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["load", "register", "apply"])
def test_examples_of_the_docstrings_run(name: str) -> None:
    function = getattr(api, name)
    [example] = doctest.DocTestFinder(recurse=False).find(function, name)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_import_loads_nothing_and_changes_nothing() -> None:
    code = """
import os, sys, logging, threading
before = dict(os.environ), os.getcwd(), [type(h) for h in logging.getLogger().handlers]
import ofg_deploy
assert not {"torch", "SimpleITK", "numba", "numpy", "nibabel", "onnxruntime"} & set(sys.modules)
assert len(dir(ofg_deploy)) > 10 and "register" in dir(ofg_deploy)
ofg_deploy.load("none")
assert before == (dict(os.environ), os.getcwd(), [type(h) for h in logging.getLogger().handlers])
assert not {"torch", "onnxruntime"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_files_are_those_of_the_command_line(tmp_path, files, labelled, tiny_model, run_cli) -> None:
    fixed, moving, *_ = files
    fixed_seg, moving_seg = labelled
    model = tiny_model(init="header").path
    more = ["--moving-labels", moving_seg, "--fixed-labels", fixed_seg, "--inverse", "--format", "ants"]
    assert run_cli(["register", fixed, moving, "-m", model, "-o", tmp_path / "cli", *more])[0] == 0
    found = ofg.load(model).register(
        fixed, moving, moving_labels=moving_seg, fixed_labels=fixed_seg, inverse=True
    )  # fmt: skip
    written = found.save(tmp_path / "api", format="ants")
    names = sorted(path.name for path in (tmp_path / "cli").iterdir())
    assert names == sorted(path.name for path in written.values())
    for name in names:
        if not name.endswith(".json"):
            assert (tmp_path / "api" / name).read_bytes() == (tmp_path / "cli" / name).read_bytes(), name
    ours, theirs = (json.loads(next((tmp_path / folder).glob("*.json")).read_text()) for folder in ("api", "cli"))
    for key in ("inputs", "options", "metrics", "model", "start", "warnings", "outputs", "inverse"):
        assert ours[key] == theirs[key], key
    assert ours["metrics"]["dice_after"] == found.measures["dice_after"]
    with pytest.raises(ofg.InputError, match="exists already"):
        found.save(tmp_path / "api", format="ants")


def test_arrays_nibabel_images_and_files_give_the_same(files, labelled, tiny_model) -> None:
    fixed, moving, *_ = files
    model = ofg.load(tiny_model(init="header").path)
    loaded = [nib.load(path) for path in (fixed, moving, labelled[1])]
    arrays = [ofg.Image(np.asarray(image.dataobj), image.affine) for image in loaded]
    found = [
        model.register(a, b, moving_labels=labels)
        for a, b, labels in ((fixed, moving, labelled[1]), loaded, arrays)
    ]  # fmt: skip
    for other in found[1:]:
        np.testing.assert_array_equal(other.displacement_mm, found[0].displacement_mm)
        np.testing.assert_array_equal(other.warped.dataobj, found[0].warped.dataobj)
        np.testing.assert_array_equal(other.warped_labels[0].dataobj, found[0].warped_labels[0].dataobj)
        assert other.measures == found[0].measures


def test_what_is_in_memory_is_saved_by_name_without_a_path(tmp_path, files, tiny_model) -> None:
    fixed, moving, *_ = files
    images = [nib.load(path) for path in (fixed, moving)]
    arrays = [ofg.Image(np.asarray(image.dataobj), image.affine) for image in images]
    written = ofg.load(tiny_model(init="header").path).register(*arrays).save(tmp_path / "out")
    assert written["warped"].name == "moving_to_fixed_warped.nii.gz"
    record = json.loads(written["sidecar"].read_text())
    assert record["inputs"]["fixed"]["path"] is None
    assert len(record["inputs"]["moving"]["sha256"]) == 64
    named = [ofg.Image(image.array, image.affine, f"../{name}.nii") for image, name in zip(arrays, "ab", strict=True)]
    written = ofg.register(*named, model="none", quality="fast").save(tmp_path / "named")
    assert written["warped"] == tmp_path / "named/b_to_a_warped.nii.gz"


def test_the_result_does_not_hang_on_the_caller_s_array(files, tiny_model) -> None:
    fixed, moving, *_ = files
    arrays = [np.asarray(nib.load(path).dataobj).astype(np.float32) for path in (fixed, moving)]
    affines = [nib.load(path).affine for path in (fixed, moving)]
    found = ofg.load(tiny_model(init="header").path).register(*map(ofg.Image, arrays, affines))
    expected = ofg.load(tiny_model(init="header").path).register(fixed, moving).measures
    arrays[0][:] = arrays[1][:] = 0  # before the measures are computed; and the arrays are still writeable
    assert found.measures == expected


def test_warp_and_points_as_simpleitk_applies_the_saved_transform(tmp_path, files, labelled, tiny_model) -> None:
    fixed, moving, grid, _ = files
    found = ofg.load(tiny_model(init="affine").path).register(fixed, moving)
    transform = sitk.DisplacementFieldTransform(
        sitk.ReadImage(str(found.save(tmp_path / "out")["transform"]), sitk.sitkVectorFloat64)
    )
    reference, labels = sitk.ReadImage(str(fixed)), sitk.ReadImage(str(labelled[1]))
    theirs = sitk.GetArrayFromImage(sitk.Resample(labels, reference, transform, sitk.sitkNearestNeighbor)).T
    ours = np.asarray(found.warp(labelled[1]).dataobj)
    assert ours.dtype == np.int16
    assert (ours != theirs).mean() < 0.002  # ties of rounding
    assert len(np.unique(ours)) > 2
    picked = np.array([[10, 12, 9], [14, 8, 11]])
    world = grid.world_from_vox[:3, :3] @ picked.T + grid.world_from_vox[:3, 3:]
    lps = np.diag([-1, -1, 1])
    expected = np.array([lps @ transform.TransformPoint((lps @ point).tolist()) for point in world.T])
    forward = found.points(world.T)
    np.testing.assert_allclose(forward, expected, atol=1e-3)
    np.testing.assert_allclose(found.points(forward, "moving_to_fixed"), world.T, atol=2e-2)
    assert np.isnan(found.points([[1e4, 0, 0]])).all()


def test_the_inverse_leads_back(files, tiny_model) -> None:
    fixed, moving, _, grid = files
    found = ofg.load(tiny_model(init="affine").path).register(fixed, moving)
    inverse = found.inverse()
    assert inverse.displacement_mm.shape == (*grid.shape, 3)
    assert inverse.consistency_mm["mean"] < 0.1
    index = np.array(grid.shape) // 2
    point = grid.world_from_vox[:3, :3] @ index + grid.world_from_vox[:3, 3]
    there = point + inverse.displacement_mm[tuple(index)]
    np.testing.assert_allclose(found.points([there])[0], point, atol=0.05)
    assert inverse.warp(fixed).shape == grid.shape


def test_apply_is_that_of_the_command_line(tmp_path, files, labelled, tiny_model, run_cli) -> None:
    fixed, moving, *_ = files
    transform = ofg.load(tiny_model(init="affine").path).register(fixed, moving).save(tmp_path / "out")["transform"]
    arguments = ["apply", labelled[1], "-t", transform, "-r", fixed, "-o", tmp_path / "cli.nii.gz"]
    assert run_cli(arguments)[0] == 0
    expected = np.asarray(nib.load(tmp_path / "cli.nii.gz").dataobj)
    for image, reference in ((labelled[1], fixed), (nib.load(labelled[1]), nib.load(fixed))):
        found = ofg.apply(image, transform, reference)
        np.testing.assert_array_equal(found.dataobj, expected)
        np.testing.assert_allclose(found.affine, nib.load(fixed).affine, atol=1e-6)
    back = ofg.apply(fixed, (transform, True), moving)
    assert run_cli(["apply", fixed, "-t", f"[{transform},1]", "-r", moving, "-o", tmp_path / "back.nii.gz"])[0] == 0
    np.testing.assert_array_equal(back.dataobj, nib.load(tmp_path / "back.nii.gz").dataobj)


def test_many_pairs_in_their_order_and_a_bad_one_is_a_result(tmp_path, files, tiny_model) -> None:
    fixed, moving, *_ = files
    model = ofg.load(tiny_model(init="header").path)
    read = []

    def pairs():
        for number in range(6):
            read.append(number)
            yield (
                (fixed, tmp_path / "absent.nii.gz") if number == 1 else {"fixed": fixed, "moving": moving, "refine": 1}
            )

    found = model.register_many(pairs(), workers=2)
    assert next(found).ok
    assert len(read) <= 4  # no further ahead than needed
    bad = next(found)
    assert not bad.ok
    assert (bad.number, bad.error.exit_code) == (1, 3)
    assert "absent.nii.gz does not exist" in str(bad)
    rest = list(found)
    assert [each.ok for each in rest] == [True] * 4
    alone = model.register(fixed, moving, refine=1)
    np.testing.assert_array_equal(rest[-1].displacement_mm, alone.displacement_mm)
    misspelt = list(model.register_many([{"fixed": fixed, "movin": moving}, (fixed,)]))
    assert [each.error.exit_code for each in misspelt] == [2, 2]
    assert "movin" in str(misspelt[0])


def test_a_model_is_safe_from_threads(files, tiny_model) -> None:
    fixed, moving, *_ = files
    model = ofg.load(tiny_model(init="header").path)
    expected = model.register(fixed, moving).displacement_mm
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.register(fixed, moving).displacement_mm, range(8)):
            np.testing.assert_array_equal(found, expected)
    assert threading.active_count() < 20


def test_nothing_is_printed_and_no_state_of_others_is_changed(tmp_path, files, capfd, monkeypatch) -> None:
    fixed, moving, *_ = files
    monkeypatch.chdir(tmp_path)
    threads, level = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), nib.imageglobals.logger.level
    before = dict(os.environ), sorted(path.name for path in tmp_path.iterdir())
    found = ofg.register(fixed, moving)
    assert found.measures["ncc_after"] > 0.9
    assert "<svg" in found._repr_html_()
    assert before == (dict(os.environ), sorted(path.name for path in tmp_path.iterdir()))
    assert (threads, level) == (sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), nib.imageglobals.logger.level)
    assert capfd.readouterr() == ("", "")


def test_figure_and_html_show_the_panels_of_the_report(files, labelled) -> None:
    fixed, moving, *_ = files
    found = ofg.register(fixed, moving, quality="fast", moving_labels=labelled[1], fixed_labels=labelled[0])
    titles = [axes.get_title() for axes in found.figure().axes if axes.get_title()]
    assert titles[:3] == ["fixed", "moving", "warped"]
    assert titles[-1] == "labels"
    first, second = found._repr_html_(), found._repr_html_()
    assert first.count("<figure>") == len(titles)
    assert first[:30] != second[:30]  # two cells of a notebook do not share names


def test_a_given_matrix_is_the_start(files, some_affine) -> None:
    fixed, moving, *_ = files
    found = ofg.register(fixed, moving, model="none", init=some_affine, refine=0)
    points = np.array([[3.0, -2.0, 5.0]])
    np.testing.assert_allclose(found.points(points)[0], (some_affine @ [3, -2, 5, 1])[:3], atol=1e-3)
    np.testing.assert_allclose(found.moving_from_fixed, some_affine)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"init": np.eye(3)}, ofg.InputError, "(4, 4)"),
        ({"init": np.zeros((4, 4))}, ofg.InputError, "invertible"),
        ({"init": "sideways"}, ofg.UsageError, "sideways"),
        ({"quality": "default", "refine": 3}, ofg.UsageError, "refine and quality"),
        ({"quality": "extreme"}, ofg.UsageError, "extreme"),
        ({"similarity": "nonsense"}, ofg.UsageError, "nonsense"),
        (
            {"also": ofg.Image(np.eye(4)[..., None] + np.ones(3), np.eye(4)), "interpolation": "cubic"},
            ofg.UsageError,
            "cubic",
        ),
        ({"label_interpolation": "linear"}, ofg.UsageError, "linear"),
        ({"points_frame": "asr"}, ofg.UsageError, "asr"),
        ({"fixed_labels": ofg.Image(np.ones((3, 3, 3)), np.eye(4))}, ofg.GeometryError, "another grid"),
        ({"refine": -1}, ofg.UsageError, "-1"),
        ({"fixed_mask": 7}, ofg.InputError, "int"),
    ],
)
def test_arguments_that_cannot_be_used(files, options, error, words) -> None:
    with pytest.raises(error) as caught:
        ofg.register(*files[:2], model="none", **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_choices_that_do_not_exist(files, tmp_path) -> None:
    """Taken for another one they would be a wrong result in silence."""
    found = ofg.register(*files[:2], model="none", init="none", refine=0)
    transform = found.save(tmp_path)["transform"]
    for call in (
        lambda: found.warp(files[1], interpolation="cubic"),
        lambda: found.save(tmp_path / "other", format="cubic"),
        lambda: ofg.apply(files[1], transform, files[0], format="cubic"),
        lambda: ofg.apply(files[1], transform, files[0], interpolation="cubic"),
        lambda: ofg.load("none", runtime="cubic"),
        lambda: ofg.load("none", device="cubic"),
        lambda: found.points([[0, 0, 0]], direction="cubic"),
    ):
        with pytest.raises(ofg.UsageError, match=r"'cubic'.*use "):
            call()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (ofg.Image(np.ones((4, 5)), np.eye(4)), ofg.InputError, "(4, 5)"),
        (ofg.Image(np.ones((4, 5, 6)), np.eye(4)), ofg.InputError, "constant"),
        (ofg.Image(np.full((4, 5, 6), np.nan), np.eye(4)), ofg.InputError, "NaN"),
        (ofg.Image(np.ones((4, 5, 6), complex), np.eye(4)), ofg.InputError, "complex"),
        (ofg.Image(np.arange(120.0).reshape(4, 5, 6), np.zeros((4, 4))), ofg.GeometryError, "fixed"),
        (ofg.Image(np.arange(120.0).reshape(4, 5, 6), np.eye(3)), ofg.GeometryError, "fixed"),
        (np.ones((4, 5, 6)), ofg.InputError, "ndarray"),
        (None, ofg.InputError, "NoneType"),
    ],
)
def test_images_that_cannot_be_used(files, image, error, words) -> None:
    with pytest.raises(error) as caught:
        ofg.register(image, files[1], model="none")
    assert words in str(caught.value)


def test_a_nibabel_image_is_judged_by_its_header_as_a_file_is(files) -> None:
    image = nib.load(files[0])
    data = np.asarray(image.dataobj)
    nowhere = nib.Nifti1Image(data, None)
    with pytest.raises(ofg.GeometryError, match="neither sform nor qform"):
        ofg.register(nowhere, files[1], model="none")
    small = nib.Nifti1Image(data, image.affine)
    small.header.set_xyzt_units("micron")
    with pytest.raises(ofg.GeometryError, match="micron"):
        ofg.register(small, files[1], model="none")
    torn = nib.Nifti1Image(data, image.affine)
    torn.set_qform(np.diag([-1, 1, 1, 1]) @ image.affine, 1)
    assert any("sform" in line for line in ofg.register(torn, files[1], model="none", quality="fast").warnings)
    fourth = nib.Nifti1Image(np.stack([data, data], axis=-1), image.affine)
    with pytest.raises(ofg.InputError, match="3-D"):
        ofg.register(fourth, files[1], model="none")
    single = nib.Nifti1Image(data[..., None], image.affine)
    assert ofg.register(single, files[1], model="none", quality="fast").warped.shape == data.shape


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Where the examples of ``train_network`` and ``export_model`` ran, on real hippocampi if they are at hand."""
    pytest.importorskip("torch", reason="networks are trained with torch (pip install ofg-deploy[train])")
    folder = tmp_path_factory.mktemp("pipeline")
    if HIPPOCAMPUS.is_dir():
        held = json.loads((HIPPOCAMPUS / "splits.json").read_text())["validation"][:4]
        for kind in ("images", "labels"):
            (folder / kind).mkdir()
            for name in held:
                shutil.copy(HIPPOCAMPUS / kind / f"{name}.nii.gz", folder / kind)
    else:
        from training_runs import make_subjects

        make_subjects(folder, 4)
    import torch

    here, environment = Path.cwd(), set(os.environ.items())
    state = torch.get_num_threads(), torch.get_rng_state().tolist()
    os.chdir(folder)
    try:
        for function in (ofg.train_network, ofg.export_model):
            [example] = doctest.DocTestFinder(recurse=False).find(function, function.__name__)
            assert doctest.DocTestRunner().run(example).failed == 0
        assert (torch.get_num_threads(), torch.get_rng_state().tolist()) == state
        # Set by lightning and by torch, each where it is imported.
        theirs = {"PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"}
        assert {name for name, _ in set(os.environ.items()) ^ environment} <= theirs
    finally:
        os.chdir(here)
    return folder


def test_train_export_load_and_register(pipeline, tmp_path) -> None:
    """The whole way: a run, its checkpoint and its export are models that give the same field."""
    fixed, moving = sorted((pipeline / "images").iterdir())[:2]
    labels = sorted((pipeline / "labels").iterdir())
    exported = ofg.load(pipeline / "model.onnx")
    found = exported.register(fixed, moving, refine=20, moving_labels=labels[1], fixed_labels=labels[0])
    assert found.measures["dice_after"] > found.measures["dice_before"]
    assert found.save(tmp_path / "out", format="ants")["ants"].exists()
    # The rest of what a registration offers, on the same images.
    assert found.warped.shape == found.displacement_mm.shape[:3] == nib.load(fixed).shape
    there, here = (np.asarray(each.dataobj) for each in (found.warp(labels[1], "nearest"), nib.load(labels[0])))
    overlaps = [2 * ((there == n) & (here == n)).sum() / ((there == n).sum() + (here == n).sum()) for n in (1, 2)]
    assert found.measures["dice_after"] == pytest.approx(np.mean(overlaps), abs=1e-6)
    middle = apply_affine(nib.load(fixed).affine, np.argwhere(here == 1)[::40])
    carried = found.points(middle)
    assert np.linalg.norm(carried - middle, axis=1).mean() > 0.1
    np.testing.assert_allclose(found.points(carried, "moving_to_fixed"), middle, atol=0.02)
    assert found.inverse().displacement_mm.shape[:3] == nib.load(moving).shape
    first, absent = exported.register_many([(fixed, moving), (fixed, tmp_path / "absent.nii.gz")])
    assert (first.ok, absent.ok) == (True, False)
    network = exported.register(fixed, moving).displacement_mm
    for source in (pipeline / "run", pipeline / "run/best.pt"):
        model = ofg.load(source)
        assert model.runtime.startswith("torch")
        np.testing.assert_allclose(model.register(fixed, moving).displacement_mm, network, atol=1e-3)
    with pytest.raises(ofg.UsageError, match="openvino"):
        ofg.load(pipeline / "run", runtime="openvino")


def test_loading_what_is_no_model(tmp_path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for given in ("nobody", tmp_path / "text.onnx", tmp_path / "absent.onnx", tmp_path / "a.txt", tmp_path):
        with pytest.raises(ofg.OfgError) as caught:
            ofg.load(given)
        assert caught.value.exit_code in (2, 3)


def test_grids_of_results(files, tiny_model) -> None:
    fixed, moving, grid, _ = files
    found = ofg.load(tiny_model().path).register(fixed, moving)
    np.testing.assert_allclose(found.warped.affine, grid.world_from_vox, atol=1e-5)
    assert Grid(found.warped.shape, found.warped.affine).shape == grid.shape
    assert found.displacement_mm.shape == (*grid.shape, 3)
    assert found.displacement_mm.dtype == np.float32


def test_the_page_runs_as_it_stands(tmp_path, files, labelled, tiny_model, monkeypatch) -> None:
    """Every block of docs/python.md, one after another, in a folder that has these files."""
    text = (Path(__file__).resolve().parents[1] / "docs/python.md").read_text()
    fixed, moving, *_ = files
    given = {"fixed": fixed, "moving": moving, "labels": labelled[1]}
    (tmp_path / "here").mkdir()
    for name, path in given.items():
        path.rename(tmp_path / "here" / f"{name}.nii.gz")
    tiny_model(init="header").path.rename(tmp_path / "here/model.onnx")
    monkeypatch.chdir(tmp_path / "here")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) > 3
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec("\n".join(blocks), {})
    assert "absent.nii.gz does not exist" in printed.getvalue()
    assert (tmp_path / "here/with_ants/moving_to_fixed_1Warp.nii.gz").exists()


@pytest.mark.parametrize("network", [True, False])
def test_progress_names_every_stage_as_it_begins_and_may_end_it(tmp_path, files, tiny_model, network) -> None:
    told: list[str] = []
    model = ofg.load(tiny_model().path if network else "none", device="cpu")
    found = model.register(*files[:2], refine=1, inverse=True, init="header", progress=told.append)
    assert told == ["read", "prepare", "network", "refine", "transform", "warp", "invert"]
    found.save(tmp_path / "out")
    assert sorted(told[7:]) == ["measure", "write"]
    assert set(found.seconds) == set(told)

    def stop(stage: str) -> None:
        if stage == "transform":
            raise InterruptedError(stage)

    with pytest.raises(InterruptedError, match="transform"):
        model.register(*files[:2], init="header", refine=0, progress=stop)


def test_pairs_at_once_share_the_memory_whatever_chose_to_do_without_a_network(files, monkeypatch) -> None:
    from ofg_deploy.serve import no_network

    monkeypatch.setattr(no_network, "free_ram", lambda: 10**9)
    given = []
    planned = no_network.NoNetwork.plan

    def plan(self, *pair):
        given.append(self.memory_bytes)
        return planned(self, *pair)

    monkeypatch.setattr(no_network.NoNetwork, "plan", plan)
    for model in ("none", "auto"):
        list(ofg.load(model).register_many([files[:2]], workers=2, init="header", refine=0))
        ofg.load(model).register(*files[:2], init="header", refine=0)
    assert given == [4 * 10**8, 8 * 10**8] * 2
