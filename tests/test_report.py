"""The pictures of a registration and its page, made from what it wrote and from nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from report_pairs import Page

from ofg_deploy.errors import InputError
from ofg_deploy.field import resample
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import Volume, load_image
from ofg_deploy.report.figure import draw
from ofg_deploy.report.panels import _shrink, checkerboard, jacobian_picture, largest_labels, lattice, outlines, panels
from ofg_deploy.report.png import FOLD, NEUTRAL, PALETTE, encode, grey, signed
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.view import LARGEST, View, Window, best_view, views
from ofg_deploy.report.write import Report, write
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register

NASTY = "<script>alert(1)<&>"  # '"' and "'" besides would be as good, but not on every file system


@pytest.fixture(scope="module")
def sidecars(
    tmp_path_factory: pytest.TempPathFactory,
    make_grid: Callable[..., Grid],
    world_image: Callable[..., np.ndarray],
    world_labels: Callable[[Grid], np.ndarray],
    write_nifti: Callable[..., Path],
    tiny_model: Callable[..., object],
) -> dict[str, Path]:
    """Sidecars of one pair of images: ``plain``, with labels, and folding because of a rough field."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("pair")
    files = {}
    for name, orientation, shape in (("a", "LPS", (23, 29, 19)), (NASTY, "left-handed", (27, 21, 25))):
        grid = make_grid(orientation, shape, (4.0, 3.5, 4.2))
        files[name] = write_nifti(folder / f"{name}.nii.gz", world_image(grid), grid.world_from_vox)
        files[f"{name} labels"] = write_nifti(folder / f"{name}_seg.nii.gz", world_labels(grid), grid.world_from_vox)
    rough = np.random.default_rng(0).normal(0, 2, (3, 14, 18, 16))
    gentle = np.stack([np.indices(rough.shape[1:])[axis] * 0.04 * (axis - 1) for axis in range(3)])
    labels = {"moving_labels": (files[f"{NASTY} labels"],), "fixed_labels": files["a labels"]}
    found = {}
    for name, field, extra in (
        ("plain", gentle, {}),
        ("labelled", gentle, {**labels, "inverse": True}),
        ("folding", rough, labels),
    ):
        engine = open_engine(tiny_model(field=field).path, "cpu")  # type: ignore[attr-defined]
        job = Job(files["a"], files[NASTY], folder / name, **extra)
        found[name] = register(job, engine).outputs["sidecar"]
    return found


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")[:, :, :3]


def pair_figure(*registrations: Registration) -> bytes:
    buffer = io.BytesIO()
    figure = draw([(registration.method, panels(registration, one_plane=True)) for registration in registrations])
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def view_of(data: np.ndarray, grid: Grid, across: int | None = None) -> View:
    volume = Volume(data, grid, Path("image.nii"))
    return best_view(volume, Window(data)) if across is None else View(volume, across, Window(data))


def test_png_holds_the_colours_of_the_palette() -> None:
    rng = np.random.default_rng(0)
    for picture in (rng.integers(0, 256, (7, 11)), np.add.outer(np.arange(40), np.arange(30))):
        found = pixels(encode(picture.astype(np.uint8)))
        assert found == pytest.approx(PALETTE[picture][::-1] / 255, abs=1e-6)  # rows of a file go down


def test_palette_ends_where_it_should() -> None:
    assert PALETTE.shape == (256, 3)
    corners = grey(np.array([0.0, 1.0, 7.0])), signed(np.array([-1.0, 0.0, 1.0, 3.0]))
    shown = ["#" + bytes(PALETTE[index]).hex() for index in np.concatenate(corners)]
    assert shown == ["#11161c", "#ffffff", "#ffffff", "#56b4e9", "#11161c", "#e69f00", "#e69f00"]
    assert bytes(PALETTE[FOLD]).hex() == "ffffff"


