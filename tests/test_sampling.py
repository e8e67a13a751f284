"""The compiled sampling against scipy in double precision: turned grids, odd sizes, both memory layouts, faces."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from ofg_deploy.field import resample, sample, total_displacement_mm, turned, warp
from ofg_deploy.kernels import slabs

PAIRS = [("RAS", "LPS"), ("oblique", "left-handed"), ("left-handed", "oblique-permuted"), ("oblique-permuted", "LAS")]


def scipy_sample(data: np.ndarray, index: np.ndarray, order: int, fill: float) -> np.ndarray:
    values = map_coordinates(data.astype(float), index, order=order, mode="nearest", prefilter=False)
    upper = np.array(data.shape).reshape(3, *[1] * (index.ndim - 1)) - 0.5
    return np.where(((index >= -0.5) & (index <= upper)).all(axis=0), values, fill)


def world_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.einsum("ij,jxyz->ixyz", matrix[:3, :3], points) + matrix[:3, 3].reshape(3, 1, 1, 1)


def wavy(shape: tuple[int, ...], size: float) -> np.ndarray:
    x, y, z = np.indices(shape) / 5
    return (size * np.array([np.sin(x + y), np.cos(y * 1.3) * z / 3, np.sin(z - x)])).astype(np.float32)


@pytest.fixture(params=PAIRS, ids="-".join)
def grids(request, make_grid):
    first, second = request.param
    return (
        make_grid(first, (33, 41, 55), (1.6, 1.3, 1.1), (2.0, -4.0, 3.0)),  # enough voxels for several threads
        make_grid(second, (38, 29, 37), (1.4, 1.9, 1.5), (-3.0, 5.0, -2.0)),
    )


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("seen", ["C", "F", "strided"])
def test_another_grid_through_an_affine(grids, some_affine, layout, order, seen):
    target, source = grids
    data = np.random.default_rng(3).normal(50, 20, source.shape).astype(np.float32)
    given = {"C": data, "F": np.asfortranarray(data), "strided": np.repeat(data, 2, axis=1)[:, ::2]}[seen]
    index = world_points(
        np.linalg.inv(source.world_from_vox) @ some_affine @ target.world_from_vox, np.indices(target.shape, float)
    )
    expected = scipy_sample(data, index, order, 0.0)
    found = resample(given, source, target, some_affine, order, layout)
    assert 0.05 < (expected == 0).mean() < 0.8
    assert found.flags.c_contiguous == (layout == "C")
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int16, np.int32, np.bool_])
@pytest.mark.parametrize("order", [0, 1])
def test_a_warp_in_every_type(grids, order, dtype):
    fixed, moving = grids
    values = np.random.default_rng(3).normal(50, 20, moving.shape)
    data = values > 60 if dtype is np.bool_ else values.astype(dtype)
    field = wavy(fixed.shape, 4.0)
    index = world_points(
        np.linalg.inv(moving.world_from_vox), world_points(fixed.world_from_vox, np.indices(fixed.shape, float)) + field
    )
    expected = scipy_sample(data, index, order, 1)
    if data.dtype.kind != "f":
        expected = np.floor(expected + 0.5)
    for moved in (field, in_file_order(field)):
        found = warp(data, moving, fixed, moved, order, fill=1)
        assert found.dtype == data.dtype
        close = np.isclose(found.astype(float), expected, rtol=2e-6, atol=1e-5)
        assert close.mean() > (0.9999 if data.dtype.kind != "f" and order else 1 - 1e-12)  # halves may round either way


def in_file_order(field: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(field.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)


def test_the_whole_map_is_that_of_scipy(grids, some_affine):
    fixed, network = grids
    field = wavy(network.shape, 3.0)
    points = world_points(fixed.world_from_vox, np.indices(fixed.shape, float))
    index = world_points(np.linalg.inv(network.world_from_vox), points)
    assert (index < 0).any()
    assert (index > 38).any()  # beyond the network's grid on both sides
    in_vox = np.stack([map_coordinates(c.astype(float), index, order=1, mode="nearest") for c in field])
    displaced = points + np.einsum("ij,jxyz->ixyz", network.world_from_vox[:3, :3], in_vox)
    found = total_displacement_mm(field, network, fixed, some_affine)
    np.testing.assert_allclose(found, world_points(some_affine, displaced) - points, rtol=1e-6, atol=1e-5)


def test_points_on_and_beyond_the_faces():
    data = np.random.default_rng(5).normal(size=(4, 1, 3)).astype(np.float32)
    at = np.array([-0.51, -0.5, -0.2, 0.0, 0.5, 1.7, 2.0, 2.5, 2.51, 3.0, 3.5, 3.51, np.nan])
    index = np.stack([at, 0 * at + 0.3, 2.4 * (at > 1)])
    for order in (0, 1):
        found = sample(data, index, order, fill=-7)
        np.testing.assert_allclose(found[:-1], scipy_sample(data, index[:, :-1], order, -7), rtol=1e-6)
        assert found[-1] == -7  # nowhere: scipy would look somewhere
    assert (sample(data, index, fill=-7) == -7).sum() == 3


def test_the_same_bits_on_any_number_of_threads(grids, monkeypatch):
    fixed, moving = grids
    data = np.random.default_rng(3).normal(50, 20, moving.shape).astype(np.float32)
    field = wavy(moving.shape, 2.0)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(slabs, "most_threads", lambda n=threads: n)
        total = total_displacement_mm(field, moving, fixed, np.eye(4))
        found.append((total, warp(data, moving, fixed, total)))
    with ThreadPoolExecutor(3) as pool:  # and from several threads at once
        others = [pool.submit(lambda: warp(data, moving, fixed, found[0][0])) for _ in range(6)]
        found += [(found[0][0], each.result()) for each in others]
    for total, warped in found[1:]:
        np.testing.assert_array_equal(total, found[0][0])
        np.testing.assert_array_equal(warped, found[0][1])


@pytest.mark.parametrize("layout", ["C", "F"])
def test_a_field_in_other_coordinates_is_a_product_of_matrices(layout):
    rng = np.random.default_rng(7)
    field, still, turn = (
        rng.normal(0, 3, (3, 9, 7, 11)).astype(np.float32),
        rng.normal(size=(4, 4)),
        rng.normal(size=(3, 3)),
    )
    expected = world_points(still, np.indices(field.shape[1:], float)) + np.einsum("ij,jxyz->ixyz", turn, field)
    found = turned(in_file_order(field) if layout == "F" else field, still, turn)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
