"""Relative error of the Triton kernels' steps. In its own process: TRITON_INTERPRET is read when Triton is imported."""

from __future__ import annotations

import torch
from test_guidance import of_double_precision, random_pair, relative_error

from ofg_deploy.train.guidance import refine

device = "cuda" if torch.cuda.is_available() else "cpu"
pair = [t.to(device) for t in random_pair(pairs=2, shape=(9, 7, 11))]
pair[0] *= 2
settings = {"steps": 2, "lr": 0.1, "smoothness": 0.5, "window": 5}
ours = refine(*pair, **settings, backend="triton")
print(relative_error(ours, of_double_precision(pair, **settings), pair[0]))
