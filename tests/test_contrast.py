"""Steps on a pair whose images show different contrasts: descriptors, their distance, the choice, the warnings."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from report_pairs import run_ofg
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter
from scipy.optimize import isotonic_regression

from ofg_deploy.errors import UsageError
from ofg_deploy.kernels import contrast, mind
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.compiled import most_threads
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.metrics import dice, mean
from ofg_deploy.serve.measures import adds_nothing
from ofg_deploy.serve.refinement import Refinement, refine
from ofg_deploy.serve.similarity import choose

SHAPE = (19, 23, 17)
T1 = (0, 20, 70, 110, 85)  # intensity of each tissue of a phantom
SWAPPED = (0, 130, 40, 60, 100)


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2).astype(np.float32)


def described(values: np.ndarray) -> np.ndarray:
    out = np.empty((*values.shape, mind.WIDE), np.uint8)
    mind.describe(values, out, Buffers())
    return out


def test_descriptors_against_their_definition() -> None:
    """Every pair of face neighbours by itself, in double precision, away from the faces of the grid."""
    values = image(1)
    v = values.astype(float)
    faces = [s * np.eye(3, dtype=int)[a] for a in range(3) for s in (-1, 1)]
    pairs = [(p, q) for p, q in combinations(faces, 2) if (p + q).any()]
    assert len(pairs) == mind.CHANNELS
    moved = {tuple(p): np.roll(v, -p, axis=(0, 1, 2)) for p in faces}
    distance = np.stack([27 * uniform_filter((moved[tuple(p)] - moved[tuple(q)]) ** 2, 3) for p, q in pairs], axis=-1)
    scale = distance.mean(axis=-1, keepdims=True) + 27 * mind.FLOOR**2 * v.var()
    expected = np.exp(-(distance - distance.min(axis=-1, keepdims=True)) / scale)
    found = described(values)
    inner = (slice(3, -3),) * 3
    channels = np.sort(found[inner][..., : mind.CHANNELS] / mind.SCALE, axis=-1)
    assert np.abs(channels - np.sort(expected[inner], axis=-1)).max() < 0.004
    assert (found[..., mind.CHANNELS :] == 0).all()
    assert channels.std() > 0.1
    # Of no scale: any factor of either sign and any constant.
    other = described(np.float32(-40) * values + np.float32(7)).astype(int)
    assert np.abs(other - found).max() <= 1
    # What is unknown reaches as far as the cubes do, and no further.
    values[9, 11, 8] = np.nan
    unknown = described(values)[..., 15] == mind.UNKNOWN
    assert unknown[9, 11, 8]
    assert unknown[9, 11, 10]
    assert not unknown[9, 11, 11]
    assert 20 < unknown.sum() < 125


@pytest.mark.parametrize("unknown", [False, True])
def test_distance_and_gradient_against_scipy_and_differences(unknown: bool) -> None:
    a, b = image(2), image(3)
    if unknown:
        a[:4, 5:], b[:, :, 14:] = np.nan, np.nan
    moving, fixed = described(a), described(b)
    field = np.random.default_rng(4).uniform(-2, 2, (3, *SHAPE)).astype(np.float32)
    gradient = np.empty_like(field)
    loss = mind.loss_and_gradient(moving, fixed, field, gradient, Buffers())

    def terms(at: np.ndarray) -> np.ndarray:
        """1 - the mean squared difference of each voxel, 0 where it is not known; by scipy in double precision."""
        places = np.indices(SHAPE) + at
        inside = np.all([(p >= 0) & (p <= n - 1) for p, n in zip(places, SHAPE, strict=True)], axis=0)
        bad = map_coordinates((moving[..., 15] > 0).astype(float), places, order=1) + (fixed[..., 15] > 0)
        total = sum(
            (map_coordinates(moving[..., c].astype(float), places, order=1) - fixed[..., c]) ** 2 for c in range(12)
        )
        return np.where(inside & (bad == 0), 1 - total / (12 * mind.SCALE**2), 0)

    size = np.prod(SHAPE)
    known = terms(field.astype(float))
    assert loss == pytest.approx(-known.sum() / size, rel=1e-5)
    assert (gradient[:, known == 0] == 0).all()
    assert 0.02 < np.mean(known == 0) < 0.8
    whole = np.floor(field)
    safe = np.all((field - whole > 1e-3) & (field - whole < 1 - 1e-3), axis=0) & (known != 0)
    for axis in range(3):
        step = np.zeros((3, 1, 1, 1))
        step[axis] = 1e-5
        slope = -(terms(field + step) - terms(field - step)) / 2e-5 / size
        np.testing.assert_allclose(gradient[axis][safe], slope[safe], atol=2e-4 * np.abs(slope[safe]).max())


def phantom(means: tuple[int, ...], noise: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Moving image and labels, and both bent, the bent image with intensities of ``T1``."""
    shape = (44, 52, 40)
    rng = np.random.default_rng(5)
    where = np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    waves = gaussian_filter(rng.normal(size=shape), 3)
    body = sum((w / (0.42 * n)) ** 2 for w, n in zip(where, shape, strict=True)) < 1
    labels = np.where(body, 1 + np.digitize(waves / waves.std(), (-0.7, 0.0, 0.7)), 0)
    bend = gaussian_filter(rng.normal(size=(3, *shape)), (0, 7, 7, 7))
    bend *= 3.5 / np.abs(bend).max()
    bent = map_coordinates(labels, np.indices(shape) + bend, order=0)
    images = [
        gaussian_filter(np.array(m, float)[of], 0.7) + np.random.default_rng(noise + n).normal(0, 2, shape) * (of > 0)
        for n, (m, of) in enumerate(((means, labels), (T1, bent)))
    ]
    return images[0].astype(np.float32), labels, images[1].astype(np.float32), bent


