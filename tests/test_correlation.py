"""The local NCC that is blind to the scale of intensities and to what lies outside a field of view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import correlate, gaussian_filter, map_coordinates

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Grid
from ofg_deploy.kernels import levels
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.compiled import most_threads
from ofg_deploy.kernels.correlation import FLOOR, floor, loss_and_gradient
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Descent, Greedy
from ofg_deploy.kernels.unfold import unfold
from ofg_deploy.kernels.warp import warp
from ofg_deploy.serve.refinement import PRESETS, Refinement, known, refine

SHAPE = (19, 23, 17)


def image(seed: int, unknown: bool = False) -> np.ndarray:
    drawn = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.2).astype(np.float32)
    if unknown:
        drawn[:4, seed:] = np.nan
        drawn[:, :, 15] = np.nan
    return drawn


def dense(a: np.ndarray, b: np.ndarray, window: int, floors: tuple[float, float]) -> float:
    """By scipy's sums over cubes, in double precision."""
    here = np.isfinite(a) & np.isfinite(b)
    a, b = (np.where(here, v, 0).astype(float) for v in (a, b))
    cube = np.ones((window,) * 3)
    n, s_a, s_b, s_aa, s_bb, s_ab = (
        correlate(v, cube, mode="constant") for v in (here.astype(float), a, b, a * a, b * b, a * b)
    )
    n = np.maximum(n, 1)
    cross = s_ab - s_a * s_b / n
    var_a, var_b = s_aa - s_a**2 / n + n * floors[0], s_bb - s_b**2 / n + n * floors[1]
    return float(
        -np.sum(correlate(here.astype(float), cube, mode="constant") / window**3 * cross**2 / (var_a * var_b)) / a.size
    )


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("window", [3, 7])
def test_value_and_gradient_against_scipy_and_differences(window: int, unknown: bool) -> None:
    a, b = (image(seed, unknown).astype(np.float64) for seed in (2, 3))
    floors = floor(a), floor(b)
    assert floors[0] == pytest.approx(FLOOR**2 * np.nanvar(a), rel=1e-6)
    gradient = a.copy()
    assert loss_and_gradient(gradient, b, window, Buffers(), floors) == pytest.approx(
        dense(a, b, window, floors), rel=1e-9
    )
    places = [(0, 0, 0), (18, 22, 16), (4, 9, 8), (10, 3, 14), (3, 2, 5)]
    for at in places:
        if not np.isfinite(a[at] + b[at]):
            assert gradient[at] == 0
            continue
        up, down = a.copy(), a.copy()
        up[at] += 1e-5
        down[at] -= 1e-5
        slope = (dense(up, b, window, floors) - dense(down, b, window, floors)) / 2e-5
        assert gradient[at] == pytest.approx(slope, rel=1e-4, abs=1e-9)
    assert (gradient[~np.isfinite(a + b)] == 0).all()


@pytest.mark.parametrize("window", [3, 5, 7, 9, 11])
def test_rows_that_are_all_known_and_others_go_through_one_sum(window: int) -> None:
    """A few unknown voxels amid planes that are known: rows enter and leave the sums by two ways."""
    a, b = (image(seed).astype(np.float64) for seed in (2, 3))
    a[5, 7, 3] = a[9, :2] = b[12, 20, 16] = np.nan
    floors = floor(a), floor(b)
    assert floors[0] == pytest.approx(FLOOR**2 * np.nanvar(a), rel=1e-12)
    assert loss_and_gradient(a.copy(), b, window, Buffers(), floors) == pytest.approx(
        dense(a, b, window, floors), rel=1e-9
    )


def test_a_descent_that_restarts_is_a_new_one() -> None:
    moving, fixed = pair()
    start = gaussian_filter(np.random.default_rng(4).normal(size=(3, *fixed.shape)), (0, 4, 4, 4)).astype(np.float32)
    options = Greedy(steps=3, step=0.7, blind=True)
    new = Descent(options, start, moving, fixed)
    used = Descent(options, np.zeros_like(start), moving, fixed)
    for _ in range(2):
        assert used.fell(used.loss(), -2.0)  # each halves the steps to come
        used.step()
    used.restart(start)
    for _ in range(2):
        assert used.loss() == new.loss()
        assert used.step()
        assert new.step()
        np.testing.assert_array_equal(used.field, new.field)
    assert not np.array_equal(start, new.field)


