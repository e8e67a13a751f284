"""Who may use the service, what it takes from a client, and what every answer carries."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from service_running import ended, send, serving, wait_until

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.service import uploads
from ofg_deploy.service.limits import Limits
from ofg_deploy.service.security import HEADERS, Token, check_exposed

TOKEN = "0123456789abcdef-a-long-one"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A service with a token and small limits, and its folder."""
    folder = tmp_path_factory.mktemp("data")
    with serving(folder, limits=Limits(upload_mib=1, queue=4), token=Token.of(TOKEN, "a test")) as (address, service):
        yield address, service


def raw(address: str, request: bytes, shut: bool = True) -> bytes:
    """What comes back for these bytes."""
    where = urlsplit(address)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        connection.sendall(request)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while block := connection.recv(2**16):
                found += block
    return found


def ask(address: str, path: str, method: str = "GET", **headers: str) -> requests.Response:
    return requests.request(method, f"{address}{path}", headers=headers, timeout=20)


def test_without_the_token_nothing_is_told(running) -> None:
    address, _ = running
    right, id = f"Bearer {TOKEN}", "0" * 32
    for path in (
        "/v1/models",
        f"/v1/registrations/{id}",
        f"/v1/registrations/{id}/files/warped",
        "/metrics",
        "/nowhere",
    ):
        for wrong in (
            None,
            "",
            "Bearer",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {TOKEN}x",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer ü",
        ):
            headers = {} if wrong is None else {"Authorization": wrong.encode("utf-8")}
            answer = requests.get(f"{address}{path}", headers=headers, timeout=20)
            assert answer.status_code == 401, (path, wrong)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["detail"] == "a token is needed: send the header Authorization: Bearer TOKEN"
        assert ask(address, path, Authorization=right).status_code in (200, 404)
    for method in ("POST", "DELETE", "PUT", "OPTIONS"):
        assert ask(address, "/v1/registrations", method).status_code == 401
    for path in ("/", "/healthz", "/readyz", "/openapi.json"):
        assert ask(address, path).status_code == 200
    for path in ("//v1/models", "/v1/../v1/models", "/assets/../v1/models", "/%76%31/models"):
        assert ask(address, path).status_code in (401, 404)
        line = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        found = raw(address, line.encode(), shut=False)
        assert found.split(b" ", 2)[1] in (b"401", b"404"), path


