"""The plots: Dice by label and the mean of each pair; the differences between two sets of registrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ofg_deploy.evaluate.pair import Evaluation, LabelScore

if TYPE_CHECKING:
    from ofg_deploy.evaluate.compare import Comparison

BLUE, ORANGE = "#56b4e9", "#e69f00"  # Okabe and Ito's, told apart with any colour vision
LONGEST = 40  # characters of a name that is drawn in full


def draw_dice(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """One box for the pairs' mean Dice, one for each label, over the pairs that have it. PNG.

    Boxes reach from the first to the third quartile, whiskers to the last value within 1.5 times that range.
    """
    from matplotlib.figure import Figure

    scored = [e for e in evaluations if e.labels]
    by_label: dict[int, list[LabelScore]] = {}
    for score in (s for e in scored for s in e.labels):
        by_label.setdefault(score.label, []).append(score)
    order = sorted(by_label)
    names = ["mean", *(by_label[label][0].name for label in order)]
    values = [[e.numbers["dice"] or 0.0 for e in scored], *([s.dice for s in by_label[label]] for label in order)]

    names = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]
    size = max(4.0, 1.2 + 0.28 * len(names)), 3.5 + 0.08 * max(map(len, names))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    boxes = axes.boxplot(values, widths=0.6, patch_artist=True, medianprops={"color": "black"}, flierprops={"ms": 3})
    for patch, colour in zip(boxes["boxes"], [ORANGE, *[BLUE] * len(order)], strict=True):
        patch.set_facecolor(colour)
    axes.axvline(1.5, color="grey", linewidth=0.8)
    axes.set_xticks(range(1, len(names) + 1), names, rotation=90)
    axes.set(ylim=(-0.02, 1.02), ylabel="Dice", title=f"Dice over {len(scored)} pair{'s' * (len(scored) != 1)}")
    axes.grid(axis="y", alpha=0.4)
    for text in axes.get_xticklabels():
        text.set_parse_math(False)  # a name may hold a dollar sign
    figure.savefig(path, dpi=130, format="png")


def draw_differences(path: Path, names: tuple[str, str], found: Comparison) -> None:
    """A panel for each measure: a dot for the difference of each pair, its mean and the mean's 95 % interval. PNG."""
    from matplotlib.figure import Figure

    differences = found.differences()
    figure = Figure(figsize=(1.2 + 1.7 * max(len(differences), 1), 4.2), layout="constrained")
    panels = figure.subplots(1, max(len(differences), 1), squeeze=False)[0]
    for axes, one in zip(panels, differences, strict=False):
        first, second = found.values(one.measure)[1]
        places = [((7 * k) % 11 - 5) / 25 for k in range(one.pairs)]  # side by side, the same at each drawing
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.plot(places, second - first, "o", color=BLUE, markeredgecolor="black", markeredgewidth=0.3, markersize=5)
        low, high = (one.difference if end is None else end for end in (one.low, one.high))
        spans = [[one.difference - low], [high - one.difference]]
        axes.errorbar([0.35], [one.difference], spans, fmt="D", color=ORANGE, markeredgecolor="black", capsize=4)
        axes.set(xlim=(-0.4, 0.6), xticks=[], xlabel=f"{one.better} is better")
        axes.set_title(one.measure, fontsize=9)
        axes.grid(axis="y", alpha=0.4)
    title = " minus ".join(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in reversed(names))
    figure.suptitle(f"{title}, {len(found.both)} pair{'s' * (len(found.both) != 1)}", parse_math=False)
    figure.savefig(path, dpi=130, format="png")
