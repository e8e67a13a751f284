"""No job that was accepted is lost: the service is killed, stopped and started again."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time

import requests
from service_running import Slow, command, download, ended, send, serving, wait_until

from ofg_deploy.serve.model import load_model
from ofg_deploy.service.jobs import Store
from ofg_deploy.service.limits import ATTEMPTS
from ofg_deploy.service.problems import Problem

OPTIONS = {"refine": 0, "init": "centre"}


def state(address: str, id: str) -> str:
    return str(requests.get(f"{address}/v1/registrations/{id}", timeout=30).json()["state"])


def test_a_killed_service_loses_no_job_and_a_stopped_one_ends_well(tmp_path, files) -> None:
    """Killed in the middle of a job with others waiting; started again; ended by SIGTERM in the middle of another."""
    fixed, moving = files[:2]
    expected = load_model("none").register(fixed, moving, **OPTIONS).save(tmp_path / "expected")
    data = tmp_path / "data"
    with command(data, "-m", "none", "--workers", "1") as (address, process, log):
        ids = [send(address, fixed, moving, **OPTIONS).json()["id"] for _ in range(4)]
        wait_until(lambda: "running" in {state(address, id) for id in ids}, 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {path.name for path in (data / "jobs").iterdir()} == set(ids)
    (data / "jobs/0123456789abcdef0123456789abcdef/inputs").mkdir(parents=True)  # an upload that was cut off
    with command(data, "-m", "none", "--workers", "1") as (address, process, log):
        jobs = [ended(address, id) for id in ids]
        assert [job["state"] for job in jobs] == ["done"] * 4
        assert sorted(job["started"] for job in jobs) == [job["started"] for job in jobs]  # in their order
        for number in (0, 3):
            got = download(address, jobs[number], tmp_path / f"got{number}")
            for role in ("warped", "transform"):
                assert got[role].read_bytes() == expected[role].read_bytes()
        assert {path.name for path in (data / "jobs").iterdir()} == set(ids)
        last = send(address, fixed, moving, quality="best").json()["id"]
        wait_until(lambda: state(address, last) == "running", 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        assert process.stdout.read() == "the service has ended\n"
    text = log.read_text()
    assert f"job {last[:8]}: stopped in" in text
    assert "Traceback" not in text
    with sqlite3.connect(data / "jobs.sqlite") as base:  # it is not locked any more
        assert base.execute("SELECT state, attempts FROM job WHERE id = ?", (last,)).fetchone() == ("queued", 0)
    base.close()
    assert oct((data / "jobs").stat().st_mode & 0o777) == "0o700"


def test_a_job_that_brings_the_service_down_is_given_up(tmp_path) -> None:
    for attempt in range(1, ATTEMPTS + 2):
        store = Store(tmp_path)
        if attempt == 1:
            store.add("a" * 32, "none", {}, {"fixed": ["fixed.nii"]})
            store.add("b" * 32, "none", {}, {})
        store.recover()
        if attempt > ATTEMPTS:
            break
        job = store.take(0)
        assert (job.id, job.attempts) == ("a" * 32, attempt)
        store.close()  # as a process that dies: the job is still marked as running
    failed = store.get("a" * 32)
    assert failed.state == "failed"
    assert failed.problem["detail"] == "the service ended 3 times while this pair was being registered"
    assert store.take(0).id == "b" * 32
    assert not store.finish("a" * 32, {})
    assert store.finish("b" * 32, {"measures": {}})
    store.close()


def test_the_queue_in_its_order_and_across_threads(tmp_path, monkeypatch) -> None:
    store, taken, ids = Store(tmp_path), [], [f"{n:032x}" for n in range(30)]

    def work() -> None:
        while job := store.take(0.5):
            taken.append(job.id)
            if int(job.id, 16) % 3 == 0:
                store.fail(job.id, Problem(422, "no"))
            elif int(job.id, 16) % 3 == 1:
                store.finish(job.id, {})

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for id in ids:
        store.add(id, "none", {"a": [1, None]}, {})
    for thread in threads:
        thread.join(20)
    assert sorted(taken) == ids
    assert [store.count(each) for each in ("queued", "running", "failed", "done")] == [0, 10, 10, 10]
    assert store.get(ids[0]).options == {"a": [1, None]}
    store.put_back(ids[29])
    store.put_back(ids[2])
    assert [store.position(store.get(id)) for id in (ids[2], ids[29])] == [0, 1]
    assert store.take(0).id == ids[2]
    now = time.time()
    for later, expired, known in ((50, 0, 20), (150, 20, 20), (250, 0, 0)):
        monkeypatch.setattr("ofg_deploy.service.jobs.time.time", lambda at=now + later: at)
        assert len(store.expire(100)) == expired
        assert sum(map(store.count, ("done", "failed", "expired"))) == known
    assert store.ids() == {id for id in ids if int(id, 16) % 3 == 2}
    assert store.delete(ids[29]).state == "queued"
    assert store.delete(ids[29]) is None
    store.close()


def test_a_model_that_is_gone_after_a_restart(tmp_path, files) -> None:
    slow = Slow()
    with serving(tmp_path / "data", {"slow": slow}) as (address, _):
        id = send(address, *files[:2]).json()["id"]
        slow.begun.wait(10)
        threading.Timer(0.3, slow.may_go_on.set).start()  # while the service ends
    with serving(tmp_path / "data") as (address, _):
        job = ended(address, id)
    assert (job["state"], job["problem"]["status"]) == ("failed", 503)
    assert job["problem"]["detail"].startswith("the model 'slow' is not served any more")
