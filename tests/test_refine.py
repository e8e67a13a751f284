"""``ofg register --refine``: energies, folds and errors against numpy, scipy and SimpleITK; dropped where no better."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter

from ofg_deploy.errors import UsageError
from ofg_deploy.kernels.compiled import most_threads
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.kernels.regularity import diffusion, folding_percent
from ofg_deploy.preprocess import Intensity
from ofg_deploy.serve.engine import Engine, open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.refinement import Refinement, refine
from ofg_deploy.serve.register import register
from ofg_deploy.serve.saving import Saved

SHAPE, SPACING_MM = (30, 26, 35), (2.0, 1.7, 2.3)  # three slabs along no axis alike


def blobs(index: np.ndarray) -> np.ndarray:
    """A smooth image, not symmetric, at any voxel positions (3, X, Y, Z)."""
    rng, values = np.random.default_rng(5), np.zeros(index.shape[1:])
    for _ in range(90):
        centre = (rng.uniform(0, 1, 3) * SHAPE).reshape(3, 1, 1, 1)
        values += rng.uniform(50, 200) * np.exp(-((index - centre) ** 2).sum(axis=0) / (2 * rng.uniform(1.5, 3.5) ** 2))
    return values


def known_field() -> np.ndarray:
    """Up to about 1.5 voxels, each component its own function."""
    x, y, z = np.indices(SHAPE) / 9
    return np.stack([1.3 * np.sin(y + 0.5 * z), -1.1 * np.cos(z - 0.3), 1.2 * np.sin(x + 1)])


def unit(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / np.ptp(image)


def deformed_pair() -> tuple[np.ndarray, np.ndarray]:
    """Moving and fixed, fixed(x) = moving(x + known_field(x)) exactly: no interpolation made them."""
    index = np.indices(SHAPE, dtype=float)
    return blobs(index).astype(np.float32), blobs(index + known_field()).astype(np.float32)


def energy(field: np.ndarray, moving: np.ndarray, fixed: np.ndarray, window: int = 5, smoothness: float = 0.1) -> float:
    """Local NCC loss and diffusion by scipy in double precision; window sums, zeros outside."""
    field = field.astype(float)
    a = map_coordinates(moving.astype(float), np.indices(SHAPE) + field, order=1, mode="grid-constant")
    b, count = fixed.astype(float), window**3
    s_a, s_b, s_aa, s_bb, s_ab = (
        count * uniform_filter(v, window, mode="constant") for v in (a, b, a * a, b * b, a * b)
    )
    cross, var_a, var_b = s_ab - s_a * s_b / count, s_aa - s_a**2 / count, s_bb - s_b**2 / count
    rough = sum(np.mean(np.diff(field, axis=axis) ** 2) for axis in (1, 2, 3)) / 3
    return float(-np.mean(cross**2 / (var_a * var_b + 1e-5)) + smoothness * rough)


def folds(field: np.ndarray) -> float:
    """Percentage of determinants <= 0, by numpy's own gradient and determinant."""
    gradient = np.stack([np.stack(np.gradient(c.astype(float)), axis=-1) for c in field], axis=-2)
    return float(100 * np.mean(np.linalg.det(np.eye(3) + gradient) <= 0))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


one_level = partial(Refinement, coarse_steps=())  # every step judged


@dataclass(frozen=True)
class Pair:
    """Files on the very grid that the model wants, so that its voxels are theirs."""

    fixed: Path
    moving: Path
    out: Path
    model: Callable[[np.ndarray], Path]

    def register(self, engine: Engine, refinement: Refinement | None, out: str = "out") -> Saved:
        return register(Job(self.fixed, self.moving, self.out / out, refinement=refinement), engine)


@pytest.fixture
def pair(tmp_path, make_grid, write_nifti, tiny_model) -> Pair:
    affine = make_grid("RAS", SHAPE, SPACING_MM).world_from_vox
    moving, fixed = (
        write_nifti(tmp_path / f"{name}.nii.gz", image, affine)
        for name, image in zip(("mov", "fix"), deformed_pair(), strict=True)
    )
    return Pair(fixed, moving, tmp_path, lambda field: tiny_model(SHAPE, SPACING_MM, field=field).path)


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def written_voxels(result: Saved) -> np.ndarray:
    """(3, X, Y, Z) voxels from the transform as SimpleITK reads it: LPS mm on axes along R, A and S."""
    vectors = sitk.GetArrayFromImage(sitk.ReadImage(str(result.outputs["transform"]), sitk.sitkVectorFloat64))
    return (
        vectors.transpose(3, 2, 1, 0) * np.array([-1, -1, 1]).reshape(3, 1, 1, 1) / np.reshape(SPACING_MM, (3, 1, 1, 1))
    )


