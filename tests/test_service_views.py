"""What the page of the service asks for: the images of a registration, and the example."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs pip install ofg-deploy[serve]")

import requests
from service_running import Slow, ended, send, serving
from viewed_pair import write_known

from ofg_deploy.web.example import SHAPE, _bent, example


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_known(tmp_path_factory.mktemp("pair"))


def test_images_are_shown_as_they_lie_and_kept_only_where_asked(pair, tmp_path):
    fixed, moving = (pair.sidecar.with_name(f"pair_{role}.nii.gz") for role in ("fixed", "moving"))
    quick = {"refine": 0, "init": "header"}
    with serving(tmp_path / "data") as (address, service):
        ids = [send(address, fixed, moving, **quick, keep_images=kept).json()["id"] for kept in (True, False)]
        assert all(ended(address, id)["state"] == "done" for id in ids)
        kept, bare = (requests.get(f"{address}/v1/registrations/{id}/view", timeout=30) for id in ids)
        assert [image["role"] for image in kept.json()["images"]] == ["fixed", "moving", "warped", "jacobian"]
        assert [image["role"] for image in bare.json()["images"]] == ["warped", "jacobian"]
        assert len(bare.json()["notes"]) == 2
        assert str(tmp_path) not in kept.text + bare.text
        base = f"{address}/v1/registrations/{ids[0]}/"
        answer = requests.get(f"{base}volumes/fixed", timeout=30)
        image = nib.Nifti1Image.from_bytes(answer.content)
        index = np.linalg.inv(pair.fixed_affine) @ image.affine @ [3, 7, 4, 1]
        assert np.asarray(image.dataobj)[3, 7, 4] == pair.fixed[tuple(np.round(index[:3]).astype(int))]
        for file in kept.json()["files"]:
            assert len(requests.get(base + file["address"], timeout=30).content) == file["bytes"]
        assert requests.get(f"{base}volumes/fixed_labels", timeout=30).status_code == 404
        assert requests.get(f"{base}volumes/..%2f..%2fjobs", timeout=30).status_code == 404
        assert requests.delete(base.rstrip("/"), timeout=30).status_code == 204
        assert requests.get(f"{base}volumes/fixed", timeout=30).status_code == 404
        assert not service.workers.home(ids[0]).exists()


def test_a_registration_under_way_has_nothing_to_show_yet(pair, tmp_path):
    slow = Slow()
    fixed, moving = (pair.sidecar.with_name(f"pair_{role}.nii.gz") for role in ("fixed", "moving"))
    with serving(tmp_path / "data", {"slow": slow}) as (address, _):
        id = send(address, fixed, moving).json()["id"]
        assert slow.begun.wait(20)
        answer = requests.get(f"{address}/v1/registrations/{id}/view", timeout=30)
        slow.may_go_on.set()
    assert answer.status_code == 409
    assert json.loads(answer.text)["detail"] == "the registration is running: there are images once it is done"


def test_the_example_is_a_pair_that_a_smooth_map_brings_together(tmp_path):
    with serving(tmp_path / "data") as (address, _):
        answers = {
            role: requests.get(f"{address}/v1/example/{role}", timeout=30) for role in ("fixed", "moving", "both")
        }
    assert answers["both"].status_code == 404
    fixed, moving = (nib.Nifti1Image.from_bytes(answers[role].content) for role in ("fixed", "moving"))
    assert (fixed.shape, nib.aff2axcodes(fixed.affine)) == (SHAPE, ("R", "A", "S"))
    assert fixed.header.get_xyzt_units()[0] == "mm"
    assert example("fixed") == answers["fixed"].content
    one, other = (np.asarray(image.dataobj, dtype=float).ravel() for image in (fixed, moving))
    assert 0.8 < np.corrcoef(one, other)[0, 1] < 0.97
    points = np.stack(np.meshgrid(*(np.arange(-90.0, 91, 3),) * 3, indexing="ij"))
    gradient = np.stack([np.stack(np.gradient(part, 3.0)) for part in _bent(points)])
    assert np.linalg.det(gradient.transpose(2, 3, 4, 0, 1)).min() > 0.3  # it folds nowhere
    assert 5 < np.linalg.norm(_bent(points) - points, axis=0).max() < 30
