"""The OpenAPI description holds: schemathesis makes requests of it, right and wrong ones, and judges the answers."""

from __future__ import annotations

import contextlib
import io
import warnings

import nibabel as nib
import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from service_running import Slow, serving

from ofg_deploy.service.limits import Limits
from ofg_deploy.service.options import Options
from ofg_deploy.service.uploads import FILES, OPTIONS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis")


def scan(seed: int) -> bytes:
    """A small image that can be used."""
    made = io.BytesIO()
    data = np.random.default_rng(seed).random((4, 5, 6)).astype(np.float32)
    nib.Nifti1Image(data, np.diag([2.0, 3.0, 4.0, 1.0])).to_stream(made)
    return made.getvalue()


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The description of a service that registers nothing, so that ids stay what they are."""
    schemathesis.openapi.format("binary", st.sampled_from([scan(1), scan(2)]))
    slow = Slow()
    with serving(tmp_path_factory.mktemp("data"), {"slow": slow}, Limits(queue=5000)) as (address, _):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")
        slow.may_go_on.set()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_answers_are_as_described(described, mode) -> None:
    """For each operation: requests of the description, or ones that break it, and an answer that it foresees."""
    seen = set()
    for result in described.get_all_operations():
        operation = result.ok()

        @settings(max_examples=6, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case) -> None:
            answer = case.call_and_validate(timeout=20)
            seen.add((case.method, case.path, answer.status_code))

        with contextlib.suppress(Unsatisfiable):  # nothing of this operation can be wrong
            check()
    sent = {status for method, path, status in seen if (method.upper(), path) == ("POST", "/v1/registrations")}
    assert 202 in sent if mode.is_positive else {415, 422} & sent, seen


def test_the_description_names_every_route_and_option(described) -> None:
    found = requests.get(described.location, timeout=20).json()
    assert set(found["paths"]) == {
        *("/v1/registrations", "/v1/registrations/{id}", "/v1/registrations/{id}/files/{role}", "/v1/models"),
        *("/healthz", "/readyz", "/metrics"),
    }
    body = found["paths"]["/v1/registrations"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {*FILES, OPTIONS}
    assert set(body["properties"]["options"]["properties"]) == set(Options.model_fields)
    assert body["properties"]["options"]["properties"]["format"]["enum"] == [
        *("itk", "ants", "itk-h5", "fsl", "l2r", "voxelmorph"),
    ]
    for route in found["paths"].values():
        for operation in route.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert set(answer["content"]) == {"application/problem+json"}, (operation, status)
