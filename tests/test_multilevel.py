"""Greedy steps coarse to fine: the compiled ones against plain torch and scipy, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d, gaussian_filter, map_coordinates

from ofg_deploy.errors import UsageError
from ofg_deploy.kernels import compiled, levels
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.train import greedy

SHAPE = (25, 18, 21)


def random_pairs(pairs: int = 1) -> list[np.ndarray]:
    """Fields, moving, fixed (float32); structure everywhere, so that no gradient is rounding alone."""
    rng = np.random.default_rng(5)
    field = 2 * gaussian_filter(rng.standard_normal((pairs, 3, *SHAPE)), (0, 0, 2, 2, 2)) / 0.05
    return [field.astype(np.float32), *rng.random((2, pairs, *SHAPE)).astype(np.float32)]


def test_levels_are_scipys() -> None:
    _, [image], _ = random_pairs()
    smooth = image.astype(np.float64)
    for axis in range(3):
        smooth = convolve1d(smooth, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    out = np.empty(levels.coarser_shape(SHAPE), np.float32)
    levels.coarsen(image, out)
    assert out.shape == (13, 9, 11)
    np.testing.assert_allclose(out, smooth[::2, ::2, ::2], atol=1e-6)
    coarse = np.random.default_rng(0).standard_normal((3, *out.shape)).astype(np.float32)
    fine = np.empty((3, *SHAPE), np.float32)
    levels.refine_grid(coarse, fine)
    expected = [2 * map_coordinates(c, np.indices(SHAPE) / 2, order=1, mode="nearest") for c in coarse.astype(float)]
    np.testing.assert_allclose(fine, expected, atol=1e-5)


@pytest.mark.parametrize("optimiser", [Greedy(3, window=5), Multilevel(Greedy(2, window=3), (2, 3))])
def test_compiled_steps_are_those_of_plain_torch(optimiser: Greedy | Multilevel) -> None:
    """Double precision, another implementation: autograd's correlation, gathers, convolutions, ``grid_sample``."""
    field, moving, fixed = random_pairs(2)
    tensors = [torch.from_numpy(a).double() for a in (field, moving[:, None], fixed[:, None])]
    expected = greedy.refine(optimiser, *tensors).numpy()
    found = np.stack([optimiser.refine(*pair) for pair in zip(field, moving, fixed, strict=True)])
    change = expected - field
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(change)
    alone = greedy.refine(optimiser, *(t[1:] for t in tensors)).numpy()
    np.testing.assert_allclose(alone[0], expected[1], atol=1e-9)


def test_nothing_to_gain_changes_nothing() -> None:
    field, moving, _ = random_pairs()
    flat = np.zeros(SHAPE, np.float32)
    steps = Multilevel(Greedy(2), (2,))
    np.testing.assert_allclose(steps.refine(field[0], moving[0], flat), field[0], atol=1e-6)
    tensors = [torch.from_numpy(a) for a in (field, moving[None], flat[None, None])]
    np.testing.assert_allclose(greedy.refine(steps, *tensors).numpy(), field, atol=1e-5)


def test_a_far_shift_is_found_from_the_coarse_level_alone() -> None:
    def blob(centre: tuple[int, int, int]) -> np.ndarray:
        image = np.zeros((48, 40, 44), np.float32)
        image[centre] = 400
        return gaussian_filter(image, 3.0)

    fixed, moving = blob((20, 18, 25)), blob((28, 22, 19))
    start, window = np.zeros((3, 48, 40, 44), np.float32), 9
    near = Greedy(8, window=window).refine(start, moving, fixed)[:, 20, 18, 25]
    far = Multilevel(Greedy(1, window=window), (8, 8)).refine(start, moving, fixed)[:, 20, 18, 25]
    truth = np.array([8.0, 4.0, -6.0])
    assert np.linalg.norm(far - truth) < 0.5 * np.linalg.norm(near - truth)
    assert np.linalg.norm(far - truth) < 2


def test_threads_and_buffers_change_nothing() -> None:
    [field], [moving], [fixed] = random_pairs()
    steps, buffers = Multilevel(Greedy(2, window=3), (2, 2)), Buffers()
    first = steps.refine(field, moving, fixed, 1)
    again = [steps.refine(field, moving, fixed, min(n, compiled.most_threads()), buffers) for n in (2, 1, 2)]
    assert all(np.array_equal(first, other) for other in again)


def test_memory_is_bounded() -> None:
    rng, shape = np.random.default_rng(0), (64, 60, 56)
    moving, fixed = rng.random((2, *shape)).astype(np.float32)
    buffers = Buffers()
    Multilevel(Greedy(1), (1, 1)).refine(np.zeros((3, *shape), np.float32), moving, fixed, 1, buffers)
    assert buffers.nbytes < 72 * moving.size


def test_a_window_that_does_not_fit_is_refused() -> None:
    Multilevel(Greedy(1, window=5), (1,)).check_grid((16, 9, 16))
    with pytest.raises(UsageError, match="16x8x16 is 8x4x8 at its coarsest"):
        Multilevel(Greedy(1, window=5), (1,)).check_grid((16, 8, 16))
    with pytest.raises(UsageError, match="at least one level"):
        Multilevel(Greedy(1), ())