def test_other_names_and_pages_of_other_sites_are_turned_away(running) -> None:
    address, _ = running
    port = urlsplit(address).port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[",
        "",
        "a b",
    ):
        found = raw(address, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert found.split(b" ", 2)[1] in (b"421", b"400"), host
    assert raw(address, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").split(b" ", 2)[1] == b"400"
    twice = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(address, twice).split(b" ", 2)[1] in (b"421", b"400")
    for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert ask(address, "/healthz", Host=host).status_code == 200, host
    right = {"Authorization": f"Bearer {TOKEN}"}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ):
        for method, path in (("POST", "/v1/registrations"), ("GET", "/v1/models"), ("OPTIONS", "/v1/registrations")):
            answer = ask(address, path, method, **headers, **right)
            assert answer.status_code == 403, headers
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    same = {"Origin": address, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert ask(address, "/v1/models", **same, **right).status_code == 200


def test_every_answer_carries_the_headers(running) -> None:
    address, _ = running
    right = {"Authorization": f"Bearer {TOKEN}"}
    answers = [ask(address, path, **right) for path in ("/", "/healthz", "/nowhere", "/v1/models", "/metrics")]
    answers += [
        ask(address, "/v1/models"),
        ask(address, "/healthz", "PUT"),
        ask(address, "/healthz", Host="evil.example"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 200, 401, 405, 421]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert "server" not in answer.headers
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert "http:" not in policy


FORM = "multipart/form-data; boundary=xx"


def form(*parts: tuple[str, bytes], boundary: str = "xx", end: bool = True) -> bytes:
    made = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="../../../../tmp/x"\r\n\r\n'.encode()
        + content + b"\r\n" for name, content in parts
    )  # fmt: skip
    return made + (f"--{boundary}--\r\n".encode() if end else b"")


def post(address: str, body: object, kind: str = FORM, **more: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind, **more}
    return requests.post(f"{address}/v1/registrations", data=body, headers=headers, timeout=20)


def test_requests_that_are_no_pair(running, files) -> None:
    address, service = running
    a, b = (path.read_bytes() for path in files[:2])
    for body, kind, status, words in (
        (b"{}", "application/json", 415, "the request is application/json: send multipart/form-data"),
        (b"", "", 415, "the request is no type: send multipart/form-data"),
        (b"x", "multipart/form-data", 400, "without a boundary"),
        (b"x", f"multipart/form-data; boundary={'x' * 300}", 400, "not multipart/form-data as it says"),
        (b"what is this", FORM, 400, "not multipart/form-data as it says"),
        (b"", FORM, 400, "it was cut off"),
        (form(("fixed", a), ("moving", b), end=False), FORM, 400, "it was cut off"),
        (form(("fixed", a), ("moving", b[:900]), end=False)[:-50], FORM, 400, "it was cut off"),
        (form(("fixed", a)), FORM, 422, "the field moving is missing"),
        (form(("fixed", a), ("fixed", a)), FORM, 422, "more than 1 of fixed are given"),
        (form(*[("labels", a)] * 9), FORM, 422, "more than 8 of labels are given"),
        (form(("fixd", a)), FORM, 422, "there is no field 'fixd': use fixed, moving, labels"),
        (form(("../x", a)), FORM, 422, "there is no field '../x'"),
        (form(("options", b"{}"), ("options", b"{}")), FORM, 422, "given twice"),
        (form(("fixed", a), ("moving", b), ("fixed_labels", a)), FORM, 422, "give both"),
        (form(("fixed", a), ("moving", b"")), FORM, 415, "moving.nii cannot be read as NIfTI"),
        (form(("fixed", bytes(2**20 + 1))), FORM, 413, "the request is larger than 1 MiB"),
        (iter([form(("fixed", bytes(2**20)))] * 3), FORM, 413, "larger than 1 MiB"),
    ):  # fmt: skip
        answer = post(address, body, kind)
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), (kind, words, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    answer = post(address, form(("fixed", a), ("moving", b)), **{"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert list(service.folder.iterdir()) == []
    assert service.uploading == 0


def test_a_client_that_hears_first_is_not_made_to_send(running) -> None:
    address, _ = running
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
    connection.putrequest("POST", "/v1/registrations")
    for name, value in {
        "Authorization": f"Bearer {TOKEN}", "Content-Type": "multipart/form-data; boundary=xx",
        "Content-Length": str(2**40), "Expect": "100-continue",
    }.items():  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_connections_that_are_cut_or_slow_leave_nothing(running, files, monkeypatch, caplog) -> None:
    address, service = running
    body = form(("fixed", files[0].read_bytes()), ("moving", files[1].read_bytes()))
    head = (
        f"POST /v1/registrations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: multipart/form-data; boundary=xx\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    for _ in range(3):
        raw(address, head + body[: len(body) // 2])
    wait_until(lambda: not service.uploading and not list(service.folder.iterdir()), 10)
    assert "internal error" not in caplog.text
    monkeypatch.setattr(uploads, "CHUNK_S", 0.2)
    monkeypatch.setattr("ofg_deploy.service.app.DRAIN_S", 0.2)
    found = raw(address, head + body[:500], shut=False)
    assert found.startswith(b"HTTP/1.1 408 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["detail"].startswith("the upload is too slow")
    wait_until(lambda: not service.uploading and not list(service.folder.iterdir()), 10)


def test_uploads_have_a_place_in_the_queue(running, files) -> None:
    address, service = running
    where = urlsplit(address)
    head = (
        f"POST /v1/registrations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: multipart/form-data; boundary=xx\r\nContent-Length: 1000\r\n\r\n--xx"
    ).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=20))
            connection.sendall(head)
        wait_until(lambda: service.uploading == 4, 10)
        answer = post(address, form(("fixed", files[0].read_bytes()), ("moving", files[1].read_bytes())))
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
    wait_until(lambda: not service.uploading, 10)


def test_a_full_disk_is_told(tmp_path, files, monkeypatch) -> None:
    with serving(tmp_path / "data") as (address, service):
        monkeypatch.setattr("ofg_deploy.service.state.FREE_BYTES", 2**60)
        answer = send(address, *files[:2])
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "600")
        assert answer.json()["detail"].startswith("the disk of the service is nearly full")
        monkeypatch.undo()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "/secret/place")

        monkeypatch.setattr("os.fsync", full)
        answer = send(address, *files[:2])
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the service cannot use its files: No space left on device"
        assert list(service.folder.iterdir()) == []
        monkeypatch.undo()

        def nowhere(*_: object) -> None:
            raise InputError(f"cannot write into {service.folder}/0/results: No space left") from OSError(
                28, "No space"
            )

        monkeypatch.setattr("ofg_deploy.serve.found.save", nowhere)
        job = ended(address, send(address, *files[:2], refine=0, init="header").json()["id"])
        assert job["problem"]["status"] == 503
        assert job["problem"]["detail"] == "cannot write into results: No space left"


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.7", "::", "fe80::1%eth0", "10.1.2.3"])
def test_an_address_that_others_reach_needs_a_token(address) -> None:
    with pytest.raises(
        UsageError, match=r"can be reached from other machines, which needs a token: give token_file or"
    ):
        check_exposed("here", address, None)
    check_exposed("here", address, Token.of(TOKEN, "a test"))
    for own in ("127.0.0.1", "127.8.9.10", "::1"):
        check_exposed("here", own, None)


@pytest.mark.parametrize(
    "text", ["", "short", "0123456789abcde", "0123456789 abcdef", "0123456789abcdef\n1", "0123456789äöüabc"]
)
def test_tokens_that_cannot_be(text) -> None:
    with pytest.raises(UsageError, match="cannot be used: give 16 or more ASCII characters without blanks"):
        Token.of(text, "a test")


def test_the_command_refuses_in_one_line(tmp_path, run_cli, monkeypatch) -> None:
    monkeypatch.delenv("OFG_TOKEN", raising=False)
    (tmp_path / "token").write_text("short\n")
    data = ["--data", tmp_path / "data"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, code, words in (
            (["--host", "0.0.0.0"], 2, "--host 0.0.0.0 can be reached from other machines, which needs a token: give "
             "--token-file or OFG_TOKEN"),
            (["--host", "no such name"], 2, "--host no such name is no address of this machine"),
            (["--host", "192.0.2.1", "--token-file", tmp_path / "token"], 2, "cannot be used: give 16 or more"),
            (["--token-file", tmp_path / "absent"], 3, "absent"),
            (["--port", port], 2, f"--port {port} of 127.0.0.1 cannot be used: Address already in use"),
            (["--port", "0", "--queue", "0"], 2, "--queue 0: give 1 or more"),
            (["--port", "0", "--keep-hours", "nan"], 2, "--keep-hours nan: give a number above 0"),
            (["--port", "0", "--workers", "-1"], 2, "--workers -1: give 1 or more"),
            (["--port", "0", "-m", "absent"], 3, "there is no model called absent"),
            (["--port", "0", "-m", "none", "-m", "none"], 2, "two models are called none"),
        ):  # fmt: skip
            found, out, err = run_cli(["serve", *data, *options])
            assert found == code, err
            assert err.startswith("ofg: error: ")
            assert words in err
            assert err.count("\n") == 1
            assert out == ""
    assert not (tmp_path / "data").exists()
    monkeypatch.setenv("OFG_TOKEN", "")
    assert run_cli(["serve", *data, "--port", "0"])[0] == 2


def test_two_services_do_not_share_a_folder(tmp_path, run_cli) -> None:
    with serving(tmp_path / "data"):
        code, _, err = run_cli(["serve", "--data", tmp_path / "data", "--port", "0", "-m", "none"])
    assert (code, "another ofg serve uses" in err, err.count("\n")) == (2, True, 1)
    Path(tmp_path / "data/jobs.sqlite").write_bytes(b"damaged" * 1000)
    code, _, err = run_cli(["serve", "--data", tmp_path / "data", "--port", "0", "-m", "none"])
    assert (code, "cannot be used" in err, err.count("\n")) == (3, True, 1)
