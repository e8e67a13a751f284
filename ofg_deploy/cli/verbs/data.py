"""``ofg data`` on a terminal: describe or convert with progress, write ``dataset.json`` last, print a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ofg_deploy.cli.terminal import plain_table, shows_progress, terminal, warn
from ofg_deploy.data import brains, learn2reg, transmorph
from ofg_deploy.data.description import FILE_NAME, SPLITS, Dataset, write_dataset
from ofg_deploy.data.folder import describe_folder
from ofg_deploy.data.orientation import check_codes
from ofg_deploy.data.plan import memory_at_hand
from ofg_deploy.data.scans import bad_scans, describe
from ofg_deploy.data.volumes import STATE
from ofg_deploy.errors import InputError, Interrupted, OfgError, UsageError
from ofg_deploy.outputs import check_writable, to_json, write_bytes

Layout = Literal["ixi", "oasis", "lpba40", "abdomenctct"]


def convert(layout: Layout, source: Path, folder: Path, orientation: str | None, overwrite: bool) -> None:
    """A public layout to ``folder``. A conversion that was stopped goes on where it stopped.

    Raises:
        InputError: the source has another layout or unusable files, or ``folder`` holds something else already.
    """
    codes = None if orientation is None else check_codes(orientation)
    if not source.exists():
        raise InputError(f"{source} does not exist: give the folder or zip of the data set")
    _claim(folder, {"layout": layout, "source": str(source.absolute()), "orientation": codes}, overwrite)
    console = _console()
    try:
        with _progress(console, f"reading {layout}") as each:
            dataset = _convert(layout, source, folder, codes, each)
        scans = [(s.image, s.labels) for s in dataset.subjects()]
        if bad := bad_scans(scans):
            raise InputError(f"{describe(bad, len(scans))}. Mend them, or describe the others with ofg data folder")
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; run the same command again to go on") from error
    except OfgError:
        _release(folder)
        raise
    write_dataset(folder / FILE_NAME, dataset)
    _show(console, folder, dataset)
    console.print(f"next: ofg train {folder / FILE_NAME} --recipe {layout} -o run", soft_wrap=True)


def describe_images(
    source: Path, folder: Path, labels: Path | None, seed: int, skip_bad: bool, overwrite: bool
) -> None:
    """Anybody's folder of NIfTI to a ``dataset.json`` in ``folder``; the images stay where they are."""
    check_writable([folder / FILE_NAME], overwrite)
    console = _console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not shows_progress(console)) as progress:
        task = progress.add_task("reading headers", total=None)
        dataset, bad = describe_folder(
            source,
            labels,
            seed,
            memory_at_hand(),
            skip_bad,
            lambda total: progress.update(task, total=total, advance=1),
        )
    if bad:
        warn(terminal(stderr=True), [f"left out: {describe(bad, len(bad) + len(dataset.subjects()))}"])
    write_dataset(folder / FILE_NAME, dataset)
    _show(console, folder, dataset)
    console.print(f"next: ofg train {folder / FILE_NAME} -o run", soft_wrap=True)


def _convert(layout: Layout, source: Path, folder: Path, codes: str | None, each: Callable[..., Any]) -> Dataset:
    if layout == "ixi":
        return transmorph.convert_ixi(source, folder, codes, each)
    if layout == "lpba40":
        return brains.convert_lpba40(source, folder, codes, each)
    pickled = source.is_dir() and any((source / f).is_dir() for f in ("All", "OASIS_L2R_2021_task03/All"))
    if layout == "oasis" and pickled:
        return transmorph.convert_oasis_pickles(source, folder, codes, each)
    if codes is not None:
        raise UsageError("--orientation is for arrays and Analyze files: these NIfTI images have their own")
    if layout == "abdomenctct":
        return learn2reg.convert(source, folder, "AbdomenCTCT", each)
    if source.is_file() or learn2reg.find_description(source, "OASIS") is not None:
        return learn2reg.convert(source, folder, "OASIS", each)
    return brains.convert_oasis_folders(source, each)


def _claim(folder: Path, state: dict[str, Any], overwrite: bool) -> None:
    """Mark the folder with what is converted into it. Nothing in it is deleted; files are replaced one by one.

    Raises:
        InputError: a finished or another conversion is there (without ``overwrite``), or folders that are not ours.
    """
    check_writable([folder / FILE_NAME], overwrite)
    mark = folder / STATE
    begun = any((folder / name).exists() for name in ("images", "labels", "extracted"))
    if begun and not mark.is_file():
        raise InputError(
            f"{folder} has images/, labels/ or extracted/ that ofg data did not make: choose another folder"
        )
    if mark.is_file() and not (folder / FILE_NAME).exists() and mark.read_text() == to_json(state):
        return  # its time says which files are already done
    if begun and not overwrite:
        raise InputError(
            f"{folder} holds an unfinished conversion of another source or orientation (see {STATE} there): run that "
            "again, choose another folder, or add --overwrite"
        )
    (folder / FILE_NAME).unlink(missing_ok=True)
    write_bytes(mark, to_json(state).encode())


def _release(folder: Path) -> None:
    """Take the mark away again where nothing was written."""
    if {p.name for p in folder.iterdir()} == {STATE}:
        (folder / STATE).unlink()
        folder.rmdir()


def _show(console: Console, folder: Path, dataset: Dataset) -> None:
    console.print(f"{dataset.name}, {dataset.modality}", soft_wrap=True)
    table = plain_table("split", "subjects", "with labels", "pairs")
    for split in SPLITS:
        members = dataset.splits.get(split, ())
        labelled = sum(s.labels is not None for s in members)
        listed = (dataset.pairs or {}).get(split, ())
        pairs = f"{len(listed)} listed" if listed else dataset.rule
        table.add_row(split, str(len(members)), str(labelled), pairs)
    console.print(table)
    if dataset.plan is not None:
        grid, spacing = ("x".join(f"{v:g}" for v in values) for values in (dataset.plan.grid, dataset.plan.spacing_mm))
        console.print(
            f"plan: grid {grid} (R x A x S), spacing {spacing} mm, batch size {dataset.plan.batch}", soft_wrap=True
        )
        console.print(f"memory: {dataset.plan.memory}", soft_wrap=True)
    for note in dataset.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"data set: {folder / FILE_NAME}", soft_wrap=True)


def _console() -> Console:
    return terminal()


@contextmanager
def _progress(console: Console, title: str) -> Iterator[Callable[..., Any]]:
    """A function that iterates over a list and moves a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shows_progress(console)) as bar:
        yield lambda items: bar.track(items, description=title)
