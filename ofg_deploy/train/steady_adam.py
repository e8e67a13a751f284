"""Adam that takes smaller steps while gradients are larger than what it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class SteadyAdam(torch.optim.Adam):
    """Adam with amsgrad whose learning rate is divided, for one step, by how far the gradient is out of proportion.

    Adam divides by a mean square of gradients over about a thousand steps. Where the loss changes its meaning, as when
    guidance begins, or a batch is out of the ordinary, that mean is too small for a while and steps are several times
    too long. Here a step is never longer than one of a gradient that the mean square has followed: ``surprise`` is the
    root mean square of gradient / its root mean square (Shazeer and Stern, Adafactor, ICML 2018, section 6; for
    Adam Wortsman et al., NeurIPS 2023, there for each tensor, here for all of them), and a rate is divided by it where
    it is above 1. Nothing is kept for it: a resumed run goes on as before.
    """

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr, amsgrad=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As ``torch.optim.Adam.step``."""
        rates, factor = [group["lr"] for group in self.param_groups], max(1.0, self.surprise())
        try:
            for group in self.param_groups:
                group["lr"] /= factor
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    @torch.no_grad()
    def surprise(self) -> float:
        """Root mean square, over all weights, of gradient / the root mean square Adam divides it by; 0 at first."""
        squares, count = [], 0
        for group in self.param_groups:
            beta = group["betas"][1]
            for weight in group["params"]:
                state = self.state.get(weight)
                if weight.grad is None or not state:
                    continue
                square = weight.grad.square()
                following = beta * state["exp_avg_sq"] + (1 - beta) * square
                seen = torch.maximum(state["max_exp_avg_sq"], following) / (1 - beta ** (float(state["step"]) + 1))
                squares.append((square / (seen + group["eps"] ** 2)).sum())
                count += square.numel()
        return float(torch.stack(squares).sum() / count) ** 0.5 if count else 0.0
