"""From the options of ``ofg register`` to jobs: which pairs, by which model, with which optimisation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import typer

from ofg_deploy.batch.pairs import Make, Pair, from_folders, from_list
from ofg_deploy.errors import UsageError
from ofg_deploy.image_folder import look_into
from ofg_deploy.serve.automatic import choose
from ofg_deploy.serve.images import Images
from ofg_deploy.serve.job import Job

# Options that mean nothing without a network.
OF_AN_ENGINE = ("runtime", "device", "batch_size", "grid", "passes", "rebuild")


def pairs_of(
    fixed: Optional[Path], moving: Optional[Path], pairs: Optional[Path], out: Path, make: Make, beside: dict[str, Any]
) -> list[Pair]:
    """Of a batch, from two folders, an image and a folder, or a list."""
    if fixed and moving and not pairs:
        found = from_folders(fixed, moving, out, make, beside)
        for folder in dict.fromkeys(path for path in (fixed, moving) if path.is_dir()):
            if remark := look_into(folder).remark():
                print(f"ofg: warning: {remark}", file=sys.stderr)
        return found
    if fixed or any(beside.values()):
        raise UsageError("with --pairs the list names all files, in its own columns: leave them out of the command")
    assert pairs is not None
    return from_list(pairs, out, make)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def settled(
    context: typer.Context,
    model: str,
    refine: Optional[int],
    quality: Any,
    jobs: list[Job],
    images: Images,
    of_batch: bool,
) -> tuple[Optional[Path], list[Job]]:
    """The model's file, None for no network, and the jobs with the steps on the pair that go with it.

    Raises:
        UsageError: options of a network's runtime where there is no network, or of the steps where none are taken.
    """
    found = choose(model, jobs, images, of_batch)
    given = [f"--{name.replace('_', '-')}" for name in OF_AN_ENGINE if _given(context, name)]
    if found.path is None and given:
        why = f" ({found.reason})" if found.reason else ""
        raise UsageError(
            f"{', '.join(given)}: there is no network{why}, and it has no effect: leave it out, or give -m MODEL"
        )
    by_default = found.path is None and refine is None and quality is None
    steps: Any = "default" if by_default else quality
    if _given(context, "similarity") and not steps and not refine:
        raise UsageError(
            "--similarity is that of the optimisation of the pair, and none is done: add --quality or --refine"
        )
    return found.path, [replace(job, quality=steps, model_choice=found.reason) for job in jobs]
