"""Steps that stay short where the gradient jumps, against Adam written out in numpy and torch's own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
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
            weight.grad = torch.from_numpy(part.reshape(weight.shape))
        optimiser.step()
        assert optimiser.param_groups[0]["lr"] == LR
        places.append(np.concatenate([w.detach().numpy().ravel() for w in weights]))
    return np.array(places)


def by_hand(gradients: Iterable[np.ndarray]) -> np.ndarray:
    """Kingma and Ba with amsgrad, the rate divided by the root mean square of gradient / its largest mean square."""
    place, mean, square, largest, places = np.zeros(11), np.zeros(11), np.zeros(11), np.zeros(11), []
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        largest = np.maximum(largest, square)
        scale = np.sqrt(largest / (1 - 0.999**step))
        surprise = 1.0 if step == 1 else max(1.0, float(np.sqrt(np.mean(gradient**2 / (scale**2 + 1e-16)))))
        place = place - LR / surprise * mean / (1 - 0.9**step) / (scale + 1e-8)
        places.append(place)
    return np.array(places)


def test_steps_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(11) * (1 if step < 40 else 10) * np.arange(1, 12) for step in range(80)]
    found = walk(SteadyAdam, gradients)
    np.testing.assert_allclose(found, by_hand(gradients), rtol=1e-9)
    assert np.abs(found - walk(torch.optim.Adam, gradients, amsgrad=True)).max() > LR


def test_a_gradient_that_becomes_ten_times_larger_makes_no_longer_steps() -> None:
    """A mean square of a thousand steps does not know it yet: plain Adam goes five times as far at each step."""
    gradients = [np.full(11, 1.0)] * 1000 + [np.full(11, 10.0)] * 30
    steady, plain = (
        np.abs(np.diff(places[999:], axis=0)).max()
        for places in (walk(SteadyAdam, gradients), walk(torch.optim.Adam, gradients, amsgrad=True))
    )
    assert plain > 4 * LR
    assert steady <= LR * (1 + 1e-6)


def test_where_gradients_become_smaller_it_is_adam() -> None:
    gradients = [np.linspace(1, 2, 11) * 0.95**step for step in range(60)]
    assert (walk(SteadyAdam, gradients) == walk(torch.optim.Adam, gradients, amsgrad=True)).all()


def test_weights_without_a_gradient_stay() -> None:
    used, unused = (torch.zeros(4, requires_grad=True) for _ in range(2))
    optimiser = SteadyAdam([used, unused], LR)
    for gradient in (1.0, 10.0):
        used.grad = torch.full((4,), gradient)
        optimiser.step()
    assert unused.count_nonzero() == 0
    assert used.count_nonzero() == 4
