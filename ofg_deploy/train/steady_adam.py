"""Adam behind a clipped gradient, whose threshold Adam itself knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import get_total_norm

LIMIT = 2.0  # root mean squares of the gradient's norm
KNOWN = 10  # steps after which that root mean square is believed


class SteadyAdam(torch.optim.Adam):
    """Adam with amsgrad that scales a gradient down to ``LIMIT`` times the root mean square of its recent norms.

    Adam divides by a mean square over about a thousand steps. Where the loss changes its meaning, as when guidance
    begins, or a pair is out of the ordinary, that is too small for a while, and too large a gradient stays in the
    mean of the next ten steps. Clipping is Pascanu et al.'s (ICML 2013), who take the threshold from average norms as
    well; their mean square is the sum of Adam's second moments, so that nothing is kept for it and a resumed run goes
    on as before. A lasting change is followed, by at most 0.15 % a step after the first thousand: some 1,100 steps for
    a tenfold one.
    """

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr, amsgrad=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As ``torch.optim.Adam.step``; the gradients are scaled in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        surprise = self.surprise()
        if surprise > LIMIT:
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        weight.grad.mul_(LIMIT / surprise)
        super().step()
        return loss

    @torch.no_grad()
    def surprise(self) -> float:
        """Norm of the gradient / root mean square of the norms before it; 0 in the first ``KNOWN`` steps."""
        known = [
            (weight.grad, self.state[weight])
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None and self.state.get(weight)
        ]
        steps = min((float(state["step"]) for _, state in known), default=0.0)
        if steps < KNOWN:
            return 0.0
        norm = get_total_norm([gradient for gradient, _ in known])
        mean_square = get_total_norm([state["exp_avg_sq"] for _, state in known], norm_type=1.0)
        beta = self.param_groups[0]["betas"][1]
        usual = (mean_square / (1 - beta**steps)).sqrt()
        return float(norm / usual) if usual > 0 else 0.0