def overlap(field: np.ndarray, labels: np.ndarray, bent: np.ndarray) -> float:
    at = np.indices(labels.shape) + field
    return mean(dice(bent, map_coordinates(labels, at, order=0, mode="nearest"))) or 0.0


def test_other_contrasts_are_registered_and_the_choice_is_made_by_the_pair() -> None:
    found = {}
    for name, means in (("same", T1), ("swapped", SWAPPED)):
        moving, labels, fixed, bent = phantom(means, 6)
        zero = np.zeros((3, *fixed.shape), np.float32)
        before = overlap(zero, labels, bent)
        for similarity in ("ncc", "mind", "auto"):
            steps = refine(zero, moving, fixed, Refinement.of_quality("fast", similarity, threads=1))
            found[name, similarity] = steps, overlap(steps.field, labels, bent) - before
            assert steps.folding_percent[1] <= 0.01
    for name, better in (("same", "ncc"), ("swapped", "mind")):
        auto, chosen = found[name, "auto"][0], found[name, better][0]
        assert auto.similarity is not None
        assert auto.similarity.taken == better
        assert np.array_equal(auto.field, chosen.field)
        record = auto.record()
        assert record["similarity"] == {**auto.similarity.record(), "asked": "auto", "taken": better}
        assert record["options"]["similarity"] == "auto"
    assert found["same", "auto"][0].similarity.opposite_percent < 0.5
    assert found["swapped", "auto"][0].similarity.opposite_percent > 10
    gains = {key: gain for key, (_, gain) in found.items()}
    assert gains["same", "ncc"] > 0.1
    assert gains["same", "mind"] > 0.1
    assert gains["swapped", "mind"] > 0.07
    assert gains["swapped", "ncc"] < -0.15  # blind to the sign, it leads away, and its own energy falls all the same
    assert found["swapped", "ncc"][0].better
    # Who insists on ncc hears of it; nobody else hears anything.
    warned = {key: steps.warnings() for key, (steps, _) in found.items()}
    [line] = warned.pop(("swapped", "ncc"))
    assert line.startswith("the images show different contrasts (")
    assert line.endswith("use auto or mind")
    assert not any(warned.values())


