"""One step in this process; ``plan`` starts it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from gpu_steps.context import Context, reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--step", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    context = Context(given.step, given.rows, given.seconds, given.work, given.out, given.dry_run, given.run)
    try:
        if not given.dry_run:
            check_gpu()
        importlib.import_module(given.module).measure(context)
    except Exception as error:
        context.add("the step as a whole", {}, on="-", why_not=reason(error))


def check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device; --dry-run is for a CPU")


if __name__ == "__main__":
    main()
