"""``ofg register`` as a user meets it: exit codes, one line on stderr, nothing half done; and no torch anywhere."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import SimpleITK as sitk

from ofg_deploy.locations import portable_command

NO_CUDA = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@dataclass(frozen=True)
class Given:
    """A folder with a good pair, labels and a model; every bad file is made beside them."""

    folder: Path
    fixed: Path
    moving: Path
    labels: Path
    model: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def arguments(self, **changed: Path | str) -> list[str]:
        """``register FIXED MOVING --model MODEL --out OUT`` with some of them replaced."""
        values = {"fixed": self.fixed, "moving": self.moving, "model": self.model, "out": self.out, **changed}
        fixed, moving, model, out = (str(values[k]) for k in ("fixed", "moving", "model", "out"))
        return ["register", fixed, moving, "--model", model, "--out", out]

    def save(self, name: str, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path = self.folder / name
        nib.save(nib.Nifti1Image(data, nib.load(self.moving).affine if affine is None else affine), path)
        return path

    def patched(self, name: str, offset: int, layout: str, *values: float) -> Path:
        """A copy of the moving image, uncompressed, with something else in its header."""
        content = bytearray(gzip.decompress(self.moving.read_bytes()))
        struct.pack_into(layout, content, offset, *values)
        (self.folder / name).write_bytes(content)
        return self.folder / name


@pytest.fixture
def given(tmp_path, make_grid, world_image, world_labels, write_nifti, tiny_model) -> Given:
    fixed = make_grid("oblique", (19, 22, 17), (3.6, 3.1, 4.0), (1.0, -2.0, 1.5))
    moving = make_grid("left-handed", (20, 18, 21), (3.5, 4.1, 3.3), (3.0, 1.0, -2.0))
    return Given(
        tmp_path,
        write_nifti(tmp_path / "fix.nii.gz", world_image(fixed), fixed.world_from_vox),
        write_nifti(tmp_path / "mov.nii.gz", world_image(moving), moving.world_from_vox),
        write_nifti(tmp_path / "seg.nii.gz", world_labels(moving), moving.world_from_vox),
        tiny_model().path,
    )


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def check_refused(answer: tuple[int, str, str], code: int, *said: str) -> None:
    found, _, stderr = answer
    assert found == code, stderr
    assert stderr.startswith("ofg: error: ")
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    assert "internal error" not in stderr
    for words in said:
        assert words in stderr


# Each makes one bad file in the folder and returns it.


def truncated(given: Given) -> Path:
    path = given.folder / "truncated.nii.gz"
    path.write_bytes(given.moving.read_bytes()[:9000])
    return path


def garbage(given: Given) -> Path:
    path = given.folder / "garbage.nii.gz"
    content = bytearray(given.moving.read_bytes())
    content[9000:9300] = bytes(range(100)) * 3
    path.write_bytes(content)
    return path


def text(given: Given) -> Path:
    path = given.folder / "text.nii.gz"
    path.write_text("a spreadsheet, perhaps")
    return path


def folder(given: Given) -> Path:
    path = given.folder / "folder.nii.gz"
    path.mkdir()
    return path


def with_value(value: float) -> Callable[[Given], Path]:
    def make(given: Given) -> Path:
        data = nib.load(given.moving).get_fdata(dtype=np.float32)
        data[3:5, 7, 2] = value
        return given.save("holes.nii.gz", data)

    return make


def with_srow(row: tuple[float, ...]) -> Callable[[Given], Path]:
    return lambda given: given.patched("srow.nii", 280, "<12f", *row)


BAD_IMAGES = {
    "missing": (lambda given: given.folder / "nowhere.nii.gz", "does not exist"),
    "folder": (folder, "holds no NIfTI image"),  # a batch of none
    "truncated": (truncated, "truncated"),
    "garbage after the header": (garbage, "truncated or damaged"),
    "not NIfTI": (text, "cannot be read as NIfTI"),
    "2-D": (lambda given: given.save("flat.nii.gz", np.ones((9, 8), np.int16)), "3-D volume"),
    "many volumes": (lambda given: given.save("many.nii.gz", np.ones((9, 8, 7, 6), np.int16)), "extract it first"),
    "NaN": (with_value(np.nan), "2 NaN or infinite voxels"),
    "infinite": (with_value(np.inf), "2 NaN or infinite voxels"),
    "too large for float32": (
        lambda given: given.save("wide.nii.gz", np.linspace(0, 1e300, 9 * 8 * 7).reshape(9, 8, 7)),
        "NaN or infinite voxels",
    ),
    "constant": (lambda given: given.save("constant.nii.gz", np.full((9, 8, 7), 5, np.int16)), "is constant"),
    "RGB": (
        lambda given: given.save("rgb.nii.gz", np.zeros((9, 8, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "scalar image",
    ),
    "singular": (with_srow((1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)), "singular"),
    "sheared": (with_srow((2, 0.4, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0)), "sheared"),
    "no overlap": (with_srow((2, 0, 0, 900, 0, 2, 0, 0, 0, 0, 2, 0)), "do not overlap"),
    "microns": (lambda given: given.patched("microns.nii", 123, "<B", 3), "rewrite the header in mm"),
    "unknown unit": (lambda given: given.patched("unit.nii", 123, "<B", 7), "rewrite the header in mm"),
    "unknown voxel type": (lambda given: given.patched("type.nii", 70, "<h", 999), "cannot be read as NIfTI"),
    "huge dimensions": (lambda given: given.patched("huge.nii", 42, "<3h", 30000, 30000, 30000), "header damaged"),
    "damaged orientation": (lambda given: given.patched("qform.nii", 256, "<f", 7.0), "damaged orientation"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_an_unusable_image_is_one_line_and_no_output(given, run_cli, name, role):
    make, said = BAD_IMAGES[name]
    bad = make(given)
    before = snapshot(given.folder)
    check_refused(run_cli(given.arguments(**{role: bad})), 3, said, bad.name)
    assert snapshot(given.folder) == before


def other_model(given: Given) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(given.model))
    onnx.helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, str(given.folder / "other.onnx"))
    return given.folder / "other.onnx"


def changed_model(given: Given) -> Path:
    content = bytearray(given.model.read_bytes())
    content[len(content) // 2] ^= 1
    (given.folder / "changed.onnx").write_bytes(content)
    return given.folder / "changed.onnx"


def resealed_model(given: Given) -> Path:
    """Somebody knows how to seal, but the contract inside is of another version."""
    from ofg_deploy.model_file import CONTRACT_KEY, SEAL_KEY, UNSEALED, seal

    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(given.model))
    contract = json.loads(next(p.value for p in model.metadata_props if p.key == CONTRACT_KEY))
    del model.metadata_props[:]
    contract["schema"] = 99
    onnx.helper.set_model_props(model, {CONTRACT_KEY: json.dumps(contract), SEAL_KEY: UNSEALED})
    (given.folder / "new.onnx").write_bytes(seal(model.SerializeToString()))
    return given.folder / "new.onnx"


def text_model(given: Given) -> Path:
    (given.folder / "text.onnx").write_text("not a model")
    return given.folder / "text.onnx"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda given: given.folder / "nowhere.onnx", "is not a file"),
        (lambda given: given.fixed, "is not an .onnx model"),
        (text_model, "not made by ofg export"),
        (other_model, "not made by ofg export"),
        (changed_model, "changed or damaged after its export"),
        (resealed_model, "schema 99"),
    ],
)
def test_an_unusable_model_is_one_line_and_no_output(given, run_cli, make, said):
    model = make(given)
    before = snapshot(given.folder)
    check_refused(run_cli(given.arguments(model=model)), 3, said, model.name)
    assert snapshot(given.folder) == before


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("fix.nii.gz", "not a writable folder"),
        ("fix.nii.gz/deep/out", "not a writable folder"),
        ("long" * 100, "cannot write"),
    ],
)
@pytest.mark.parametrize("init", [[], ["--init", "none"]])
def test_an_output_that_cannot_be_is_refused(given, run_cli, out, said, init):
    before = snapshot(given.folder)
    check_refused(run_cli([*given.arguments(out=given.folder / out), *init]), 3, said)
    assert snapshot(given.folder) == before


def test_existing_outputs_are_kept_unless_overwriting_was_asked(given, run_cli, world_image):
    assert run_cli(given.arguments())[0] == 0
    assert set(snapshot(given.out)) == {"mov_to_fix_warped.nii.gz", "mov_to_fix_Warp.nii.gz", "mov_to_fix.json"}
    before = snapshot(given.folder)
    for init in ([], ["--init", "none"]):
        check_refused(run_cli([*given.arguments(), *init]), 3, "exists already", "--overwrite")
        assert snapshot(given.folder) == before

    image = nib.load(given.moving)
    given.save("mov.nii.gz", image.get_fdata(dtype=np.float32) * 2, image.affine)
    assert run_cli([*given.arguments(), "--overwrite"])[0] == 0
    after = snapshot(given.out)
    assert set(after) == {name.removeprefix("out/") for name in before if name.startswith("out/")}
    old = nib.Nifti1Image.from_bytes(gzip.decompress(before["out/mov_to_fix_warped.nii.gz"])).get_fdata()
    np.testing.assert_allclose(nib.load(given.out / "mov_to_fix_warped.nii.gz").get_fdata(), 2 * old, rtol=1e-5)


def test_overwriting_leaves_nothing_of_another_set(given, run_cli):
    """An affine or an inverse of an earlier run would be taken for part of the new result. What nobody wrote stays."""
    assert run_cli([*given.arguments(), "--init", "header", "--inverse"])[0] == 0
    (given.out / "notes.txt").write_text("old")
    affine = (given.out / "mov_to_fix_0GenericAffine.mat").read_bytes()
    code, _, err = run_cli([*given.arguments(), "--overwrite", "--init", "none"])
    assert (code, "was there before" in err) == (0, False)
    names = {"mov_to_fix_warped.nii.gz", "mov_to_fix_Warp.nii.gz", "mov_to_fix.json", "notes.txt"}
    assert set(snapshot(given.out)) == names
    (given.out / "mov_to_fix_0GenericAffine.mat").write_bytes(affine)
    code, _, err = run_cli([*given.arguments(), "--overwrite", "--init", "none"])
    assert (code, "mov_to_fix_0GenericAffine.mat was there before and is no part of this result" in err) == (0, True)
    assert (given.out / "mov_to_fix_0GenericAffine.mat").read_bytes() == affine


def test_inputs_are_never_overwritten(given, run_cli):
    """Who goes on with an earlier result may put the next one where it was; an inverse would go with the old set."""
    assert run_cli([*given.arguments(), "--inverse"])[0] == 0
    (given.out / "mov_to_fix_0GenericAffine.mat").write_text("mine")
    before = snapshot(given.folder)
    for name, options in (
        ("mov_to_fix_warped.nii.gz", ["--init", "none", "--also"]),
        ("mov_to_fix_0GenericAffine.mat", ["--init"]),
        ("mov_to_fix_InverseWarp.nii.gz", ["--init", "affine", "--fixed-mask"]),
    ):
        answer = run_cli([*given.arguments(), "--overwrite", *options, given.out / name])
        check_refused(answer, 3, f"{name} is an input, and would be lost")
        assert snapshot(given.folder) == before


def test_one_existing_output_is_enough_to_refuse(given, run_cli):
    given.out.mkdir()
    (given.out / "mov_to_fix.json").write_text("mine")
    before = snapshot(given.folder)
    check_refused(run_cli(given.arguments()), 3, "mov_to_fix.json exists already")
    assert snapshot(given.folder) == before


def test_labels_on_another_grid_and_labels_that_are_none(given, run_cli):
    before = snapshot(given.folder)
    arguments = [*given.arguments(), "--moving-labels"]
    check_refused(run_cli([*arguments, str(given.fixed)]), 3, "holds fractional values")
    other = given.save("other.nii.gz", np.ones((5, 6, 7), np.uint8))
    check_refused(run_cli([*arguments, str(other)]), 3, "other.nii.gz", "lies on another grid than its image")
    good = [*arguments, str(given.labels), "--fixed-labels"]
    check_refused(
        run_cli([*good, str(given.labels)]), 3, "seg.nii.gz", "lies on another grid than its image", "fix.nii.gz"
    )
    other.unlink()
    assert snapshot(given.folder) == before


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--nope"], "--nope"),
        (["--device", "tpu"], "--device"),
        (["--init", "elastic"], "--init elastic"),
        (["--fill", "nan"], "--fill nan"),
        (["--fill", "black"], "--fill"),
        (["--threads", "-1"], "--threads -1: give 1 or more, or 0 for the runtime's choice"),
        (["--threads", "-1", "--refine", "3"], "--threads -1: give 1 or more, or 0 for the runtime's choice"),
        (["--fixed-labels", "seg.nii.gz"], "--moving-labels"),
        (["a-third-image.nii.gz"], "a-third-image.nii.gz"),
    ],
)
def test_a_command_that_makes_no_sense_is_code_2(given, run_cli, extra, said):
    before = snapshot(given.folder)
    check_refused(run_cli([*given.arguments(), *extra]), 2, said)
    assert snapshot(given.folder) == before


@pytest.mark.parametrize("images", [[], ["fix.nii.gz"]])
def test_a_missing_image_is_code_2(given, run_cli, images):
    check_refused(run_cli(["register", *(given.folder / name for name in images)]), 2, "FIXED and MOVING are needed")


@pytest.mark.skipif(not NO_CUDA, reason="this ONNX Runtime offers CUDA")
def test_a_device_that_is_not_there_is_code_5_and_no_silent_cpu(given, run_cli):
    before = snapshot(given.folder)
    check_refused(run_cli([*given.arguments(), "--device", "cuda"]), 5, "--device cuda", "CPUExecutionProvider")
    assert snapshot(given.folder) == before


def test_what_is_chosen_and_written_is_said(given, run_cli):
    code, out, err = run_cli([*given.arguments(), "--moving-labels", str(given.labels), "--threads", "1"])
    assert code == 0
    assert "CPUExecutionProvider" in out
    for name in snapshot(given.out):
        assert str(given.out / name) in out
    assert all(line.startswith("ofg: warning: ") for line in err.splitlines())
    told = json.loads((given.out / "mov_to_fix.json").read_text())["command"]
    assert told[1:] == portable_command(sys.argv, given.out)[1:]
    assert str(given.folder) not in " ".join(told)


def test_paths_with_spaces_brackets_and_colons_are_only_paths(given, run_cli):
    """Rich takes [bold], [/x] and :smile: for its own; the slash makes two folders, "my [" and "x] ..."."""
    odd = given.folder / "my [/x] scans [bold] :smile: ü"
    odd.mkdir(parents=True)
    fixed, moving = odd / "fix [red]1.nii", odd / "mov [blue] 2.nii"
    for source, target in ((given.fixed, fixed), (given.moving, moving)):
        target.write_bytes(gzip.decompress(source.read_bytes()))
    image = nib.load(moving, mmap=False)
    shifted = image.affine.copy()
    shifted[0, 3] += 1
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    image.set_sform(image.affine, 1)
    image.set_qform(shifted, 1)
    nib.save(image, moving)
    code, out, err = run_cli(given.arguments(fixed=fixed, moving=moving, out=odd / "out [i]"))
    assert code == 0, err
    assert {f"fixed: {fixed}", f"moving: {moving}"} <= {*out.splitlines()}
    assert str(odd / "out [i]" / "mov [blue] 2_to_fix [red]1_warped.nii.gz") in out
    assert "ofg: warning: mov [blue] 2.nii: sform and qform disagree" in err
    check_refused(
        run_cli(given.arguments(fixed=fixed, moving=odd / "no [/thing].nii")), 3, str(odd / "no [/thing].nii")
    )


def test_an_interrupted_run_is_code_130_and_leaves_nothing(given, run_cli, monkeypatch):
    def interrupt(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("ofg_deploy.transform.dialects.save_transform", interrupt)
    before = snapshot(given.folder)
    check_refused(run_cli(given.arguments()), 130, "interrupted")
    assert snapshot(given.folder) == before


# The same through a real process: nothing of this test run's imports and handlers helps.


def run_process(arguments: list[str], *python: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, *(python or ("-W", "error", "-m", "ofg_deploy"))]
    return subprocess.run([*start, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_in_a_process_of_its_own(given):
    bad = with_value(np.nan)(given)
    before = snapshot(given.folder)
    for arguments, code in (
        (given.arguments(moving=bad), 3),
        (given.arguments(moving=truncated(given)), 3),
        ([*given.arguments(), "--nope"], 2),
    ):
        done = run_process(arguments)
        check_refused((done.returncode, done.stdout, done.stderr), code)
    (given.folder / "truncated.nii.gz").unlink()
    assert snapshot(given.folder) == before


WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnxscript", "matplotlib"):
    sys.modules[name] = None  # importing it raises ImportError
import ofg_deploy.serve.register, ofg_deploy.cli
assert sys.modules["torch"] is None and sys.modules["onnx"] is None
try:
    ofg_deploy.cli.main()
finally:
    loaded = sorted(n for n, m in sys.modules.items() if n.split(".")[0] in ("torch", "onnx") and m is not None)
    assert not loaded, loaded
"""


def test_registering_needs_neither_torch_nor_onnx(given):
    arguments = [*given.arguments(), "--init", "affine", "--moving-labels", str(given.labels)]
    done = run_process(arguments, "-W", "error", "-c", WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    record = json.loads((given.out / "mov_to_fix.json").read_text())
    assert set(record["outputs"]) == {"warped", "transform", "affine", "warped_labels"}
    field = sitk.ReadImage(str(given.out / "mov_to_fix_Warp.nii.gz"), sitk.sitkVectorFloat64)
    reference = sitk.ReadImage(str(given.fixed))
    moving = sitk.ReadImage(str(given.moving))
    expected = sitk.Resample(moving, reference, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(given.out / "mov_to_fix_warped.nii.gz")))
    np.testing.assert_allclose(found, sitk.GetArrayFromImage(expected), atol=0.5)
    assert found.max() > 300
