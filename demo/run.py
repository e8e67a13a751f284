"""Two heads registered by one command; then the whole pipeline in small: train, export, bench, register.

Everything goes through the public command line. The exported networks run where torch and onnx cannot be imported.

    make demo          (or: python demo/run.py)
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import heads
import picture
from rich.console import Console
from rich.table import Table
from subjects import write_subjects

from ofg_deploy.report.measures import MEASURES, NONE
from ofg_deploy.report.registration import Registration
from ofg_deploy.report.write import Report, write

DEMO = Path(__file__).resolve().parent
WORK, REPORT, PICTURE = DEMO / "work", DEMO / "report.html", DEMO / "report.png"

GRID = ("--grid", 32, 48, 32, "--spacing", 5, 5, 5, "--init", "none")
LENGTH = ("--epochs", 6, "--steps-per-epoch", 50, "--validate-every", 3)
# Chosen on the validation subjects. The published recipe (learning rate 1e-4, 500 epochs) needs hours, not minutes.
OFG = ("--lr", 1.5e-3, "--recipe", "paper", "--guidance-steps", 5, "--guidance-lr", 0.2, "--guidance-smoothness", 4)
UNSUPERVISED = ("--lr", 1.5e-3, "--guidance", "none")
METHODS = {"OFG": OFG, "unsupervised": UNSUPERVISED}
COLUMNS = ("dice_before", "dice_after", "ncc_before", "ncc_after", "folding_percent", "min_jacobian", "seconds")
CLEAR_RISE = 0.2  # of the heads' Dice over the affine start: less and the demo has failed
TOO_SHORT = (
    "Three hundred training steps show that everything works, and are far too few to judge a network by: the published "
    "recipe takes 500 epochs. How guided and unsupervised training compare on real images is in docs/guidance.md."
)

NO_TORCH = (
    "import sys; sys.modules.update(torch=None, onnx=None); sys.argv[0] = 'ofg'; "
    "from ofg_deploy.cli import main; main()"
)


def main() -> None:
    started = time.perf_counter()
    shutil.rmtree(WORK, ignore_errors=True)
    say("Two heads made from the MNI152 template, registered as typed: ofg register fixed.nii.gz moving.nii.gz")
    heads.write_heads(WORK / "heads")
    results = heads.register(WORK / "heads")
    PICTURE.write_bytes(picture.draw(WORK / "heads", results))
    print_heads(results)
    say("The pipeline in small: subjects under random smooth diffeomorphisms, contrasts, bias fields, noise")
    write_subjects(WORK)
    write_pairs(WORK / "pairs.csv")
    say("Training with and without guidance at the same time; then exporting only the network")
    with ThreadPoolExecutor(2) as pool:  # a small network gains little from a second thread
        list(pool.map(train_and_export, METHODS, METHODS.values()))
    say("Registering held-out subjects, with torch and onnx out of the picture")
    jobs = [(name, subject) for subject in held_out() for name in METHODS]
    with ThreadPoolExecutor(2) as pool:  # much of a command's time is starting Python
        registrations = list(pool.map(register, *zip(*jobs, strict=True)))
    say("What guidance costs at inference: nothing")
    models = [WORK / f"{name}.onnx" for name in METHODS]
    ofg(None, "bench", *models, "--repeats", 20, "--out", WORK / "bench.json")
    minutes = (time.perf_counter() - started) / 60
    intro = [
        f"The MNI152 template, brought to {len(held_out())} synthetic scans nobody trained on: the template under "
        "random smooth deformations, contrasts, bias fields and noise, most of them in another orientation and voxel "
        "size than the training scans. Labels (CSF, grey and white matter) are true by construction.",
        "Two networks of the same graph saw the same pairs for the same few hundred steps, a fraction of a real "
        "training: one with On-the-Fly Guidance, one without. They were run by ONNX Runtime in processes where neither "
        f"torch nor onnx could be imported. {TOO_SHORT} The whole demo took {minutes:.1f} minutes.",
    ]
    write(Report(REPORT, None, "On-the-Fly Guidance on held-out scans", intro, overwrite=True), registrations)
    print_table(registrations)
    Console().print(TOO_SHORT)
    print(f"picture: {PICTURE}\nreport: {REPORT}")
    dice = {result.name: result.dice for result in results}
    if not dice["ofg register"] >= dice["affine"] + CLEAR_RISE:
        sys.exit(f"demo: error: Dice of the heads is {dice}, a rise of at least {CLEAR_RISE} was expected")


def write_pairs(path: Path) -> None:
    """The template to every training and validation subject: its labels become those of the subject."""
    rows = [(s, "training") for s in subjects("train")] + [(s, "validation") for s in subjects("val")]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["fixed", "moving", "fixed_labels", "moving_labels", "split"])
        for name, split in rows:
            files = [f"{kind}/{image}.nii.gz" for kind in ("images", "labels") for image in (name, "template")]
            writer.writerow([*files, split])


def subjects(kind: str) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in (WORK / "images").glob(f"{kind}-*.nii.gz"))


def held_out() -> list[str]:
    return subjects("held")


def train_and_export(name: str, options: tuple[object, ...]) -> None:
    data = (WORK / "pairs.csv", "-o", WORK / name, "--cache", WORK / f"{name}-cache", "--threads", 1, "--workers", 1)
    ofg(name, "train", *data, *GRID, *LENGTH, *options)
    ofg(name, "export", WORK / name, "-o", WORK / f"{name}.onnx")


def ofg(label: str | None, *arguments: object) -> None:
    """Run a command; with a label, each of its lines is marked with it."""
    command = [sys.executable, "-m", "ofg_deploy", *map(str, arguments)]
    if label is None:
        subprocess.run(command, check=True)
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{label:>12} | {line}", end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def register(method: str, subject: str) -> Registration:
    """The template to a held-out subject, whose own labels are only compared."""
    out, images, labels = WORK / "registered" / method, WORK / "images", WORK / "labels"
    fixed, moving = f"{subject}.nii.gz", "template.nii.gz"
    command = ["register", images / fixed, images / moving, "-m", WORK / f"{method}.onnx", "-o", out]
    command += ["--fixed-labels", labels / fixed, "--moving-labels", labels / moving]
    subprocess.run([sys.executable, "-c", NO_TORCH, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return Registration(out / f"template_to_{subject}.json", method)


def print_heads(results: list[heads.Result]) -> None:
    """A row for each way to register the heads."""
    table = Table("method", "Dice", "folding (%)", "seconds", title="two heads, mean Dice of three tissues")
    for result in results:
        took = NONE if result.seconds is None else f"{result.seconds:.1f}"
        table.add_row(result.name, f"{result.dice:.3f}", f"{result.folding_percent:.3f}", took)
    Console().print(table)


def print_table(registrations: list[Registration]) -> None:
    """The means by method."""
    columns = [measure for measure in MEASURES if measure.key in COLUMNS]
    table = Table("method", *(c.title for c in columns), title=f"mean of {len(held_out())} held-out subjects")
    for method in METHODS:
        numbers = [r.numbers for r in registrations if r.method == method]
        table.add_row(method, *(c.show(fmean(n[c.key] for n in numbers)) for c in columns))
    Console().print(table)


def say(text: str) -> None:
    Console().print(f"\n[bold]{text}[/bold]")


if __name__ == "__main__":
    main()
