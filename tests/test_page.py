"""The pages of ``ofg serve`` and ``ofg view`` in a real browser: a pair is registered through the page and seen."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from browser import built, chromium, luminance, matches, open_page  # noqa: F401 - fixtures
from viewed_pair import RAS_AXES, START, write_known

from ofg_deploy.report.registration import Registration
from ofg_deploy.web.example import example
from ofg_deploy.web.scene import Scene
from ofg_deploy.web.server import ViewServer

pytestmark = pytest.mark.usefixtures("built")
COMPILING_MS = 400_000  # the first registration of a checkout compiles the kernels


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address and service."""
    pytest.importorskip("fastapi", reason="the service needs pip install ofg-deploy[serve]")
    from service_running import Slow, serving

    from ofg_deploy.serve.model import load_model
    from ofg_deploy.service.limits import Limits

    slow = Slow()
    models = {"none": load_model("none"), "slow": slow}
    with serving(tmp_path_factory.mktemp("service") / "data", models, Limits(queue=3)) as here:
        yield here
        slow.may_go_on.set()


def values(page) -> tuple[np.ndarray, dict[str, float]]:
    """Where the crosshair is (RAS mm), and the value of every image there."""
    line = page.locator(".values:has-text('mm (RAS)')")
    line.wait_for()
    place, *told = line.inner_text().split(" · ")
    world = np.array([float(part) for part in place.removesuffix(" mm (RAS)").split(", ")])
    return world, {name: float(value) for name, value in (each.rsplit(" ", 1) for each in told)}


def at(image: nib.Nifti1Image, world_mm: np.ndarray) -> float:
    index = np.linalg.inv(image.affine) @ [*world_mm, 1]
    return float(np.asarray(image.dataobj)[tuple(np.round(index[:3]).astype(int))])


def test_a_pair_is_registered_through_the_page_and_seen(served, open_page, tmp_path):  # noqa: F811
    address, service = served
    page = open_page(address)
    page.get_by_role("button", name="Use the example").click()
    page.get_by_text("example_moving.nii").wait_for()
    page.get_by_label("Quality").select_option("fast")
    page.get_by_role("button", name="Register").click()
    page.get_by_role("progressbar", name="Progress of the registration").wait_for()
    page.get_by_role("img", name="Warped: slices through").wait_for(timeout=COMPILING_MS)

    world, shown = values(page)
    fixed, moving = (nib.Nifti1Image.from_bytes(example(role)) for role in ("fixed", "moving"))
    assert shown["fixed"] == at(fixed, world)
    assert shown["moving"] == at(moving, world)  # the same grid by its header
    ncc = page.locator("tr", has_text="NCC").locator("td").all_inner_texts()
    assert float(ncc[0]) < 0.96
    assert float(ncc[2]) > 0.99
    with page.expect_download() as loading:
        page.get_by_role("link", name="moving_to_fixed_warped.nii.gz").click()
    loading.value.save_as(tmp_path / "warped.nii.gz")
    assert shown["warped"] == pytest.approx(at(nib.load(tmp_path / "warped.nii.gz"), world), rel=1e-3)
    matches(page.locator(".panes").screenshot(), "side_by_side_1280")

    image = page.get_by_role("img", name="Fixed: slices through")
    for key, axis, step in (("ArrowRight", 0, 1), ("ArrowUp", 1, 1), ("PageDown", 2, -1)):
        image.press(key)
        moved, shown = values(page)
        assert (moved - world).tolist() == [4.0 * step * (each == axis) for each in range(3)]
        assert shown["fixed"] == at(fixed, moved)
        world = moved
    matched = [panel.get_attribute("aria-label") for panel in page.get_by_role("img").all()]
    assert len(matched) == 3
    assert all(", ".join(f"{mm:.1f}" for mm in world) in label for label in matched)  # all show the same place

    page.set_viewport_size({"width": 820, "height": 680})
    page.emulate_media(color_scheme="dark")
    page.get_by_label("Jacobian determinant").check()
    page.get_by_label("Deformation grid").check()
    page.locator(".values:has-text('Jacobian')").wait_for()
    matches(page.locator(".panes").screenshot(), "overlays_820")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 820
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert luminance(background) < 0.15

    page.get_by_label("Deformation grid").uncheck()
    page.get_by_label("Jacobian determinant").uncheck()
    image.press("c")
    page.get_by_label("Moving", exact=True).check()
    assert page.get_by_label("Checkerboard").is_checked()
    matches(page.locator(".panes").screenshot(), "checkerboard_820")

    assert service.store.count("done") == 1
    page.get_by_role("button", name="Delete this result").click()
    page.get_by_text("Deleted from the server.").wait_for()
    assert service.store.count("done") == 0


