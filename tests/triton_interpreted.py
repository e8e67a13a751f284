"""Relative errors of the Triton kernels: Adam's steps, their gradient, greedy steps.

In its own process: TRITON_INTERPRET is read when Triton is imported.
"""

from __future__ import annotations

import torch
from test_guidance import of_double_precision, random_pair, relative_error

from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.train import greedy, kernels_triton, kernels_triton_greedy
from ofg_deploy.train.guidance import refine
from ofg_deploy.train.losses import diffusion, local_ncc_loss, warp

device = "cuda" if torch.cuda.is_available() else "cpu"
pair = [t.to(device) for t in random_pair(pairs=2, shape=(9, 7, 11))]
pair[0] *= 2
exact = [t.double() for t in pair]
settings = {"steps": 2, "lr": 0.1, "smoothness": 0.5, "window": 5}
ours = refine(*pair, **settings, backend="triton")
print("adam", relative_error(ours, of_double_precision(pair, **settings), pair[0]))

field = exact[0][:1].clone().requires_grad_()
(local_ncc_loss(warp(exact[1][:1], field), exact[2][:1], 5) + 0.5 * diffusion(field)).backward()
gradient = kernels_triton.gradient(pair[0][0], pair[1][0, 0], pair[2][0, 0], 0.5, 5)
print("gradient", float((gradient - field.grad[0]).norm() / field.grad.norm()))

for name, options in {
    "greedy": Greedy(2, window=5),
    # Vectors longer than the mean are shortened; steps leave the image; nothing is smoothed.
    "greedy, long": Greedy(2, step=3.0, limit=0.7, gradient_sigma=0.0, field_sigma=0.0, window=3),
}.items():
    found = kernels_triton_greedy.refine(options, pair[0][0], pair[1][0, 0], pair[2][0, 0])
    expected = greedy.refine(options, *(t[:1] for t in exact))
    print(name, relative_error(found, expected[0], pair[0][0]))
options = Greedy(1, gradient_sigma=0.0, window=3)  # an empty image has no gradient: the field is not even smoothed
still = kernels_triton_greedy.refine(options, pair[0][0], pair[1][0, 0], torch.zeros_like(pair[2][0, 0]))
print("nothing to gain", float((still - pair[0][0]).abs().max()))
