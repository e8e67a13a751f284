"""``ofg register``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ofg_deploy.cli.app import JsonOutput, LimitFile, MaxVoxels, Overwrite, QcFail, app, json_output
from ofg_deploy.cli.companions import (
    INTERPOLATION_HELP,
    Also,
    AutoInterpolation,
    FillOption,
    FixedLabels,
    FixedMask,
    FixedPoints,
    LabelInterpolationOption,
    MovingLabels,
    MovingMask,
    MovingPoints,
    PointsFrameOption,
)
from ofg_deploy.cli.help import BASIC, BATCH, COMPANIONS, OUTPUT, QUALITY, REGISTER, RUNTIME, choices, verb
from ofg_deploy.options.words import Device, Dialect, Executor, Quality, Runtime, StepSimilarity


@verb(
    app,
    panel=REGISTER,
    usage="FIXED MOVING",
    examples=(
        ("Two images; FIXED and MOVING may also be folders", "ofg register fixed.nii.gz moving.nii.gz -o out"),
        ("Warp a label map too", "ofg register T1.nii.gz atlas.nii.gz --moving-labels labels.nii.gz -o out"),
        ("Images of different contrasts", "ofg register T1.nii.gz T2.nii.gz --similarity mind -o out"),
        ("A cohort from a list, with a report", "ofg register --pairs pairs.csv -o out --report"),
        ("Go on with a batch that was interrupted", "ofg register --pairs pairs.csv -o out --resume"),
    ),
    verbose=True,
    rare=True,
)
def register(
    context: typer.Context,
    fixed: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="FIXED", help="Fixed image (.nii, .nii.gz); the outputs are on its grid. Or a folder of images."
        ),
    ] = None,
    moving: Annotated[
        Optional[Path],
        typer.Argument(metavar="MOVING", help="Moving image, which is warped to the fixed one. Or a folder of images."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            rich_help_panel=BASIC,
            help="Name of a model (ofg models), an .onnx file, or an engine; none: optimisation without a network; "
            "auto: the model that was trained on images like these, otherwise none.",
        ),
    ] = "auto",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", rich_help_panel=BASIC, help="Output folder.")
    ] = Path(),
    init: Annotated[
        Optional[str],
        typer.Option(
            metavar="none|header|centre|rigid|affine|FILE",
            rich_help_panel=BASIC,
            help="Initial alignment, or the file of a linear transform (.mat, .txt, .tfm, .h5, .lta); if absent the "
            "one that the model was trained with, affine without a model.",
        ),
    ] = None,
    pairs: Annotated[
        Optional[Path],
        typer.Option(
            metavar="LIST",
            rich_help_panel=BATCH,
            help="CSV, TSV or JSON list of pairs with the columns fixed, moving and optionally name, moving_labels, "
            "also, fixed_labels, fixed_mask, moving_mask, fixed_points, moving_points, init. Paths are relative to "
            "the list; several in one cell are separated by semicolons.",
        ),
    ] = None,
    moving_labels: MovingLabels = None,
    fixed_labels: FixedLabels = None,
    label_interpolation: LabelInterpolationOption = "nearest",
    also: Also = None,
    interpolation: Annotated[
        AutoInterpolation,
        typer.Option(
            metavar=choices(AutoInterpolation),
            hidden=True,
            rich_help_panel=COMPANIONS,
            help=f"Interpolation of the images of --also; {INTERPOLATION_HELP}",
        ),
    ] = "auto",
    fixed_points: FixedPoints = None,
    moving_points: MovingPoints = None,
    points_frame: PointsFrameOption = None,
    fixed_mask: FixedMask = None,
    moving_mask: MovingMask = None,
    field_format: Annotated[
        Dialect,
        typer.Option(
            "--format",
            metavar=choices(Dialect),
            rich_help_panel=OUTPUT,
            help="Additional format of the transform.",
        ),
    ] = "itk",
    inverse: Annotated[
        bool,
        typer.Option("--inverse", rich_help_panel=OUTPUT, help="Also write the inverse transform, on the moving grid."),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            rich_help_panel=OUTPUT,
            help="Also write an HTML report: NAME_report.html; report.html for a batch.",
        ),
    ] = False,
    fill: FillOption = "auto",
    overwrite: Overwrite = False,
    json: JsonOutput = False,
    quality: Annotated[
        Optional[Quality],
        typer.Option(
            metavar=choices(Quality),
            rich_help_panel=QUALITY,
            help="Effort of the optimisation of each pair; if absent default without a network, and no optimisation "
            "after a network.",
        ),
    ] = None,
    refine: Annotated[
        Optional[int],
        typer.Option(
            metavar="N",
            hidden=True,
            rich_help_panel=QUALITY,
            help="The same as a number: at most N optimisation steps at each resolution; 0: none.",
        ),
    ] = None,
    similarity: Annotated[
        StepSimilarity,
        typer.Option(
            metavar=choices(StepSimilarity),
            rich_help_panel=QUALITY,
            help="Similarity of that optimisation: ncc (local correlation) for images of one contrast, mind "
            "(structure) for images of different contrasts; auto chooses for each pair.",
        ),
    ] = "auto",
    qc_fail: QcFail = False,
    limits: LimitFile = None,
    device: Annotated[
        Device,
        typer.Option(metavar=choices(Device), rich_help_panel=RUNTIME, help="Device; auto: a GPU if one can be used."),
    ] = "auto",
    runtime: Annotated[
        Runtime,
        typer.Option(
            metavar=choices(Runtime),
            rich_help_panel=RUNTIME,
            help="Inference runtime of the network; auto: the fastest in earlier measurements.",
        ),
    ] = "auto",
    threads: Annotated[int, typer.Option(metavar="N", rich_help_panel=RUNTIME, help="CPU threads; 0: automatic.")] = 0,
    grid: Annotated[
        Optional[tuple[int, int, int]],
        typer.Option(
            metavar="X Y Z",
            hidden=True,
            rich_help_panel=RUNTIME,
            help="Network grid in voxels (dynamic-shape models only); the field of view grows with it.",
        ),
    ] = None,
    passes: Annotated[
        Optional[int],
        typer.Option(
            metavar="N",
            hidden=True,
            rich_help_panel=RUNTIME,
            help="Passes of the network over each pair, each with the moving image moved by the field so far; if "
            "absent as many as the model was trained for.",
        ),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            hidden=True,
            rich_help_panel=RUNTIME,
            help="Rebuild an engine from its .onnx if it is incompatible with this GPU or TensorRT.",
        ),
    ] = False,
    max_voxels: MaxVoxels = None,
    workers: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=BATCH, help="Pairs in progress at the same time; 0: automatic."),
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=BATCH, help="Continue a batch: skip finished pairs, retry failed ones."
        ),
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N", hidden=True, rich_help_panel=BATCH, help="Pairs in one call of the network (ONNX Runtime)."
        ),
    ] = 1,
    num_parts: Annotated[
        int,
        typer.Option(
            metavar="N",
            hidden=True,
            rich_help_panel=BATCH,
            help="Split the batch into N parts for the jobs of a cluster, and do only part --part-id.",
        ),
    ] = 1,
    part_id: Annotated[
        int,
        typer.Option(
            metavar="K", hidden=True, rich_help_panel=BATCH, help="Number of the part, from 0 to --num-parts - 1."
        ),
    ] = 0,
    executor: Annotated[
        Executor,
        typer.Option(
            metavar=choices(Executor),
            hidden=True,
            rich_help_panel=BATCH,
            help="here: this machine; ray: actors on a Ray cluster, each with its own engine.",
        ),
    ] = "here",
    address: Annotated[
        Optional[str],
        typer.Option(metavar="ADDRESS", hidden=True, rich_help_panel=BATCH, help="Ray address; auto if absent."),
    ] = None,
) -> None:
    """Register MOVING to FIXED: warped image, transform, labels and points, quality measures.

    Many pairs in one run: --pairs LIST, two folders (files are matched by name), or one image and a folder.
    """
    import signal
    from dataclasses import replace
    from functools import partial

    from ofg_deploy.batch.pairs import Part
    from ofg_deploy.cli.verbs.batch import Running
    from ofg_deploy.cli.verbs.jobs import pairs_of, settled
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
        passes=passes,
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
    settle = partial(settled, context, model, refine, quality)
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

    found = pairs_of(fixed, moving, pairs, out, make, beside)
    path, jobs = settle([pair.job for pair in found], Images(), of_batch=True)
    found = [replace(pair, job=job) for pair, job in zip(found, jobs, strict=True)]
    means = Means(path, *how, running.workers_here(), batch_size, out)
    with json_output(json) as answer, judged.of_folder(out, overwrite or resume):
        batch.register(found, out, means, running, sys.argv, answer)
