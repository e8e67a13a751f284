"""``ofg serve`` under load: 16 clients, mixed sizes, one turn in ten hostile, a ``kill -9`` in the middle.

    python benchmarks/serve.py                       # 500 registrations; writes benchmarks/results/serve.json
    python benchmarks/serve.py --registrations 30 --out build/serve.json

1. Throughput: the same pairs, in turns, by 16 clients over HTTP and by ``register_many`` (whose results are saved, too)
   with the same model and as many workers.
2. Storm: the clients go on until so many registrations are done, some turns hostile; in the middle the service is
   killed and started again. Every file is compared with that of ``Model.register``, bit for bit; every job that was
   accepted has to end as done; resident memory is looked at all the time.

The exit code is 1 where a result is wrong, a job lost, or memory grows; the ratio is reported and not judged, as it
needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from scipy.ndimage import gaussian_filter
from serve_clients import CHECKED, Client, Tally, Task

from ofg_deploy.serve.model import Model, load_model

RESULTS = Path(__file__).parent / "results" / "serve.json"
SHAPES = ((24, 28, 20), (30, 26, 34), (40, 36, 28), (48, 44, 40), (64, 56, 48))
OPTIONS: tuple[dict[str, Any], ...] = (
    {"refine": 8, "init": "centre"},
    {"refine": 4, "init": "rigid", "inverse": True},
    {"quality": "fast", "init": "header"},
)
HOSTILE = 0.1  # of the turns
GROWTH = 1.15  # of resident memory from the second quarter of a process to the last
SLACK_MIB = 32


def images(folder: Path) -> list[tuple[Path, Path]]:
    """Pairs of all shapes: blobs on oblique grids of unequal axes, one file in two packed."""
    rng, pairs = np.random.default_rng(7), []
    for number, shape in enumerate(SHAPES):
        affine = np.eye(4)
        angle = 0.1 + 0.07 * number
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine[:3, :3] *= np.array([60, 70, 64]) / np.array(shape)
        first = gaussian_filter(rng.random(shape), 2.5)
        second = np.roll(first, (1, -1, 1), (0, 1, 2)) + 0.02 * gaussian_filter(rng.random(shape), 1.5)
        place = folder / f"{number}"
        place.mkdir(parents=True)
        made = []
        for name, data, packed in (("fixed", first, number % 2), ("moving", second, 1)):
            path = place / f"{name}.nii{'.gz' if packed else ''}"
            nib.save(nib.Nifti1Image((8000 * data).astype(np.int16 if packed else np.float32), affine), path)
            made.append(path)
        pairs.append((made[0], made[1]))
    return pairs


def tasks(folder: Path, model: Model) -> list[Task]:
    """Every pair with every set of options, and what ``Model.register`` makes of it."""
    found = []
    for fixed, moving in images(folder / "images"):
        for number, options in enumerate(OPTIONS):
            saved = model.register(fixed, moving, **options).save(folder / "expected" / f"{fixed.parent.name}_{number}")
            digests = {role: hashlib.sha256(saved[role].read_bytes()).hexdigest() for role in CHECKED}
            found.append(Task(fixed, moving, options, digests))
    return found


@contextmanager
def service(data: Path, port: int, model: str, workers: int, queue: int) -> Iterator[subprocess.Popen[bytes]]:
    """``ofg serve`` in a process of its own, once it answers."""
    line = [sys.executable, "-m", "ofg_deploy", "serve", "-m", model, "--port", port, "--data", data]
    line += ["--workers", workers, "--queue", queue]
    with (data.parent / "service.log").open("ab") as log:
        process = subprocess.Popen(list(map(str, line)), stdout=log, stderr=log)
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until and process.poll() is None:
            with suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5).ok:
                    break
            time.sleep(0.2)
        else:
            raise AssertionError(f"the service does not start: {(data.parent / 'service.log').read_text()[-2000:]}")
        yield process
    finally:
        process.kill()
        process.wait()


def clients(address: str, count: int, work: Callable[[Client], bool], tally: Tally, seed: int) -> None:
    """So many threads, each doing ``work`` until it says that there is none left."""

    def run(number: int) -> None:
        client = Client(address, tally, random.Random(seed * 1000 + number))
        try:
            while work(client):
                pass
        except Exception as error:
            tally.complain(f"client {number}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def handed_out(items: Sequence[Task]) -> Callable[[], Task | None]:
    """Each item once, whoever asks."""
    lock, left = threading.Lock(), iter(items)

    def take() -> Task | None:
        with lock:
            return next(left, None)

    return take


def throughput(given: argparse.Namespace, folder: Path, known: list[Task], model: Model, port: int) -> dict[str, Any]:
    """Registrations a second by both ways, in turns."""
    rng, turns, tally = random.Random(1), [], Tally()
    shared = folder / "many"
    with service(folder / "data1", port, given.model, given.workers, 4 * given.clients) as process:
        for turn in range(given.turns + 1):
            batch = [rng.choice(known) for _ in range(given.batch)]
            start, used = time.perf_counter(), processor_s(process.pid)
            take = handed_out(batch)

            def work(client: Client, take: Callable[[], Task | None] = take) -> bool:
                task = take()
                if task:
                    client.honest(task)
                return task is not None

            clients(f"http://127.0.0.1:{port}", given.clients, work, tally, turn)
            served, served_cpu = time.perf_counter() - start, processor_s(process.pid) - used
            start, used = time.perf_counter(), time.process_time()
            pairs = [{"fixed": task.fixed, "moving": task.moving, **task.options} for task in batch]
            for number, found in enumerate(model.register_many(pairs, workers=given.workers)):
                found.save(shared / f"{turn}_{number}")  # type: ignore[union-attr]
            many, many_cpu = time.perf_counter() - start, time.process_time() - used
            if turn:  # the first one compiles
                turns.append({"service_s": served, "many_s": many, "service_cpu_s": served_cpu, "many_cpu_s": many_cpu})
            print(f"turn {turn}: service {served:.1f} s, register_many {many:.1f} s", flush=True)
    ratios = sorted(turn["many_s"] / turn["service_s"] for turn in turns)
    cpu = sorted(turn["many_cpu_s"] / turn["service_cpu_s"] for turn in turns)
    return {
        "registrations_a_turn": given.batch,
        "turns": [{name: round(value, 2) for name, value in turn.items()} for turn in turns],
        "throughput_of_register_many": round(ratios[len(ratios) // 2], 3),
        "range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "the_same_in_processor_time": round(cpu[len(cpu) // 2], 3),
        "asked_how_it_goes_each": round(tally.counts["asked how it goes"] / max(1, tally.done), 1),
        "wrong": tally.wrong,
    }


def storm(given: argparse.Namespace, folder: Path, known: list[Task], port: int) -> dict[str, Any]:
    """All clients at once, hostile turns among theirs, and the kill."""
    rng, tally, memory = random.Random(2), Tally(), [[], []]  # type: ignore[var-annotated]
    take = handed_out([rng.choice(known) for _ in range(given.registrations)])

    def work(client: Client) -> bool:
        while client.rng.random() < HOSTILE:
            client.hostile(client.rng.choice(known))
        task = take()
        if task:
            client.honest(task)
        return task is not None

    data, address = folder / "data2", f"http://127.0.0.1:{port}"
    start = time.perf_counter()
    pool = threading.Thread(target=clients, args=(address, given.clients, work, tally, 3))
    running: dict[str, int] = {}
    with service(data, port, given.model, given.workers, given.queue) as process:
        pool.start()
        while tally.done < given.registrations // 2 and pool.is_alive():
            memory[0].append((tally.done, rss_mib(process.pid)))
            time.sleep(0.25)
        running = states(address)
        process.send_signal(signal.SIGKILL)
        process.wait()
    down = time.perf_counter()
    with service(data, port, given.model, given.workers, given.queue) as process:
        down = time.perf_counter() - down
        while pool.is_alive():
            memory[1].append((tally.done, rss_mib(process.pid)))
            time.sleep(0.25)
        seconds = time.perf_counter() - start
        left = states(address)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    log = (folder / "service.log").read_text()
    hostile = {name: count for name, count in sorted(tally.counts.items()) if name.startswith("hostile")}
    return {
        "registrations": given.registrations,
        "accepted": len(tally.accepted),
        "done_and_right": tally.done - len([line for line in tally.wrong if line.startswith("job ")]),
        "wrong": tally.wrong,
        "hostile": hostile,
        "other": {name: count for name, count in tally.counts.items() if name not in hostile},
        "before_the_kill": running,
        "down_s": round(down, 1),
        "seconds": round(seconds, 1),
        "left_at_the_end": left,
        "exit_code": code,
        "internal_errors": log.count("internal error") + log.count("Traceback"),
        "memory": [growth(each) for each in memory],
    }


def growth(seen: list[tuple[int, float]]) -> dict[str, float | bool]:
    """Resident MiB of a process: medians of the second quarter of its registrations and of the last, and its peak."""
    if len(seen) < 8:
        return {}
    first, last = seen[0][0], seen[-1][0]
    quarter = max(1, (last - first) / 4)
    second = [value for done, value in seen if first + quarter <= done < first + 2 * quarter] or [seen[0][1]]
    final = [value for done, value in seen if done >= last - quarter]
    before, after = float(np.median(second)), float(np.median(final))
    return {
        "second_quarter_mib": round(before, 1),
        "last_quarter_mib": round(after, 1),
        "peak_mib": round(max(value for _, value in seen), 1),
        "flat": after <= GROWTH * before + SLACK_MIB,
    }


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def states(address: str) -> dict[str, int]:
    """Jobs that wait and that run, by the service's own count."""
    found = {}
    for line in requests.get(f"{address}/metrics", timeout=30).text.splitlines():
        name, _, value = line.partition(" ")
        if name in ("ofg_jobs_queued", "ofg_jobs_running"):
            found[name.removeprefix("ofg_jobs_")] = int(float(value))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--registrations", type=int, default=500, help="of the storm")
    parser.add_argument("--batch", type=int, default=48, help="registrations of a turn of throughput")
    parser.add_argument("--turns", type=int, default=5, help="of throughput; 0 leaves it out")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--queue", type=int, default=12, help="of the storm: below the number of clients some wait")
    parser.add_argument("--model", default="none", help="as -m of ofg serve")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="ofg-serve-") as name:
        folder, model = Path(name), load_model(given.model)
        known = tasks(folder, model)
        print(f"{len(known)} tasks", flush=True)
        found = {
            "command": "python benchmarks/serve.py " + " ".join(sys.argv[1:]),
            "clients": given.clients,
            "workers": given.workers,
            "model": given.model,
            "cores": os.cpu_count(),
            "load_before": [round(value, 1) for value in load],
            "throughput": throughput(given, folder, known, model, free_port()) if given.turns else None,
            "storm": storm(given, folder, known, free_port()),
            "load_after": [round(value, 1) for value in os.getloadavg()],
        }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    json.dump(found, sys.stdout, indent=2)
    ended: Any = found["storm"]
    whole = ended["accepted"] == ended["done_and_right"] == given.registrations
    flat = all(each.get("flat", True) for each in ended["memory"])
    well = not ended["wrong"] and not ended["internal_errors"] and ended["exit_code"] == 0
    return 0 if whole and flat and well else 1


if __name__ == "__main__":
    sys.exit(main())
