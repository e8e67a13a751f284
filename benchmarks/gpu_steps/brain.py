"""Step f: a training that was begun elsewhere goes on for the time that is left, and its checkpoint comes back.

    ofg train DATA -o build/brain ...        # begun anywhere, stopped with Ctrl-C after an epoch or later
    python3 benchmarks/gpu.py --out DIR --steps f --run build/brain
    cat DIR/run.tar.* | tar x -C build/brain # back home: last.pt, best.pt and metrics.csv

The run folder and the images it names must be there. Paths in its config.json that do not exist are looked for under
this repository by their last parts, so it may lie in another place as long as run, images and cache lie in it (in
``build/``). The folder itself is not changed: a copy of it is trained. An epoch counts when it is whole, so
epochs should be short against the time there is (``--steps-per-epoch``).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from gpu_steps.context import Context, Figures
from gpu_steps.plan import ROOT, last_line

PART_BYTES, MOST_PARTS = 15 * 2**20, 6  # with the two result files no more than eight, each below 16 MiB
PACK_S = 20.0  # kept for stopping and packing
BACK = ("metrics.csv", "last.pt", "best.pt")  # what is worth carrying; the last may be left out


def measure(context: Context) -> None:
    """One row: epochs before and after, and what came back."""
    given = context.run
    if given is None and context.dry:
        given = tiny_run(context)
    if given is None:
        how = "`ofg train DATA -o build/brain`, stopped with Ctrl-C after an epoch, then --run build/brain"
        context.add("training of a run goes on", {}, why_not=f"no --run FOLDER; one is made by {how}")
        return
    context.attempt(f"training of {given.name} goes on", lambda: trained(context, given))


def trained(context: Context, given: Path) -> Figures:
    """Train a copy, then leave it in the results in parts."""
    for needed in ("config.json", "metrics.csv", "last.pt"):
        if not (given / needed).is_file():
            raise FileNotFoundError(f"{given} has no {needed}: it must be a run of ofg train with a finished epoch")
    run = context.work / f"run-{given.name}"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(given, run, ignore=shutil.ignore_patterns("pictures", "tensorboard", ".lock"))
    relocated = relocate(run / "config.json", context.work)
    before = epochs(run)
    seconds = resume(context, run)
    after = epochs(run)
    found: Figures = {"epochs before": len(before), "epochs after": len(after), "seconds trained": seconds}
    if new := after[len(before) :]:
        found["seconds an epoch"] = sum(float(row["seconds"]) for row in new) / len(new)
        scores = [float(row["val_dice"] or row["val_ncc"]) for row in new if row["val_dice"] or row["val_ncc"]]
        found |= {"best new validation score": max(scores)} if scores else {}
    return found | {"paths looked for": relocated} | pack(run, context.out)


def resume(context: Context, run: Path) -> float:
    """Let ``ofg train --resume`` run until the time is up; the seconds it had.

    Raises:
        RuntimeError: it ended by itself with an error.
    """
    command = [sys.executable, "-m", "ofg_deploy", "train", "-o", run, "--resume", "--device", context.device]
    log, start, before = context.work / "train.log", time.monotonic(), (run / "last.pt").stat().st_mtime_ns
    with log.open("wb") as stream:
        process = subprocess.Popen(list(map(str, command)), stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None and context.left > PACK_S:
            if context.dry and (run / "last.pt").stat().st_mtime_ns != before:
                break  # one epoch is enough to see
            time.sleep(0.2)
        stopped = process.poll() is None
        if stopped:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(max(context.left / 2, 1))
        except subprocess.TimeoutExpired:
            process.kill()  # the last whole epoch is on disk
            process.wait()
    if process.returncode and not stopped:
        raise RuntimeError(f"ofg train --resume: exit {process.returncode}: {last_line(log)}")
    return time.monotonic() - start


def epochs(run: Path) -> list[dict[str, str]]:
    """Those that ``last.pt`` holds; the table may be one ahead of it, it is written first."""
    from ofg_deploy.train.checkpoint import load_checkpoint

    done = load_checkpoint(run / "last.pt").training["epoch"]
    return list(csv.DictReader(io.StringIO((run / "metrics.csv").read_text())))[:done]


def relocate(config: Path, work: Path) -> int:
    """Make the paths of a run those of this machine; how many were changed."""
    record: dict[str, Any] = json.loads(config.read_text())
    changed = 0
    for pair in (*record["pairs"]["training"], *record["pairs"]["validation"]):
        for name, path in pair.items():
            pair[name] = here(path)
            changed += pair[name] != path
    cache = here(record["cache"])
    record["cache"] = cache if Path(cache).exists() else str(work / "training-cache")
    config.write_text(json.dumps(record, indent=2) + "\n")
    return changed


def here(path: str, root: Path = ROOT) -> str:
    """A path, or where its last parts (as many as possible) exist under the repository."""
    given = Path(path)
    if given.exists():
        return path
    candidates = (root.joinpath(*given.parts[n:]) for n in range(1, len(given.parts)))
    return next((str(candidate) for candidate in candidates if candidate.exists()), path)


def pack(run: Path, out: Path) -> Figures:
    """One tar in parts ``run.tar.000``, ...; the best checkpoint stays behind where there is no room for it.

    Raises:
        RuntimeError: no room even without it.
    """
    for names in (BACK, BACK[:-1]):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name in names:
                if (run / name).exists():
                    tar.add(run / name, name)
        content = stream.getvalue()
        parts = [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
        if len(parts) <= MOST_PARTS:
            break
    else:
        raise RuntimeError(f"{run / 'last.pt'} does not fit into {MOST_PARTS} parts of {PART_BYTES >> 20} MiB")
    for old in out.glob("run.tar.*"):
        old.unlink()
    for number, part in enumerate(parts):
        (out / f"run.tar.{number:03}").write_bytes(part)
    digest = hashlib.sha256(content).hexdigest()
    return {"packed": " ".join(names), "parts": len(parts), "MB": len(content) / 1e6, "sha256 of run.tar": digest}


def tiny_run(context: Context) -> Path:
    """A run of one finished epoch, for a dry run."""
    from gpu_steps.models import TINY
    from gpu_steps.phantom import write_heads
    from ofg_deploy.options.training import PUBLISHED
    from ofg_deploy.preprocess import Intensity, NetworkInput
    from ofg_deploy.train.batches import TrainingFiles
    from ofg_deploy.train.config import TrainConfig
    from ofg_deploy.train.dataset import prepare_all
    from ofg_deploy.train.devices import launch
    from ofg_deploy.train.loop import Trainer
    from ofg_deploy.train.pairs import PairFiles, PairList
    from ofg_deploy.train.run import Run

    run = Run(context.work / "tiny")
    shutil.rmtree(run.folder, ignore_errors=True)
    heads = write_heads(context.work / "heads", TINY, range(2), 1)
    pairs = PairList((PairFiles(heads[0], heads[1]),), (PairFiles(heads[1], heads[0]),))
    config = TrainConfig(
        NetworkInput(TINY, (1.0, 1.0, 1.0), Intensity("minmax"), "none"),
        **PUBLISHED,
        network="voxelmorph-half",
        epochs=1000,
        guidance_steps=1,
        ncc_window=3,
        picture_every=0,
    )
    cache = context.work / "training-cache"
    prepared = prepare_all([*pairs.training, *pairs.validation], config.expects, cache, 1, lambda: None)
    run.folder.mkdir()
    run.start(config, pairs, cache, ["benchmarks/gpu.py", "--dry-run"], prepared)
    files = TrainingFiles(prepared[:1], [])
    next(Trainer(run, config, pairs, files, prepared[1:], launch("cpu", config.precision)).train())
    return run.folder
