"""Maps between worlds that are known by formula."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine

from ofg_deploy.geometry import Grid
from ofg_deploy.transform.maps import FieldMap, field_map, marked, on_grid


def displaced(grid: Grid, affine: np.ndarray) -> np.ndarray:
    """(3, X, Y, Z) displacement of an affine map at every voxel, by nibabel."""
    world = apply_affine(grid.world_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    return np.moveaxis(apply_affine(affine, world) - world, -1, 0).astype(np.float32)


@pytest.mark.parametrize("along", [0, 1, 2])
def test_on_a_grid_that_is_off_by_a_part_of_a_voxel_it_is_interpolated(make_grid, some_affine, along) -> None:
    domain = make_grid("oblique-permuted", (9, 12, 7), (1.3, 2.1, 3.4), (5.0, -20.0, 31.0))
    moved = domain.world_from_vox.copy()
    moved[:3, 3] += 0.3 * moved[:3, along]
    target = Grid(domain.shape, moved)
    found, inside = on_grid(FieldMap(displaced(domain, some_affine), domain), target)
    within = np.indices(domain.shape)[along] <= domain.shape[along] - 2  # beyond the last centre its value holds
    assert inside[within].all()
    np.testing.assert_allclose(found[:, within], displaced(target, some_affine)[:, within], atol=2e-4)
    assert np.abs(found - displaced(domain, some_affine)).max() > 0.01


def test_unknown_voxels_go_on_as_the_affine_map_that_fits_the_known_ones(make_grid, some_affine) -> None:
    """Of a field of more voxels than are fitted, too."""
    grid = make_grid("left-handed", (31, 30, 29), (2.0, 1.5, 2.5), (4.0, -9.0, 12.0))
    whole = displaced(grid, some_affine)
    unknown = np.zeros(grid.shape, bool)
    unknown[:3], unknown[:, 25:, 4:] = True, True
    assert (~unknown).sum() > 20_000
    found = field_map(np.where(unknown, np.float32(7), whole), grid, "a test", unknown=unknown)
    np.testing.assert_allclose(found.field, whole, atol=2e-3)
    assert f"unknown at {100 * unknown.mean():.3g} %" in found.warnings[0]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_number_of_either_sign_is_a_mark(kind, sign) -> None:
    largest = np.finfo(kind).max
    components = np.array([1.5, sign * largest, -3.0, 1e9], kind)
    with np.errstate(over="ignore"):  # as its callers; the mark of float64 is none of float32
        assert marked(components).tolist() == [False, True, False, False]
        assert not marked(components[[0, 2, 3]]).any()