def test_checkerboard_is_made_of_squares_in_mm() -> None:
    """Against a loop over pixels whose sides differ: 32 x 20 mm, squares of 4 mm."""
    fixed, warped = np.zeros((20, 8)), np.ones((20, 8))
    found = checkerboard(fixed, warped, (32.0, 20.0))
    for row in range(20):
        for column in range(8):
            square = int((row + 0.5) * 1.0 // 4) + int((column + 0.5) * 4.0 // 4)
            assert found[row, column] == square % 2, (row, column)


def test_jacobian_picture_is_logarithmic_and_white_where_space_folds() -> None:
    found = jacobian_picture(np.array([[1.0, 2.0, 0.5], [4.0, 100.0, 0.25], [0.0, -1.0, 1e-6]]))
    half = 63 / 2
    assert found[0] == pytest.approx(np.array([NEUTRAL, NEUTRAL + half, NEUTRAL - half]), abs=0.5)
    assert found[1:].tolist() == [[254, 254, 128], [FOLD, FOLD, 128]]


@pytest.mark.parametrize("across", [0, 1, 2])
def test_pictures_are_upright_whatever_the_array_order(
    make_grid: Callable[..., Grid], world_image: Callable[..., np.ndarray], across: int
) -> None:
    """Rows and columns rise along the world's axes, against world positions of the voxels."""
    grid = make_grid("left-handed", (15, 17, 13), (4.0, 4.1, 4.2))
    world = np.einsum("ij,jabc->iabc", grid.world_from_vox[:3, :3], np.indices(grid.shape, dtype=float))
    view = view_of(world_image(grid), grid, across)
    along, up = (axis for axis in range(3) if axis != across)
    assert (np.diff(view.cut(world[along]), axis=1) > 0).all()
    assert (np.diff(view.cut(world[up]), axis=0) > 0).all()
    assert view.ends == ("PA" if across == 0 else "LR")


def test_best_view_is_the_plane_of_acquisition(make_grid: Callable[..., Grid]) -> None:
    data = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32)
    assert view_of(data, make_grid("LAS", (12, 14, 16), (2.0, 3.0, 2.5))).name == "coronal"
    assert view_of(data, make_grid("oblique-permuted", (12, 14, 16), (1.0, 1.1, 1.0))).name == "axial"
    thick = Volume(data, make_grid("RAS", (12, 14, 16), (1.0, 1.0, 5.0)), Path("image.nii"))
    assert [view.name for view in views(thick, Window(data))] == ["axial"]  # the others would be stripes
    near = Volume(data, make_grid("RAS", (12, 14, 16), (1.0, 1.0, 3.0)), Path("image.nii"))
    assert [view.name for view in views(near, Window(data))] == ["axial", "coronal", "sagittal"]


@pytest.mark.parametrize("across", [0, 1, 2])
def test_radiological_pictures_are_the_others_mirrored(
    make_grid: Callable[..., Grid], world_image: Callable[..., np.ndarray], across: int
) -> None:
    """Images, displacements and Jacobian alike, but for the sagittal plane, in which left and right are not seen."""
    grid = make_grid("left-handed", (15, 17, 13), (4.0, 4.1, 4.2))
    data = world_image(grid)
    volume, window = Volume(data, grid, Path("image.nii")), Window(data)
    usual, mirrored = View(volume, across, window), View(volume, across, window, radiological=True)
    turn = (lambda picture: picture) if across == 0 else np.fliplr
    sign = 1 if across == 0 else -1
    field = np.random.default_rng(0).normal(0, 1, (3, *grid.shape)).astype(np.float32)
    assert (usual.ends, mirrored.ends) == (("PA", "PA") if across == 0 else ("LR", "RL"))
    assert mirrored.cut(data) == pytest.approx(turn(usual.cut(data)), abs=0)
    assert mirrored.cut_moving(volume) == pytest.approx(turn(usual.cut_moving(volume)), abs=1e-4)
    assert mirrored.cut_determinant(field) == pytest.approx(turn(usual.cut_determinant(field)), abs=1e-5)
    (dx, dy), (dx_mirrored, dy_mirrored) = (v.cut_deformation(field, np.eye(4)) for v in (usual, mirrored))
    assert dx_mirrored == pytest.approx(sign * turn(dx), abs=1e-5)
    assert dy_mirrored == pytest.approx(turn(dy), abs=1e-5)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_displacement_in_the_picture_has_the_direction_of_the_world(
    make_grid: Callable[..., Grid], across: int
) -> None:
    """A constant shift, and an affine start that is left out of the lattice."""
    grid = make_grid("LPS", (12, 14, 16), (2.0, 3.0, 2.5))
    view = view_of(np.random.default_rng(0).random(grid.shape), grid, across)
    shift = np.array([5.0, -2.0, 1.5])
    along, up = (axis for axis in range(3) if axis != across)
    total = np.broadcast_to(shift[:, None, None, None], (3, *grid.shape)).astype(np.float32)
    dx, dy = view.cut_deformation(total, np.eye(4))
    assert dx == pytest.approx(np.full(dx.shape, shift[along]), abs=1e-5)
    assert dy == pytest.approx(np.full(dy.shape, shift[up]), abs=1e-5)
    start = np.eye(4)
    start[:3, 3] = 50, 60, 70
    start[:3, :3] = [[0, -1.1, 0], [1.2, 0, 0.1], [0, 0, 1]]
    index = np.indices(grid.shape, dtype=float)
    points = (
        np.einsum("ij,jabc->iabc", grid.world_from_vox[:3, :3], index) + grid.world_from_vox[:3, 3, None, None, None]
    )
    moved = np.einsum("ij,jabc->iabc", start[:3, :3], points + total) + start[:3, 3, None, None, None]
    again = view.cut_deformation((moved - points).astype(np.float32), start)
    assert again[0] == pytest.approx(dx, abs=1e-4)
    assert again[1] == pytest.approx(dy, abs=1e-4)


