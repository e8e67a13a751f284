"""``ofg register``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from ofg_deploy.cli.app import DeviceOption, FormatOption, MaxVoxels, Overwrite, PointsFrameOption, app

LabelInterpolationOption = Literal["nearest", "genericlabel"]

RuntimeOption = Literal["auto", "onnxruntime", "openvino", "tensorrt"]


@app.command()
def register(
    fixed: Annotated[Path, typer.Argument(help="Fixed image (.nii, .nii.gz): the result lies on its grid.")],
    moving: Annotated[Path, typer.Argument(help="Moving image: it is brought to the fixed one.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Model or engine made by ofg export.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the outputs.")],
    init: Annotated[
        Optional[str],
        typer.Option(
            metavar="none|header|centre|rigid|affine|FILE",
            help="Alignment to start from, or an ITK affine (.mat, .txt, .tfm); as the model was trained if absent.",
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
) -> None:
    """Register FIXED MOVING: warped image, transform (ITK), all that moves with it, and a JSON sidecar."""
    from ofg_deploy.nifti_file import MAX_VOXELS
    from ofg_deploy.serve import command
    from ofg_deploy.serve.job import Job, parse_init
    from ofg_deploy.serve.refinement import Refinement

    job = Job(
        fixed,
        moving,
        out,
        parse_init(init),
        tuple(moving_labels or ()),
        fixed_labels,
        fill,
        overwrite,
        sys.argv,
        field_format,
        Refinement.at_most(refine, threads),
        max_voxels or MAX_VOXELS,
        grid,
        fixed_mask,
        moving_mask,
        label_interpolation,
        tuple(also or ()),
        fixed_points,
        moving_points,
        points_frame,
        inverse,
    )
    if rebuild:
        from ofg_deploy.export.engine import rebuild as rebuild_engine
    command.register(job, model, device, threads, rebuild_engine if rebuild else None, runtime)
