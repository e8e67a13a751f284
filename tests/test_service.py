"""``ofg serve``: a pair sent over HTTP gives the files of ``ofg register``, and errors its sentences."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
import requests
from service_running import Slow, download, ended, send, serving, unpacked, wait_until

from ofg_deploy.serve.model import load_model
from ofg_deploy.service.limits import Limits


@pytest.fixture
def pair(tmp_path, files) -> tuple[Path, Path]:
    """The images under the names that the service gives them."""
    folder = tmp_path / "sent"
    folder.mkdir()
    return tuple(path.rename(folder / f"{name}.nii.gz") for path, name in zip(files, ("fixed", "moving"), strict=False))


@pytest.fixture
def labelled(pair, files, world_labels, write_nifti) -> dict[str, Path]:
    fixed, moving = files[2:]
    made = {"labels": moving, "fixed_labels": fixed, "fixed_mask": fixed}
    return {
        name: write_nifti(pair[0].with_name(f"{name}.nii.gz"), world_labels(grid), grid.world_from_vox)
        for name, grid in made.items()
    }


def parts(named: dict[str, Path]) -> list[Any]:
    return [(name, (path.name, path.read_bytes())) for name, path in named.items()]


CASES = {
    "model": ({"refine": 2, "format": "fsl", "inverse": True, "fill": -3},
              "--refine 2 --format fsl --inverse --fill -3"),
    "none": ({"quality": "fast", "init": "centre", "similarity": "mind"},
             "--quality fast --init centre --similarity mind"),
    "auto": ({"refine": 0, "init": "rigid", "format": "ants", "label_interpolation": "genericlabel"},
             "--refine 0 --init rigid --format ants --label-interpolation genericlabel"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_files_are_bit_for_bit_those_of_the_command(tmp_path, pair, labelled, tiny_model, run_cli, case) -> None:
    model = str(tiny_model().path) if case == "model" else case
    options, flags = CASES[case]
    if case != "auto":
        del labelled["fixed_mask"]
    there = tmp_path / "command"
    also = [word for name, path in labelled.items() for word in (f"--{name.replace('_', '-')}", path)]
    also = ["--moving-labels" if word == "--labels" else word for word in also]
    if case == "model":
        also += ["--device", "cpu"]
    code, _, err = run_cli(["register", *pair, "-m", model, "-o", there, *also, *flags.split()])
    assert code == 0, err
    with serving(tmp_path / "data", {"it": load_model(model, device="cpu")}, workers=2) as (address, service):
        answer = send(address, *pair, parts(labelled), report=True, **options)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v1/registrations/{answer.json()['id']}"
        job = ended(address, answer.json()["id"])
        assert job["state"] == "done", job
        got = download(address, job, tmp_path / "got")
        assert [path.name for path in service.workers.home(job["id"]).iterdir()] == ["results"]  # what was sent is gone
    report = got.pop("report")
    sidecar = json.loads(got["sidecar"].read_text())
    expected = json.loads((there / got["sidecar"].name).read_text())
    assert {path.name for path in got.values()} == {path.name for path in there.iterdir()}
    for path in got.values():
        if path != got["sidecar"]:
            assert path.read_bytes() == (there / path.name).read_bytes(), path.name
    for same in ("metrics", "outputs", "written", "start", "model", "network_grid", "warnings"):
        assert sidecar.get(same) == expected.get(same), same
    assert job["measures"] == expected["metrics"]
    assert 0 < job["measures"]["dice_after"] < 1
    assert job["warnings"] == expected["warnings"]
    assert b"<!doctype html>" in report.read_bytes()[:40]


def test_learn2reg_names_are_made_for_a_client_that_has_none(tmp_path, make_grid, world_image, write_nifti) -> None:
    grid = make_grid("oblique", (18, 20, 16), (3.6, 3.1, 4.0))
    affine = np.eye(4)
    affine[:3, 3] = (2.0, -1.0, 1.5)
    pair = (
        write_nifti(tmp_path / "fixed_0001.nii.gz", world_image(grid), grid.world_from_vox),
        write_nifti(tmp_path / "moving_0002.nii.gz", world_image(grid, affine), grid.world_from_vox),
    )
    with serving(tmp_path / "data") as (address, _):
        job = ended(address, send(address, *pair, refine=0, init="rigid", format="l2r").json()["id"])
        got = download(address, job, tmp_path / "got")
    field = nib.load(got["l2r"]).get_fdata()
    expected = load_model("none").register(*pair, refine=0, init="rigid").displacement_mm
    turned = np.linalg.inv(grid.world_from_vox[:3, :3])
    np.testing.assert_allclose(field, expected @ turned.T, atol=1e-4)
    assert np.abs(field).max() > 0.3


def broken(pair: tuple[Path, Path], kind: str) -> Path:
    """The moving image, spoilt."""
    image = nib.load(pair[1])
    data, path = image.get_fdata(dtype=np.float32), pair[1]
    if kind == "text":
        path.write_bytes(b"these are no voxels, only words " * 40)
    elif kind == "huge":
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[42:48] = np.array([9000, 9000, 9000], "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(raw)))
    elif kind == "bomb":
        raw = bytearray(gzip.decompress(path.read_bytes())[:352])
        raw[42:48] = np.array([500, 500, 500], "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(raw) + bytes(2**20)))
    elif kind == "longer":
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**24)))
    elif kind == "series":
        nib.save(nib.Nifti1Image(np.stack([data, data], -1), image.affine), path)
    elif kind == "nan":
        data[3, 4, 5] = np.nan
        nib.save(nib.Nifti1Image(data, image.affine), path)
    elif kind == "far":
        far = image.affine.copy()
        far[:3, 3] += 4000
        nib.save(nib.Nifti1Image(data, far), path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    return path


@pytest.mark.parametrize(
    ("kind", "status", "accepted"),
    [
        *(("text", 415, False), ("huge", 413, False), ("bomb", 422, False), ("series", 422, False)),
        *(("nan", 422, True), ("far", 422, True), ("cut", 422, True), ("longer", 422, True)),
    ],
)
def test_refusals_have_the_sentence_of_the_command(tmp_path, pair, run_cli, kind, status, accepted) -> None:
    broken(pair, kind)
    code, _, err = run_cli(["register", *pair, "-m", "none", "-o", tmp_path / "out"])
    sentence = err.splitlines()[-1].removeprefix("ofg: error: ")
    for spelt, name in (
        (f"{pair[0].parent}/", ""),
        (".nii.gz", ".nii"),
        ("--max-voxels", "max_voxels"),
        ("--init ", "init="),
    ):
        sentence = sentence.replace(spelt, name)
    assert code == 3
    with serving(tmp_path / "data") as (address, service):
        answer = send(address, *pair)
        if accepted:
            job = ended(address, answer.json()["id"])
            assert job["state"] == "failed"
            assert not job["files"]
            problem = job["problem"]
        else:
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code == status
        wait_until(lambda: not list(service.folder.iterdir()), 5)
    assert problem["detail"] == sentence
    assert problem["status"] == status


WRONG_OPTIONS = [
    ('{"quality": "superb"}', 422, '`quality` "superb" is unknown: use fast, default, best'),
    ('{"qualty": "fast"}', 422, "there is no option 'qualty': use model, quality, refine"),
    ('{"refine": 3, "quality": "fast"}', 422, "refine and quality both say how many steps to take: give one of them"),
    ('{"refine": -1}', 422, "`refine` -1: expected greater than or equal to 0"),
    ('{"refine": true}', 422, "`refine` true: expected integer"),
    ('{"refine": 1.5}', 422, "`refine` 1.5: expected"),
    ('{"fill": NaN}', 422, "`fill` NaN: expected"),
    ('{"grid": [4, 4]}', 422, "`grid`"),
    ('{"grid": [4, 4, 0]}', 422, "`grid` 0: expected greater than or equal to 1"),
    ('{"init": "../../etc/passwd"}', 422, "is unknown: use none, header, centre, rigid, affine"),
    ('{"model": "other"}', 422, "the model 'other' is not served here: use it, tiny"),
    ('{"model": "tiny", "similarity": "mind"}', 422, "similarity is followed by the steps on the pair, and none are"),
    ('{"passes": 2}', 422, "passes is of a network, and this model is none"),
    ('{"model": "tiny", "passes": 0}', 422, "passes 0: expected"),
    ('{"model": "tiny", "passes": 21}', 422, "passes 21: expected"),
    ("[1]", 422, "options are [1]: expected an object of JSON"),
    ('{"quality":', 400, "options are not JSON"),
    ("[" * 60_000, 400, "options are not JSON"),
    (" " * 70_000, 413, "options are larger than 65536 bytes"),
]


def test_options_that_cannot_be(tmp_path, pair, tiny_model) -> None:
    models = {"it": load_model("none"), "tiny": load_model(tiny_model().path, device="cpu")}
    with serving(tmp_path / "data", models) as (address, service):
        for text, status, words in WRONG_OPTIONS:
            answer = send(address, *pair, [("options", (None, text))])
            assert answer.status_code == status, (text[:40], answer.text)
            assert words.replace("`", "") in answer.json()["detail"], text[:40]
            assert "\n" not in answer.json()["detail"]
        assert service.store.ids() == set()
        assert list(service.folder.iterdir()) == []


def test_nothing_of_the_client_is_kept_told_or_logged(tmp_path, pair, caplog, capfd) -> None:
    """Names of files, and what a header holds as free text, come back neither in results nor in the log."""
    secret = "Jane^Doe-1956"
    for path in pair:
        image = nib.load(path)
        again = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
        again.header.set_xyzt_units("mm")
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            again.header[field] = secret[: again.header[field].dtype.itemsize or 18]
        again.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret.encode()))
        nib.save(again, path)
        assert secret.encode() in unpacked(path)
    caplog.set_level(logging.DEBUG)
    with serving(tmp_path / "data") as (address, _):
        named = [(name, (f"../../{secret}.nii.gz", path.read_bytes())) for name, path in
                 zip(("fixed", "moving"), pair, strict=True)]  # fmt: skip
        options = (
            "options",
            (None, json.dumps({"refine": 0, "report": True, "inverse": True, "format": "voxelmorph"})),
        )
        url = f"{address}/v1/registrations"
        answer = requests.post(url, files=[*named, options], headers={"User-Agent": secret}, timeout=30)
        job = ended(address, answer.json()["id"])
        assert job["state"] == "done"
        got = download(address, job, tmp_path / "got")
        requests.get(f"{address}/{secret}", timeout=30)
        requests.get(f"{address}/v1/registrations/{secret}?{secret}", timeout=30)
        counted = requests.get(f"{address}/metrics", timeout=30).text
        kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        contents = [unpacked(path) for path in kept]
        assert not [path for path in tmp_path.rglob("*") if secret in path.name]
    printed = capfd.readouterr()
    told = [json.dumps(job), caplog.text, counted, printed.out, printed.err]
    for text in (*told, *(content.decode("latin-1") for content in contents)):
        assert secret[:8] not in text
        assert str(tmp_path) not in text
    assert {"warped", "transform", "sidecar", "report", "inverse", "voxelmorph", "affine"} == set(got)
    assert "POST /v1/registrations: 202" in caplog.text
    assert 'ofg_jobs_total{state="done"} 1.0' in counted
    assert 'route="/v1/registrations/{id}",status="404"' in counted


def test_what_fails_inside_is_told_without_what_it_quotes(tmp_path, pair, caplog) -> None:
    name = "Jane"

    class Broken(Slow):
        def register(self, **given: Any) -> Any:
            raise RuntimeError(f"cannot open {given['fixed']} of {name}")

    with serving(tmp_path / "data", {"broken": Broken()}) as (address, _):
        job = ended(address, send(address, *pair).json()["id"])
    assert job["problem"]["status"] == 500
    assert job["problem"]["detail"] == "internal error, RuntimeError; the log of the service says where"
    assert "test_service.py" in caplog.text
    assert name not in caplog.text


def test_a_full_queue_says_when_to_come_back(tmp_path, pair) -> None:
    slow = Slow()
    with serving(tmp_path / "data", {"slow": slow}, Limits(queue=2)) as (address, service):
        first = send(address, *pair).json()
        slow.begun.wait(10)
        waiting = [send(address, *pair).json() for _ in range(2)]
        assert [job["progress"]["ahead"] for job in waiting] == [0, 1]
        # A body that is larger than what sockets hold: the client is still sending when it is refused.
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        form = {"Content-Type": "multipart/form-data; boundary=xx", "Connection": "close"}  # as proxies send it
        connection.request("POST", "/v1/registrations", bytes(30 * 2**20), form)
        answer = connection.getresponse()
        assert answer.status == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 600
        assert json.loads(answer.read())["detail"].startswith("2 registrations wait already: try again in ")
        connection.close()
        assert requests.get(f"{address}/readyz", timeout=30).status_code == 429
        assert requests.get(f"{address}/healthz", timeout=30).status_code == 200
        running = requests.get(f"{address}/v1/registrations/{first['id']}", timeout=30).json()
        assert (running["state"], running["progress"]["stage"]) == ("running", "refine")
        assert requests.get(f"{address}/v1/registrations/{first['id']}/files/warped", timeout=30).status_code == 409
        assert requests.delete(f"{address}/v1/registrations/{waiting[0]['id']}", timeout=30).status_code == 204
        assert requests.get(f"{address}/readyz", timeout=30).status_code == 200
        assert {path.name for path in service.folder.iterdir()} == {first["id"], waiting[1]["id"]}
        slow.may_go_on.set()
        assert {ended(address, job["id"])["state"] for job in (first, waiting[1])} == {"done"}


def test_a_running_job_that_is_deleted_stops_and_leaves_nothing(tmp_path, pair) -> None:
    slow = Slow()
    with serving(tmp_path / "data", {"slow": slow}) as (address, service):
        where = f"{address}/v1/registrations/{send(address, *pair).json()['id']}"
        slow.begun.wait(10)
        assert requests.delete(where, timeout=30).status_code == 204
        assert requests.get(where, timeout=30).status_code == requests.delete(where, timeout=30).status_code == 404
        slow.may_go_on.set()
        wait_until(lambda: not list(service.folder.iterdir()), 10)
        assert 'ofg_jobs_total{state="deleted"} 1.0' in requests.get(f"{address}/metrics", timeout=30).text


def test_results_expire(tmp_path, pair) -> None:
    with serving(tmp_path / "data", limits=Limits(keep_hours=1.5 / 3600)) as (address, service):
        job = ended(address, send(address, *pair, refine=0, init="header").json()["id"])
        assert job["state"] == "done"
        where = f"{address}/v1/registrations/{job['id']}"
        wait_until(lambda: requests.get(where, timeout=30).json()["state"] == "expired", 10)
        assert requests.get(f"{where}/files/warped", timeout=30).status_code == 410
        wait_until(lambda: not list(service.folder.iterdir()), 5)
        wait_until(lambda: requests.get(where, timeout=30).status_code == 404, 10)


def test_a_page_is_served_once_it_is_built_and_until_then_says_how(tmp_path) -> None:
    built = tmp_path / "static"
    with serving(tmp_path / "data", static=built) as (address, _):
        page = requests.get(f"{address}/", timeout=30)
        assert page.headers["content-type"].startswith("text/html")
        assert "<code>make web</code>" in page.text
        assert "script-src 'self';" in page.headers["content-security-policy"]
    (built / "assets").mkdir(parents=True)
    (built / "index.html").write_text("<!doctype html><p>the page")
    (built / "assets/page.js").write_text("1")
    with serving(tmp_path / "data", static=built) as (address, _):
        assert requests.get(f"{address}/", timeout=30).text == "<!doctype html><p>the page"
        script = requests.get(f"{address}/assets/page.js", timeout=30)
        assert script.text == "1"
        assert "javascript" in script.headers["content-type"]
        for outside in ("../index.html", "%2e%2e/index.html", "..%2f..%2fdata/jobs.sqlite"):
            assert requests.get(f"{address}/assets/{outside}", timeout=30).status_code == 404, outside


def test_models_and_limits_are_told(tmp_path, tiny_model) -> None:
    tiny = tiny_model()
    models = {"auto": load_model("auto"), "tiny": load_model(tiny.path, device="cpu")}
    with serving(tmp_path / "data", models, Limits(upload_mib=3, max_voxels=77)) as (address, _):
        found = requests.get(f"{address}/v1/models", timeout=30).json()
    assert [model["name"] for model in found["models"]] == ["auto", "tiny"]
    assert found["models"][1]["grid"] == list(tiny.expects.shape)
    assert found["models"][1]["provider"] == "CPUExecutionProvider"
    assert (found["upload_bytes"], found["max_voxels"]) == (3 * 2**20, 77)
    assert found["qualities"] == ["fast", "default", "best"]


def test_files_that_are_gone_are_gone(tmp_path, pair) -> None:
    with serving(tmp_path / "data") as (address, service):
        job = ended(address, send(address, *pair, refine=0, init="header").json()["id"])
        where = f"{address}/v1/registrations/{job['id']}"
        assert (
            requests.get(f"{where}/files/fsl", timeout=30)
            .json()["detail"]
            .startswith("there is no file fsl: use warped")
        )
        shutil.rmtree(service.workers.home(job["id"]))
        assert requests.get(f"{where}/files/warped", timeout=30).status_code == 410
        assert requests.get(where, timeout=30).json()["files"] == {}


def test_who_waits_is_answered_when_the_job_has_ended(tmp_path, pair) -> None:
    slow = Slow()
    with serving(tmp_path / "data", {"slow": slow}) as (address, service):
        id = send(address, *pair).json()["id"]
        assert slow.begun.wait(20)
        there = f"{address}/v1/registrations/{id}"
        start = time.monotonic()
        assert requests.get(f"{there}?wait=0.3", timeout=30).json()["state"] == "running"
        assert time.monotonic() - start >= 0.3
        threading.Timer(0.2, slow.may_go_on.set).start()
        assert requests.get(f"{there}?wait=60", timeout=50).json()["state"] == "done"
        assert requests.get(f"{there}?wait=60", timeout=5).json()["state"] == "done"
        for wrong in ("-1", "61", "nan", "x"):
            answer = requests.get(f"{there}?wait={wrong}", timeout=5)
            assert (answer.status_code, "`wait`" in answer.json()["detail"]) == (422, True)
        slow.may_go_on.clear(), slow.begun.clear()
        id = send(address, *pair).json()["id"]
        assert slow.begun.wait(20)
        threading.Timer(0.2, service.workers.delete, (id,)).start()
        assert requests.get(f"{address}/v1/registrations/{id}?wait=60", timeout=50).status_code == 404
        slow.may_go_on.set()