def test_the_share_of_opposite_relations() -> None:
    a, b = image(7), image(8)
    half = np.where(np.arange(SHAPE[0])[:, None, None] < 6, -a, a).astype(np.float32)
    assert contrast.opposite_share(a, a) == contrast.opposite_share(a, np.float32(3) - a) == 0
    assert contrast.opposite_share(a, half) == pytest.approx(6 / 19, abs=0.1)
    assert contrast.opposite_share(a, half) == pytest.approx(contrast.opposite_share(-a, half), rel=1e-9)
    assert contrast.opposite_share(np.zeros_like(a), a) == 0
    assert contrast.opposite_share(np.full_like(a, np.nan), a) == 0

    def dense(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x.astype(float), y.astype(float)
        inner = (slice(1, -1),) * 3
        m_x, m_y = uniform_filter(x, 3), uniform_filter(y, 3)
        cross = (uniform_filter(x * y, 3) - m_x * m_y)[inner]
        var_x, var_y = ((uniform_filter(v * v, 3) - m * m)[inner] + 9e-4 * v.var() for v, m in ((x, m_x), (y, m_y)))
        clear = np.maximum(cross**2 / (var_x * var_y) - 0.3, 0)
        share = clear[cross < 0].sum() / clear.sum()
        return float(min(share, 1 - share))

    assert contrast.opposite_share(a, b) == pytest.approx(dense(a, b), rel=1e-6)
    assert contrast.opposite_share(a, b) > 0.2
    cut = half.copy()
    cut[:9] = np.nan
    assert contrast.opposite_share(a, cut) == 0
    moved = np.zeros((3, *SHAPE), np.float32)
    assert choose("auto", moved, a, np.float32(-2) * a).taken == "ncc"
    moved[0] = 60  # out of sight
    assert choose("auto", moved, a, half).opposite_percent == 0


def test_what_no_monotone_curve_says() -> None:
    rng = np.random.default_rng(3)
    a = np.floor(rng.uniform(0, 32, (24, 31, 26))).astype(np.float32)  # every bin of the histogram alike
    assert contrast.curved_share(a, a) == contrast.curved_share(a, np.sqrt(a)) == contrast.curved_share(a, 7 - a) == 0
    # Five tissues, of which the first fills half of the image and is weighed as a fifth of it.
    tissue = np.repeat([0, 0, 0, 0, 1, 2, 3, 4], 512).reshape(16, 16, 16).astype(np.float32)
    for places in ([0, 2, 4, 1, 3], [0, 4, 1, 2, 3], [3, 1, 4, 0, 2]):
        share = []
        for values in (np.array(places, float), np.argsort(places).astype(float)):
            left = min(np.sum((v - isotonic_regression(v).x) ** 2) for v in (values, -values))
            share.append(left / np.sum((values - values.mean()) ** 2))
        found = contrast.curved_share(tissue, np.array(places, np.float32)[tissue.astype(int)])
        assert found == pytest.approx(min(share), rel=1e-9)
        assert found > 0.1
    cut = a.copy()
    cut[:20] = np.nan
    assert contrast.curved_share(cut, np.where(np.isnan(cut), -a, a)) == 0
    assert contrast.curved_share(np.full_like(a, np.nan), a) == contrast.curved_share(np.zeros_like(a), a) == 0
    noisy = a + rng.normal(0, 8, a.shape).astype(np.float32)
    assert contrast.curved_share(noisy, a) < 0.005


def test_tissues_in_another_order_are_another_contrast_without_opposite_relations() -> None:
    """Only the brightest tissue changes its place, which few local relations show; small grids are not judged so."""
    rng = np.random.default_rng(5)
    smooth = [gaussian_filter(rng.normal(size=(70, 66, 68)), 4, mode="wrap") for _ in range(2)]
    inside, one = (v / v.std() for v in smooth)
    labels = (inside > -0.7).astype(int) + (inside > 0)
    labels[(inside > 0.3) & (one > 0.8)] = 3
    labels[(inside > 0.3) & (one < -0.8)] = 4
    fixed, moving = (np.array(means, np.float32)[labels] for means in ((0, 20, 60, 100, 140), (0, 20, 60, 100, 70)))
    zero = np.zeros((3, *labels.shape), np.float32)
    chosen = choose("auto", zero, moving, fixed)
    assert chosen.opposite_percent < 2.5
    assert chosen.curved_percent > 0.6
    assert (chosen.taken, chosen.differs) == ("mind", True)
    assert "not monotone" in choose("ncc", zero, moving, fixed).warnings()[0]
    small = (slice(0, 60),) * 3
    assert choose("auto", zero[:, :60, :60, :60], moving[small], fixed[small]).curved_percent is None


def test_an_image_in_the_contrast_of_another() -> None:
    moving, labels, *_ = phantom(SWAPPED, 9)
    fixed = np.array(T1, np.float32)[labels]
    mapped = contrast.in_contrast_of(fixed, moving, moving)
    inside = gaussian_filter((labels == 3).astype(float), 0.7) > 0.999
    assert np.abs(mapped[inside] - T1[3]).max() < 15
    assert np.corrcoef(mapped.ravel(), fixed.ravel())[0, 1] > 0.9 > np.corrcoef(moving.ravel(), fixed.ravel())[0, 1]
    by_hand = [fixed[np.abs(moving - at) < 1].mean() for at in (61.0, 101.0)]
    near = [mapped[np.abs(moving - at) < 1].mean() for at in (61.0, 101.0)]
    np.testing.assert_allclose(near, by_hand, atol=8)
    moving[:5] = np.nan
    again = contrast.in_contrast_of(fixed, moving, moving)
    assert np.isnan(again[:5]).all()
    assert np.isfinite(again[5:]).all()
    flat = np.ones_like(fixed)
    assert contrast.in_contrast_of(fixed, flat, flat) is flat
    assert contrast.in_contrast_of(np.full_like(fixed, np.nan), fixed, fixed) is fixed


@pytest.mark.skipif(most_threads() < 2, reason="numba was started with one thread")
def test_same_bits_for_any_number_of_threads_and_unknown_regions() -> None:
    moving, _, fixed, _ = phantom(SWAPPED, 6)
    moving[:9], fixed[:, :, 33:] = np.nan, np.nan
    zero = np.zeros((3, *moving.shape), np.float32)
    found = [refine(zero, moving, fixed, Refinement.of_quality("fast", "mind", threads=n)) for n in (1, 2)]
    assert np.array_equal(found[0].field, found[1].field)
    assert found[0].energies == found[1].energies
    assert found[0].better
    # From a field of its own, as behind a network, the descriptors are those of the image as that field moves it.
    start = np.full_like(zero, 0.25)
    behind = refine(start, moving, fixed, Refinement.at_most(3, 1, "mind"))
    assert behind.better
    assert np.abs(behind.field - start).max() > 1


def test_where_nothing_helps_it_is_said_with_the_energy() -> None:
    rng = np.random.default_rng(0)
    flat, noise = np.zeros(SHAPE, np.float32), rng.normal(size=SHAPE).astype(np.float32)
    found = refine(np.zeros((3, *SHAPE), np.float32), flat, noise, Refinement.of_quality("fast", "mind", threads=1))
    assert not found.better
    [line] = found.warnings()
    assert line.startswith("refinement dropped, the network's field is kept: ")
    numbers = {"ncc_start": 0.1, "ncc_after": 0.3, "mi_start": 0.412, "mi_after": 0.4121}
    line = adds_nothing(numbers, (-0.25, -0.31), across_contrasts=True)
    assert line is not None
    assert line.startswith(
        "no gain over the initial alignment (mutual information 0.412 -> 0.412, energy -0.25 -> -0.31)"
    )
    assert adds_nothing(numbers, (-0.25, -0.31)) is None  # of one contrast the correlation counts, too
    assert adds_nothing({**numbers, "mi_after": 0.5}, (-0.25, -0.31), across_contrasts=True) is None


def test_refused() -> None:
    with pytest.raises(UsageError, match="blind"):
        Greedy(1, measure="mind")
    with pytest.raises(UsageError, match="blind"):
        Refinement(Greedy(1), similarity="mind")
    with pytest.raises(UsageError, match="'mi' is unknown: use auto, ncc, mind"):
        Refinement.at_most(3, similarity="mi")  # type: ignore[arg-type]


def test_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    moving, _, fixed, _ = phantom(SWAPPED, 6)
    affine = np.array([[0, 2.1, 0, -50], [-2, 0, 0, 44], [0, 0, 1.9, -30], [0, 0, 0, 1.0]])
    for name, data in (("fixed", fixed), ("moving", moving)):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii")
    call = ["register", tmp_path / "fixed.nii", tmp_path / "moving.nii", "-m", "none", "--init", "none"]
    out = tmp_path / "out"
    chosen = {}
    for given in ([], ["--similarity", "ncc"]):
        done = run_ofg(monkeypatch, capfd, *call, "--quality", "fast", "-o", out, "--overwrite", *given)
        assert done.returncode == 0, done.stderr
        record = json.loads((out / "moving_to_fixed.json").read_text())
        chosen[record["options"]["similarity"]] = record
        assert ("show different contrasts" in done.stderr) == bool(given)
    assert chosen["auto"]["refinement"]["similarity"]["taken"] == "mind"
    assert chosen["ncc"]["refinement"]["similarity"]["taken"] == "ncc"
    assert chosen["auto"]["metrics"]["mi_after"] > chosen["auto"]["metrics"]["mi_start"] + 0.1
    done = run_ofg(monkeypatch, capfd, *call, "--refine", 0, "--similarity", "mind", "-o", out, "--overwrite")
    assert done.returncode == 2
    assert done.stderr.startswith("ofg: error: --similarity")
    assert done.stderr.count("\n") == 1
    done = run_ofg(monkeypatch, capfd, *call, "--similarity", "mi", "-o", out, "--overwrite")
    assert done.returncode == 2
