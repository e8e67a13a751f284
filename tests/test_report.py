"""The HTML page and its figures, made from what a registration wrote and from nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from ofg_deploy.errors import InputError
from ofg_deploy.geometry import Grid
from ofg_deploy.nifti import Volume
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.job import Job
from ofg_deploy.serve.register import register
from ofg_deploy.serve.report import Registration, _View, mean_cells, pair_figure, write_report

VOID = {"meta", "img", "br", "hr"}
NASTY = "<script>alert(1)<&>"  # '"' and "'" besides would be as good, but not on every file system


class Page(HTMLParser):
    """Fails on a tag closed out of order; remembers tags, text and what is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


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
    for name, field, extra in (("plain", gentle, {}), ("labelled", gentle, labels), ("folding", rough, labels)):
        engine = open_engine(tiny_model(field=field).path, "cpu")  # type: ignore[attr-defined]
        job = Job(files["a"], files[NASTY], folder / name, **extra)
        found[name] = register(job, engine).outputs["sidecar"]
    return found


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")[:, :, :3]


def test_figure_has_a_row_for_each_registration_and_is_not_blank(sidecars: dict[str, Path]) -> None:
    one = pixels(pair_figure(Registration(sidecars["labelled"])))
    two = pixels(pair_figure(Registration(sidecars["labelled"]), Registration(sidecars["folding"])))
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] > 1.5 * one.shape[0]
    panels = np.array_split(one, 8, axis=1)
    assert all(panel.std() > 0.02 for panel in panels)


def test_figure_without_labels_has_a_panel_less(sidecars: dict[str, Path]) -> None:
    plain, labelled = (pixels(pair_figure(Registration(sidecars[name]))) for name in ("plain", "labelled"))
    assert plain.shape[1] == pytest.approx(labelled.shape[1] * 7 / 8, abs=2)


def test_folded_voxels_are_white(sidecars: dict[str, Path]) -> None:
    def white(name: str) -> float:
        jacobian = np.array_split(pixels(pair_figure(Registration(sidecars[name]))), 8, axis=1)[6]
        return float((jacobian[len(jacobian) // 4 : -len(jacobian) // 4] > 0.97).all(axis=2).mean())

    assert white("folding") > 0.05
    assert white("labelled") == 0.0


def test_pictures_are_upright_whatever_the_array_order(
    make_grid: Callable[..., Grid], world_image: Callable[..., np.ndarray]
) -> None:
    """Rows go from posterior to anterior and columns from left to right, against a loop over world positions."""
    grid = make_grid("left-handed", (15, 17, 13), (4.0, 4.1, 4.2))
    x, y, _ = np.einsum("ij,jabc->iabc", grid.world_from_vox[:3, :3], np.indices(grid.shape, dtype=float))
    view = _View(Volume(world_image(grid), grid, Path("image.nii")))
    for world, picture_axis in ((x, 1), (y, 0)):
        assert (np.diff(view.cut(world), axis=picture_axis) > 0).all()
    assert view.ends == "LR"


def test_displacement_in_the_picture_has_the_direction_of_the_world(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid("LAS", (12, 14, 16), (2.0, 3.0, 2.5))
    view = _View(Volume(np.random.default_rng(0).random(grid.shape), grid, Path("image.nii")))
    assert view.ends == "LR"
    total = np.zeros((3, *grid.shape), dtype=np.float32)
    total[0], total[1], total[2] = 5.0, -2.0, 1.5
    across, up, determinant = view.cut_field(total)
    shown = (5.0, 1.5)  # coronal: 3 mm voxels lie along the second axis
    assert across == pytest.approx(np.full(across.shape, shown[0]), abs=1e-5)
    assert up == pytest.approx(np.full(up.shape, shown[1]), abs=1e-5)
    assert determinant == pytest.approx(np.ones(across.shape), abs=1e-5)


def test_report_is_one_well_formed_page_without_outside_references(sidecars: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    found = [Registration(sidecars[name], method) for name, method in (("labelled", "A & B"), ("folding", "<b>bold"))]
    write_report(path, "A <title>", ["An </p> intro."], found)
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    for shown in ("A <title>", "An </p> intro.", NASTY, "A & B", "<b>bold"):
        assert shown in page.text
    assert page.tags.count("img") == 1  # one pair, two methods
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", text)
    for link in page.links:
        assert pixels(base64.b64decode(link.split(",", 1)[1], validate=True)).std() > 0.02
    numbers = json.loads(sidecars["folding"].read_text())["metrics"]
    assert f"{numbers['dice_after']:.3f}" in page.text
    assert f"{numbers['folding_percent']:.3f}" in page.text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_means_leave_out_what_a_registration_does_not_have(sidecars: dict[str, Path]) -> None:
    plain, labelled = Registration(sidecars["plain"]), Registration(sidecars["labelled"])
    assert mean_cells([plain])[0] == "-"
    assert mean_cells([plain, labelled])[0] == f"{labelled.numbers['dice_before']:.3f}"


def test_existing_report_is_kept_unless_asked(sidecars: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_report(path, "t", [], [Registration(sidecars["plain"])])
    assert path.read_text() == "mine"
    write_report(path, "t", [], [Registration(sidecars["plain"])], overwrite=True)
    assert "mine" not in path.read_text(encoding="utf-8")


def test_inputs_changed_since_are_refused(sidecars: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads(sidecars["plain"].read_text())
    record["inputs"]["moving"]["sha256"] = "0" * 64
    forged = sidecars["plain"].with_name("forged.json")
    forged.write_text(json.dumps(record))
    with pytest.raises(InputError, match="has changed since"):
        write_report(tmp_path / "report.html", "t", [], [Registration(forged)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tool": "ofg_deploy", "schema": 99}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sidecar.json"
    path.write_text(content)
    with pytest.raises(InputError, match="sidecar"):
        pair_figure(Registration(path))