def test_determinant_of_the_slice_is_that_of_the_volume(make_grid: Callable[..., Grid]) -> None:
    """Against the determinant of the whole map by numpy's gradient and linear algebra."""
    grid = make_grid("left-handed", (9, 11, 10), (2.0, 3.0, 2.5))
    rng = np.random.default_rng(0)
    total = rng.normal(0, 1.5, (3, *grid.shape)).astype(np.float32)
    by_voxel = np.stack([np.stack(np.gradient(c.astype(float))) for c in total])  # (component, axis, X, Y, Z)
    by_world = np.einsum("iaxyz,aj->xyzij", by_voxel, np.linalg.inv(grid.world_from_vox[:3, :3]))
    expected = np.linalg.det(np.eye(3) + by_world)
    for across in range(3):
        view = view_of(rng.random(grid.shape), grid, across)
        assert view.cut_determinant(total) == pytest.approx(view.cut(expected), rel=1e-3, abs=1e-3)


def test_moving_image_is_cut_as_if_the_whole_were_resampled(
    make_grid: Callable[..., Grid], world_image: Callable[..., np.ndarray]
) -> None:
    fixed, other = make_grid("oblique", (15, 17, 13), (4.0, 4.1, 4.2)), make_grid("LPS", (21, 19, 23), (3.0, 3.5, 2.9))
    moving = Volume(world_image(other), other, Path("moving.nii"))
    whole = resample(moving.data, other, fixed, np.eye(4))
    for across in range(3):
        view = view_of(world_image(fixed), fixed, across)
        assert view.cut_moving(moving) == pytest.approx(view.cut(whole), abs=1e-3)


