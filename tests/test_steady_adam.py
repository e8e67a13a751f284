"""Clipping by Adam's own second moments, against Adam written out in numpy and torch's own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from ofg_deploy.train.steady_adam import SteadyAdam

LR = 0.01
SIZES = ((3, 2), (5,))


def walk(
    optimiser_class: type[torch.optim.Optimizer], gradients: Iterable[np.ndarray], **options: object
) -> np.ndarray:
    """Where eleven weights, from zero, are after each step (steps, 11)."""
    weights = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in SIZES]
    optimiser = optimiser_class(weights, lr=LR, **options)
    places = []
    for gradient in gradients:
        for weight, part in zip(weights, np.split(gradient, [6]), strict=True):
            weight.grad = torch.from_numpy(part.reshape(weight.shape).copy())  # it may be scaled in place
        optimiser.step()
        assert optimiser.param_groups[0]["lr"] == LR
        places.append(np.concatenate([w.detach().numpy().ravel() for w in weights]))
    return np.array(places)


def by_hand(gradients: Iterable[np.ndarray]) -> np.ndarray:
    """Kingma and Ba with amsgrad; before that no norm above twice the root mean square of (at least ten) before it."""
    place, mean, square, largest, places = np.zeros(11), np.zeros(11), np.zeros(11), np.zeros(11), []
    factor = 1.0
    for step, gradient in enumerate(gradients, start=1):
        if step > 10:
            usual = np.sqrt(square.sum() / (1 - 0.999 ** (step - 1)))
            factor = min(1.0, 2 * usual / np.linalg.norm(gradient))
        mean = 0.9 * mean + 0.1 * factor * gradient
        square = 0.999 * square + 0.001 * (factor * gradient) ** 2
        largest = np.maximum(largest, square)
        place = place - LR * mean / (1 - 0.9**step) / (np.sqrt(largest / (1 - 0.999**step)) + 1e-8)
        places.append(place)
    return np.array(places)


def test_steps_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(11) * (1 if step < 40 else 10) * np.arange(1, 12) for step in range(80)]
    found = walk(SteadyAdam, gradients)
    np.testing.assert_allclose(found, by_hand(gradients), rtol=1e-9)
    assert np.abs(found - walk(torch.optim.Adam, gradients, amsgrad=True)).max() > LR


def test_one_gradient_a_hundred_times_too_large_changes_little() -> None:
    """Plain Adam carries it in its mean for ten steps."""
    rng = np.random.default_rng(1)
    calm = [rng.standard_normal(11) for _ in range(1020)]
    spiked = [100 * gradient if step == 1000 else gradient for step, gradient in enumerate(calm)]
    astray, plainly_astray = (
        np.abs(walk(kind, spiked, **options) - walk(kind, calm, **options)).max()
        for kind, options in ((SteadyAdam, {}), (torch.optim.Adam, {"amsgrad": True}))
    )
    assert plainly_astray > 15 * LR
    assert astray < 2 * LR


def test_a_gradient_that_stays_ten_times_larger_is_followed_without_longer_steps() -> None:
    gradients = [np.full(11, 1.0)] * 1000 + [np.full(11, 10.0)] * 2000
    steady, plain = (
        np.abs(np.diff(places[999:], axis=0)).max(axis=1)
        for places in (walk(SteadyAdam, gradients), walk(torch.optim.Adam, gradients, amsgrad=True))
    )
    assert plain.max() > 4 * LR
    assert steady.max() <= 2 * LR
    assert steady[-1] == pytest.approx(plain[-1], rel=0.1), "the threshold has followed"


def test_where_gradients_become_smaller_it_is_adam() -> None:
    gradients = [np.linspace(1, 2, 11) * 0.95**step for step in range(60)]
    assert (walk(SteadyAdam, gradients) == walk(torch.optim.Adam, gradients, amsgrad=True)).all()


def test_a_first_gradient_that_says_nothing_is_no_measure() -> None:
    """An identical pair first, or nothing at all: the next ones are not clipped for it, and zeros never divide."""
    rng = np.random.default_rng(2)
    usual = [rng.standard_normal(11) for _ in range(30)]
    for first in (np.zeros(11), np.full(11, 1e-6)):
        gradients = [first, *usual]
        assert (walk(SteadyAdam, gradients) == walk(torch.optim.Adam, gradients, amsgrad=True)).all()
    assert not walk(SteadyAdam, [np.zeros(11)] * 20).any()


def test_weights_without_a_gradient_change_nothing_for_the_others() -> None:
    gradients = [*[np.ones(4)] * 12, np.full(4, 10.0)]  # the last one is clipped
    places = []
    for others in (0, 3):
        weights = [torch.zeros(4, requires_grad=True) for _ in range(1 + others)]
        optimiser = SteadyAdam(weights, LR)
        for gradient in gradients:
            weights[0].grad = torch.from_numpy(gradient).float()
            optimiser.step()
        assert weights[0].grad.tolist() == pytest.approx([2.0] * 4)
        assert all(w.count_nonzero() == 0 for w in weights[1:])
        places.append(weights[0].tolist())
    assert places[0] == places[1]


def test_a_closure_is_run_before_its_gradient_is_measured() -> None:
    weight = torch.zeros(4, requires_grad=True)
    optimiser, scale = SteadyAdam([weight], LR), 1.0

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (scale * weight).sum()
        loss.backward()
        return loss

    for _ in range(12):
        assert optimiser.step(closure) is not None
    scale = 100.0
    optimiser.step(closure)
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([2.0] * 4)
