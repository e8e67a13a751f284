"""What ``ofg view`` serves: images that lie where they belong, to nobody but its own page."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from report_pairs import run_ofg
from scipy.ndimage import map_coordinates
from viewed_pair import LABELS, Known, write_known

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Grid
from ofg_deploy.report.registration import Registration
from ofg_deploy.web import assets, scene
from ofg_deploy.web.described import described
from ofg_deploy.web.found import registration_in
from ofg_deploy.web.scene import Scene
from ofg_deploy.web.server import ViewServer


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return write_known(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="module")
def shown(known: Known) -> Scene:
    return Scene(Registration(known.sidecar))


@pytest.fixture
def static(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "view.html").write_text("<!doctype html><title>page</title>")
    (folder / "assets" / "view.js").write_text("1")
    (folder / "assets" / "notes.txt").write_text("not part of a page")
    monkeypatch.setattr(assets, "STATIC", folder)
    return folder


@pytest.fixture
def server(shown, static):
    opened = ViewServer(shown)
    opened.start()
    yield opened
    opened.close()


def volume(shown: Scene, role: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(shown.volume(role))


def world(image: nib.Nifti1Image) -> np.ndarray:
    index = np.indices(image.shape, dtype=float).reshape(3, -1)
    return image.affine[:3, :3] @ index + image.affine[:3, 3:]


@pytest.mark.parametrize("role", ["fixed", "warped"])
def test_images_on_the_fixed_grid_are_turned_to_ras_and_not_moved(known, shown, role):
    image = volume(shown, role)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert sorted(image.shape) == sorted(known.fixed.shape)
    from_world = np.linalg.inv(known.fixed_affine)
    index = from_world[:3, :3] @ world(image) + from_world[:3, 3:]
    np.testing.assert_allclose(index, np.round(index), atol=1e-4)  # its voxels are those of the file
    expected = getattr(known, role)[tuple(np.round(index).astype(int))]
    np.testing.assert_array_equal(image.get_fdata().ravel(), expected)


def test_the_moving_image_is_shown_where_its_header_puts_it(known, shown, to_sitk, sitk_resample):
    image = volume(shown, "moving")
    on = Grid(image.shape, image.affine.astype(float))
    moving = to_sitk(known.moving, Grid(known.moving.shape, known.moving_affine))
    reference = to_sitk(np.zeros(image.shape, np.float32), on)
    expected = sitk_resample(moving, reference, sitk.Transform(3, sitk.sitkIdentity), fill=-1.0)
    inside = expected != -1.0
    assert 0.2 < inside.mean() < 0.95
    np.testing.assert_allclose(image.get_fdata()[inside], expected[inside], atol=0.05)


def test_the_jacobian_is_that_of_the_total_map(known, shown):
    np.testing.assert_allclose(volume(shown, "jacobian").get_fdata(), np.linalg.det(known.total[:3, :3]), rtol=1e-4)


def test_the_deformation_is_without_the_start_and_along_the_axes_of_the_grid(known, shown):
    image = volume(shown, "fixed")
    found = np.frombuffer(shown.volume("deformation"), "<f4").reshape(3, *image.shape)
    points = np.vstack([world(image), np.ones(image.shape).reshape(1, -1)])
    away = (np.linalg.inv(known.start) @ known.total @ points - points)[:3]
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose(found.reshape(3, -1), axes.T @ away, atol=1e-3)


def test_labels_are_numbered_alike_in_both_maps(known, shown):
    image = volume(shown, "fixed_labels")
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_intent()[0] == "label"
    assert shown.label_values == list(LABELS)
    from_world = np.linalg.inv(known.fixed_affine)
    index = np.round(from_world[:3, :3] @ world(image) + from_world[:3, 3:]).astype(int)
    values = np.array([0, *LABELS])[np.asarray(image.dataobj).ravel()]
    np.testing.assert_array_equal(values, known.labels[tuple(index)])


def test_large_images_are_thinned_and_stay_in_place(known, monkeypatch):
    monkeypatch.setattr(scene, "MOST_VOXELS", 400)
    monkeypatch.setattr(scene, "MOST_OF_FIELD", 60)
    thin = Scene(Registration(known.sidecar))
    image = volume(thin, "fixed")
    assert np.prod(image.shape) < 0.2 * known.fixed.size
    index = np.linalg.inv(known.fixed_affine)[:3, :3] @ world(image) + np.linalg.inv(known.fixed_affine)[:3, 3:]
    np.testing.assert_allclose(
        image.get_fdata().ravel(), map_coordinates(known.fixed, index.round(3), order=0), rtol=1e-6
    )
    assert any("every voxel number 2 along each axis" in note for note in thin.notes)
    about = described(thin)
    assert np.prod(about["deformation"]["shape"]) * 12 == len(thin.volume("deformation"))
    assert np.prod(about["deformation"]["shape"]) < np.prod(image.shape)


def test_the_description_has_measures_by_stage_files_and_what_the_registration_warned_of(shown):
    about = json.loads(json.dumps(described(shown)))
    measures = {measure["title"]: measure for measure in about["measures"]}
    assert measures["NCC"]["shown"] == ["0.410", "0.620", "0.930"]
    assert measures["Dice"]["shown"] == ["0.500", "", "0.800"]
    assert (measures["folding (%)"]["shown"], measures["folding (%)"]["verdict"]) == (["2.500"], "warn")
    assert about["status"] == "warn"
    assert about["per_label"]["rows"] == [["3", "0.800"], ["7", "0.750"], ["2035", "0.850"]]
    assert about["reasons"] == ["warn: folding_percent 2.5 is above 1", "warn: the <b>moving</b> image has no units"]
    assert {entry["role"] for entry in about["files"]} == {"warped", "warped_labels", "transform", "sidecar"}
    assert not any(".." in entry["address"] or entry["address"].startswith("/") for entry in about["files"])
    window = next(image["window"] for image in about["images"] if image["role"] == "warped")
    assert window == next(image["window"] for image in about["images"] if image["role"] == "moving")


def get(server: ViewServer, path: str, host: str | None = None, method: str = "GET") -> http.client.HTTPResponse:
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    line.putrequest(method, path, skip_host=True)
    line.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    line.endheaders()
    answer = line.getresponse()
    answer.content = answer.read()
    line.close()
    return answer


def test_the_page_its_files_and_downloads_are_served_with_strict_headers(known, server):
    page = get(server, f"/{server.token}/")
    assert (page.status, page.content) == (200, b"<!doctype html><title>page</title>")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"  # the token stays here
    assert "Access-Control-Allow-Origin" not in page.headers
    assert get(server, f"/{server.token}/assets/view.js").content == b"1"
    about = json.loads(get(server, f"/{server.token}/registration.json").content)
    for image in about["images"]:
        assert get(server, f"/{server.token}/{image['address']}").content == server.scene.volume(image["role"])
    for entry in about["files"]:
        answer = get(server, f"/{server.token}/{entry['address']}")
        assert answer.content == (known.sidecar.parent / entry["name"]).read_bytes()
        assert answer.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''pair")
    head = get(server, f"/{server.token}/files/warped", method="HEAD")
    assert (head.status, head.content) == (200, b"")


@pytest.mark.parametrize(
    "name",
    [
        "../view.html",
        "%2e%2e/%2e%2e/etc/passwd",
        "assets/../../pair.json",
        "files/fixed",  # inputs are not handed out
        "files/..%2fpair.json",
        "files/",
        "volumes/affine",
        "assets/notes.txt",
        "pair.json",
        "/etc/passwd",
    ],
)
def test_nothing_else_is_served(server, name):
    assert get(server, f"/{server.token}/{name}").status == 404


def test_without_the_token_the_right_host_or_a_reading_method_nothing_is_served(server):
    assert get(server, "/registration.json").status == 404
    assert get(server, f"/{server.token[:-1]}/registration.json").status == 404
    assert get(server, "/%C3%A9%ff/").status == 404
    path = f"/{server.token}/registration.json"
    assert get(server, path, host="evil.example").status == 403
    assert get(server, path, host=f"evil.example:{server.server_port}").status == 403
    assert get(server, path, host=f"localhost:{server.server_port}").status == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(server, path, method=method).status == 405
    assert server.server_address[0] == "127.0.0.1"


def test_a_damaged_image_is_a_sentence(tmp_path, static):
    known = write_known(tmp_path / "out")
    shown = Scene(Registration(known.sidecar))
    (known.sidecar.parent / "pair_Warp.nii.gz").write_bytes(b"nothing")
    server = ViewServer(shown)
    server.start()
    answer = get(server, f"/{server.token}/volumes/jacobian")
    server.close()
    assert answer.status == 422
    assert re.fullmatch(r"[^\n]*pair_Warp\.nii\.gz[^\n]*\n", answer.content.decode())


def test_an_input_that_changed_is_left_out_and_an_output_that_changed_is_refused(tmp_path):
    known = write_known(tmp_path)
    nib.save(nib.Nifti1Image(known.moving + 1, known.moving_affine), tmp_path / "pair_moving.nii.gz")
    (tmp_path / "pair_fixed_labels.nii.gz").unlink()
    partly = Scene(Registration(known.sidecar))
    assert [image["role"] for image in described(partly)["images"]] == ["fixed", "warped", "jacobian", "warped_labels"]
    assert any("pair_moving.nii.gz has changed since" in note for note in partly.notes)
    nib.save(nib.Nifti1Image(known.warped + 1, known.fixed_affine), tmp_path / "pair_warped.nii.gz")
    with pytest.raises(InputError, match=r"pair_warped\.nii\.gz has changed since"):
        Scene(Registration(known.sidecar))
    (tmp_path / "pair_warped.nii.gz").unlink()
    with pytest.raises(InputError, match=r"pair_warped\.nii\.gz, the warped of pair\.json, is missing"):
        Scene(Registration(known.sidecar))


def test_one_registration_of_a_folder_is_chosen_by_name(tmp_path):
    write_known(tmp_path, "first")
    assert registration_in(tmp_path).name == "first"
    write_known(tmp_path, "second")
    with pytest.raises(UsageError, match=r"holds 2 registrations: choose one with pair: first, second"):
        registration_in(tmp_path)
    assert registration_in(tmp_path, "second").name == "second"
    assert registration_in(tmp_path / "second.json").name == "second"
    with pytest.raises(UsageError, match="holds no such registration, but first, second"):
        registration_in(tmp_path, "third")
    for wrong, said in ((tmp_path / "none", "does not exist"), (tmp_path / "first_Warp.nii.gz", "not a sidecar")):
        with pytest.raises(InputError, match=said):
            registration_in(wrong)


def test_without_the_built_page_one_line_says_how_to_build_it(known, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(assets, "STATIC", tmp_path / "none")
    done = run_ofg(monkeypatch, capsys, "view", known.sidecar, "--no-browser")
    assert done.returncode == 5
    assert re.fullmatch(r"ofg: error: [^\n]*make web[^\n]*\n", done.stderr)


def test_it_prints_its_address_and_ends_with_ctrl_c(known, static):
    code = (
        "import sys; from pathlib import Path; from ofg_deploy.web import assets;"
        "assets.STATIC = Path(sys.argv.pop(1)); from ofg_deploy.cli import main; main()"
    )
    line = [sys.executable, "-c", code, str(static), "view", str(known.sidecar.parent), "--no-browser"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as ofg:
        said = ofg.stdout.readline()
        address = re.fullmatch(r"pair: (http://127\.0\.0\.1:\d+/[\w-]{32}/) \(Ctrl-C ends\)\n", said)[1]
        there = urlsplit(address)
        with closing(http.client.HTTPConnection(there.hostname, there.port, timeout=10)) as line:
            line.request("GET", there.path)
            assert line.getresponse().read().startswith(b"<!doctype html>")
        ofg.send_signal(signal.SIGINT)
        out, errors = ofg.communicate(timeout=20)
    assert (ofg.returncode, out, errors) == (0, "", "")