def test_lattice_goes_where_the_displacement_says(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid("RAS", (30, 24, 5), (1.0, 2.0, 2.5))
    view = view_of(np.random.default_rng(0).random(grid.shape), grid, 2)
    x, _ = view.centres_mm()
    still, moved = (lattice(view, np.full(x.shape, dx), np.full(x.shape, dy)) for dx, dy in ((0, 0), (3, -1)))
    assert len(still) == len(moved) > 20
    for line, other in zip(still, moved, strict=True):
        assert other - line == pytest.approx(np.broadcast_to([3.0, -1.0], line.shape))
        assert min(np.ptp(line, axis=0)) == 0.0
        assert {round(v, 6) for v in line[:, 0]} <= {round(v, 6) for v in x[0]}


def test_outlines_run_along_the_edges_of_pixels(make_grid: Callable[..., Grid]) -> None:
    """Every stretch is a border, and their length is that of all borders, counted pixel by pixel."""
    grid = make_grid("RAS", (20, 18, 5), (1.0, 2.0, 2.5))
    view = view_of(np.random.default_rng(0).random(grid.shape), grid, 2)
    columns, rows = 20, 18
    assert view.size_mm == (20.0, 36.0)
    labels = np.zeros((rows, columns), dtype=np.uint8)
    labels[4:9, 3:11], labels[6:14, 8:15], labels[0:2, 18:20] = 3, 200, 7
    padded, length = np.pad(labels, 1).astype(int), 0.0
    for row in range(rows + 1):
        for column in range(columns + 1):
            length += 1.0 * (padded[row, column] != padded[row + 1, column])
            length += 2.0 * (padded[row, column] != padded[row, column + 1])
    found = outlines(view, labels)
    assert sum(np.abs(np.diff(line, axis=0)).sum() for line in found) == pytest.approx(length)
    for line in found:
        (x0, y0), (x1, y1) = line
        middle_x, middle_y = (x0 + x1) / 2 + 1e-6, (y0 + y1) / 2 + 1e-6  # just inside a pixel of the padded picture
        here = padded[int(middle_y // 2) + 1, int(middle_x // 1) + 1]
        there = padded[int((middle_y - 2 * (y0 == y1)) // 2) + 1, int((middle_x - (x0 == x1)) // 1) + 1]
        assert here != there


def test_large_pictures_are_averaged_and_keep_their_folds(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid("RAS", (LARGEST + 61, 9, 8), (1.0, 1.0, 1.0))
    data = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    view = view_of(data, grid, 2)
    assert view.block == 2
    assert view.cut(data).shape[1] == LARGEST + 60
    assert view.size_mm == (LARGEST + 60.0, 8.0)
    picture = np.tile(np.array([[10, 20], [30, 40]], dtype=np.uint8), (2, 3))
    picture[2, 1] = FOLD
    assert _shrink(picture, 2).tolist() == [[25, 25, 25], [FOLD, 25, 25]]
    flat = view_of(np.zeros((7 * LARGEST, 9, 5)), make_grid("RAS", (7 * LARGEST, 9, 5), (1.0, 1.0, 1.0)), 1)
    assert (flat.block, flat.size_mm) == (5, (7.0 * LARGEST, 5.0)), "something is left of the shorter side"


def test_panels_show_what_their_files_hold(sidecars: dict[str, Path]) -> None:
    """Fixed and warped intensities against nibabel, scaled here; differences against both."""
    registration = Registration(sidecars["labelled"])
    shown = {panel.key: panel for panel in panels(registration, one_plane=True)}
    assert list(shown) == ["fixed", "moving", "warped", "checkerboard", "before", "after", "grid", "jacobian", "labels"]
    view, scaled = shown["fixed"].planes[0].view, {}
    inputs = {role: registration.file(role) for role in ("fixed", "moving")}
    moving = np.asarray(nib.load(inputs["moving"]).dataobj)
    for role, path, whole in (
        ("fixed", inputs["fixed"], None),
        ("warped", sidecars["labelled"].parent / registration.record.outputs["warped"], moving),
    ):
        image = nib.load(path)
        upright = np.asarray(nib.as_closest_canonical(image).dataobj)
        low, high = np.percentile(upright if whole is None else whole, (0.5, 99.5))
        index = view._index  # the slice itself is chosen by contrast
        scaled[role] = np.clip((upright[:, :, index].T[view._box] - low) / (high - low), 0, 1)
        assert view.name == "axial"
        found = shown[role].planes[0].image
        assert found is not None
        assert found / 127 == pytest.approx(scaled[role], abs=0.5 / 127 + 1e-5)
    after = shown["after"].planes[0].image
    assert after is not None
    assert (after.astype(float) - NEUTRAL) / 63 == pytest.approx(
        scaled["warped"] - scaled["fixed"], abs=0.5 / 63 + 1e-5
    )
    numbers = json.loads(sidecars["labelled"].read_text())["metrics"]
    assert shown["after"].note == f"NCC {numbers['ncc_after']:.3f}"
    assert shown["labels"].note == f"Dice {numbers['dice_before']:.3f} → {numbers['dice_after']:.3f}"


def test_many_labels_the_largest_are_outlined(sidecars: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = [np.array([[0, 5, 5], [7, 7, 7]]), np.array([[5, 5, 9]])]
    assert largest_labels(cuts) == [5, 7, 9]
    monkeypatch.setattr("ofg_deploy.report.panels.OUTLINED", 1)
    registration = Registration(sidecars["labelled"])
    [panel] = [panel for panel in panels(registration) if panel.key == "labels"]
    labels = np.asarray(nib.load(registration.file("fixed_labels")).dataobj)
    cuts = [plane.view.cut(labels) for plane in panel.planes]
    largest, *others = largest_labels(cuts)
    assert others
    assert panel.note.endswith(f", the largest 1 of {1 + len(others)} labels outlined")
    for plane, cut in zip(panel.planes, cuts, strict=True):
        wanted = outlines(plane.view, np.where(cut == largest, cut, 0))
        assert np.ravel(plane.curves[0].lines) == pytest.approx(np.ravel(wanted))


def test_folded_voxels_are_white(sidecars: dict[str, Path]) -> None:
    def white(name: str) -> float:
        [jacobian] = [p for p in panels(Registration(sidecars[name])) if p.key == "jacobian"]
        return float(np.mean(np.concatenate([(plane.image == FOLD).ravel() for plane in jacobian.planes])))

    folding = json.loads(sidecars["folding"].read_text())["metrics"]["folding_percent"]
    assert white("folding") == pytest.approx(folding / 100, abs=0.1)
    assert folding > 5
    assert white("labelled") == 0.0


def test_figure_has_a_row_for_each_registration_and_is_not_blank(sidecars: dict[str, Path]) -> None:
    one = pixels(pair_figure(Registration(sidecars["labelled"])))
    two = pixels(pair_figure(Registration(sidecars["labelled"]), Registration(sidecars["folding"], "$a")))
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] > 1.5 * one.shape[0]
    assert all(panel.std() > 0.02 for panel in np.array_split(one, 9, axis=1))
    without = pixels(pair_figure(Registration(sidecars["plain"])))
    assert without.shape[1] == pytest.approx(one.shape[1] * 8 / 9, abs=2)


def test_numbers_are_those_of_the_sidecar(sidecars: dict[str, Path]) -> None:
    record = json.loads(sidecars["labelled"].read_text())
    numbers = Registration(sidecars["labelled"]).numbers
    metrics = record["metrics"]
    assert numbers["hd95_mm"] == metrics["hd95_mm"]
    assert numbers["dice_gain"] == pytest.approx(metrics["dice_after"] - metrics["dice_before"], abs=1e-12)
    assert numbers["ncc_gain"] == pytest.approx(metrics["ncc_after"] - metrics["ncc_before"], abs=1e-12)
    assert numbers["seconds"] == pytest.approx(sum(record["seconds"].values()))
    assert numbers["inverse_p99_mm"] == record["inverse"]["consistency_mm"]["p99"]
    assert "inverse_p99_mm" not in Registration(sidecars["plain"]).numbers


def test_page_is_well_formed_and_asks_nothing_of_others(sidecars: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    found = [Registration(sidecars[name], method) for name, method in (("labelled", "A & B"), ("folding", "<b>bold"))]
    write(Report(path, None, "A <title>", ["An </p> intro."]), found)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.named("script")) == 1
    for shown in ("A <title>", "An </p> intro.", NASTY, "A & B", "<b>bold"):
        assert shown in page.text
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in page.links if link.startswith("#")} <= anchors
    pictures = [link for link in page.links if link.startswith("data:")]
    assert len(pictures) == 2 + 2 * 7 * 3  # thumbnails; seven panels of images in three planes for each
    assert all(pixels(base64.b64decode(link.split(",", 1)[1], validate=True)).size for link in pictures)
    assert len(page.named("fieldset")) == 2
    choices = [a for a in page.named("input") if a.get("type") == "radio"]
    assert [a["value"] for a in choices] == ["moving", "fixed", "warped", "before", "after"] * 2
    numbers = json.loads(sidecars["folding"].read_text())["metrics"]
    assert f"{numbers['dice_after']:.3f}" in page.text
    assert f"{numbers['folding_percent']:.3f}" in page.text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_one_pair_has_neither_table_nor_distribution(sidecars: dict[str, Path], tmp_path: Path) -> None:
    write(Report(tmp_path / "report.html"), [Registration(sidecars["plain"])])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [a.get("class") for a in page.named("table")] == [None, "numbers"]
    assert len(page.named("section")) == 1


def test_an_image_that_changed_is_not_shown(sidecars: dict[str, Path]) -> None:
    record = json.loads(sidecars["plain"].read_text())
    record["inputs"]["moving"]["sha256"] = "0" * 64
    forged = sidecars["plain"].with_name("forged.json")
    forged.write_text(json.dumps(record))
    with pytest.raises(InputError, match="has changed since"):
        pair_figure(Registration(forged))


def test_outputs_are_looked_for_beside_their_sidecar_alone(sidecars: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads(sidecars["plain"].read_text())
    record["outputs"]["warped"] = str(sidecars["plain"].parent / record["outputs"]["warped"])
    (tmp_path / "moved.json").write_text(json.dumps(record))
    found = Registration(tmp_path / "moved.json").file("warped")
    assert found.parent == tmp_path
    with pytest.raises(InputError, match="does not exist"):
        load_image(found)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tool": "ofg_deploy", "schema": 99}', "[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sidecar.json"
    path.write_text(content)
    with pytest.raises(InputError, match="sidecar"):
        pair_figure(Registration(path))
