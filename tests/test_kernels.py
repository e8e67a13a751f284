"""The compiled kernels against dense double-precision torch, scipy, and themselves on other numbers of threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import product

import numba
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.nn import functional

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.kernels.compiled import compiled, most_threads, threads
from ofg_deploy.kernels.compose import compose, lengths
from ofg_deploy.kernels.gaussian import smooth
from ofg_deploy.kernels.local_ncc import loss_and_gradient
from ofg_deploy.kernels.refine import Adam, Greedy
from ofg_deploy.kernels.warp import warp
from ofg_deploy.train import greedy

SHAPE = (35, 14, 19)  # more than two slabs along the first axis, the last one short


def random_image(seed: int, kind: str = "noise", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    noise = np.random.default_rng(seed).random(shape)
    if kind == "faint":  # 1 % of contrast on a bright ground: float32 sums know nothing of it
        return (0.5 + 0.01 * noise).astype(np.float32)
    if kind == "flat":  # anatomy in an exactly empty background
        smooth_noise = gaussian_filter(noise, 1.5)
        return np.where(smooth_noise > np.median(smooth_noise), smooth_noise, 0).astype(np.float32)
    return noise.astype(np.float32)


def random_field(seed: int, voxels: float = 2.0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(3, *shape))
    field = gaussian_filter(noise, (0, 2, 2, 2))
    return (field * voxels / field.std()).astype(np.float32)


def dense_warp(image: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """The eight corners of (X, Y, Z) written out; gradient by autograd."""
    size = torch.tensor(image.shape).view(3, 1, 1, 1)
    position = torch.stack(torch.meshgrid(*(torch.arange(n) for n in image.shape), indexing="ij")) + field
    lower = position.detach().floor()
    result = torch.zeros_like(image)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        index = lower + corner.view(3, 1, 1, 1)
        weight = (1 - (position - index).abs()).prod(dim=0)
        inside = ((index >= 0) & (index < size)).all(dim=0)
        x, y, z = torch.minimum(index.clamp(min=0), size - 1).long()
        result = result + weight * torch.where(inside, image[x, y, z], 0.0)
    return result


def dense_ncc(a: torch.Tensor, b: torch.Tensor, window: int) -> torch.Tensor:
    kernel = torch.ones(1, 1, window, window, window, dtype=a.dtype)
    s_a, s_b, s_aa, s_bb, s_ab = (
        functional.conv3d(x[None, None], kernel, padding=window // 2)[0, 0] for x in (a, b, a * a, b * b, a * b)
    )
    size = window**3
    cross, var_a, var_b = s_ab - s_a * s_b / size, s_aa - s_a**2 / size, s_bb - s_b**2 / size
    return -(cross**2 / (var_a * var_b + 1e-5)).mean()


def relative(found: np.ndarray, expected: torch.Tensor) -> float:
    return float((torch.from_numpy(found).double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("voxels", [0.6, 3.0, 25.0])
def test_warp_and_its_slope(voxels: float) -> None:
    image, field = random_image(0), random_field(1, voxels)
    warped, slope = np.empty_like(image), np.empty_like(field)
    warp(image, field, warped, slope)
    exact = torch.from_numpy(field).double().requires_grad_()
    expected = dense_warp(torch.from_numpy(image).double(), exact)
    expected.sum().backward()
    assert relative(warped, expected.detach()) <= 1e-6
    assert relative(slope, exact.grad) <= 1e-6


def test_warp_of_what_is_not_finite_is_not_finite() -> None:
    field = random_field(1)
    field[1, 4, 5, 6], field[0, 7, 8, 9], field[2, 1, 2, 3] = np.nan, np.inf, 1e30
    warped, slope = np.empty(SHAPE, np.float32), np.empty_like(field)
    warp(random_image(0), field, warped, slope)
    assert np.argwhere(~np.isfinite(warped)).tolist() == [[4, 5, 6], [7, 8, 9]]
    assert warped[1, 2, 3] == 0


@pytest.mark.parametrize(("kind", "window"), [("noise", 9), ("noise", 3), ("flat", 5), ("faint", 9)])
def test_local_ncc_against_dense_double_precision(kind: str, window: int) -> None:
    a, b = random_image(2, kind), random_image(3, kind)
    exact = torch.from_numpy(a).double().requires_grad_()
    expected = dense_ncc(exact, torch.from_numpy(b).double(), window)
    expected.backward()
    gradient = a.copy()
    value = loss_and_gradient(gradient, b, window, Buffers())
    assert value == pytest.approx(float(expected.detach()), rel=1e-8)
    assert relative(gradient, exact.grad) <= 1e-5


def test_a_window_larger_than_the_image() -> None:
    a, b = random_image(4, shape=(3, 6, 4)), random_image(5, shape=(3, 6, 4))
    exact = torch.from_numpy(a).double().requires_grad_()
    expected = dense_ncc(exact, torch.from_numpy(b).double(), 9)
    expected.backward()
    value = loss_and_gradient(a, b, 9, Buffers())
    assert value == pytest.approx(float(expected.detach()), rel=1e-8)
    assert relative(a, exact.grad) <= 1e-5


def test_adam_follows_torch_in_double_precision() -> None:
    moving, fixed, field = random_image(9, "flat"), random_image(10, "flat"), random_field(11)
    exact = torch.from_numpy(field).double().requires_grad_()
    adam = torch.optim.Adam([exact], lr=0.1, amsgrad=True)
    images = [torch.from_numpy(image).double() for image in (moving, fixed)]
    for _ in range(4):
        adam.zero_grad()
        rough = sum(torch.diff(exact, dim=axis).square().mean() for axis in (1, 2, 3)) / 3
        (dense_ncc(dense_warp(images[0], exact), images[1], 5) + 2.5 * rough).backward()
        adam.step()
    found = Adam(steps=4, lr=0.1, smoothness=2.5, window=5).refine(field, moving, fixed)
    change = exact.detach() - torch.from_numpy(field)
    assert relative(found - field, change) <= 1e-4
    assert float(change.abs().max()) > 0.3


@pytest.mark.parametrize("options", [Adam(steps=3), Greedy(steps=3)], ids=["adam", "greedy"])
def test_same_bits_on_any_number_of_threads(options: Adam | Greedy) -> None:
    moving, fixed, field = random_image(12, "flat"), random_image(13, "flat"), random_field(14)
    given = field.copy()
    buffers = Buffers()
    first = options.refine(field, moving, fixed, threads=1, buffers=buffers)
    held = buffers.nbytes
    assert np.array_equal(field, given)
    for count in range(1, most_threads() + 1):
        # The second time round the buffers are full of old numbers.
        assert np.array_equal(options.refine(field, moving, fixed, count, buffers), first)
    assert buffers.nbytes <= held * most_threads()
    assert np.abs(first - field).max() > 0.1


@pytest.mark.skipif(most_threads() < 2, reason="numba was started with one thread")
def test_a_share_of_the_threads_is_kept_by_what_does_not_ask_for_more() -> None:
    """As in a batch, whose workers have a share each: refinement inside leaves it at that."""
    with threads(0) as everything, threads(1) as share, threads(0) as same:
        assert (everything, share, same) == (most_threads(), 1, 1)
        with threads(2) as more:
            assert more == 2


@pytest.mark.skipif(most_threads() < 2, reason="numba was started with one thread")
def test_lengths_have_the_same_bits_on_any_number_of_threads() -> None:
    """Over nine orders of magnitude, so that sums in double precision round, too."""
    rng = np.random.default_rng(30)
    for _ in range(8):
        sizes = 10 ** rng.uniform(-12, -3, (1, 37, 1, 40))
        vectors = (rng.normal(size=(3, 37, 8, 40)) * sizes).astype(np.float32)
        found = set()
        for count in range(1, most_threads() + 1):
            with threads(count):
                found.add(lengths(vectors))
        assert len(found) == 1


@pytest.mark.skipif(most_threads() < 2, reason="numba was started with one thread")
def test_number_of_threads_is_restored() -> None:
    before = numba.get_num_threads()
    with threads(1) as count:
        assert count == numba.get_num_threads() == 1
    assert numba.get_num_threads() == before


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.5])
def test_smoothing_is_scipys(sigma: float) -> None:
    field, out = random_field(15), np.empty((3, *SHAPE), np.float32)
    smooth(field, sigma, out, Buffers())
    expected = gaussian_filter(field.astype(float), (0, sigma, sigma, sigma), mode="nearest", truncate=4.0)
    assert out == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("limit", [np.inf, 2.0])
def test_composition_and_lengths(limit: float) -> None:
    field, direction, out = random_field(16), random_field(17), np.empty((3, *SHAPE), np.float32)
    compose(field, direction, -0.7, out, limit)
    length = np.linalg.norm(direction.astype(float), axis=0)
    assert 0.2 < (0.7 * length > 2).mean() < 0.8
    step = -0.7 * direction * np.minimum(1, limit / (0.7 * length))
    position = np.indices(SHAPE) + step
    expected = [s + map_coordinates(f, position, order=1, mode="nearest") for s, f in zip(step, field, strict=True)]
    assert out == pytest.approx(np.array(expected), abs=2e-5)
    assert lengths(direction) == pytest.approx((length.max(), np.average(length, weights=length)), rel=1e-6)
    assert lengths(0 * direction) == (0, 0)


def test_a_greedy_step_is_as_long_as_asked_and_does_not_see_empty_background() -> None:
    image = [np.pad(gaussian_filter(random_image(n), 1), 8).astype(np.float32) for n in (22, 23)]
    options = Greedy(steps=1, step=0.8, limit=1.5, field_sigma=0)
    field = options.refine(np.zeros((3, *image[0].shape), np.float32), *image)
    length = np.linalg.norm(field, axis=0)
    assert length.max() == pytest.approx(0.8, rel=1e-5)
    assert (length > 0.799).sum() > 100, "only the longest vectors are shortened, so many must be at the limit"
    free = replace(options, limit=np.inf).refine(np.zeros_like(field), *image)
    short = np.linalg.norm(free, axis=0)
    unlike = short[length < 0.799] * length[length < 0.799].max() / short[length < 0.799].max()
    assert length[length < 0.799] == pytest.approx(unlike, abs=1e-5), "shorter ones keep their proportions"
    wider = [np.pad(a, ((4, 9), (0, 6), (11, 3))) for a in image]
    padded = options.refine(np.zeros((3, *wider[0].shape), np.float32), *wider)
    assert padded[:, 4:-9, :-6, 11:-3] == pytest.approx(field, abs=1e-5)


def test_greedy_recovers_a_known_field() -> None:
    shape = (30, 34, 28)
    x, y, z = np.indices(shape) / 9
    fixed = gaussian_filter(random_image(21, shape=shape), 1.5)
    fixed = (fixed - fixed.min()) / np.ptp(fixed)
    truth = np.stack([1.5 * np.sin(y), -1.2 * np.cos(z), 1.4 * np.sin(x + 1)]).astype(np.float32)
    # Pulled by ``truth``, the fixed image gives the moving one: the field that undoes it is about -truth.
    moving = map_coordinates(fixed, np.indices(shape) + truth, order=1, mode="nearest")
    found = Greedy(steps=30, step=0.5).refine(np.zeros_like(truth), moving, fixed)
    inside = (slice(None), *[slice(5, -5)] * 3)
    before, after = np.abs(truth[inside]).mean(), np.abs(found + truth)[inside].mean()
    assert after < 0.25 * before


def test_greedy_stands_still_where_there_is_nothing() -> None:
    empty = np.zeros(SHAPE, np.float32)
    field = random_field(18)
    assert np.array_equal(Greedy().refine(field, empty, empty), field)


def test_bad_input_is_named() -> None:
    image, field = random_image(19), random_field(20)
    for bad in (dict(field=field[:2]), dict(moving=image[:-1]), dict(fixed=image[None])):
        with pytest.raises(InputError, match="expected"):
            Adam().refine(**{"field": field, "moving": image, "fixed": image, **bad})
    for options in (Adam(steps=1), Greedy(steps=1)):
        broken = image.copy()
        broken[3, 4, 5] = np.nan
        with pytest.raises(InputError, match="not finite"):
            options.refine(field, image, broken)
        with pytest.raises(UsageError, match="threads"):
            options.refine(field, image, image, threads=most_threads() + 1)
        with pytest.raises(UsageError, match="odd"):
            replace(options, window=4)
    with pytest.raises(UsageError, match="smoothness"):
        Adam(smoothness=-1)
    sigma = (-1, np.nan, 1e9)
    for name, values in {
        "step": (0, 1e-35, *sigma),
        "limit": (0, 1e-35, -1, np.nan),
        "gradient_sigma": sigma,
        "field_sigma": sigma,
    }.items():
        for value in values:
            with pytest.raises(UsageError, match=re.escape(f"{name} {value:g}: give ")):
                Greedy(**{name: value})


@pytest.mark.parametrize("extremes", list(product((1e-6, 100), (0.01, np.inf), (0, 100), (0, 100))))
def test_greedy_stays_finite_as_far_as_its_options_go(extremes: tuple[float, ...]) -> None:
    shape = (9, 11, 8)
    images, zero = [random_image(seed, shape=shape) for seed in (22, 23)], np.zeros((3, *shape), np.float32)
    options = Greedy(3, *extremes)
    in_torch = greedy.refine(options, torch.from_numpy(zero)[None], *(torch.from_numpy(i)[None, None] for i in images))
    for found in (options.refine(zero, *images), in_torch[0].numpy()):
        longest = np.linalg.norm(found.astype(np.float64), axis=0).max()
        assert 0 < longest <= 3 * options.step * (1 + 1e-5)


def test_without_a_folder_for_compiled_code_it_says_so_and_works() -> None:
    space: dict[str, object] = {}
    exec("def twice(x):\n    return 2 * x\n", space)  # no file, so no folder beside it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert compiled()(space["twice"])(21) == 42
    assert "NUMBA_CACHE_DIR" in str(caught[0].message)


def test_the_door_loads_neither_numba_nor_torch() -> None:
    code = "import ofg_deploy.kernels.refine, sys; assert not {'numba', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


MEETING = """
import numpy as np
from concurrent.futures import ThreadPoolExecutor
import numba
from ofg_deploy.kernels.labels import weightiest

rng = np.random.default_rng(0)
labels, index = rng.integers(0, 9, (30, 31, 32)).astype(np.int16), rng.random((3, 50000)) * 29

def call(_):
    found = np.empty(index.shape[1], np.int16)
    weightiest(labels, index, 0, found)
    return found

alone = call(0)
with ThreadPoolExecutor(3) as pool:
    assert all(np.array_equal(found, alone) for found in pool.map(call, range(60)))
print(numba.threading_layer())
"""


def test_pairs_may_meet_on_numbas_portable_threads():
    """Where that pool is all there is (no OpenMP, no TBB) numba ends a process in which two threads call it at once."""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", MEETING], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "workqueue\n"), done.stderr


def test_kernels_start_without_scipy_and_leave_numba_whole() -> None:
    code = """
import sys, numba, numpy as np
from ofg_deploy.kernels.intensity import correlation
a = np.arange(9.0).reshape(3, 3)
assert correlation(a, a) == 1
assert "scipy.linalg" not in sys.modules
product, solved = numba.njit(lambda a: (np.dot(a, a), np.linalg.inv(a + np.eye(3))))(a)
np.testing.assert_allclose(product, a @ a)
np.testing.assert_allclose(solved, np.linalg.inv(a + np.eye(3)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
