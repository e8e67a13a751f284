"""The guided step on its backends: same numbers, chosen by device, refused where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from ofg_deploy.errors import DeviceError, InputError, UsageError
from ofg_deploy.kernels.buffers import Buffers
from ofg_deploy.train.compiled_loss import warped_ncc_loss
from ofg_deploy.train.guidance import choose_backend, refine
from ofg_deploy.train.losses import local_ncc_loss, warp

SHAPE = (20, 13, 17)
NO_TRITON = "triton is not installed (there are wheels for Linux alone)"


def random_pair(
    pairs: int = 1, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE
) -> list[torch.Tensor]:
    """Field, moving, fixed; the images have structure everywhere, so that no gradient is rounding alone."""
    generator = torch.Generator().manual_seed(3)
    channels = (3, 1, 1)
    field, moving, fixed = (torch.rand(pairs, c, *shape, generator=generator, dtype=dtype) for c in channels)
    return [1.7 * (field - 0.5), moving, fixed]


def of_double_precision(pair: list[torch.Tensor], **settings: float) -> torch.Tensor:
    return refine(*(t.double() for t in pair), **settings, backend="torch")


def relative_error(found: torch.Tensor, expected: torch.Tensor, start: torch.Tensor) -> float:
    """Of the change that refinement made."""
    return float((found - expected).norm() / (expected - start).norm())


def test_kernels_are_those_of_double_precision() -> None:
    pair = random_pair(pairs=2)
    given = pair[0].clone().requires_grad_()
    settings = {"steps": 3, "lr": 0.1, "smoothness": 0.5, "window": 5}
    results = {
        backend: refine(given, *pair[1:], **settings, backend=backend, buffers=Buffers())
        for backend in ("numba", "auto")
    }
    assert torch.equal(results["auto"], results["numba"])
    assert torch.equal(given, pair[0])
    assert not results["numba"].requires_grad
    assert relative_error(results["numba"], of_double_precision(pair, **settings), pair[0]) <= 1e-5
    alone = refine(*(t[1:] for t in pair), **settings)
    assert torch.equal(alone[0], results["numba"][1])


def test_backend_is_chosen_by_device_and_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_backend("cpu") == "numba"
    assert choose_backend("cuda:0") == "torch"
    assert choose_backend("cpu", custom_energy=True) == "torch"
    assert choose_backend("cpu", "torch") == "torch"
    with pytest.raises(DeviceError, match="cuda"):
        choose_backend("cuda:0", "numba")
    with pytest.raises(DeviceError, match="triton"):
        choose_backend("cpu", "triton")
    with pytest.raises(UsageError, match="energy"):
        choose_backend("cpu", "numba", custom_energy=True)
    with pytest.raises(UsageError, match="unknown"):
        choose_backend("cpu", "magic")


def run_script(name: str, *arguments: str, interpret: bool, cache: Path) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, Path(__file__).with_name(name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_triton_kernels_are_those_of_double_precision(tmp_path: Path) -> None:
    """Without a GPU in Triton's interpreter: another compiler's language, the same arithmetic."""
    pytest.importorskip("triton", reason=NO_TRITON)
    interpret = not torch.cuda.is_available()
    printed = run_script("triton_interpreted.py", interpret=interpret, cache=tmp_path)
    errors = {name: float(error) for name, error in (line.rsplit(" ", 1) for line in printed.splitlines())}
    assert set(errors) == {"adam", "gradient", "greedy", "greedy, long", "nothing to gain"}
    assert max(errors.values()) <= 1e-5, errors
    assert errors["nothing to gain"] == 0


def test_triton_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Turing, Ampere, Hopper: machine code by Triton's own assembler. That is all a machine without a GPU can know."""
    pytest.importorskip("triton", reason=NO_TRITON)
    capabilities = ("75", "80", "90")
    printed = run_script("triton_compiled.py", *capabilities, interpret=False, cache=tmp_path)
    built = [line.split() for line in printed.splitlines()]
    kernels = ("_warp", "_sum_products", "_sum_axis", "_weigh", "_update", "_steer", "_gauss", "_compose")
    assert {(name, capability) for name, capability, _ in built} == set(product(kernels, capabilities))
    assert all(int(size) > 1000 for *_, size in built)


def test_similarity_of_ones_own() -> None:
    """The paper's own similarity handed in gives what the default gives on the same backend."""
    pair = random_pair()
    ours = refine(*pair, 2, 0.1, similarity=partial(local_ncc_loss, window=5))
    assert torch.equal(ours, refine(*pair, 2, 0.1, window=5, backend="torch"))


@pytest.mark.parametrize("window", [5, 9])
def test_compiled_loss_is_the_oracles(window: int) -> None:
    field, moving, fixed = random_pair(pairs=2)
    results = []
    for dtype in (torch.float32, torch.float64):
        tensors = [t.to(dtype, copy=True) for t in (field, moving, fixed)]
        leaf = tensors[0].requires_grad_()
        if dtype == torch.float32:
            loss = warped_ncc_loss(*tensors, window=window)
        else:
            loss = local_ncc_loss(warp(tensors[1], leaf), tensors[2], window)
        (3 * loss).backward()
        results.append((float(loss.detach()), leaf.grad.double()))
    (value, gradient), (exact_value, exact_gradient) = results
    assert value == pytest.approx(exact_value, rel=1e-5)
    assert float((gradient - exact_gradient).norm() / exact_gradient.norm()) <= 1e-5


def test_compiled_loss_gradcheck() -> None:
    field, moving, fixed = random_pair(pairs=2, dtype=torch.float64, shape=(5, 4, 6))
    field = field.floor() + 0.2 + 0.6 * (field - field.floor())  # linear interpolation has kinks at lattice points
    loss = partial(warped_ncc_loss, moving=moving, fixed=fixed, window=3)
    assert torch.autograd.gradcheck(loss, field.requires_grad_())


def test_compiled_loss_refuses_what_it_cannot_read() -> None:
    field, moving, fixed = random_pair()
    with pytest.raises(DeviceError, match="meta"):
        warped_ncc_loss(field.to("meta"), moving.to("meta"), fixed.to("meta"))
    with pytest.raises(InputError, match="one float type"):
        warped_ncc_loss(field.double(), moving, fixed)
    with pytest.raises(InputError, match="field"):
        warped_ncc_loss(field[:, :2], moving, fixed)