def pair() -> tuple[np.ndarray, np.ndarray]:
    """A blob of structure, and the same displaced by up to 2 voxels, with noise of its own."""
    rng = np.random.default_rng(7)
    source = gaussian_filter(rng.normal(size=(40, 36, 44)), 2.0)
    moved = sitk.GetImageFromArray(source)
    vectors = gaussian_filter(rng.normal(size=(3, 40, 36, 44)), (0, 6, 6, 6))
    vectors *= 2 / np.abs(vectors).max()
    transform = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(vectors.transpose(1, 2, 3, 0), isVector=True))
    fixed = sitk.GetArrayFromImage(sitk.Resample(moved, moved, transform, sitk.sitkBSpline))
    inside = (slice(4, -4),) * 3
    noisy = [v[inside] / source.std() + rng.normal(0, 0.05, v[inside].shape) for v in (source, fixed)]
    return noisy[0].astype(np.float32), noisy[1].astype(np.float32)


def test_the_result_does_not_depend_on_the_scale_of_intensities() -> None:
    moving, fixed = pair()
    zero = np.zeros((3, *moving.shape), np.float32)
    options = Refinement.of_quality("fast", threads=1)
    found = refine(zero, moving, fixed, options)
    assert found.better
    assert np.abs(found.field).max() > 1
    for scale_moving, scale_fixed in ((2.0**-20, 2.0**9), (2.0**30, -4.0)):  # exact in binary: the same bits
        other = refine(zero, np.float32(scale_moving) * moving, np.float32(scale_fixed) * fixed, options)
        assert np.array_equal(other.field, found.field)
        assert other.energies == found.energies
    other = refine(zero, np.float32(1e-5) * moving, np.float32(3e6) * fixed, options)
    assert np.abs(other.field - found.field).max() < 0.05
    # The form that training follows has a constant of its own, so there it does.
    plain = replace(options, optimiser=Greedy(3))
    faint = [refine(zero, s * moving, s * fixed, plain).field for s in (np.float32(0.01), np.float32(1))]
    assert np.abs(faint[0] - faint[1]).max() > 0.1


def test_the_edge_of_a_field_of_view_pulls_at_nothing() -> None:
    """Both images show the same anatomy, one of them less of it: there is nothing to be moved."""
    fixed, pulled = image(11), []
    for outside in (0.0, np.nan):
        cut = fixed.copy()
        cut[:, :, :5] = outside
        gradient = cut.copy()
        loss_and_gradient(gradient, fixed, 5, Buffers(), (floor(cut), floor(fixed)))
        pulled.append(np.linalg.norm(gradient[:, :, 5:]))
    assert pulled[1] < 0.05 * pulled[0]