def test_what_goes_wrong_is_said_in_a_sentence(served, open_page, tmp_path):  # noqa: F811
    address, service = served
    page = open_page(address, width=820)
    alert = page.get_by_role("alert")
    register = page.get_by_role("button", name="Register")
    register.click()
    assert "fixed and the moving scan is missing" in alert.inner_text()

    broken = tmp_path / "broken.nii"
    broken.write_text("no image at all\n" * 40)
    page.get_by_role("button", name="Use the example").click()
    page.get_by_text("example_moving.nii").wait_for()
    page.locator("[data-part=moving]").set_input_files(broken)
    page.get_by_text("broken.nii").wait_for()
    register.click()
    page.locator("[role=alert]:has-text('NIfTI')").wait_for()
    assert re.fullmatch(r"moving\.nii cannot be read as NIfTI .*\.", alert.inner_text())

    page.get_by_role("button", name="Use the example").click()
    page.get_by_text("example_moving.nii").wait_for()
    service.uploading = 3
    register.click()
    page.get_by_text("The queue of the service is full.").wait_for()
    assert "try again in" in alert.inner_text()
    service.uploading = 0

    page.route("**/v1/registrations/*", lambda route: route.abort())
    page.locator("select[name=model]").select_option("slow")
    register.click()
    page.get_by_text("The registration goes on once the server is back").wait_for()
    page.unroute("**/v1/registrations/*")
    problem = page.locator("[role=alert]")
    problem.wait_for(state="hidden")  # it goes on by itself
    page.reload()  # the address names the registration
    page.get_by_text("Registering: steps on the pair").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Deleted from the server.").wait_for()
    assert service.store.count("queued") == 0
    page.goto("about:blank")
    page.expected[:] = [line for line in page.expected if "Failed to load resource" not in line]


def test_ofg_view_shows_what_lies_on_oblique_grids(tmp_path, open_page):  # noqa: F811
    shift_mm = np.array([3.0, -2.0, 1.5])  # along the axes of the grid, R, A and S
    shift = np.eye(4)
    shift[:3, 3] = RAS_AXES @ shift_mm
    known = write_known(tmp_path, total=START @ shift)
    server = ViewServer(Scene(Registration(known.sidecar)))
    server.start()
    page = open_page(server.address, motion="no-preference")

    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "PageUp"):
        page.get_by_role("img", name="Warped: slices through").press(key)
    page.get_by_label("Labels", exact=True).check()
    page.get_by_label("Jacobian determinant").check()
    page.locator(".values:has-text('Jacobian')").wait_for()
    world, shown = values(page)
    for role in ("fixed", "warped"):
        image = nib.Nifti1Image(getattr(known, role), known.fixed_affine)
        assert shown[role] == pytest.approx(at(image, world), rel=1e-3)
    assert shown["Jacobian"] == pytest.approx(np.linalg.det(START[:3, :3]), rel=1e-3)
    label = at(nib.Nifti1Image(known.labels, known.fixed_affine), world)
    assert shown.get("fixed label", 0) == label
    assert page.locator(".warnings li").last.inner_text() == "warn: the <b>moving</b> image has no units"

    page.get_by_label("Axial").check()
    page.get_by_label("Deformation grid").check()
    while not np.any(inked := np.array(page.evaluate(INKED))):
        page.wait_for_timeout(100)
    columns, rows = (peaks(inked.sum(axis=axis)) for axis in (0, 1))
    right, bottom = (np.flatnonzero(inked.any(axis=axis)).max() + 1 for axis in (0, 1))
    # 9 columns 3.5 mm apart, the last beyond the edge at 31.5 mm, and 13 rows 2 mm apart, the first below the edge.
    scale = np.diff(columns).mean() / 3.5
    np.testing.assert_allclose((right - columns) / scale, 31.5 - (1.75 + 3.0 + 3.5 * np.arange(8)), atol=0.2)
    np.testing.assert_allclose((bottom - rows[::-1]) / scale, 1.0 - 2.0 + 2.0 * np.arange(1, 13), atol=0.2)

    upper = page.locator(".upper .stage")
    page.get_by_label("Flicker").check()
    seen = {upper.is_visible()}
    for _ in range(100):
        page.wait_for_timeout(50)
        seen.add(upper.is_visible())
        if len(seen) == 2:
            break
    assert seen == {True, False}
    page.get_by_label("Blend").check()
    page.get_by_label("Opacity of the upper image").fill("25")
    assert float(upper.evaluate("stage => getComputedStyle(stage).opacity")) == 0.25

    page.get_by_label("Deformation grid").uncheck()
    server.close()
    page.get_by_label("Deformation grid").check()
    page.get_by_text("The server does not answer.").wait_for()
    page.expected[:] = [line for line in page.expected if "Failed to load resource" not in line]


# Which pixels of the lines are drawn, as rows of 0 and 1.
INKED = """() => {
  const canvas = document.querySelector(".pane[data-role=warped] .lines");
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const drawn = (x, y) => +(data[4 * (y * width + x) + 3] > 60);
  return Array.from({ length: height }, (_, y) => Array.from({ length: width }, (_, x) => drawn(x, y)));
}"""


def peaks(ink: np.ndarray) -> np.ndarray:
    """Centres of the stretches in which more than half of the longest line is drawn."""
    drawn = np.flatnonzero(ink > 0.5 * ink.max())
    return np.array([part.mean() for part in np.split(drawn, np.flatnonzero(np.diff(drawn) > 1) + 1)])
