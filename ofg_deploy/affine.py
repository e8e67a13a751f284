"""The start before the network: what brings the moving image roughly onto the fixed one, through SimpleITK."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ofg_deploy.errors import GeometryError
from ofg_deploy.geometry import LPS_FROM_RAS, Grid, Matrix
from ofg_deploy.nifti import Volume

if TYPE_CHECKING:
    import SimpleITK as sitk

Kind = Literal["centre", "rigid", "affine"]

VERSION = 1  # part of every cache key: raise it when the result of ``align`` changes


def align(
    fixed: Volume,
    moving: Volume,
    kind: Kind = "affine",
    fixed_mask: Volume | None = None,
    moving_mask: Volume | None = None,
) -> Matrix:
    """Registration of two images by few parameters.

    Mattes mutual information, starting from whichever of the header, the centres of the fields of view and the centres
    of mass agrees best; then coarse to fine, for ``affine`` first rigid and scale free, then all twelve parameters.
    ``centre`` moves nothing but the centres: those of the fields of view or those of mass, whichever agrees better. One
    thread and a fixed seed, so that the result does not depend on the machine's load.

    Args:
        kind: how far to go.
        fixed_mask, moving_mask: label maps, each on its image's grid; where they are 0 nothing counts, neither for the
            agreement nor for the centres of mass.

    Returns:
        (4, 4) float64 moving_from_fixed, fixed RAS mm -> moving RAS mm.

    Raises:
        GeometryError: the optimiser found no usable alignment.
    """
    import SimpleITK as sitk

    images = (_to_sitk(fixed, fixed_mask), _to_sitk(moving, moving_mask))
    pair = _Pair(*images, *map(_to_mask, (fixed_mask, moving_mask)))
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the setting of a method does not reach its optimiser
    try:
        start = _best_start(pair, with_header=kind != "centre")
        if kind == "centre":
            return _to_matrix(start)
        first = sitk.Euler3DTransform() if kind == "rigid" else sitk.Similarity3DTransform()
        first.SetCenter(start.GetCenter())
        first.SetTranslation(start.GetTranslation())
        _optimise(pair, first)
        if kind == "rigid":
            return _to_matrix(first)
        affine = sitk.AffineTransform(3)
        affine.SetCenter(first.GetCenter())
        affine.SetMatrix(first.GetMatrix())
        affine.SetTranslation(first.GetTranslation())
        _optimise(pair, affine)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise GeometryError(
            f"no {kind} start found for {moving.path} on {fixed.path} ({reason}): align them first and use --init none"
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return _to_matrix(affine)


class _Pair(NamedTuple):
    """Both images and masks as SimpleITK has them."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None
    moving_mask: sitk.Image | None


def _to_mask(mask: Volume | None) -> sitk.Image | None:
    import SimpleITK as sitk

    if mask is None:
        return None
    return _placed(sitk.GetImageFromArray((mask.data != 0).astype(np.uint8).transpose(2, 1, 0)), mask.grid)


def _placed(image: sitk.Image, grid: Grid) -> sitk.Image:
    lps_from_vox = LPS_FROM_RAS @ grid.world_from_vox
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((lps_from_vox[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    image.SetOrigin(lps_from_vox[:3, 3].tolist())
    return image


def _to_sitk(volume: Volume, mask: Volume | None = None) -> sitk.Image:
    import SimpleITK as sitk

    low, high = np.percentile(volume.data if mask is None else volume.data[mask.data != 0], (0.5, 99.5))
    clipped = np.clip(volume.data, low, max(high, low + 1e-6)).transpose(2, 1, 0)
    image = _placed(sitk.GetImageFromArray(clipped), volume.grid)
    # A deformable step follows: some two million voxels say enough, and eight times as many take ten times as long.
    factor = math.ceil((volume.data.size / 2e6) ** (1 / 3))
    return (
        sitk.BinShrink(image, [factor if n // factor >= 16 else 1 for n in volume.grid.shape]) if factor > 1 else image
    )


def _best_start(pair: _Pair, with_header: bool) -> Any:
    import SimpleITK as sitk

    def centred(mode: Any) -> Any:
        images = (_masked(pair.fixed, pair.fixed_mask), _masked(pair.moving, pair.moving_mask))
        return sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), mode))

    geometry = centred(sitk.CenteredTransformInitializerFilter.GEOMETRY)
    header = sitk.Euler3DTransform()
    header.SetCenter(geometry.GetCenter())
    starts = [geometry, centred(sitk.CenteredTransformInitializerFilter.MOMENTS)]
    if with_header:
        starts.insert(0, header)
    values = []
    for start in starts:
        method = _method(pair)
        method.SetInitialTransform(start)
        try:
            values.append(method.MetricEvaluate(pair.fixed, pair.moving))
        except RuntimeError:  # this start leaves no overlap; another may
            values.append(np.inf)
    return starts[int(np.argmin(values))]


def _masked(image: sitk.Image, mask: sitk.Image | None) -> sitk.Image:
    import SimpleITK as sitk

    if mask is None:
        return image
    here = sitk.Resample(mask, image, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor)
    return sitk.Mask(image, here)


def _optimise(pair: _Pair, transform: Any) -> None:
    method = _method(pair)
    levels = [s for s in (4, 2, 1) if min(pair.fixed.GetSize()) // s >= 16] or [1]
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([0.5 * s for s in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=100, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(pair.fixed, pair.moving)


def _method(pair: _Pair) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInterpolator(sitk.sitkLinear)
    counted = 1.0
    if pair.fixed_mask is not None:
        method.SetMetricFixedMask(pair.fixed_mask)
        counted = float(sitk.GetArrayViewFromImage(pair.fixed_mask).mean())
    if pair.moving_mask is not None:
        method.SetMetricMovingMask(pair.moving_mask)
    voxels = float(np.prod(pair.fixed.GetSize())) * counted
    if voxels > 2e5:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(1e5 / voxels, 20240101)
    return method


def _to_matrix(transform: sitk.Transform) -> Matrix:
    lps = np.eye(4)
    lps[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, translation = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    lps[:3, 3] = translation + centre - lps[:3, :3] @ centre
    return LPS_FROM_RAS @ lps @ LPS_FROM_RAS
