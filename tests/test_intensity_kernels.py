"""Compiled numbers about images and maps against numpy in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ofg_deploy import metrics
from ofg_deploy.field import jacobian_determinant
from ofg_deploy.geometry import Grid
from ofg_deploy.kernels import slabs
from ofg_deploy.kernels.intensity import BINS, percentiles
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import Intensity, NetworkInput, prepare_pair

SHAPE = (47, 39, 61)  # more than a block, and none of it divisible by anything


def images() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(11)
    noise = rng.normal(0, 40, SHAPE).astype(np.float32)
    yield noise  # negative values sort by their bits the other way round
    yield np.where(noise > 10, noise, 0).astype(np.float32)  # most of it one value
    yield np.asfortranarray(np.rint(noise))
    yield (1e6 + noise).astype(np.float32)
    yield np.where(noise > 0, np.float32(-0.0), np.float32(0.0)) + (noise > 60)
    yield noise[:5, :4, :3]


@pytest.mark.parametrize("wanted", [(0.5, 99.5), (0.0, 100.0), (37.2, 50.0)])
def test_percentiles_are_numpys_in_double_precision(wanted):
    for image in images():
        expected = np.percentile(image.astype(np.float64), wanted)
        np.testing.assert_allclose(percentiles(image, wanted), expected, rtol=1e-12)


@pytest.mark.parametrize("recipe", ["percentile:1,97", "minmax", "window:-30,50", "linear:-30,50"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_recipes_are_numpys_to_the_bit(recipe, order):
    image = np.random.default_rng(2).normal(0, 40, SHAPE).astype(np.float32)
    given = np.repeat(image, 2, axis=0)[::2] if order == "strided" else np.asarray(image, order=order)
    intensity = Intensity.parse(recipe)
    low, high = intensity.low, intensity.high
    if intensity.kind == "minmax":
        low, high = image.min(), image.max()
    elif intensity.kind == "percentile":
        low, high = np.percentile(image.astype(float), (low, high))
    clipped = image if intensity.kind == "linear" else np.clip(image, np.float32(low), np.float32(high))
    expected = (clipped - np.float32(low)) / np.float32(high - low)
    found = intensity.apply(Volume(given, Grid(SHAPE, np.eye(4)), Path("x.nii")))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_content_beyond_the_grid_is_counted_by_voxel_centres(make_grid):
    grid = make_grid("oblique-permuted", (23, 31, 27), (2.0, 1.5, 1.8), (3.0, -5.0, 4.0))
    image = np.random.default_rng(4).random(grid.shape).astype(np.float32)
    wanted = NetworkInput((16, 16, 16), (2.0, 2.0, 2.0), Intensity("minmax"), "none", axes="LIA")
    for data in (image, np.asfortranarray(image)):
        volume = Volume(data, grid, Path("x.nii"))
        pair = prepare_pair(volume, volume, wanted)
        matrix = np.linalg.inv(pair.grid.world_from_vox) @ grid.world_from_vox
        index = np.einsum("ij,jxyz->ixyz", matrix[:3, :3], np.indices(grid.shape)) + matrix[:3, 3].reshape(3, 1, 1, 1)
        beyond = ((index < -0.5) | (index > 15.5)).any(axis=0)
        content = (image - image.min()) / np.ptp(image) > 0.05
        assert 0.1 < pair.outside < 0.9
        assert pair.outside == pytest.approx(beyond[content].mean(), rel=1e-12)


def test_correlation_is_numpys():
    for image in images():
        other = image + np.random.default_rng(1).normal(0, 30, image.shape).astype(np.float32)
        for a, b in ((image, other), (np.asfortranarray(image), other), (image.astype(float), other)):
            expected = np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]
            assert metrics.ncc(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.ncc(np.full((3, 4, 5), 7.0), np.random.default_rng(0).random((3, 4, 5))) == 0


def histogram_information(a: np.ndarray, b: np.ndarray) -> float:
    limits = [np.percentile(each.astype(float), (0.5, 99.5)) for each in (a, b)]
    clipped = [np.clip(each.astype(float), *limit).ravel() for each, limit in zip((a, b), limits, strict=True)]
    counts, *_ = np.histogram2d(*clipped, bins=BINS, range=limits)
    entropies = [
        -(p[p > 0] * np.log(p[p > 0])).sum() for c in (counts.sum(0), counts.sum(1), counts) for p in [c / c.sum()]
    ]
    return entropies[0] + entropies[1] - entropies[2]


def test_mutual_information_is_that_of_numpys_histogram():
    found = []
    for image in list(images())[:4]:
        other = np.abs(image - image.mean()) ** 1.5 + np.random.default_rng(1).normal(0, 9, SHAPE)
        other = other.astype(np.float32)
        expected = histogram_information(image, other)
        # a value on the edge of two bins may fall to either side
        assert metrics.mutual_information(np.asfortranarray(image), other) == pytest.approx(expected, rel=2e-4)
        found.append(expected)
    assert min(found) > 0.2
    assert metrics.mutual_information(np.zeros(SHAPE, np.float32), other) == 0


@pytest.mark.parametrize("name", ["RAS", "left-handed", "oblique-permuted"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_determinant_is_that_of_numpys_gradient(make_grid, name, dtype):
    for shape in (SHAPE, (2, 3, 2)):
        grid = make_grid(name, shape, (2.1, 1.3, 1.7), (4.0, 5.0, -6.0))
        field = np.random.default_rng(3).normal(0, 0.6, (3, *shape)).astype(dtype)
        axes = grid.world_from_vox[:3, :3]
        slopes = np.array([np.gradient(component) for component in field.astype(float)])
        expected = np.linalg.det(np.moveaxis(slopes + axes[:, :, None, None, None], (0, 1), (-2, -1)))
        expected /= np.linalg.det(axes)
        in_file_order = np.ascontiguousarray(field.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
        for given in (field, in_file_order, np.repeat(field, 2, axis=1)[:, ::2]):
            np.testing.assert_allclose(jacobian_determinant(given, grid.world_from_vox), expected, rtol=1e-5, atol=1e-6)
        assert (expected <= 0).any() or shape != SHAPE


def test_the_spread_is_that_of_numpy():
    values = np.random.default_rng(6).normal(1, 0.5, SHAPE).astype(np.float32)  # folds are clipped
    for determinant in (values, np.asfortranarray(values), np.full(SHAPE, 1.7, np.float32)):
        expected = np.log(np.clip(determinant.astype(np.float64), 1e-9, 1e9)).std()
        assert metrics.sdlogj(determinant) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert metrics.folding_percent(determinant) == pytest.approx(100 * (determinant <= 0).mean(), abs=0)


def test_the_same_bits_on_any_number_of_threads(monkeypatch):
    image, other = np.random.default_rng(5).normal(5, 2, (2, *SHAPE)).astype(np.float32)
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(slabs, "most_threads", lambda n=threads: n)
        numbers = metrics.ncc(image, other), metrics.mutual_information(image, other), metrics.sdlogj(image)
        found.append((*numbers, *percentiles(image, (3.0, 60.0))))
    assert found[0] == found[1] == found[2]
