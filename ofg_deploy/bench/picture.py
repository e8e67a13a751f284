"""Speed against error: one marker for each row of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKERS = "osD^vP*X"  # by precision: told apart without colour
SMALLEST_MM = 1e-6  # the scale is linear below this, so that no difference at all has a place


def draw_rows(path: Path, report: dict[str, Any]) -> None:
    """Time (ratio to the first row, logarithmic) against the 99 % field difference from float32 in mm. PNG.

    ``report`` is that of ``bench.table.measure_table``; at least one of its rows has a difference.
    """
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row["why_not"] is None and row["difference"] is not None]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        axes.plot(
            row["ratio"]["median"],
            row["difference"]["field_mm_p99"],
            marker=MARKERS[precisions.index(row["precision"])],
            color=f"C{runtimes.index(row['runtime'])}",
            linestyle="none",
            markersize=9,
            label=f"{row['runtime']} {row['precision']}",
        )
    grid = "x".join(map(str, report["grid"]))
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=SMALLEST_MM)
    largest = max(row["difference"]["field_mm_p99"] for row in rows)
    axes.set_ylim(-SMALLEST_MM / 2, 3 * max(largest, SMALLEST_MM))
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which("{x:g}")
    axes.set(
        xlabel=f"time of a pair, ratio to {rows[0]['runtime']} {rows[0]['precision']}",
        ylabel="field difference from float32, 99 % (mm)",
        title=f"{report['network']}, {grid}, {report['device']}, threads: {report['threads']}",
    )
    axes.grid(alpha=0.4)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130, format="png")
