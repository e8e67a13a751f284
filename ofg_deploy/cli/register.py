"""``ofg register``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ofg_deploy.cli.app import (
    FillOption,
    InterpolationOption,
    JsonOutput,
    LimitFile,
    MaxVoxels,
    ModelOrNone,
    Overwrite,
    PointsFrameOption,
    QcFail,
    app,
    json_output,
)
from ofg_deploy.options.words import Device, Dialect, Executor, LabelInterpolation, Quality, Runtime, StepSimilarity

if TYPE_CHECKING:
    from ofg_deploy.batch.pairs import Make, Pair
    from ofg_deploy.serve.images import Images
    from ofg_deploy.serve.job import Job


OF_AN_ENGINE = ("runtime", "device", "batch_size", "grid", "rebuild")  # options that say nothing without a network


@app.command()
def register(
    context: typer.Context,
    fixed: Annotated[
        Optional[Path], typer.Argument(help="Fixed image (.nii, .nii.gz): the result lies on its grid. Or a folder.")
    ] = None,
    moving: Annotated[
        Optional[Path], typer.Argument(help="Moving image: it is brought to the fixed one. Or a folder.")
    ] = None,
    model: ModelOrNone = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the outputs.")] = Path(),
    pairs: Annotated[
        Optional[Path],
        typer.Option(
            help="CSV or JSON list with fixed, moving and perhaps name, moving_labels, also, fixed_labels, fixed_mask, "
            "moving_mask, fixed_points, moving_points, init; paths relative to it, ; between several."
        ),
    ] = None,
    init: Annotated[
        Optional[str],
        typer.Option(
            metavar="none|header|centre|rigid|affine|FILE",
            help="Initial alignment, or a file with a linear transform (.mat, .txt, .tfm, .h5, .lta); if absent the "
            "one that the model was trained with, affine without a model.",
        ),
    ] = None,
    fixed_mask: Annotated[
        Optional[Path],
        typer.Option(help="Mask of the fixed image: the initial alignment ignores voxels where it is 0."),
    ] = None,
    moving_mask: Annotated[Optional[Path], typer.Option(help="Mask of the moving image, used in the same way.")] = None,
    moving_labels: Annotated[
        Optional[list[Path]], typer.Option(help="Label map of the moving image, warped too; may be given again.")
    ] = None,
    fixed_labels: Annotated[
        Optional[Path], typer.Option(help="Label map of the fixed image: Dice and HD95 of the first moving one.")
    ] = None,
    label_interpolation: Annotated[
        LabelInterpolation, typer.Option(help="genericlabel: the label of the largest linear weight.")
    ] = "nearest",
    also: Annotated[
        Optional[list[Path]],
        typer.Option(help="Another image or 4-D series in the moving space, warped too; repeatable."),
    ] = None,
    fixed_points: Annotated[
        Optional[Path],
        typer.Option(help="Points (.csv, .fcsv, .mrk.json) on the fixed image: carried to the moving one."),
    ] = None,
    moving_points: Annotated[
        Optional[Path],
        typer.Option("--moving-points", "--points", help="Points on the moving image: carried to the fixed one."),
    ] = None,
    points_frame: PointsFrameOption = None,
    inverse: Annotated[bool, typer.Option("--inverse", help="Write the inverse on the moving grid too.")] = False,
    fill: FillOption = "auto",
    interpolation: InterpolationOption = "auto",
    device: Annotated[Device, typer.Option(help="Where to run; auto says what it chose.")] = "auto",
    runtime: Annotated[
        Runtime,
        typer.Option(help="What runs the network; auto takes the one measured to be faster and says why."),
    ] = "auto",
    threads: Annotated[
        int, typer.Option(help="CPU threads of the network and of the steps on the pair; 0: automatic.")
    ] = 0,
    field_format: Annotated[
        Dialect,
        typer.Option("--format", help="Another form to write the transform in as well."),
    ] = "itk",
    quality: Annotated[
        Optional[Quality],
        typer.Option(
            help="Effort of the steps that optimise the pair itself; default without a network, no steps behind one."
        ),
    ] = None,
    refine: Annotated[
        Optional[int],
        typer.Option(help="The same as a number: at most so many steps on the pair at each level; 0: none."),
    ] = None,
    similarity: Annotated[
        StepSimilarity,
        typer.Option(
            help="What the steps on the pair follow: ncc (local correlation, images of one contrast), mind (structure, "
            "images of any two contrasts); auto chooses by the pair."
        ),
    ] = "auto",
    grid: Annotated[
        Optional[tuple[int, int, int]],
        typer.Option(help="Network grid X Y Z for a model that takes several; the field of view grows with it."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="An engine that does not fit this place: rebuild it from its .onnx.")
    ] = False,
    max_voxels: MaxVoxels = None,
    overwrite: Overwrite = False,
    workers: Annotated[int, typer.Option(help="Pairs of a batch under way at once; 0: cores and one more.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pairs in one run of the network (ONNX Runtime).")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a batch: skip what is done, try again what failed.")
    ] = False,
    num_parts: Annotated[int, typer.Option(help="Split a batch into so many parts, and do one.")] = 1,
    part_id: Annotated[int, typer.Option(help="Which part: 0 to --num-parts - 1.")] = 0,
    executor: Annotated[Executor, typer.Option(help="ray: actors on a Ray cluster, one engine each.")] = "here",
    address: Annotated[Optional[str], typer.Option(help="Of the Ray cluster; as Ray finds it if absent.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page to look at: NAME_report.html, of a batch as ofg report.")
    ] = False,
    qc_fail: QcFail = False,
    limits: LimitFile = None,
    json: JsonOutput = False,
) -> None:
    """Register FIXED MOVING: warped image, transform (ITK), all that moves with it, and a JSON sidecar.

    A batch: --pairs LIST, two folders (by file name), or one image and a folder.
    """
    import signal
    from dataclasses import replace
    from functools import partial

    from ofg_deploy.batch.pairs import Part
    from ofg_deploy.cli.verbs.batch import Running
    from ofg_deploy.cli.verbs.report import QualityControl
    from ofg_deploy.errors import UsageError
    from ofg_deploy.nifti_file import MAX_VOXELS
    from ofg_deploy.report.limits import Limits
    from ofg_deploy.serve.engine import check_threads
    from ofg_deploy.serve.images import Images
    from ofg_deploy.serve.job import Job, parse_fill, parse_init
    from ofg_deploy.serve.refinement import Refinement

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: batch systems end their jobs with it
    check_threads(threads)
    if refine is not None and quality is not None:
        raise UsageError("--refine and --quality both say how many steps to take: give one of them")
    make = partial(
        Job,
        init=parse_init(init),
        fill=parse_fill(fill),
        interpolation=None if interpolation == "auto" else interpolation,
        overwrite=overwrite,
        command=sys.argv,
        field_format=field_format,
        refinement=Refinement.at_most(refine or 0, threads, similarity),
        quality=quality,
        similarity=similarity,
        threads=threads,
        max_voxels=max_voxels or MAX_VOXELS,
        grid=grid,
        label_interpolation=label_interpolation,
        points_frame=points_frame,
        inverse=inverse,
    )
    beside: dict[str, Any] = {
        "moving_labels": tuple(moving_labels or ()),
        "also": tuple(also or ()),
        "fixed_labels": fixed_labels,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "fixed_points": fixed_points,
        "moving_points": moving_points,
    }
    if rebuild:
        from ofg_deploy.cli.verbs.building import rebuild as rebuild_engine
    how = (device, threads, rebuild_engine if rebuild else None, runtime)
    settle = partial(_settle, context, model, refine, quality)
    running = Running(workers, batch_size, resume, Part(part_id, num_parts), executor, address)
    if limits and not (report or qc_fail):
        raise UsageError("--limits goes with --report or --qc-fail")
    judged = QualityControl(report, qc_fail, Limits.parse(limits))
    if pairs is None and (fixed is None or moving is None):
        raise UsageError("FIXED and MOVING are needed, or a list of them: --pairs")
    if fixed and moving and not (fixed.is_dir() or moving.is_dir() or pairs):
        if running != Running():
            raise UsageError("--workers, --batch-size, --resume, --num-parts and --executor go with a batch")
        from ofg_deploy.cli.verbs import register as on_terminal

        images = Images({fixed, moving})
        path, [job] = settle([make(fixed=fixed, moving=moving, out=out, **beside)], images, of_batch=False)
        with json_output(json) as answer, judged.of_pair(job.outputs("affine")["sidecar"], overwrite):
            answer(on_terminal.register(job, path, *how, images).sidecar)
        return
    if num_parts > 1 and (report or qc_fail):
        raise UsageError("--report and --qc-fail look at all pairs: after the parts run ofg report on their folder")
    from ofg_deploy.batch.work import Means
    from ofg_deploy.cli.verbs import batch

    found = _pairs_of(fixed, moving, pairs, out, make, beside)
    path, jobs = settle([pair.job for pair in found], Images(), of_batch=True)
    found = [replace(pair, job=job) for pair, job in zip(found, jobs, strict=True)]
    means = Means(path, *how, running.workers_here(), batch_size, out)
    with json_output(json) as answer, judged.of_folder(out, overwrite or resume):
        batch.register(found, out, means, running, sys.argv, answer)


def _pairs_of(
    fixed: Optional[Path], moving: Optional[Path], pairs: Optional[Path], out: Path, make: Make, beside: dict[str, Any]
) -> list[Pair]:
    """Of a batch, from two folders, an image and a folder, or a list."""
    from ofg_deploy.batch.pairs import from_folders, from_list
    from ofg_deploy.errors import UsageError
    from ofg_deploy.image_folder import look_into

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


def _settle(
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
    from dataclasses import replace

    from ofg_deploy.errors import UsageError
    from ofg_deploy.serve.automatic import choose

    found = choose(model, jobs, images, of_batch)
    given = [f"--{name.replace('_', '-')}" for name in OF_AN_ENGINE if _given(context, name)]
    if found.path is None and given:
        why = f" ({found.reason})" if found.reason else ""
        raise UsageError(f"{', '.join(given)}: there is no network to act on{why}: leave it out, or give -m MODEL")
    by_default = found.path is None and refine is None and quality is None
    steps: Any = "default" if by_default else quality
    if _given(context, "similarity") and not steps and not refine:
        raise UsageError(
            "--similarity is followed by the steps on the pair, and none are taken: add --quality or --refine"
        )
    return found.path, [replace(job, quality=steps, model_choice=found.reason) for job in jobs]
