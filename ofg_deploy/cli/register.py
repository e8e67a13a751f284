"""``ofg register``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from ofg_deploy.cli.app import (
    DeviceOption,
    FormatOption,
    LimitFile,
    MaxVoxels,
    Overwrite,
    PointsFrameOption,
    QcFail,
    app,
)

LabelInterpolationOption = Literal["nearest", "genericlabel"]

RuntimeOption = Literal["auto", "onnxruntime", "openvino", "tensorrt"]


@app.command()
def register(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model or engine made by ofg export.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the outputs.")],
    fixed: Annotated[
        Optional[Path], typer.Argument(help="Fixed image (.nii, .nii.gz): the result lies on its grid. Or a folder.")
    ] = None,
    moving: Annotated[
        Optional[Path], typer.Argument(help="Moving image: it is brought to the fixed one. Or a folder.")
    ] = None,
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
            help="Alignment to start from, or a linear transform (.mat, .txt, .tfm, .h5, .lta); as trained if absent.",
        ),
    ] = None,
    fixed_mask: Annotated[Optional[Path], typer.Option(help="Where it is 0 the start looks at nothing.")] = None,
    moving_mask: Annotated[Optional[Path], typer.Option(help="The same on the moving image.")] = None,
    moving_labels: Annotated[
        Optional[list[Path]], typer.Option(help="Label map of the moving image, warped too; may be given again.")
    ] = None,
    fixed_labels: Annotated[
        Optional[Path], typer.Option(help="Label map of the fixed image: Dice and HD95 of the first moving one.")
    ] = None,
    label_interpolation: Annotated[
        LabelInterpolationOption, typer.Option(help="genericlabel: the label of the largest linear weight.")
    ] = "nearest",
    also: Annotated[
        Optional[list[Path]], typer.Option(help="Another image in the moving one's space, warped too; again for more.")
    ] = None,
    fixed_points: Annotated[
        Optional[Path], typer.Option(help="CSV (x, y, z in mm) on the fixed image: carried to the moving one.")
    ] = None,
    moving_points: Annotated[
        Optional[Path],
        typer.Option("--moving-points", "--points", help="CSV on the moving image: carried to the fixed one."),
    ] = None,
    points_frame: PointsFrameOption = "ras",
    inverse: Annotated[bool, typer.Option("--inverse", help="Write the inverse on the moving grid too.")] = False,
    fill: Annotated[float, typer.Option(help="Warped value outside the moving field of view.")] = 0.0,
    device: Annotated[DeviceOption, typer.Option(help="Where to run; auto says what it chose.")] = "auto",
    runtime: Annotated[
        RuntimeOption,
        typer.Option(help="What runs the network; auto takes the one measured to be faster and says why."),
    ] = "auto",
    threads: Annotated[
        int, typer.Option(help="CPU threads of the network and of --refine; 0 for their own choice.")
    ] = 0,
    field_format: Annotated[
        FormatOption,
        typer.Option("--format", help="Another form to write the transform in as well."),
    ] = "itk",
    refine: Annotated[int, typer.Option(help="Refine the network's field on the pair, by at most so many steps.")] = 0,
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
    executor: Annotated[
        Literal["here", "ray"], typer.Option(help="ray: actors on a Ray cluster, one engine each.")
    ] = "here",
    address: Annotated[Optional[str], typer.Option(help="Of the Ray cluster; as Ray finds it if absent.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page to look at: NAME_report.html, of a batch as ofg report.")
    ] = False,
    qc_fail: QcFail = False,
    limits: LimitFile = None,
) -> None:
    """Register FIXED MOVING: warped image, transform (ITK), all that moves with it, and a JSON sidecar.

    A batch: --pairs LIST, two folders (by file name), or one image and a folder.
    """
    import signal
    from functools import partial

    from ofg_deploy.batch.command import Running
    from ofg_deploy.batch.pairs import Part
    from ofg_deploy.errors import UsageError
    from ofg_deploy.nifti_file import MAX_VOXELS
    from ofg_deploy.report.command import Quality
    from ofg_deploy.report.limits import Limits
    from ofg_deploy.serve.engine import check_threads
    from ofg_deploy.serve.job import Job, parse_init
    from ofg_deploy.serve.refinement import Refinement

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: batch systems end their jobs with it
    check_threads(threads)
    make = partial(
        Job,
        init=parse_init(init),
        fill=fill,
        overwrite=overwrite,
        command=sys.argv,
        field_format=field_format,
        refinement=Refinement.at_most(refine, threads),
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
        from ofg_deploy.export.engine import rebuild as rebuild_engine
    how = (model, device, threads, rebuild_engine if rebuild else None, runtime)
    running = Running(workers, batch_size, resume, Part(part_id, num_parts), executor, address)
    if limits and not (report or qc_fail):
        raise UsageError("--limits goes with --report or --qc-fail")
    quality = Quality(report, qc_fail, Limits.parse(limits))
    if pairs is None and (fixed is None or moving is None):
        raise UsageError("FIXED and MOVING are needed, or a list of them: --pairs")
    if fixed and moving and not (fixed.is_dir() or moving.is_dir() or pairs):
        if running != Running():
            raise UsageError("--workers, --batch-size, --resume, --num-parts and --executor go with a batch")
        from ofg_deploy.serve import command

        job = make(fixed=fixed, moving=moving, out=out, **beside)
        with quality.of_pair(job.outputs("affine")["sidecar"], overwrite):
            command.register(job, *how)
        return
    if num_parts > 1 and (report or qc_fail):
        raise UsageError("--report and --qc-fail look at all pairs: after the parts run ofg report on their folder")
    from ofg_deploy.batch import command as batch
    from ofg_deploy.batch.pairs import from_folders, from_list
    from ofg_deploy.batch.work import Means

    if fixed and moving and not pairs:
        found = from_folders(fixed, moving, out, make, beside)
    elif fixed or any(beside.values()):
        raise UsageError("with --pairs the list names all files, in its own columns: leave them out of the command")
    else:
        assert pairs is not None
        found = from_list(pairs, out, make)
    means = Means(*how, running.workers_here(), batch_size, out)
    with quality.of_folder(out, overwrite or resume):
        batch.register(found, out, means, running, sys.argv)