def test_a_known_deformation_is_recovered_from_nothing(pair):
    engine = open_engine(pair.model(np.zeros((3, *SHAPE))), "cpu", 1)
    plain, refined = pair.register(engine, None, "plain"), pair.register(engine, Refinement(Greedy(15), threads=1))
    inside = (slice(None), *[slice(4, -4)] * 3)
    before, after = (
        np.linalg.norm((written_voxels(result) - known_field())[inside], axis=0).mean() for result in (plain, refined)
    )
    assert before > 1
    assert after < 0.45 * before
    ncc = [correlation(read(result.outputs["warped"]), read(pair.fixed)) for result in (plain, refined)]
    assert 1 - ncc[1] < 0.2 * (1 - ncc[0])
    assert refined.sidecar["metrics"]["ncc_after"] == pytest.approx(ncc[1], abs=1e-6)
    record = refined.sidecar["refinement"]
    assert record == json.loads(refined.outputs["sidecar"].read_text())["refinement"]
    assert record["dropped"] is None
    assert refined.sidecar["metrics"]["network_sdlogj"] == 0  # what the network did, not what became of it
    assert "refinement" not in plain.sidecar
    assert "refine" in refined.sidecar["seconds"]


@pytest.mark.parametrize("start", ["zero", "wrong"])
def test_the_recorded_energies_are_scipys(pair, start):
    field = np.zeros((3, *SHAPE)) if start == "zero" else gaussian_filter(known_field()[::-1], (0, 3, 3, 3))
    field = field.astype(np.float32)
    record = (
        result := pair.register(open_engine(pair.model(field), "cpu", 1), one_level(Greedy(6), threads=1))
    ).sidecar["refinement"]
    images = [unit(read(path).astype(float)) for path in (pair.moving, pair.fixed)]
    assert record["steps_kept"] > 0
    assert record["energy_before"] == pytest.approx(energy(field, *images), abs=1e-5)
    assert record["energy_after"] == pytest.approx(energy(written_voxels(result), *images), abs=1e-5)
    assert record["energy_after"] == min(record["energies"]) == record["energies"][record["steps_kept"]]
    assert record["energy_after"] < record["energy_before"] - 0.05
    assert len(record["energies"]) == record["steps_taken"] + 1
    assert result.sidecar["metrics"]["network_folding_percent"] == record["folding_percent_before"] == folds(field)


def test_the_field_is_that_of_greedy_and_so_many_steps():
    images = [unit(image) for image in deformed_pair()]
    field = 0.2 * known_field().astype(np.float32)
    given = field.copy()
    found = refine(field, *images, one_level(Greedy(8, step=0.7), threads=1))
    assert found.kept > 3
    assert np.array_equal(found.field, Greedy(found.kept, step=0.7).refine(field, *images))
    assert np.array_equal(field, given)


def test_what_cannot_be_bettered_is_left_alone_and_said(tmp_path, pair, run_cli):
    """The image with itself: nothing to gain but the last digits of flat windows."""
    model = pair.model(np.zeros((3, *SHAPE)))
    command = ["register", pair.fixed, pair.fixed, "--model", model, "--threads", 1, "--out"]
    assert run_cli([*command, tmp_path / "plain"])[0] == 0
    code, out, err = run_cli([*command, tmp_path / "refined", "--refine", 12, "--verbose"])
    assert code == 0
    assert "ofg: warning: refinement dropped, the network's field is kept: none of " in err
    assert "optimisation: 0 of " in out
    plain, refined = ({p.name: p for p in (tmp_path / name).iterdir()} for name in ("plain", "refined"))
    sidecar = json.loads(refined["fix_to_fix.json"].read_text())
    record = sidecar["refinement"]
    assert record["steps_kept"] == 0
    assert record["dropped"] in " ".join(sidecar["warnings"])
    assert record["energy_after"] == record["energy_before"]
    assert min(record["energies"]) > 1.001 * record["energy_before"]  # coarse steps may gain some last digits
    assert record["folding_percent_after"] == record["folding_percent_before"] == 0
    assert 0 < record["steps_taken"] < 12  # stalled
    assert record["stopped"] == "the energy stalled"
    for name in ("fix_to_fix_Warp.nii.gz", "fix_to_fix_warped.nii.gz"):
        assert np.array_equal(read(plain[name]), read(refined[name]))


