"""Findings between files, and between files and a model. Heuristics say what they saw, so that a user can judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ofg_deploy.appearance import COARSER, MIXED, Appearance, Look, likeness, thumbnail
from ofg_deploy.check.finding import Finding
from ofg_deploy.errors import InputError
from ofg_deploy.field import resample
from ofg_deploy.geometry import Grid, describe_extent, network_grid, overlap_fraction
from ofg_deploy.metrics import ncc
from ofg_deploy.model_file import Contract
from ofg_deploy.nifti import Volume
from ofg_deploy.preprocess import CONTENT_OUTSIDE, LITTLE_OVERLAP, NetworkInput, content_outside, normalised

if TYPE_CHECKING:
    from ofg_deploy.check.examine import Examined

OPPOSED = -0.2  # correlation of contents; images of one contrast that are not aligned yet stay around 0
CONTENT = 0.15  # of the 99th percentile: above it a voxel is no background
FEWEST = 500  # lattice points that make a correlation worth saying
UNLIKE = 0.2  # correlation with the mean of the training images (hippocampus MRI: 0.5 and more, inverted below -0.6)
SAMPLES = 48  # voxels along each axis where contrasts are compared


def compare(first: Examined, other: Examined) -> list[Finding]:
    """Findings about ``other`` beside the first file."""
    if first.grid is None or other.grid is None:
        return []
    name = first.path.name
    overlap = overlap_fraction(first.grid, other.grid, np.eye(4))
    if overlap == 0:
        text = f"shares no space with {name}: {describe_extent(other.grid)}, and {describe_extent(first.grid)}"
        return [Finding("error", "overlap", text, "one header is wrong, or centre one image on the other")]
    findings = []
    if overlap < LITTLE_OVERLAP:
        text = f"covers {overlap:.0%} of the field of view of {name}"
        findings.append(Finding("warning", "overlap", text, "compare both in a viewer before registering"))
    if first.look is None or other.look is None or first.data is None or other.data is None:
        return findings
    images = [Volume(f.data.astype(np.float32, copy=False), f.grid, f.path) for f in (first, other)]  # type: ignore[union-attr,arg-type]
    if first.look.ct != other.look.ct:
        ct = name if first.look.ct else other.path.name
        text = f"{ct} holds CT numbers, the other does not"
        findings.append(Finding("warning", "contrast", text, "use a model trained across modalities"))
    elif first.look.stripped != other.look.stripped:
        cut, whole = (first, other) if first.look.stripped else (other, first)
        shares = f"{cut.look.background:.0%} of {cut.path.name} is one background value, {whole.look.background:.0%}"  # type: ignore[union-attr]
        text = f"only one of both looks skull-stripped: {shares} of {whole.path.name}"
        findings.append(Finding("warning", "skull", text, "strip both by one tool, or neither"))
    elif overlap > 0.5 and (alike := _correlation(*images)) < OPPOSED:
        text = f"bright is dark in {name}: correlation {alike:.2f} where both have content, as their headers place them"
        findings.append(Finding("warning", "contrast", text, "use a model trained across contrasts"))
    return findings


def beside_model(file: Examined, contract: Contract) -> list[Finding]:
    """Findings about one file beside what a model expects, and what the images look like that it was trained on."""
    if file.grid is None or file.look is None or file.data is None:
        return []
    expects = contract.expects
    recipe, findings = expects.intensity, []
    image = Volume(file.data.astype(np.float32, copy=False), file.grid, file.path)
    try:
        unit, empty, _ = normalised(image, recipe)
    except InputError as error:
        return [Finding("error", "model", str(error).removeprefix(f"{file.path} "), "use a model for such images")]
    if recipe.kind in ("window", "linear") and recipe.low < 0 <= file.look.low:
        text = f"values {file.look.low:g} to {file.look.high:g}, and the model wants {recipe} (CT numbers)"
        findings.append(Finding("warning", "model", text, "use a model for this modality, or restore the CT numbers"))
    content = unit > 0.01
    if recipe.kind == "window" and content.any() and (clipped := float((unit[content] >= 1).mean())) > 0.5:
        text = f"{clipped:.0%} of the content lies above the model's intensity recipe {recipe}"
        findings.append(Finding("warning", "model", text, "use a model for this modality"))
    if images := Appearance.from_record(contract.training.get("images")):
        findings += _beside_training(file.look, image, expects, images)
    network = network_grid(file.grid, expects.shape, expects.spacing_mm, expects.axes)
    if (outside := content_outside(unit, empty, file.grid, network)) > CONTENT_OUTSIDE:
        text = f"as fixed image {outside:.0%} of its content lies outside the model's grid ({describe_extent(network)})"
        fix = "use a model for such images" if contract.sizes == "fixed" else "register on a larger grid"
        findings.append(Finding("warning", "grid", text, fix))
    ratio = max(file.grid.spacing_mm) / max(expects.spacing_mm)
    if ratio > COARSER:
        text = f"voxels up to {max(file.grid.spacing_mm):g} mm long, {ratio:.1f} times the network's"
        findings.append(Finding("warning", "model", text, "use a finer scan, or a model for such voxels"))
    return findings


def _beside_training(look: Look, image: Volume, expects: NetworkInput, images: Appearance) -> list[Finding]:
    """What the file looks like beside the fixed images the model was trained on."""
    if min(images.stripped, 1 - images.stripped) < MIXED and look.stripped != (images.stripped > MIXED):
        cut = "looks skull-stripped" if look.stripped else "does not look skull-stripped"
        text = f"{cut} ({look.background:.0%} is one background value); {images.stripped:.0%} of the model's images do"
        return [Finding("warning", "skull", text, "prepare it as the training images were")]
    alike, (usual, spread) = likeness(thumbnail(image, expects), images.mean), images.likeness
    if not (alike < UNLIKE and alike < usual - 5 * spread):
        return []
    text = (
        f"is bright where the model's images are not: correlation {alike:.2f} with their mean image, "
        f"theirs {usual:.2f} +- {spread:.2f}"
    )
    return [Finding("warning", "contrast", text, "use a model trained on such images, or look where its centre lies")]


def _correlation(first: Volume, other: Volume) -> float:
    """Of both images where both have content, on a coarse lattice over the first; 1 where too little is shared."""
    shape = np.minimum(first.grid.shape, SAMPLES)
    steps = np.array(first.grid.shape) / shape
    start = np.eye(4)
    start[:3, 3] = (steps - 1) / 2
    coarse = Grid((*map(int, shape),), first.grid.world_from_vox @ start @ np.diag([*steps, 1.0]))  # type: ignore[arg-type]
    a, b = (resample(v.data, v.grid, coarse, np.eye(4)) for v in (first, other))
    content = np.logical_and(*(v > CONTENT * np.percentile(v, 99) for v in (a, b)))
    return float(ncc(a[content], b[content])) if content.sum() > FEWEST else 1.0
