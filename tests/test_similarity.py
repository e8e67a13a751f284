"""Similarities, regularisers and the label loss, against loops and closed forms."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from training_runs import tiny_config

from ofg_deploy import metrics
from ofg_deploy.errors import UsageError
from ofg_deploy.kernels.multilevel import Multilevel
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.losses import diffusion, local_ncc_loss, warp
from ofg_deploy.train.objective import Batch, Objective, Terms
from ofg_deploy.train.similarity import bending, mind_loss, mind_ssc, mse_loss, soft_dice_loss

SHAPE = (9, 7, 11)


def objective(config: TrainConfig, field: torch.Tensor, batch: Batch) -> Terms:
    return Objective(config, torch.device("cpu"))(field, batch, 0)


def smooth(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.0).astype(np.float64)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image)[None, None]


def mind_by_loops(image: np.ndarray, radius: int, dilation: int) -> np.ndarray:
    """Voxel by voxel and patch by patch, from the definition."""
    faces = [np.array(f) * dilation for f in [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]]
    pairs = [(a, b) for a, b in combinations(faces, 2) if (a + b).any()]
    last = np.array(image.shape) - 1

    def at(where: np.ndarray) -> float:
        return image[tuple(np.clip(where, 0, last))]

    def difference(where: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        where = np.clip(where, 0, last)  # patches are replicated at the edge, like the image
        return (at(where + a) - at(where + b)) ** 2

    around = [np.array(o) - radius for o in np.ndindex(*[2 * radius + 1] * 3)]
    found = np.empty((12, *image.shape))
    for where in np.ndindex(*image.shape):
        for n, (a, b) in enumerate(pairs):
            found[(n, *where)] = np.mean([difference(np.array(where) + o, a, b) for o in around])
    found -= found.min(axis=0)
    variance = found.mean(axis=0)
    return np.exp(-found / np.clip(variance, variance.mean() * 1e-3, variance.mean() * 1e3))


def test_mind_is_its_definition() -> None:
    image = smooth(0, (5, 4, 6))
    found = mind_ssc(as_tensor(image), radius=1, dilation=1)[0].numpy()
    expected = mind_by_loops(image, 1, 1)
    # The order of the twelve pairs is ours; every voxel holds the same set.
    assert np.allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=1e-10)


def test_mind_sees_structure_and_not_contrast() -> None:
    image = smooth(1)
    inverted = as_tensor(3.0 - 0.5 * image)
    other = as_tensor(smooth(2))
    assert mind_loss(inverted, as_tensor(image)) < 1e-12
    assert mind_loss(other, as_tensor(image)) > 1e-2
    assert mse_loss(inverted, as_tensor(image)).item() == pytest.approx(np.mean((3 - 1.5 * image) ** 2))


def test_gradients_of_similarities() -> None:
    a, b = (as_tensor(smooth(n, (6, 5, 7))).requires_grad_(n == 0) for n in (0, 1))
    assert torch.autograd.gradcheck(lambda x: mind_loss(x, b), a, eps=1e-5, atol=1e-6)
    field = torch.from_numpy(np.stack([smooth(n, (6, 5, 7)) for n in (3, 4, 5)]))[None].requires_grad_()
    assert torch.autograd.gradcheck(bending, field, atol=1e-6)


def test_bending_of_a_quadratic_field() -> None:
    """u = 0.1 x^2 + 0.2 x z: second derivatives 0.2 and (mixed, twice) 0.2; a linear field does not bend."""
    x, y, z = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SHAPE), indexing="ij")
    field = torch.zeros(1, 3, *SHAPE, dtype=torch.float64)
    field[0, 1] = 0.1 * x**2 + 0.2 * x * z + 5 * y
    assert bending(field).item() == pytest.approx((0.2**2 + 2 * 0.2**2) / 3)
    field[0, 1] = 5 * y - x
    assert bending(field).item() == pytest.approx(0, abs=1e-20)
    assert diffusion(field) > 1


def test_soft_dice_is_dice_where_labels_move_by_whole_voxels() -> None:
    rng = np.random.default_rng(0)
    moving, fixed = (rng.integers(0, 4, SHAPE) for _ in range(2))
    moving[:, :, -2:] = 0
    field = torch.zeros(1, 3, *SHAPE)
    field[0, 2] = -2  # fetch from two voxels below: the label map moves up
    warped = np.zeros_like(moving)
    warped[:, :, 2:] = moving[:, :, :-2]
    fixed[0, 0, 0] = 9  # a label the moving map lacks counts as zero overlap
    labels = torch.from_numpy(moving)[None], torch.from_numpy(fixed)[None]
    expected = 1 - metrics.mean(metrics.dice(fixed, warped))
    assert soft_dice_loss(field, *labels).item() == pytest.approx(expected, abs=1e-5)
    field.requires_grad_()
    soft_dice_loss(field, *labels).backward()
    assert field.grad.abs().sum() > 0


@pytest.mark.parametrize("guidance", ["ofg", "none"])
def test_objective_is_the_sum_of_its_terms(guidance: str) -> None:
    moving, fixed = (as_tensor(smooth(n)).float() for n in (0, 1))
    field = torch.from_numpy(np.stack([smooth(n) for n in (2, 3, 4)])).float()[None]
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, 1, *SHAPE)))
    batch = Batch(moving, fixed, *labels)
    for changes, similarity, regulariser in [
        ({"similarity": "mind", "regulariser": "bending"}, mind_loss, bending),
        ({"similarity": "mse"}, mse_loss, diffusion),
        ({}, lambda a, b: local_ncc_loss(a, b, 5), diffusion),
    ]:
        config = tiny_config(guidance=guidance, smoothness=0.7, dice_weight=2.0, **changes)
        terms = objective(config, field, batch)
        assert terms.regularity.item() == pytest.approx(regulariser(field).item())
        assert terms.dice_loss.item() == pytest.approx(soft_dice_loss(field, *labels).item())
        if guidance == "none":
            assert terms.target.item() == pytest.approx(similarity(warp(moving, field), fixed).item())
        total = terms.target + 0.7 * terms.regularity + 2 * terms.dice_loss
        assert terms.loss.item() == pytest.approx(total.item())


@pytest.mark.parametrize("optimiser", ["greedy", "multilevel"])
def test_greedy_guidance_is_its_own_optimiser(optimiser: str) -> None:
    moving, fixed = (as_tensor(smooth(n)).float() for n in (0, 1))
    field = torch.from_numpy(np.stack([smooth(n) for n in (2, 3, 4)])).float()[None]
    weights = {"guidance_sobolev": 2.5, "guidance_similarity": 0.4}
    config = tiny_config(guidance_optimiser=optimiser, guidance_coarse_steps=3, ncc_window=3, **weights)
    terms = objective(config, field, Batch(moving, fixed))
    steps: Greedy | Multilevel = Greedy(2, window=3)
    if optimiser == "multilevel":
        steps = Multilevel(steps, (3,))
    refined = steps.refine(field[0].numpy(), moving[0, 0].numpy(), fixed[0, 0].numpy())
    change = refined - field[0].numpy()
    steepness = sum(np.mean(np.diff(change, axis=axis) ** 2) for axis in (1, 2, 3)) / 3
    direct = local_ncc_loss(warp(moving, field), fixed, window=3).item()
    assert abs(direct) > 0.01
    assert terms.target.item() == pytest.approx(np.mean(change**2) + 2.5 * steepness + 0.4 * direct, rel=1e-5)
    with pytest.raises(UsageError, match=f"{optimiser} knows the local NCC only"):
        tiny_config(guidance_optimiser=optimiser, similarity="mse")
    assert Objective(config, torch.device("cpu")).guidance == f"ofg ({optimiser}, numba)"
    assert Objective(config, torch.device("cuda")).guidance == f"ofg ({optimiser}, torch)"


def test_guidance_may_begin_late() -> None:
    """Until then it is the unsupervised loss, with the weight of its regulariser."""
    moving, fixed = (as_tensor(smooth(n)).float() for n in (0, 1))
    field = torch.from_numpy(np.stack([smooth(n) for n in (2, 3, 4)])).float()[None]
    changes = {"epochs": 4, "guidance_optimiser": "greedy", "guidance_sobolev": 1.0}
    late, early = (tiny_config(**changes, guidance_start=start) for start in (0.5, 0.0))
    unsupervised = tiny_config(epochs=4, guidance="none")
    assert Objective(late, torch.device("cpu")).guidance == "ofg (greedy, numba, from epoch 3)"
    for epoch in range(4):
        like = early if epoch >= 2 else unsupervised
        found, expected = (
            Objective(config, torch.device("cpu"))(field, Batch(moving, fixed), epoch) for config in (late, like)
        )
        assert found.numbers() == expected.numbers()
    assert tiny_config(epochs=1, guidance_start=0.9).guided(0)
    with pytest.raises(UsageError, match="guidance_start 1: give a number from 0, below 1"):
        tiny_config(guidance_start=1.0)


def test_targets_do_not_depend_on_the_rest_of_a_batch() -> None:
    images = [torch.cat([as_tensor(smooth(n)).float() for n in numbers]) for numbers in ((0, 1), (2, 3))]
    fields = torch.from_numpy(np.stack([[smooth(c + 10 * n) for c in (4, 5, 6)] for n in (0, 1)])).float()
    config = tiny_config()
    both = objective(config, fields, Batch(*images)).target
    apart = [objective(config, fields[n : n + 1], Batch(*(i[n : n + 1] for i in images))).target for n in (0, 1)]
    assert both.item() == pytest.approx(float(sum(apart)) / 2, rel=1e-6)