def test_the_best_step_is_kept_and_not_the_last():
    """Two noisy images of one anatomy: the energy wavers."""
    noise = np.random.default_rng(1).normal(size=(2, *SHAPE))
    images = [unit(deformed_pair()[1] + 10 * n).astype(np.float32) for n in noise]
    field = np.zeros((3, *SHAPE), np.float32)
    found = refine(field, *images, one_level(Greedy(12, step=1.5), patience=12, threads=1))
    assert found.kept == np.argmin(found.energies) < len(found.energies) - 1
    assert energy(found.field, *images) == pytest.approx(min(found.energies), abs=1e-5)


@pytest.mark.parametrize("step", [1.0, 6.0])
def test_steps_that_only_raise_the_energy_are_dropped(step):
    """A noisy image with itself: wherever it is moved by a step of fixed length, noise no longer meets noise."""
    image = unit(deformed_pair()[1] + 10 * np.random.default_rng(4).normal(size=SHAPE)).astype(np.float32)
    field = np.zeros((3, *SHAPE), np.float32)
    found = refine(field, image, image, one_level(Greedy(9, step=step), folding_percent=100, threads=1))
    assert min(found.energies[1:]) > found.energies[0]
    assert found.kept == 0
    assert "lowered the energy" in found.warnings()[0]
    assert np.array_equal(found.field, field)
    # The first step, taken all the same, really is worse.
    worse = Greedy(1, step=step).refine(field, image, image)
    assert found.energies[1] == pytest.approx(energy(worse, image, image), abs=1e-5)


def test_nothing_to_see():
    empty = np.zeros(SHAPE, np.float32)
    field = known_field().astype(np.float32)
    found = refine(field, empty, empty, one_level(Greedy(5), threads=1))
    assert found.dropped.startswith("zero gradient")
    assert np.array_equal(found.field, field)


def test_folds_are_taken_out_and_bounded():
    """Long steps, hardly smoothed, between unrelated images tear the field."""
    noise = np.random.default_rng(8).normal(size=(2, *SHAPE))
    moving, fixed = (unit(gaussian_filter(n, 1)).astype(np.float32) for n in noise)
    field = np.zeros((3, *SHAPE), np.float32)
    options = one_level(Greedy(12, step=0.9, gradient_sigma=0.7, field_sigma=0.0), smoothness=0.0, threads=1)
    free = refine(field, moving, fixed, replace(options, folding_percent=100))
    assert free.kept > 0
    assert folds(free.field) > 0.3
    found = refine(field, moving, fixed, options)
    assert found.kept > 0
    assert folds(found.field) == pytest.approx(found.folding_percent[1], abs=1e-9)
    assert found.folding_percent[1] <= found.allowed_percent == 0.01
    # A field that folds already may not fold more than it did.
    found = refine(free.field, moving, fixed, options)
    assert found.allowed_percent == found.folding_percent[0] == pytest.approx(folds(free.field), abs=1e-9)
    assert folds(found.field) <= found.allowed_percent


def test_steps_whose_folds_cannot_be_taken_out_are_not_taken(monkeypatch):
    monkeypatch.setattr("ofg_deploy.kernels.unfold.unfold", lambda field, buffers: False)
    noise = np.random.default_rng(8).normal(size=(2, *SHAPE))
    moving, fixed = (unit(gaussian_filter(n, 1)).astype(np.float32) for n in noise)
    field = np.zeros((3, *SHAPE), np.float32)
    options = one_level(Greedy(30, step=9.0, gradient_sigma=0.7, field_sigma=0.0), smoothness=0.0, threads=1)
    found = refine(field, moving, fixed, options)
    assert (found.stopped, found.kept) == ("folding", 0)
    assert found.dropped == "the next step would fold too much"


def test_it_stops_when_the_energy_stalls():
    images = [unit(image) for image in deformed_pair()]
    field = np.zeros((3, *SHAPE), np.float32)
    impatient = refine(field, *images, one_level(Greedy(9), tolerance=0.05, patience=2, threads=1))
    assert impatient.stopped == "stalled"
    lowest = np.minimum.accumulate(impatient.energies)
    falls = (lowest[:-2] - lowest[2:]) / -lowest[2:]  # over two steps each
    assert (falls[:-1] > 0.05).all()
    assert falls[-1] <= 0.05
    assert 3 < impatient.kept < 9
    patient = refine(field, *images, one_level(Greedy(9), tolerance=0, patience=9, threads=1))
    assert (patient.stopped, len(patient.energies)) == ("steps", 10)
    assert patient.energies[: len(impatient.energies)] == impatient.energies


