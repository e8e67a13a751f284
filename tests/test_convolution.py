"""The convolution of training against torch's own: values, gradients, and what computes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ofg_deploy.train.networks.convolution import Conv3d

SHAPES = [(1, 2, 8, 7, 10), (1, 3, 4, 9, 5), (1, 2, 6, 5, 9), (1, 2, 7, 6, 5), (2, 2, 8, 5, 6), (1, 2, 2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_values_and_gradients_are_those_of_torch(shape, kernel, stride):
    torch.manual_seed(5)
    ours = Conv3d(shape[1], 4, kernel, stride, padding=kernel // 2).double()
    theirs = nn.Conv3d(shape[1], 4, kernel, stride, padding=kernel // 2).double()
    theirs.load_state_dict(ours.state_dict())
    x, y = (torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    x.requires_grad_(), y.requires_grad_()
    a, b = ours(x), theirs(y)
    upstream = torch.randn(a.shape, dtype=torch.double)
    (a * upstream).sum().backward()
    (b * upstream).sum().backward()
    for mine, other in [
        (a, b),
        (x.grad, y.grad),
        (ours.weight.grad, theirs.weight.grad),
        (ours.bias.grad, theirs.bias.grad),
    ]:
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_small_single_samples_go_to_onednn_in_training_and_are_left_alone_otherwise():
    def operators(layer: nn.Module) -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            layer(torch.zeros(1, 4, 12, 10, 8)).sum().backward()
        return {event.key for event in seen.key_averages()}

    layer = Conv3d(4, 4, 3, padding=1)
    assert "aten::mkldnn_convolution" in operators(layer)
    assert "aten::slow_conv3d_forward" in operators(nn.Conv3d(4, 4, 3, padding=1))  # what there is to gain
    assert "aten::cat" not in operators(layer.eval())
