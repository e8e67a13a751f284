"""``ofg eval A B``: two sets of registrations compared pair by pair, against scipy's own paired statistics."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_pairs import centres, displacement_mm, write_field
from scipy import stats

from ofg_deploy.errors import InputError
from ofg_deploy.evaluate.compare import BETTER, Comparison
from ofg_deploy.evaluate.pair import Evaluation
from ofg_deploy.evaluate.pairs import Pair

RunCli = Callable[[list[object]], tuple[int, str, str]]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def evaluated(values: dict[str, dict[str, Any]]) -> list[Evaluation]:
    return [Evaluation(Pair(name), numbers, (), {}, ()) for name, numbers in values.items()]


def test_differences_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(0.7, 0.1, 9)
    b = a + rng.normal(0.02, 0.03, 9)
    b[4] = a[4]
    first = {f"p{n}": {"dice": float(v), "folding_percent": 1.5, "seconds": 9.0} for n, v in enumerate(a)}
    second = {f"p{n}": {"dice": float(v), "folding_percent": 0.5} for n, v in reversed([*enumerate(b)])}
    second["p0"]["hd95_mm"] = 3.0  # in one set only
    found = Comparison.of(evaluated({**first, "extra": {"dice": 0.0}}), evaluated(second))
    assert (found.only_first, found.only_second) == (("extra",), ())
    dice, folding = found.differences()
    assert (dice.measure, dice.pairs, folding.measure) == ("dice", 9, "folding_percent")
    assert (dice.first_mean, dice.second_mean) == pytest.approx((a.mean(), b.mean()))
    assert dice.difference == pytest.approx((b - a).mean())
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (dice.low, dice.high) == pytest.approx((interval.low, interval.high))
    assert dice.p == pytest.approx(stats.wilcoxon(b, a, zero_method="wilcox").pvalue)
    assert (dice.second_better, dice.first_better) == (int(np.sum(b > a)), int(np.sum(b < a)))
    assert dice.second_better + dice.first_better == 8
    assert (folding.difference, folding.second_better, folding.low, folding.high) == (-1.0, 9, -1.0, -1.0)


def test_one_pair_and_equal_sets() -> None:
    one = evaluated({"p": {"tre_mean_mm": 2.0}})
    [same] = Comparison.of(one, one).differences()
    assert (same.difference, same.sd, same.low, same.p, same.second_better) == (0.0, None, None, None, 0)
    with pytest.raises(InputError, match="'p' and 'q'"):
        Comparison.of(one, evaluated({"q": {"tre_mean_mm": 2.0}}))
    assert set(BETTER.values()) == {"higher", "lower"}


@pytest.fixture
def lists(tmp_path: Path, make_grid: Any, world_labels: Any, write_nifti: Any) -> tuple[Path, Path]:
    """Two lists of the same two pairs: with the field that made the labels, and with the headers alone."""
    grids = [make_grid("left-handed", (19, 22, 17), (3.6, 3.1, 4.0)), make_grid("RAS", (20, 18, 21), (3.5, 4.1, 3.3))]
    write_field(tmp_path / "t_Warp.nii.gz", grids[0])
    places = centres(grids[0])
    nearest = np.rint(np.moveaxis(places + displacement_mm(places), -1, 0) / 9)
    moving = np.rint(np.moveaxis(centres(grids[1]), -1, 0) / 9)
    for name, index, grid in (("fix", nearest, grids[0]), ("mov", moving, grids[1])):
        labels = (1 + (index.sum(axis=0) % 3)).astype(np.uint8)
        write_nifti(tmp_path / f"{name}_seg.nii.gz", labels, grid.world_from_vox)
    both = []
    for name, transform in (("warped", "t_Warp.nii.gz"), ("headers", "identity")):
        row = f"fix_seg.nii.gz,mov_seg.nii.gz,{transform}"
        path = tmp_path / f"{name}.csv"
        path.write_text(f"name,fixed_labels,moving_labels,transform\none,{row}\ntwo,{row}\n{name},{row}\n")
        both.append(path)
    return both[1], both[0]


def test_two_sets_on_the_command_line(
    lists: tuple[Path, Path], tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "comparison"
    code, printed, err = run_cli(["eval", *lists, "-o", out, "--json"])
    assert code == 0
    assert err.count("left out") == 2
    assert "the first: headers" in err
    record = json.loads((out / "comparison.json").read_text())
    assert json.loads(printed) == record
    assert record["pairs"] == ["one", "two"]
    alone = {}
    for path in lists:
        assert run_cli(["eval", path, "-o", tmp_path / path.stem])[0] == 0
        rows = rows_of(tmp_path / path.stem / "results.csv")
        alone[path.stem] = {row["pair"]: float(row["dice"]) for row in rows}
    dice = next(one for one in record["differences"] if one["measure"] == "dice")
    change = [alone["warped"][pair] - alone["headers"][pair] for pair in ("one", "two")]
    assert dice["difference"] == pytest.approx(np.mean(change))
    assert dice["difference"] > 0.1
    assert dice["second_better"] == 2
    rows = [row for row in rows_of(out / "comparison.csv") if row["measure"] == "dice"]
    assert [(row["pair"], float(row["difference"])) for row in rows] == [
        (pair, pytest.approx(value)) for pair, value in zip(("one", "two"), change, strict=True)
    ]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert run_cli(["eval", *lists, "-o", out])[0] == 3  # it is there already
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = run_cli(["eval", *lists, "-o", out, "--overwrite"])
    table = [line for line in printed.splitlines() if not line.startswith(("/", "diff:"))]
    assert max(map(len, table)) <= 80
    [line] = [line for line in table if line.startswith("Dice ")]
    assert line.split()[-2] == "2/2"
    assert f"{np.mean(change):+.2g}" in line


def test_a_set_is_not_compared_with_itself(lists: tuple[Path, Path], tmp_path: Path, run_cli: RunCli) -> None:
    code, _, err = run_cli(["eval", lists[0], lists[0], "-o", tmp_path / "out"])
    assert code == 2
    assert str(lists[0]) in err
    assert not (tmp_path / "out").exists()