@pytest.mark.skipif(most_threads() < 2, reason="numba was started with one thread")
def test_same_bits_with_one_thread_two_and_too_many():
    images = [unit(image) for image in deformed_pair()]
    field = 0.3 * known_field().astype(np.float32)
    first, *others = (refine(field, *images, one_level(Greedy(5), threads=n)) for n in (1, 1, 2, 1000))
    assert [first.threads] + [o.threads for o in others] == [1, 1, 2, most_threads()]
    for other in others:
        assert np.array_equal(other.field, first.field)
        assert other.energies == first.energies


def far_pair() -> tuple[np.ndarray, np.ndarray]:
    """Five times as far: nothing that a step at full resolution can see."""
    index = np.indices(SHAPE, dtype=float)
    return unit(blobs(index)), unit(blobs(index + 4 * gaussian_filter(known_field(), (0, 4, 4, 4))))


def test_coarse_levels_find_what_is_far_and_are_judged_at_full_resolution():
    images = [image.astype(np.float32) for image in far_pair()]
    truth = 4 * gaussian_filter(known_field(), (0, 4, 4, 4))
    zero = np.zeros((3, *SHAPE), np.float32)
    near, far = (refine(zero, *images, Refinement(Greedy(20), coarse_steps=n, threads=1)) for n in ((), None))
    inside = (slice(None), *[slice(5, -5)] * 3)
    errors = [np.linalg.norm((found.field - truth)[inside], axis=0).mean() for found in (near, far)]
    assert errors[1] < 0.7 * errors[0]
    assert far.approach.taken
    assert far.approach.steps == (20, 20)
    coarse = Multilevel(Greedy(20), (20, 20)).approach(zero, *images)
    assert far.approach.energy == far.energies[0] == pytest.approx(energy(coarse, *images), abs=1e-5)
    assert far.approach.folding_percent == folds(coarse)
    assert far.network_energy == near.energies[0] == pytest.approx(energy(zero, *images), abs=1e-5)
    assert far.energies[far.kept] == pytest.approx(energy(far.field, *images), abs=1e-5)
    # What follows are the steps at full resolution, from there.
    assert np.array_equal(far.field, Greedy(far.kept).refine(coarse, *images))


def test_coarse_levels_that_harm_are_left_out():
    """A noisy image with itself: what is coarse finds nothing, and moving it is a loss."""
    image = unit(deformed_pair()[1] + 10 * np.random.default_rng(4).normal(size=SHAPE)).astype(np.float32)
    field = np.zeros((3, *SHAPE), np.float32)
    found = refine(field, image, image, Refinement(Greedy(4), threads=1))
    assert not found.approach.taken
    assert found.approach.energy > found.network_energy
    assert (found.better, found.kept) == (False, 0)
    assert "none of 4 steps and no coarser ones lowered the energy" in found.warnings()[0]
    assert np.array_equal(found.field, field)
    assert found.energies == refine(field, image, image, one_level(Greedy(4), threads=1)).energies


def test_coarse_levels_that_fold_are_left_out(monkeypatch):
    noise = np.random.default_rng(8).normal(size=(2, *SHAPE))
    moving, fixed = (unit(gaussian_filter(n, 2)).astype(np.float32) for n in noise)
    field = np.zeros((3, *SHAPE), np.float32)
    options = Refinement(Greedy(30, step=1.8, gradient_sigma=0.7, field_sigma=0.0), smoothness=0.0, threads=1)
    free, mended = (refine(field, moving, fixed, replace(options, folding_percent=p)) for p in (100, 0.01))
    assert free.approach.taken
    assert free.approach.folding_percent > 0.1
    assert mended.approach.folding_percent <= 0.01
    assert folds(mended.field) <= 0.01
    monkeypatch.setattr("ofg_deploy.kernels.unfold.unfold", lambda field, buffers: False)
    bound = refine(field, moving, fixed, options)
    assert bound.approach.folding_percent == free.approach.folding_percent
    assert bound.approach.energy < bound.network_energy
    assert not bound.approach.taken
    # They lowered the energy, and are not said to have failed at that.
    folded = f"; coarser ones would leave {bound.approach.folding_percent:.3g} % of the voxels folded"
    assert bound.dropped == f"the next step would fold too much{folded}"
    strict = refine(
        field, moving, fixed, replace(options, optimiser=Greedy(2, step=0.01), coarse_steps=(2, 2), tolerance=0.5)
    )
    assert strict.approach.taken
    assert strict.dropped.startswith("none of 2 steps and no coarser ones lowered the energy by more than 50 %")


