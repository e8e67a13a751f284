"""What passes, warns and fails, and who is an outlier: against numbers worked out here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.report.limits import DEFAULTS, Limit, Limits
from ofg_deploy.report.measures import JUDGED, MEASURES
from ofg_deploy.report.outliers import FEWEST, robust_z, scores


def just_beyond(key: str, value: float) -> float:
    return float(np.nextafter(value, np.inf if JUDGED[key].worse == "high" else -np.inf))


@pytest.mark.parametrize("key", [key for key, limit in DEFAULTS.items() if limit.fail is not None])
def test_a_value_at_its_limit_is_within_it(key: str) -> None:
    limits, (warn, fail) = Limits(), (DEFAULTS[key].warn, DEFAULTS[key].fail)
    assert warn is not None
    assert fail is not None
    assert limits.judge(key, warn) == "pass"
    assert limits.judge(key, just_beyond(key, warn)) == "warn"
    assert limits.judge(key, fail) == "warn"
    assert limits.judge(key, just_beyond(key, fail)) == "fail"


def test_what_has_no_limit_or_no_value_passes() -> None:
    assert Limits().judge("displacement_mm_max", 1e9) == "pass"
    assert Limits().judge("folding_percent", None) == "pass"


def test_direction_of_every_measure_is_what_it_means() -> None:
    high = {"hd95_mm", "folding_percent", "sdlogj", "displacement_mm_max", "inverse_p99_mm", "outlier_z"}
    assert {key for key, measure in JUDGED.items() if measure.worse == "high"} == high
    low = {f"{kind}_{when}" for kind in ("dice", "ncc", "mi") for when in ("after", "gain")}
    low |= {"dice_over_start", "mi_over_start", "min_jacobian", "overlap"}
    assert {key for key, measure in JUDGED.items() if measure.worse == "low"} == low
    assert len({measure.key for measure in MEASURES}) == len(MEASURES)


@pytest.mark.parametrize(
    ("option", "limit"),
    [
        ("folding_percent=8", Limit(1.0, 8.0)),  # the usual warning is milder and stays
        ("folding_percent=0.5", Limit(None, 0.5)),  # it would come after the failure
        ("folding_percent = 0.1:0.5", Limit(0.1, 0.5)),
        ("folding_percent=0.1:", Limit(0.1, None)),
        ("folding_percent=:2", Limit(None, 2.0)),
        ("folding_percent=none", Limit()),
        ("dice_gain=0.1", Limit(None, 0.1)),
        ("dice_gain=-0.2", Limit(0.0, -0.2)),
        ("hd95_mm=3", Limit(None, 3.0)),
    ],
)
def test_options(option: str, limit: Limit) -> None:
    found = Limits.parse(None, [option]).of
    key = option.split("=", maxsplit=1)[0].strip()
    assert found[key] == limit
    assert {**DEFAULTS, key: limit} == dict(found)


def test_file_comes_before_options(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    path.write_text(json.dumps({"sdlogj": {"warn": 0.2, "fail": 0.4}, "overlap": None, "hd95_mm": 3}))
    found = Limits.parse(path, ["hd95_mm=2"]).of
    assert found["sdlogj"] == Limit(0.2, 0.4)
    assert found["overlap"] == Limit()
    assert found["hd95_mm"] == Limit(None, 2.0)


@pytest.mark.parametrize(
    "option",
    ["folding=1", "folding_percent", "folding_percent=", "folding_percent=a", "ncc_before=1", "folding_percent=nan",
     "folding_percent=2:1", "dice_gain=-0.1:0", "folding_percent=1:2:3", "=1"],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match="limit"):
        Limits.parse(None, [option])


ENDLESS = f'{{"overlap": {10**400}}}'


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"overlap": "1"}',
        '{"overlap": true}',
        '{"overlap": {"min": 1}}',
        pytest.param(ENDLESS, id="endless"),
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "limits.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"limits\.json"):
        Limits.parse(path)
    with pytest.raises(InputError, match="cannot be read"):
        Limits.parse(tmp_path / "absent.json")


def test_robust_z_is_the_modified_z_score() -> None:
    values = [0.3, 0.1, 0.4, 0.15, 0.9, 0.26, 0.53]
    median = sorted(values)[3]  # 0.3
    mad = sorted(abs(v - median) for v in values)[3]
    assert robust_z(values) == pytest.approx([0.6745 * (v - median) / mad for v in values], rel=1e-12)


def test_robust_z_where_most_values_are_alike() -> None:
    assert robust_z([2.0, 2.0, 2.0, 2.0, 12.0]) == pytest.approx([0, 0, 0, 0, 10 / (1.253314 * 2)])
    assert robust_z([0.1] * 9) == [0.0] * 9


def test_robust_z_of_a_normal_sample_counts_standard_deviations() -> None:
    values = np.random.default_rng(0).normal(3, 0.2, 20001)
    assert robust_z(list(values)) == pytest.approx((values - 3) / 0.2, abs=0.15)


def test_a_deviation_that_does_not_matter_makes_no_outlier() -> None:
    """Most pairs fold nowhere, so that the spread is nearly zero; 0.17 % of the voxels is still no reason to look."""
    rows: list[dict[str, float | None]] = [{"folding_percent": 1e-5 * at} for at in range(36)]
    unbounded = robust_z([*(1e-5 * at for at in range(36)), 0.17])[-1]
    assert unbounded > 200
    [*_, (z, measure)] = scores([*rows, {"folding_percent": 0.17}])
    assert (z, measure) == (pytest.approx(3.5 * 0.17 / 0.5, rel=1e-2), "folding_percent")
    [*_, (z, _)] = scores([*rows, {"folding_percent": 0.8}])
    assert z == pytest.approx(3.5 * 0.8 / 0.5, rel=1e-2)  # this one is


def test_floors_of_distances_follow_the_anatomy() -> None:
    """5 mm more than 20 mm is nothing, 5 mm more than 2 mm is: the floor is a share of the median."""
    for median, seen in ((20.0, False), (2.0, True)):
        rows: list[dict[str, float | None]] = [{"hd95_mm": median + 1e-3 * at} for at in range(-5, 6)]
        assert (scores([*rows, {"hd95_mm": median + 5}])[-1][0] > 3.5) == seen  # type: ignore[index]


def test_an_outlier_is_one_on_the_bad_side_only() -> None:
    rng = np.random.default_rng(1)
    rows: list[dict[str, float | None]] = [
        {"ncc_after": rng.normal(0.9, 0.01), "hd95_mm": rng.normal(3, 0.1), "ncc_before": rng.normal(0.5, 0.01)}
        for _ in range(20)
    ]
    rows[3] |= {"ncc_after": 0.8, "hd95_mm": 1.0}  # a low correlation is bad, a short distance is not
    rows[5] |= {"hd95_mm": 9.0, "ncc_after": 1.0}
    rows[7] |= {"ncc_before": 0.0}  # describes the images, not their registration
    rows[9] = {}
    found = scores(rows)
    ncc, hd95 = (np.array([r[key] for r in rows if r], dtype=float) for key in ("ncc_after", "hd95_mm"))
    by_ncc = 0.6745 * (0.8 - np.median(ncc)) / np.median(np.abs(ncc - np.median(ncc)))
    by_hd95 = 0.6745 * (9.0 - np.median(hd95)) / np.median(np.abs(hd95 - np.median(hd95)))
    assert min(-by_ncc, by_hd95) > 3.5
    floors = 0.05 / 3.5, 0.3 * float(np.median(hd95)) / 3.5  # a spread counts as at least this
    assert found[3] == (pytest.approx((np.median(ncc) - 0.8) / floors[0]), "ncc_after")
    by_hd95 = (9.0 - np.median(hd95)) / floors[1]
    assert found[5] == (pytest.approx(by_hd95), "hd95_mm")
    assert found[9] is None
    assert found[7] is not None
    assert found[7][0] < 3.5
    assert all(score is None or score[0] >= 0 for score in found)


def test_few_pairs_have_no_outlier() -> None:
    rows: list[dict[str, float | None]] = [{"ncc_after": 0.9 + 0.01 * at} for at in range(FEWEST - 1)]
    assert scores(rows) == [None] * len(rows)
    assert None not in scores([*rows, {"ncc_after": 0.1}])
