"""The container and the Kubernetes example: nothing here runs them, so what they say is held against the service."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from ofg_deploy.cli import app
from ofg_deploy.errors import UsageError
from ofg_deploy.service.security import OPEN, Guard, Token, check_exposed
from ofg_deploy.service.server import REQUESTS_S
from ofg_deploy.service.state import GRACE_S
from ofg_deploy.version import __version__

EXAMPLES = Path(__file__).parents[1] / "examples"


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with lines that go on joined."""
    text = re.sub(r"(?m)^#.*\n", "", (EXAMPLES / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line]


def only(name: str) -> str:
    [found] = [value for each, value in instructions() if each == name]
    return found


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """Objects by kind."""
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the manifest (ray brings it)")
    found = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
    assert len({each["kind"] for each in found}) == len(found) == 3
    return {each["kind"]: each for each in found}


def options(arguments: list[str]) -> dict[str, Any]:
    """As ``ofg serve`` takes them; an option that it does not have ends the test."""
    command = typer.main.get_command(app).commands["serve"]
    return command.make_context("serve", list(arguments)).params


def test_the_image_holds_the_published_wheel_and_runs_as_nobody() -> None:
    install = next(value for name, value in instructions() if name == "RUN")
    assert re.search(r'pip install --no-cache-dir "ofg-deploy\[cpu,serve\]==\$\{OFG_VERSION:\?', install)
    assert not [value for name, value in instructions() if name in ("COPY", "ADD")]
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", only("FROM"))
    uid = only("USER").split(":")[0]
    assert int(uid) > 0
    assert f"--uid {uid} " in install
    names = [name for name, _ in instructions()]
    assert names.index("USER") > names.index("RUN")
    assert only("VOLUME") in install  # made for that user
    assert only("STOPSIGNAL") == "SIGTERM"
    probe = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
    assert any(path in probe[-1] for path in OPEN if path != "/")


def test_the_image_starts_the_service_and_does_not_without_a_token() -> None:
    entry, given = json.loads(only("ENTRYPOINT")), json.loads(only("CMD"))
    assert entry[:2] == ["ofg", "serve"]
    found = options([*entry[2:], *given])
    assert (found["data"], found["port"]) == (Path(only("VOLUME")), int(only("EXPOSE")))
    assert found["token_file"] is None
    with pytest.raises(UsageError, match="needs a token"):
        check_exposed(found["host"], found["host"], None)


def test_the_pod_may_do_as_little_as_possible(manifest) -> None:
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    user = int(only("USER").split(":")[0])
    assert pod["automountServiceAccountToken"] is False
    rights = pod["securityContext"]
    assert (rights["runAsNonRoot"], rights["runAsUser"], rights["fsGroup"]) == (True, user, user)
    assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert {"/data", "/tmp"} <= mounts.keys()  # all that is written
    environment = dict(re.findall(r"(\w+)=(\S+)", only("ENV")))
    assert environment["NUMBA_CACHE_DIR"].startswith("/tmp/")
    assert environment["HOME"] == "/tmp"
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in mounts.values()} == volumes.keys()
    claim = volumes[mounts["/data"]["name"]]["persistentVolumeClaim"]["claimName"]
    assert claim == manifest["PersistentVolumeClaim"]["metadata"]["name"]
    assert container["image"].endswith(f":{__version__}")
    assert f"OFG_VERSION={__version__}" in (EXAMPLES / "Dockerfile").read_text()


def test_the_pod_is_reached_by_its_service_with_a_token_and_asked_how_it_is(manifest, tmp_path) -> None:
    spec = manifest["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    found = options([*json.loads(only("ENTRYPOINT"))[2:], *container["args"]])
    mounts = {each["name"]: Path(each["mountPath"]) for each in container["volumeMounts"]}
    assert found["token_file"].parent == mounts["token"]
    text = (EXAMPLES / "kubernetes.yaml").read_text()
    secret = next(each["secret"] for each in pod["volumes"] if "secret" in each)
    assert f"generic {secret['secretName']} --from-literal={found['token_file'].name}=" in text
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
    assert pod["terminationGracePeriodSeconds"] > REQUESTS_S + GRACE_S
    [port] = container["ports"]
    assert port["containerPort"] == found["port"]
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert path in OPEN  # without a token
    service = manifest["Service"]
    assert service["spec"]["selector"] == spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    guard = Guard(None, [found["host"], *found["allow_host"]], Token.of("t" * 32, "test"), None)
    name = service["metadata"]["name"]
    for host, allowed in ((name, True), (f"{name}:8000", True), ("10.1.2.3:8000", True), ("elsewhere", False)):
        assert guard._is_ours(host) is allowed, host
