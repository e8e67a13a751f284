"""``ofg bench`` on a terminal: progress, tables, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ofg_deploy.bench.picture import draw_rows
from ofg_deploy.bench.plan import TableOptions
from ofg_deploy.bench.proof import ProofOptions, prove, turns
from ofg_deploy.bench.table import measure_table
from ofg_deploy.cli.terminal import plain_table, terminal, warn
from ofg_deploy.cli.verbs.building import bars_on
from ofg_deploy.errors import UsageError
from ofg_deploy.extras import need
from ofg_deploy.outputs import check_writable, staged, to_json

MB = 1e6
LOADED = 0.5  # of the cores
DIFFERENCES = {
    "field_mm_mean": ("mean mm", "{:.2g}"),
    "field_mm_p99": ("99 % mm", "{:.2g}"),
    "field_mm_max": ("max mm", "{:.2g}"),
    "dice_difference": ("Dice", "{:.1g}"),
    "folding_difference_percent": ("folding %", "{:.1g}"),
}


def bench_proof(models: Sequence[Path], options: ProofOptions, out: Path | None, overwrite: bool) -> dict[str, Any]:
    """The zero-overhead proof, printed, written to ``out`` and given back.

    Raises as ``bench.proof.prove`` and ``outputs.check_writable``.
    """
    check_writable([out] if out else [], overwrite)
    console = terminal()
    with bars_on(console) as bars:
        task = bars.add_task("timing in turn", total=turns(len(models), options.repeats))
        report = prove(models, options, lambda: bars.advance(task))
    _print_proof(console, report)
    _write(report, out, overwrite)
    return report


def bench_table(
    models: Sequence[Path], options: TableOptions, out: Path | None, plot: Path | None, overwrite: bool
) -> dict[str, Any]:
    """Runtimes and precisions, likewise. Raises as ``bench.table.measure_table`` and ``outputs.check_writable``.

    Raises:
        UsageError: a plot that is no PNG, or of differences nobody could measure.
    """
    if plot and plot.suffix != ".png":
        raise UsageError(f"--plot {plot} must end in .png")
    if plot:
        need("matplotlib")
    check_writable([path for path in (out, plot) if path], overwrite)
    console = terminal()
    with bars_on(console) as bars:
        task = bars.add_task("opening", total=None)
        report = measure_table(models, options, lambda row: bars.update(task, description=row))
    _print_rows(console, report)
    if plot:
        if all(row.get("difference") is None for row in report["rows"]):
            raise UsageError("--plot draws speed against accuracy: add the fp32 model or --checkpoint to compare with")
        with staged([plot], overwrite) as [partial]:
            draw_rows(partial, report)
    _write(report, out, overwrite)
    return report


def _write(report: dict[str, Any], out: Path | None, overwrite: bool) -> None:
    if out:
        with staged([out], overwrite) as [partial]:
            partial.write_text(to_json(report))


def _title(report: dict[str, Any]) -> str:
    grid = "x".join(str(n) for n in report["grid"])
    return f"{report['network']}, {grid}, {report['threads']} threads, {report['repeats']} runs in turn"


def _print_proof(console: Console, report: dict[str, Any]) -> None:
    console.print(_title(report), soft_wrap=True)
    table = plain_table("candidate", "guidance", "p50 (ms)", "ratio (95 %)", "CPU ratio")
    for row in report["latency"]:
        ratios = (_interval(row["ratio"]), f"{row['processor_ratio']['median']:.3f}")
        table.add_row(_short(row["candidate"]), row["guidance"] or "-", _ms(row["p50_s"]), *ratios)
    console.print(table)
    console.print("ratio: to the first row, in turn with it; CPU ratio: of the processor time", soft_wrap=True)
    for row in report["latency"]:
        memory = "" if row["peak_bytes"] is None else f", peak {_megabytes(row['peak_bytes'])} MB"
        console.print(f"{_short(row['candidate'])}: p95 {_ms(row['p95_s'])} ms{memory}, {row['model']}", soft_wrap=True)
    flops = report["flops"]
    same = "same topology" if report["same_topology"] else "topology"
    console.print(
        f"{same}: {report['nodes']} nodes, {report['parameters']} parameters, {report['topology_sha256'][:16]}\n"
        f"{flops['products'] / 1e9:.2f} GFLOP in convolutions and matrix products; values computed elementwise "
        f"{flops['elementwise'] / 1e6:.1f} M, normalised {flops['normalisation'] / 1e6:.1f} M, "
        f"resampled {flops['resampling'] / 1e6:.1f} M",
        soft_wrap=True,
    )
    if report["load_average"] is not None and report["load_average"] > LOADED * report["cores"]:
        load = f"load {report['load_average']:.1f} on {report['cores']} cores before the start"
        advice = "measure again on a quiet machine; until then processor time on one thread is the most reliable"
        warn(terminal(stderr=True), [f"{load}: {advice}"])
    if flops["uncounted"]:
        console.print(f"not counted: {', '.join(flops['uncounted'])}", soft_wrap=True)


def _print_rows(console: Console, report: dict[str, Any]) -> None:
    console.print(_title(report), soft_wrap=True)
    measured = [row for row in report["rows"] if row["why_not"] is None]
    speed = plain_table("runtime", "precision", "p50 (ms)", "ratio", "peak (MB)", "file (MB)")
    accuracy = plain_table("runtime", "precision", *(name for name, _ in DIFFERENCES.values()))
    for row in measured:
        names = (row["runtime"], row["precision"])
        sizes = (_megabytes(row["peak_bytes"]), _megabytes(row["file_bytes"]))
        speed.add_row(*names, _ms(row["p50_s"]), f"{row['ratio']['median']:.2f}", *sizes)
        accuracy.add_row(*names, *_differences(row["difference"]))
    console.print(speed)
    console.print()
    console.print(accuracy)
    pairs = report["pairs"]
    console.print(
        f"ratio: to the first row; mm, Dice and folding: differences from float32, {pairs['count']} pairs "
        f"({pairs['from']})",
        soft_wrap=True,
    )
    for row in report["rows"]:
        if row["why_not"]:
            console.print(f"not measured: {row['runtime']} {row['precision']}: {row['why_not']}", soft_wrap=True)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _short(candidate: str) -> str:
    return candidate.removesuffix(" on the pair")


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / MB:.1f}"


def _differences(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["-"] * len(DIFFERENCES)
    return ["-" if found[key] is None else form.format(found[key]) for key, (_, form) in DIFFERENCES.items()]
