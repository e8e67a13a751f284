"""Step a: the inner steps of guidance. Needs torch, triton and numba alone.

Correctness: every form against double precision, in relative error. Of Adam's steps the oracle is the published
formulation (five dense convolutions, autograd, torch's Adam), on the CPU; of greedy steps, whose formulation is ours,
the plain-torch form in double precision. Time: of one inner step, at the sizes networks are trained at.

Bytes: the least that the Triton kernels of one step can move, each array read once and written once by each kernel, in
float32 values per voxel:

    kernel          reads                                           writes
    _warp           moving 1, field 3                               warped 1, slope 3
    _sum_products   warped 1, fixed 1                               5 sums
    _sum_axis       5 sums                                          5 sums
    _weigh          5 sums                                          3 weights
    _sum_axis x2    3 weights, twice                                3 weights, twice
    _update         3 weights, warped 1, fixed 1, slope 3,          field 3, Adam's state 9
                    field 3, Adam's state 9

A greedy step has the first five and

    _steer          3 weights, warped 1, fixed 1, slope 3           3
    _gauss x6       3, six times (the gradient, then the field)     3, six times
    lengths         3, and 1 four times                             1 twice
    _compose        field 3, direction 3                            3
    choice          3, 3                                            3

Neighbours that a kernel reads again count as cached; so does what L2 keeps between kernels, which can push the share of
the bandwidth above what the memory itself delivers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from gpu_steps.context import Context, Figures
from gpu_steps.timing import GIB, copy_bandwidth, median, smooth_pair
from ofg_deploy.kernels.refine import Greedy
from ofg_deploy.train import greedy
from ofg_deploy.train.compiled_loss import warped_ncc_loss
from ofg_deploy.train.guidance import refine, refine_compiled
from ofg_deploy.train.losses import diffusion, local_ncc_loss, warp

Tensor = torch.Tensor
LR = 0.1
ADAM_FLOATS = (4 + 4) + (2 + 5) + (5 + 5) + (5 + 3) + 2 * (3 + 3) + (20 + 12)
GREEDY_FLOATS = 8 + 7 + 10 + 8 + 12 + (8 + 3) + 6 * (3 + 3) + (3 + 4 + 2) + (6 + 3) + (6 + 3)
EQUAL = "at most 1e-4"
SPEED = "15 times the published formulation; 40 % of the copy bandwidth"


def measure(context: Context) -> None:
    small = (7, 5, 6) if context.dry else (48, 40, 56)
    window, steps = (3, 2) if context.dry else (9, 5)
    compiled = [check_adam(context, small, window, steps)]
    compiled.append(check_greedy(context, small, 1 if context.dry else steps))
    found: dict[str, float] = {}
    size = 2**23 if context.dry else GIB

    def bandwidth() -> Figures:
        found["bandwidth"] = copy_bandwidth(context.device, size)
        return {"GB/s": found["bandwidth"] / 1e9}

    context.attempt(f"copy of {size / 2**20:.0f} MiB within the memory", bandwidth)
    for shape in [(8, 7, 9)] if context.dry else [(160, 192, 224), (160, 192, 160)]:
        time_steps(context, shape, window, found.get("bandwidth", math.nan))
    for check in compiled:  # last: where numba has not cached them, they are compiled for half a minute
        check()


def check_adam(context: Context, shape: tuple[int, ...], window: int, steps: int) -> Callable[[], Any]:
    """Refined field, gradient and loss of each form; that of the compiled one is returned, to be done later."""
    exact = smooth_pair(shape, "cpu", torch.float64)
    oracle = Published(exact, window)
    loss, gradient = oracle.loss_and_gradient()
    refined = oracle.steps(steps)

    def compared(field: Tensor, own_gradient: Tensor, own_loss: float | None = None) -> Figures:
        return {
            f"field after {steps} steps": relative(field, refined, exact[0]),
            "gradient": relative(own_gradient, gradient),
            **({} if own_loss is None else {"loss": abs(own_loss / loss - 1)}),
        }

    def plain(device: str) -> Figures:
        pair = [t.float().to(device) for t in exact]
        value, slope = closed_form(pair, window)
        return compared(refine(*pair, steps, LR, window=window, backend="torch"), slope, value)

    def triton() -> Figures:
        from ofg_deploy.train import kernels_triton

        pair = [t.float().to(context.device) for t in exact]
        slope = kernels_triton.gradient(pair[0][0], pair[1][0, 0], pair[2][0, 0], 1.0, window)
        return compared(refine(*pair, steps, LR, window=window, backend="triton"), slope[None])

    def compiled() -> Figures:
        pair = [t.float() for t in exact]
        leaf = pair[0].clone().requires_grad_()
        value = warped_ncc_loss(leaf, *pair[1:], window=window) + diffusion(leaf)
        value.backward()
        return compared(refine(*pair, steps, LR, window=window, backend="numba"), leaf.grad, float(value))

    size = "x".join(map(str, shape))
    context.attempt(f"published steps, plain torch, {size}: relative error", lambda: plain(context.device), EQUAL)
    context.attempt(f"published steps, Triton, {size}: relative error", triton, EQUAL)
    return lambda: context.attempt(f"published steps, compiled, {size}: relative error", compiled, EQUAL, on="cpu")


def check_greedy(context: Context, shape: tuple[int, ...], steps: int) -> Callable[[], Any]:
    """As ``check_adam``, of the field; plain torch smooths by convolutions, which may round to TF32 on a GPU."""
    options = greedy_options(context, steps)
    exact = smooth_pair(shape, "cpu", torch.float64)
    refined = greedy.refine(options, *exact)

    def compared(form: Callable[..., Tensor], device: str) -> Figures:
        pair = [t.float().to(device) for t in exact]
        return {f"field after {steps} steps": relative(form(options, *pair), refined, exact[0])}

    size = "x".join(map(str, shape))
    for name, tf32 in (("as torch sets TF32", None), ("TF32 off", False)):
        with tf32_convolutions(tf32):
            what = f"greedy steps, plain torch, {name}, {size}: relative error"
            context.attempt(what, lambda: compared(greedy.refine, context.device), EQUAL)
    what = f"greedy steps, Triton, {size}: relative error"
    context.attempt(what, lambda: compared(greedy_triton, context.device), EQUAL)
    later = f"greedy steps, compiled, {size}: relative error"
    return lambda: context.attempt(later, lambda: compared(refine_compiled, "cpu"), EQUAL, on="cpu")


def time_steps(context: Context, shape: tuple[int, ...], window: int, bandwidth: float) -> None:
    """Milliseconds of one step of each form, and how the kernels use the memory."""
    device, voxels, size = context.device, math.prod(shape), "x".join(map(str, shape))
    repeats, warm, count = (1, 0, 1) if context.dry else (5, 1, 5)
    pair = smooth_pair(shape, device)
    published: dict[str, float] = {}

    def figures(call: Callable[[], Any], inside: int, floats: int | None = None) -> Figures:
        each = median(call, device, repeats, warm) / inside
        found = {"ms a step": 1e3 * each}
        if published:
            found["times the published formulation"] = published["s"] / each
        if floats:
            moved = 4 * floats * voxels
            found |= {"GB moved a step": moved / 1e9, "share of the copy bandwidth": moved / each / bandwidth}
        return found

    def dense() -> Figures:
        form = Published(pair, window)
        found = figures(lambda: form.steps(1), 1)
        published["s"] = found["ms a step"] / 1e3
        return found

    context.attempt(f"published step, published formulation, {size}", dense)
    plain = partial(refine, *pair, count, LR, window=window)
    context.attempt(f"published step, plain torch, {size}", lambda: figures(lambda: plain(backend="torch"), count))
    fused = lambda: figures(lambda: plain(backend="triton"), count, ADAM_FLOATS)  # noqa: E731
    context.attempt(f"published step, Triton, {size}", fused, SPEED)
    published.clear()  # of other steps than those that follow
    options = greedy_options(context, count)
    plain_greedy = lambda: figures(lambda: greedy.refine(options, *pair), count)  # noqa: E731
    context.attempt(f"greedy step, plain torch, {size}", plain_greedy)
    fused = lambda: figures(lambda: greedy_triton(options, *pair), count, GREEDY_FLOATS)  # noqa: E731
    context.attempt(f"greedy step, Triton, {size}", fused, "40 % of the copy bandwidth")


def greedy_options(context: Context, steps: int) -> Greedy:
    """As ``ofg train`` has them by default; narrow windows for the interpreter."""
    return Greedy(steps, gradient_sigma=0.5, field_sigma=0.3, window=3) if context.dry else Greedy(steps)


def greedy_triton(options: Greedy, field: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
    from ofg_deploy.train import kernels_triton_greedy

    return kernels_triton_greedy.refine(options, field[0], moving[0, 0], fixed[0, 0])[None]


class Published:
    """Five dense convolutions, autograd, Adam with amsgrad: as the paper's code has it, written anew."""

    def __init__(self, pair: list[Tensor], window: int) -> None:
        field, self.moving, self.fixed = pair
        self.field = field.clone().requires_grad_()
        self.window, self.adam = window, torch.optim.Adam([self.field], lr=LR, amsgrad=True)

    def energy(self) -> Tensor:
        a, b, size = warp(self.moving, self.field), self.fixed, float(self.window**3)
        box = torch.ones((1, 1, *[self.window] * 3), dtype=a.dtype, device=a.device)
        sums = [functional.conv3d(x, box, padding=self.window // 2) for x in (a, b, a * a, b * b, a * b)]
        mean_a, mean_b = sums[0] / size, sums[1] / size
        cross = sums[4] - mean_b * sums[0] - mean_a * sums[1] + mean_a * mean_b * size
        var_a = sums[2] - 2 * mean_a * sums[0] + mean_a * mean_a * size
        var_b = sums[3] - 2 * mean_b * sums[1] + mean_b * mean_b * size
        return diffusion(self.field) - (cross * cross / (var_a * var_b + 1e-5)).mean()

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        loss = self.energy()
        return float(loss.detach()), torch.autograd.grad(loss, self.field)[0]

    def steps(self, count: int) -> Tensor:
        for _ in range(count):
            self.adam.zero_grad()
            self.energy().backward()
            self.adam.step()
        return self.field.detach()


def closed_form(pair: list[Tensor], window: int) -> tuple[float, Tensor]:
    """Loss and gradient of the same energy by the closed form."""
    leaf = pair[0].clone().requires_grad_()
    loss = local_ncc_loss(warp(pair[1], leaf), pair[2], window) + diffusion(leaf)
    return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]


def relative(found: Tensor, expected: Tensor, start: Tensor | None = None) -> float:
    """Norm of the difference by that of what is expected, or of the change from ``start`` to it."""
    change = expected if start is None else expected - start
    return float((found.detach().cpu().double() - expected).norm() / change.norm())


class tf32_convolutions:  # noqa: N801
    """Whether cuDNN may round to TF32 in here; None leaves it as it is."""

    def __init__(self, allowed: bool | None) -> None:
        self.allowed = allowed

    def __enter__(self) -> None:
        self.before = torch.backends.cudnn.allow_tf32
        if self.allowed is not None:
            torch.backends.cudnn.allow_tf32 = self.allowed

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.allow_tf32 = self.before