@pytest.mark.parametrize(("shape", "levels"), [((30, 26, 35), 2), ((17, 33, 40), 2), ((16, 33, 40), 1), ((8, 9, 9), 0)])
def test_as_many_levels_as_the_window_fits_into(shape, levels):
    coarse = Refinement(Greedy(3)).coarse(shape)
    assert (coarse.coarse_steps if coarse else ()) == (3,) * levels


def test_regularity_against_numpy():
    field = gaussian_filter(np.random.default_rng(3).normal(size=(3, 21, 7, 12)), (0, 1, 1, 1)).astype(np.float32) * 6
    expected = sum(np.mean(np.diff(field.astype(float), axis=axis) ** 2) for axis in (1, 2, 3)) / 3
    assert diffusion(field) == pytest.approx(expected, rel=1e-12)
    assert 5 < folds(field) < 60
    assert folding_percent(field) == pytest.approx(folds(field), abs=1e-9)
    assert (diffusion(0 * field), folding_percent(0 * field)) == (0, 0)
    flipped = np.zeros((3, 2, 3, 4), np.float32)
    flipped[1] = -2 * np.arange(3).reshape(3, 1)
    assert folding_percent(flipped) == 100


@pytest.mark.parametrize("init", ["none", "affine"])
def test_the_written_transform_reproduces_the_written_image(tmp_path, files, tiny_model, init):
    fixed, moving, _, _ = files
    engine = open_engine(tiny_model(intensity=Intensity(), init=init).path, "cpu", 1)
    plain = register(Job(fixed, moving, tmp_path / "plain"), engine)
    results = [
        register(Job(fixed, moving, tmp_path / name, refinement=Refinement(Greedy(10), threads=1)), engine)
        for name in ("once", "again")
    ]
    assert results[0].sidecar["refinement"]["steps_kept"] > 0
    for role in ("transform", "warped"):
        once, again, without = (read(result.outputs[role]) for result in (*results, plain))
        assert np.array_equal(once, again)
        assert np.abs(once - without).max() > 0.1
    transform = sitk.ReadImage(str(results[0].outputs["transform"]), sitk.sitkVectorFloat64)
    expected = sitk.Resample(
        sitk.ReadImage(str(moving)),
        sitk.ReadImage(str(fixed)),
        sitk.DisplacementFieldTransform(transform),
        sitk.sitkLinear,
    )
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(results[0].outputs["warped"])))
    assert np.abs(warped - sitk.GetArrayFromImage(expected)).max() <= 1e-3 * np.ptp(warped)
    # The anatomy is the same in both files, and the model's field wrong.
    image = read(fixed)
    assert correlation(read(results[0].outputs["warped"]), image) > correlation(read(plain.outputs["warped"]), image)


@pytest.mark.parametrize(("steps", "said"), [("-3", "--refine -3: "), ("2.5", "--refine"), ("many", "--refine")])
def test_steps_that_are_no_number_of_steps(tmp_path, pair, run_cli, steps, said):
    model = pair.model(np.zeros((3, *SHAPE)))
    out = tmp_path / "out"
    code, _, err = run_cli(["register", pair.fixed, pair.moving, "--model", model, "--out", out, "--refine", steps])
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not out.exists()


def test_a_grid_smaller_than_the_window(tmp_path, files, run_cli, tiny_model):
    model = tiny_model((14, 4, 16), (4.4, 9.0, 4.1)).path
    out = tmp_path / "out"
    code, _, err = run_cli(["register", *files[:2], "--model", model, "--out", out, "--refine", 3])
    assert (code, err.count("\n")) == (2, 1)
    assert "14x4x16 is smaller than the window of 5" in err
    assert not out.exists()
    assert run_cli(["register", *files[:2], "--model", model, "--out", out, "--refine", 0])[0] == 0


@pytest.mark.parametrize(
    "options", [{"optimiser": Greedy(0)}, {"smoothness": -1}, {"smoothness": np.nan}, {"folding_percent": 101},
                {"tolerance": 1}, {"patience": 0}, {"coarse_steps": (3, -1)}]
)  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(UsageError, match="refinement"):
        Refinement(**{"optimiser": Greedy(3), **options})


WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "matplotlib"):
    sys.modules[name] = None  # importing it raises ImportError
from ofg_deploy.cli import main
main()
"""


def test_refining_needs_neither_torch_nor_onnx(pair):
    model = pair.model(np.zeros((3, *SHAPE)))
    arguments = ["register", pair.fixed, pair.moving, "--model", model, "--out", pair.out / "out", "--refine", 2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((pair.out / "out" / "mov_to_fix.json").read_text())["refinement"]["steps_kept"] > 0
