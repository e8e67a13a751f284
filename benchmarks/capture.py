"""How far off two images may be for the affine start to find its way: known displacements of real images.

    python benchmarks/capture.py [--count 200] [--others 12] [--tools ofg ANTsPy] [--images ../shared]

Each case takes an image, draws a map (a rotation to 40 degrees about any axis, a translation to 60 mm or, of crops, to
0.3 of their longest side; every second case also has scales from 0.8 to 1.25 along three axes), and makes the moving
image by one linear interpolation on a grid of another shape, spacing and place, so that the fields of view differ too.
Its contrast is changed (gamma 0.7, inverted in every third case) and noise of 2 % is added. Success: no point of the
content further than 2 mm from where it belongs. The other tools get the first cases of each image.

Results go to benchmarks/results/capture.json after every case; cases that are there are not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ofg_deploy.affine import align
from ofg_deploy.field import resample
from ofg_deploy.geometry import LPS_FROM_RAS, Grid, Matrix, transform_points
from ofg_deploy.nifti import Volume, load_image

RESULTS = Path(__file__).parent / "results" / "capture.json"
IMAGES = {  # name -> file, shrink factor, share of the cases
    "brain": ("data/brain_t1/test_scan_vol.nii.gz", 2, 0.5),
    "hippocampus": ("data/hippocampus/images/hippocampus_004.nii.gz", 1, 0.3),
    "prostate MR": ("faults/affine_collapse_prostate/mr_images_000026.nii.gz", 1, 0.2),
}
MOST_MM, SUCCESS_MM = 60.0, 2.0


def shrunk(volume: Volume, factor: int) -> Volume:
    """Means of blocks of so many voxels."""
    shape = [n // factor for n in volume.grid.shape]
    data = volume.data[tuple(slice(n * factor) for n in shape)]
    data = data.reshape(shape[0], factor, shape[1], factor, shape[2], factor).mean(axis=(1, 3, 5))
    matrix = volume.grid.world_from_vox @ np.diag([factor, factor, factor, 1.0])
    matrix[:3, 3] += volume.grid.world_from_vox[:3, :3] @ np.full(3, (factor - 1) / 2)
    return Volume(np.ascontiguousarray(data, np.float32), Grid((shape[0], shape[1], shape[2]), matrix), volume.path)


def displaced(fixed: Volume, case: int) -> tuple[Volume, Matrix, str]:
    """The moving image of a case, the map fixed -> moving, and its kind."""
    rng = np.random.default_rng(case)
    kind = "affine" if case % 2 else "rigid"
    extent = np.array(fixed.grid.shape) * fixed.grid.spacing_mm
    axis, way = rng.normal(size=(2, 3))
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(rng.uniform(0, 40))).as_matrix()
    if kind == "affine":
        turn = turn @ np.diag(np.exp(rng.uniform(np.log(0.8), np.log(1.25), 3)))
    way *= rng.uniform(0, min(MOST_MM, 0.3 * extent.max())) / np.linalg.norm(way)
    centre = fixed.grid.corners_mm().mean(axis=1)
    truth = np.eye(4)
    truth[:3, :3], truth[:3, 3] = turn, centre + way - turn @ centre
    spacing = np.array(fixed.grid.spacing_mm) * (1.1, 0.95, 1.05)
    shape = np.ceil(np.ptp(fixed.grid.corners_mm(), axis=1) * rng.uniform(1.0, 1.3, 3) / spacing).astype(int)
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = centre + way * rng.uniform(0.4, 1.0) - spacing * (shape - 1) / 2
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), matrix)
    unit = (fixed.data - fixed.data.min()) / np.ptp(fixed.data)
    seen = resample(unit.astype(np.float32), fixed.grid, grid, np.linalg.inv(truth)).clip(0) ** 0.7
    if case % 3 == 2:  # dark where it was bright; the background stays
        seen = np.where(seen > 0.05, 1.05 - seen, 0.0)
    seen = seen + rng.normal(0, 0.02, grid.shape)
    return Volume(seen.astype(np.float32), grid, Path("moving.nii.gz")), truth, kind


def error_mm(found: Matrix, truth: Matrix, fixed: Volume) -> float:
    """Largest distance between both maps over the content."""
    low, high = np.percentile(fixed.data, (0.5, 99.5))
    index = np.argwhere(fixed.data > low + 0.1 * (high - low))[::50].T.astype(np.float64)
    points = transform_points(fixed.grid.world_from_vox, index)
    return float(np.linalg.norm(transform_points(found, points) - transform_points(truth, points), axis=0).max())


def by_us(fixed: Volume, moving: Volume, kind: str) -> Matrix:
    """The start of this package."""
    return align(fixed, moving, kind).moving_from_fixed  # type: ignore[arg-type]


def _to_sitk(volume: Volume) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.transpose(2, 1, 0)))
    lps = LPS_FROM_RAS @ volume.grid.world_from_vox
    image.SetSpacing(volume.grid.spacing_mm)
    image.SetDirection((lps[:3, :3] / np.array(volume.grid.spacing_mm)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _sitk_method(levels: tuple[int, ...]) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(learningRate=1.0, numberOfIterations=100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([s / 2 for s in levels])
    return method


def _sitk_matrix(transform: Any) -> Matrix:
    lps = np.eye(4)
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    mapped = np.array([transform.TransformPoint(p.tolist()) for p in points])
    lps[:3, 3] = mapped[0]
    lps[:3, :3] = (mapped[1:] - mapped[0]).T
    return LPS_FROM_RAS @ lps @ LPS_FROM_RAS


def by_simpleitk(fixed: Volume, moving: Volume, kind: str) -> Matrix:
    """As its tutorials have it: centred by geometry, Mattes, gradient descent, factors 4, 2, 1."""
    import SimpleITK as sitk

    images = _to_sitk(fixed), _to_sitk(moving)
    model = sitk.AffineTransform(3) if kind == "affine" else sitk.Euler3DTransform()
    start = sitk.CenteredTransformInitializer(*images, model, sitk.CenteredTransformInitializerFilter.GEOMETRY)
    method = _sitk_method((4, 2, 1))
    method.SetInitialTransform(start)
    return _sitk_matrix(method.Execute(*images))


def by_multistart(fixed: Volume, moving: Volume, kind: str) -> Matrix:
    """As FLIRT searches: centres of mass, turns of -30, 0 and 30 degrees about each axis, the best three refined."""
    import SimpleITK as sitk

    images = _to_sitk(fixed), _to_sitk(moving)
    centred = sitk.CenteredTransformInitializerFilter.MOMENTS
    start = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), centred))
    tried = []
    coarse = _sitk_method((4,))
    for turn in np.array(np.meshgrid(*[(-30, 0, 30)] * 3)).reshape(3, -1).T:
        candidate = sitk.Euler3DTransform(start)
        candidate.SetRotation(*np.deg2rad(turn).tolist())
        coarse.SetInitialTransform(candidate)
        tried.append((coarse.MetricEvaluate(*images), candidate))
    ends = []
    for _, candidate in sorted(tried, key=lambda each: each[0])[:3]:
        method = _sitk_method((4,))
        method.SetInitialTransform(candidate, inPlace=True)
        method.Execute(*images)
        ends.append((method.GetMetricValue(), candidate))
    best = min(ends, key=lambda each: each[0])[1]
    model = best
    if kind == "affine":
        model = sitk.AffineTransform(3)
        model.SetCenter(best.GetCenter())
        model.SetMatrix(best.GetMatrix())
        model.SetTranslation(best.GetTranslation())
    method = _sitk_method((2, 1))
    method.SetInitialTransform(model, inPlace=True)
    method.Execute(*images)
    return _sitk_matrix(model)


def by_ants(fixed: Volume, moving: Volume, kind: str) -> Matrix:
    """ANTsPy's ``registration`` of this type, all its defaults."""
    import ants

    images = [ants.from_sitk(_to_sitk(volume)) for volume in (fixed, moving)]
    found = ants.registration(*images, type_of_transform="Affine" if kind == "affine" else "Rigid", random_seed=1)
    read = ants.read_transform(found["fwdtransforms"][0])

    class Points:
        TransformPoint = staticmethod(read.apply_to_point)

    return _sitk_matrix(Points)