def test_what_is_known_is_what_the_image_covers() -> None:
    """An oblique source grid against SimpleITK, which marks what is outside."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    source = Grid((14, 11, 9), np.vstack([np.hstack([turn * [1.5, 2.0, 1.1], [[-9.0], [2.0], [4.0]]]), [0, 0, 0, 1]]))
    grid = Grid(
        SHAPE, np.diag([1.2, 1.3, 0.9, 1.0]) + np.array([[0, 0, 0, -12.0], [0, 0, 0, 1], [0, 0, 0, 2], [0] * 4])
    )
    shift = np.eye(4)
    shift[:3, 3] = 1.5, -2.0, 0.7
    found = known(image(1), grid, source, shift)

    def itk(of: Grid) -> sitk.Image:
        made = sitk.GetImageFromArray(np.ones(of.shape[::-1], np.float32))
        spacing = np.linalg.norm(of.world_from_vox[:3, :3], axis=0)
        made.SetSpacing(spacing.tolist())
        made.SetDirection((of.world_from_vox[:3, :3] / spacing).ravel().tolist())
        made.SetOrigin(of.world_from_vox[:3, 3].tolist())
        return made

    move = sitk.TranslationTransform(3, shift[:3, 3].tolist())
    seen = sitk.GetArrayFromImage(sitk.Resample(itk(source), itk(grid), move, sitk.sitkNearestNeighbor, 0.0)).T > 0
    assert 0.1 < seen.mean() < 0.9
    assert np.array_equal(np.isfinite(found), seen)
    assert np.array_equal(found[seen], image(1)[seen])
    assert known(image(1), grid, grid, np.eye(4)) is not None
    assert np.isfinite(known(image(1), grid, grid, np.eye(4))).all()


def test_samples_next_to_what_is_unknown() -> None:
    part = image(5, unknown=True)
    field = np.random.default_rng(2).uniform(-2, 2, (3, *SHAPE)).astype(np.float32)
    field[:, 6:9] = 0
    warped, slope = np.empty(SHAPE, np.float32), np.empty(field.shape, np.float32)
    warp(part, field, warped, slope, np.nan)
    padded = np.pad(part.astype(float), 3, constant_values=np.nan)
    at = np.indices(SHAPE) + field.astype(float) + 3
    seen, total = (map_coordinates(v, at, order=1) for v in (np.isfinite(padded).astype(float), np.nan_to_num(padded)))
    sure = np.abs(seen - 0.5) > 1e-4
    expected = np.where(seen >= 0.5, total / np.maximum(seen, 1e-9), np.nan)
    np.testing.assert_allclose(warped[sure], expected[sure], atol=1e-4)
    assert 0.05 < np.isnan(warped).mean() < 0.6
    assert (slope[:, (seen < 0.999) & (seen > 0.501)] == 0).all()


def test_coarse_levels_take_the_mean_of_what_is_known() -> None:
    part = image(5, unknown=True)
    out, plain = (np.empty(levels.coarser_shape(SHAPE), np.float32) for _ in range(2))
    levels.coarsen_known(part, out)
    levels.coarsen(image(5), plain)
    padded = np.pad(part.astype(float), 1, mode="edge")
    weights = np.einsum("i,j,k->ijk", *[[0.25, 0.5, 0.25]] * 3)
    for x, y, z in ((0, 0, 0), (2, 3, 4), (2, 4, 7), (1, 5, 7), (9, 11, 8), (5, 5, 5)):
        cube = padded[2 * x : 2 * x + 3, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3]
        there = np.isfinite(cube)
        weight = weights[there].sum()
        expected = (weights[there] * cube[there]).sum() / weight if weight >= 0.5 else np.nan
        assert out[x, y, z] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    levels.coarsen_known(image(5), out)
    np.testing.assert_allclose(out, plain, atol=1e-6)


def test_a_field_from_nothing_is_found_level_by_level() -> None:
    moving, fixed = pair()
    steps = Multilevel(Greedy(5, blind=True), (6, 4))
    zero = np.zeros((3, *moving.shape), np.float32)
    near = steps.approach(zero, moving, fixed, 1)
    levels_of = [[moving], [fixed]]
    for images in levels_of:
        for _ in range(2):
            images.append(np.empty(levels.coarser_shape(images[-1].shape), np.float32))
            levels.coarsen(images[-2], images[-1])
    field = np.zeros((3, *levels_of[0][2].shape), np.float32)
    for n, count in ((2, 6), (1, 4)):
        field = Greedy(count, blind=True).refine(field, levels_of[0][n], levels_of[1][n])
        finer = np.empty((3, *levels_of[0][n - 1].shape), np.float32)
        levels.refine_grid(field, finer)
        field = finer
    assert np.array_equal(near, field)
    # With a field to start from, each level's steps are composed with it: much the same from next to nothing.
    other = steps.approach(zero + np.float32(1e-6), moving, fixed, 1)
    assert 0 < np.linalg.norm(other - near) < 0.5 * np.linalg.norm(near)


def test_both_ways_are_the_mean_of_one_field_and_the_inverse_of_the_other() -> None:
    moving, fixed = pair()
    zero, steps = np.zeros((3, *moving.shape), np.float32), Multilevel(Greedy(5, blind=True), (12, 10))
    there, back = steps.approach(zero, moving, fixed, 1), steps.approach(zero, fixed, moving, 1)
    both = replace(steps, both_ways=True)
    found, other = both.approach(zero, moving, fixed, 1), both.approach(zero, fixed, moving, 1)

    def inconsistency(a: np.ndarray, b: np.ndarray) -> float:
        """Mean length of a(x) + b(x + a(x)), by scipy, away from the faces."""
        places = np.indices(a.shape[1:]) + a
        left = a + np.stack([map_coordinates(c, places, order=1, mode="nearest") for c in b])
        return float(np.linalg.norm(left[:, 4:-4, 4:-4, 4:-4], axis=0).mean())

    assert np.linalg.norm(there, axis=0).mean() > 0.4
    assert inconsistency(found, other) < 0.3 * inconsistency(there, back)
    # The inverse of the way back, which is the mean's other half.
    inverse = 2 * found - there
    assert inconsistency(back, inverse) < 0.3 * inconsistency(back, there)
    # Where there is something to start from, nothing is done twice.
    start = zero + np.float32(0.1)
    assert np.array_equal(both.approach(start, moving, fixed, 1), steps.approach(start, moving, fixed, 1))


def test_only_small_grids_are_gone_through_both_ways() -> None:
    options = Refinement.of_quality("default")
    assert options.coarse((35, 50, 36)).both_ways
    assert not options.coarse((64, 70, 80)).both_ways
    assert not options.coarse((35, 50, 36), "mind").both_ways
    assert not Refinement(Greedy(5, blind=True), (5, 5)).coarse((35, 50, 36)).both_ways


def test_unfold_mends_folds_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    field = gaussian_filter(rng.normal(size=(3, 30, 26, 28)), (0, 3, 3, 3)).astype(np.float32)
    field[:, 8:11, 9:12, 10:13] += rng.normal(0, 2, (3, 3, 3, 3)).astype(np.float32)

    def determinants(of: np.ndarray) -> np.ndarray:
        gradient = np.stack([np.stack(np.gradient(c.astype(float)), axis=-1) for c in of], axis=-2)
        return np.linalg.det(np.eye(3) + gradient)

    before, given = determinants(field), field.copy()
    assert (before <= 0).any()
    assert unfold(field, Buffers())
    assert (determinants(field) > 0).all()
    far = np.ones(before.shape, bool)
    far[3:17, 4:18, 5:19] = False
    assert np.array_equal(field[:, far], given[:, far])
    smooth = given.copy()
    smooth[:] = 0.1
    assert unfold(smooth, Buffers())
    assert (smooth == np.float32(0.1)).all()


def test_qualities_differ_in_steps_and_follow_the_size_of_the_grid() -> None:
    counts = [sum(p.coarse_steps) + p.steps for p in PRESETS.values()]
    assert counts == sorted(set(counts))
    options = Refinement.of_quality("default")
    small, large = options.steps_on((35, 50, 36)), options.steps_on((160, 192, 224))
    assert small.window < large.window
    assert options.coarse((160, 192, 224)).coarse_steps == PRESETS["default"].coarse_steps
    assert options.coarse((57, 70, 60)).coarse_steps == PRESETS["default"].coarse_steps
    assert options.coarse((35, 50, 36)).coarse_steps == PRESETS["default"].coarse_steps[1:]
    assert options.coarse((15, 50, 36)).coarse_steps == PRESETS["default"].coarse_steps[2:]
    assert options.coarse((14, 50, 36)) is None
    assert small.steps > large.steps == options.optimiser.steps
    for wrong in ({"quality": "better"}, {"quality": "best", "similarity": "ssd"}):
        with pytest.raises(UsageError, match="is unknown: use "):
            Refinement.of_quality(**wrong)


def test_memory_is_what_it_says() -> None:
    moving, fixed = (np.random.default_rng(n).random((64, 60, 56), dtype=np.float32) for n in (0, 1))
    buffers = Buffers()
    Multilevel(Greedy(1, blind=True), (1, 1)).refine(
        np.full((3, *fixed.shape), 0.1, np.float32), moving, fixed, 1, buffers
    )
    unfold(np.zeros((3, *fixed.shape), np.float32), buffers)
    copies = 2 * 12  # the best field so far, and the one that steps are taken from
    assert buffers.nbytes + copies * moving.size < Refinement.memory_bytes(moving.shape) < 130 * moving.size


def test_fields_that_are_not_finite_are_refused() -> None:
    zero = np.zeros((3, *SHAPE), np.float32)
    zero[1, 3, 4, 5] = np.nan
    with pytest.raises(InputError, match="not finite"):
        Greedy(1, blind=True).refine(zero, image(1), image(2))


@pytest.mark.skipif(most_threads() < 2, reason="numba was started with one thread")
def test_same_bits_for_any_number_of_threads() -> None:
    moving, fixed = pair()
    moving[:6] = np.nan
    zero = np.zeros((3, *moving.shape), np.float32)
    first, other = (refine(zero, moving, fixed, Refinement.of_quality("fast", threads=n)) for n in (1, 2))
    assert np.array_equal(first.field, other.field)
    assert first.energies == other.energies
