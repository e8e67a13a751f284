"""The functions of ``import ofg_deploy``: what the verbs of the command line do, with images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ofg_deploy.errors import UsageError, check_choice
from ofg_deploy.image import AnyImage, in_memory, is_file
from ofg_deploy.nifti import load_space
from ofg_deploy.options.words import Device, Form, Interpolation, Runtime
from ofg_deploy.serve.apply import Step, load_chain, seen_through
from ofg_deploy.serve.engine import Engine
from ofg_deploy.serve.found import Registration, carried, image_on, source_of
from ofg_deploy.serve.model import Model, load_model
from ofg_deploy.transform.dialects import OF_BOTH_IMAGES, check_images

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

CHECKPOINTS = (".pt", ".pth", ".tar", ".ckpt")
Transform = str | Path | tuple[str | Path, bool]  # a file; with True its inverse


def load(model: str | Path = "auto", *, device: Device = "auto", runtime: Runtime = "auto", threads: int = 0) -> Model:
    """Load a model to register with.

    Args:
        model: the name of a packaged or added model (``ofg models``), an ``.onnx`` or ``.engine`` file, a run folder
            or a checkpoint of ``ofg train`` (these need torch), ``"none"`` (no network, steps on the pair alone), or
            ``"auto"``: for each pair the model whose training images both images resemble, else none.
        device: ``auto``, ``cpu`` or ``cuda``.
        runtime: ``auto`` for the one that was measured to be faster, or ``onnxruntime``, ``openvino``, ``tensorrt``.
        threads: CPU threads of the network and of the steps on the pair; 0: automatic.

    Raises:
        InputError: no such model. DeviceError: the device, the runtime or a package is not there as asked.
        UsageError: a runtime that does not read such files.

    Example:
        >>> import ofg_deploy as ofg
        >>> ofg.load("none").network
        'none'
    """
    check_choice("device", device, get_args(Device))
    check_choice("runtime", runtime, get_args(Runtime))
    path = Path(model)
    if path.is_dir() or path.suffix.lower() in CHECKPOINTS:
        if runtime != "auto":
            raise UsageError(
                f"runtime {runtime!r} runs exported models: {path} is a run or a checkpoint, export it first"
            )
        return load_model(eager_engine(path, device, threads), threads=threads)
    return load_model(model, device=device, runtime=runtime, threads=threads)


def eager_engine(path: Path, device: Device, threads: int) -> Engine:
    """The network of a run folder or of one of our checkpoints, run by torch. Raises as ``load``."""
    from ofg_deploy.extras import explained

    try:
        from ofg_deploy.export.eager import EagerEngine
    except ImportError as error:
        if missing := explained(error):
            raise missing from error
        raise
    return EagerEngine(path, device, threads)


def register(fixed: AnyImage, moving: AnyImage, *, model: str | Path | Model = "auto", **options: Any) -> Registration:
    """Register a pair: bring the moving image to the fixed one. Nothing is written.

    Args:
        fixed, moving: paths of NIfTI images, nibabel images, or ``Image(array, affine)``.
        model: as ``load`` takes it, or a loaded one.
        options: as ``Model.register``.

    Raises:
        InputError, GeometryError, UsageError, DeviceError: as ``load`` and ``Model.register``.

    Example:
        >>> import numpy as np
        >>> import ofg_deploy as ofg
        >>> x, y, z = np.indices((20, 24, 28))
        >>> blob = lambda shift: np.exp(-((x - 9 - shift) ** 2 / 20 + (y - 11) ** 2 / 30 + (z - 13) ** 2 / 40))
        >>> fixed, moving = (ofg.Image(blob(shift), np.diag([2.0, 2.0, 2.0, 1.0])) for shift in (0, 1.5))
        >>> found = ofg.register(fixed, moving, model="none", init="none")
        >>> found.displacement_mm.shape
        (20, 24, 28, 3)
        >>> bool(found.measures["ncc_after"] > found.measures["ncc_before"])
        True
    """
    return (model if isinstance(model, Model) else load(model)).register(fixed, moving, **options)


def apply(
    image: AnyImage,
    transforms: Transform | Sequence[Transform],
    reference: AnyImage,
    *,
    interpolation: Interpolation | None = None,
    fill: float | None = None,
    format: Form = "itk",
) -> Nifti1Image:
    """An image, label map or series through saved transforms onto the grid of a reference, interpolated once.

    Args:
        image: a path (may be a series), a nibabel image or ``Image(array, affine)``.
        transforms: files in the order of antsApplyTransforms, the last one acts first on the image; ``(file, True)``
            is the inverse of one.
        reference: the image on whose grid the result lies.
        interpolation: None for nearest where ``image`` is a label map, and linear otherwise.
        fill: value where the transform is unknown or leads out of the image; None for the image's own background.
        format: in which form the transforms are.

    Returns:
        A nibabel image on the reference's grid.

    Raises:
        InputError, GeometryError: files that cannot be used or do not belong together.
        UsageError: arguments that contradict each other.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> import ofg_deploy as ofg
        >>> image = ofg.Image(np.arange(60.0).reshape(3, 4, 5), np.eye(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     matrix = pathlib.Path(folder, "shift.mat")
        ...     _ = matrix.write_text("1 0 0 1\\n0 1 0 0\\n0 0 1 0\\n0 0 0 1\\n")
        ...     shifted = ofg.apply(image, matrix, image, format="greedy")
        >>> float(shifted.get_fdata()[0, 0, 0]) == 20.0  # the value one voxel along x
        True
    """
    single = isinstance(transforms, str | Path) or (
        isinstance(transforms, tuple) and len(transforms) == 2 and isinstance(transforms[1], bool)
    )
    every: Any = [transforms] if single else list(transforms)  # type: ignore[arg-type]
    steps = [Step(Path(t[0]), t[1]) if isinstance(t, tuple) else Step(Path(t)) for t in every]
    if not steps:
        raise UsageError("transforms is empty: give at least one file")
    if format in OF_BOTH_IMAGES and (len(steps) > 1 or not (is_file(image) and is_file(reference))):
        raise UsageError(
            f"format {format!r} is of both images' voxels: give one transform, and image and reference as files"
        )
    check_choice("format", format, get_args(Form))
    source = source_of(image, "image", interpolation, fill)
    if is_file(reference):
        called = Path(reference)
        grid, space_code, _ = load_space(called)
    else:
        volume = in_memory(reference, "reference", constant=True)
        called, grid, space_code = volume.path, volume.grid, volume.space_code
    if format == "fsl" and is_file(image):
        check_images("fsl", called, grid, Path(image), source.grid)
    chain = load_chain(steps, format, grid, source.grid)
    points, known, _ = seen_through(chain, source, grid, called)
    return image_on(carried(source, points, known), grid, space_code)