TOOLS: dict[str, Callable[[Volume, Volume, str], Matrix]] = {
    "ofg": by_us,
    "SimpleITK": by_simpleitk,
    "multi-start": by_multistart,
    "ANTsPy": by_ants,
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="cases of the start of this package")
    parser.add_argument("--others", type=int, default=12, help="cases of each image for the other tools")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--images", type=Path, default=Path("../shared"))
    arguments = parser.parse_args()
    for tool in arguments.tools:
        for name, (path, factor, share) in IMAGES.items():
            fixed = shrunk(load_image(arguments.images / path), factor)
            for case in range(round(arguments.count * share) if tool == "ofg" else arguments.others):
                if (key := f"{tool}/{name}/{case}") in stored():
                    continue
                moving, truth, kind = displaced(fixed, case)
                before, start = error_mm(np.eye(4), truth, fixed), time.process_time()
                try:
                    error = error_mm(TOOLS[tool](fixed, moving, kind), truth, fixed)
                except RuntimeError:  # no overlap: it gave up
                    error = float("inf")
                seconds = time.process_time() - start
                row = {"kind": kind, "before_mm": before, "cpu_s": seconds, "error_mm": min(error, 1e3)}
                rounded = {column: v if isinstance(v, str) else round(v, 3) for column, v in row.items()}
                # Read anew: another process may be at other tools.
                RESULTS.write_text(json.dumps({**stored(), key: rounded}, indent=1, sort_keys=True) + "\n")
    print(table(stored()))


def stored() -> dict[str, Any]:
    """What was measured so far, by tool, image and case."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def table(done: dict[str, Any]) -> str:
    """Cases that succeeded, by tool and image."""
    lines = [
        "| tool | image | cases | rigid | affine | median error mm | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for tool in TOOLS:
        for name in IMAGES:
            rows = [row for key, row in done.items() if key.startswith(f"{tool}/{name}/")]
            if not rows:
                continue
            shares = []
            for kind in ("rigid", "affine"):
                errors = [row["error_mm"] for row in rows if row["kind"] == kind]
                shares.append(f"{sum(e < SUCCESS_MM for e in errors)} of {len(errors)}")
            error, cpu = (float(np.median([row[column] for row in rows])) for column in ("error_mm", "cpu_s"))
            lines.append(f"| {tool} | {name} | {len(rows)} | {' | '.join(shares)} | {error:.2f} | {cpu:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
