"""What the figures say to do, by rules that were fixed before there were figures. Dry runs do not count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
EQUAL, FASTER = 1e-4, 1.3  # Triton is taken where it is as exact as that and as many times faster than plain torch
AIM_PUBLISHED, AIM_BANDWIDTH, AIM_STEP = 15.0, 0.4, 1.3
KERNELS_FROM = 0.3  # share of a training step beyond which inner steps in plain torch need kernels of their own
NETWORKS = ("voxelmorph", "voxelmorph-half", "transmorph", "lku-net")


def verdicts(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each decision; of figures measured twice the newest counts."""
    rows = {row["what"]: row for run in runs if not run["dry_run"] for row in run["rows"] if row["why_not"] is None}
    if not rows:
        return [
            "Nothing was measured on a GPU so far: `auto` stays plain torch on CUDA, and README and docs say untested."
        ]
    return [
        *(backend(rows, kind, option) for kind, option in (("published", "adam"), ("greedy", "greedy"))),
        *aims(rows),
        *training(rows),
        *runtimes(rows),
        *registering(rows),
    ]


def found(rows: dict[str, Row], start: str) -> list[Row]:
    return [row for what, row in rows.items() if what.startswith(start)]


def backend(rows: dict[str, Row], kind: str, option: str) -> str:
    """Triton or plain torch for one kind of inner steps on CUDA."""
    exact = found(rows, f"{kind} steps, Triton,")
    sizes = {
        row["what"].rsplit(", ", 1)[1]: row["figures"]["ms a step"] for row in found(rows, f"{kind} step, Triton,")
    }
    plain = {size: rows.get(f"{kind} step, plain torch, {size}") for size in sizes}
    ratios = {size: row["figures"]["ms a step"] / sizes[size] for size, row in plain.items() if row}
    what = f"Guidance steps `{option}` on CUDA"
    if not exact or not ratios:
        return f"{what}: undecided, the Triton kernels were not both checked and timed; `auto` stays plain torch."
    error = max(number(value) for row in exact for value in row["figures"].values())
    measured = f"relative error {error:.1g}, " + ", ".join(f"{r:.2f} times as fast at {s}" for s, r in ratios.items())
    if error <= EQUAL and min(ratios.values()) >= FASTER:
        return f"{what}: let `auto` take Triton ({measured}; needed: {EQUAL:g} and {FASTER:g})."
    return (
        f"{what}: delete the Triton kernels, `auto` stays plain torch ({measured}; needed: {EQUAL:g} and {FASTER:g})."
    )


def aims(rows: dict[str, Row]) -> Iterable[str]:
    """Of the kernels, by size."""
    for row in found(rows, "published step, Triton,"):
        figures, size = row["figures"], row["what"].rsplit(", ", 1)[1]
        times = number(figures.get("times the published formulation", "nan"))
        share = number(figures["share of the copy bandwidth"])
        yield (
            f"Triton at {size}: {times:.1f} times the published formulation (aim {AIM_PUBLISHED:g}: "
            f"{reached(times >= AIM_PUBLISHED)}), {share:.0%} of the copy bandwidth (aim {AIM_BANDWIDTH:.0%}: "
            f"{reached(share >= AIM_BANDWIDTH)})."
        )


def training(rows: dict[str, Row]) -> Iterable[str]:
    """What guidance costs a training step."""
    guided = [row for row in found(rows, "training step,") if "times the step without guidance" in row["figures"]]
    for row in guided:
        times = row["figures"]["times the step without guidance"]
        name = row["what"].removeprefix("training step, ")
        yield f"{name}: {times:.2f} times the step without guidance (aim {AIM_STEP:g}: {reached(times <= AIM_STEP)})."
    greedy = [r for r in guided if "guidance greedy" in r["what"] and r["what"].endswith("torch")]
    if greedy:
        share = max(row["figures"]["share of the inner steps"] for row in greedy)
        need = "are needed" if share > KERNELS_FROM else "are not needed"
        yield f"Greedy steps in plain torch take up to {share:.0%} of a training step: kernels of their own {need}."


def runtimes(rows: dict[str, Row]) -> Iterable[str]:
    """What ``--runtime auto`` should take on CUDA, for each network and precision."""
    for name in NETWORKS:
        models = [r for r in found(rows, f"{name} ") if ", onnxruntime fp" in r["what"]]
        for row in models:
            figures = row["figures"]
            kind = row["what"].rsplit(", ", 1)[1] if "TF32" not in row["what"] else "onnxruntime fp32, TF32 allowed"
            holds = figures["gate"] == "holds"
            gate = "its gate holds" if holds else f"out of bounds ({figures['gate']})"
            yield f"{name}, {kind}: {figures.get('times eager torch', 0):.2f} times eager torch, {gate}."


def registering(rows: dict[str, Row]) -> Iterable[str]:
    """Pairs a second of a batch, on the GPU and on the same machine's processors."""
    batches = [row for row in found(rows, "ofg register, batch of") if "pairs a second" in row["figures"]]
    on_gpu = [row for row in batches if row["on"] != "cpu"]
    on_cpu = [row for row in batches if row["on"] == "cpu"]
    for gpu in on_gpu:
        for cpu in on_cpu:
            if cpu["what"].startswith(gpu["what"] + ","):
                ratio = gpu["figures"]["pairs a second"] / cpu["figures"]["pairs a second"]
                yield f"{gpu['what']}: the GPU does {ratio:.2f} times the pairs of {cpu['what'].rsplit(', ', 1)[1]}."


def number(value: Any) -> float:
    """A figure; one that was no finite number was written as a word."""
    return float(value)


def reached(yes: bool) -> str:
    return "reached" if yes else "not reached"
