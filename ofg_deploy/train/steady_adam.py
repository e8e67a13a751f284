"""Adam behind a clipped gradient, whose threshold Adam itself knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIMIT = 2.0  # root mean squares of the gradient's norm


class SteadyAdam(torch.optim.Adam):
    """Adam with amsgrad that scales a gradient down to ``LIMIT`` times the root mean square of its recent norms.

    Adam divides by a mean square over about a thousand steps. Where the loss changes its meaning, as when guidance
    begins, or a pair is out of the ordinary, that is too small for a while, and too large a gradient stays in the
    mean of the next ten steps. Clipping is Pascanu et al.'s (ICML 2013), who take the threshold from average norms as
    well; their mean square is the sum of Adam's second moments, so that nothing is kept for it and a resumed run goes
    on as before. A lasting change is followed: the threshold rises with what it lets through.
    """

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr, amsgrad=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As ``torch.optim.Adam.step``; the gradients are scaled in place."""
        surprise = self.surprise()
        if surprise > LIMIT:
            for weight in self._weights():
                if weight.grad is not None:
                    weight.grad.mul_(LIMIT / surprise)
        return super().step(closure)

    @torch.no_grad()
    def surprise(self) -> float:
        """Norm of the gradient / root mean square of the norms of those before; 0 for the first one."""
        norm, mean = [], []
        for group in self.param_groups:
            beta = group["betas"][1]
            for weight in group["params"]:
                state = self.state.get(weight)
                if weight.grad is not None and state:
                    norm.append(weight.grad.square().sum())
                    mean.append(state["exp_avg_sq"].sum() / (1 - beta ** float(state["step"])))
        if not norm:
            return 0.0
        tiny = torch.finfo(norm[0].dtype).tiny
        return float((torch.stack(norm).sum() / torch.stack(mean).sum().clamp(min=tiny)).sqrt())

    def _weights(self) -> list[torch.Tensor]:
        return [weight for group in self.param_groups for weight in group["params"]]
