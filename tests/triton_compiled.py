"""Compiles every Triton kernel for the capabilities given, without a GPU. A process of its own: no interpreter."""

from __future__ import annotations

import sys

from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from ofg_deploy.train import kernels_triton, kernels_triton_greedy

NUMBERS = {"volume", "w_x", "w_y", "w_z", "lr", "root", "length", "tiny"}
SIZES = {"size", "size_x", "size_y", "size_z", "n", "half", "step", "reach"}


def kind(argument: str) -> str:
    if argument == "block":
        return "constexpr"
    return "fp32" if argument in NUMBERS else "i32" if argument in SIZES else "*fp32"


for name, kernel in (vars(kernels_triton) | vars(kernels_triton_greedy)).items():
    # Launched are those that are told their block and ask where they are; the others are parts of them.
    if isinstance(kernel, JITFunction) and "program_id" in kernel.src:
        signature = {argument: kind(argument) for argument in kernel.arg_names}
        for capability in map(int, sys.argv[1:]):
            source = ASTSource(kernel, signature, {"block": kernels_triton.BLOCK})
            built = compile(source, target=GPUTarget("cuda", capability, 32))
            print(name, capability, len(built.asm["cubin"]))
