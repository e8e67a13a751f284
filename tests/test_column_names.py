"""Lists of pairs with other columns, with tabs, and with known columns misspelt."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ofg_deploy.batch.pairs import COLUMNS, NEEDED
from ofg_deploy.column_names import edit_distance, meant
from ofg_deploy.errors import InputError
from ofg_deploy.pair_list import ALL_COLUMNS, read_rows

RunCli = Callable[[list[object]], tuple[int, str, str]]


def test_edit_distance_counts_the_shortest_way() -> None:
    """Against a search over all words that one letter's change makes, breadth first, over a small alphabet."""
    letters = "abc"

    def changed(word: str) -> set[str]:
        cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
        return {
            *(a + c + b for a, b in cuts for c in letters),
            *(a + b[1:] for a, b in cuts if b),
            *(a + c + b[1:] for a, b in cuts if b for c in letters),
            *(a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1),
        }

    words = ["".join(w) for n in range(5) for w in itertools.product(letters, repeat=n)]
    for a in words[::7]:
        once = changed(a) | {a}
        for b in words:
            assert (edit_distance(a, b) <= 1) == (b in once), (a, b)
            assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("ca", "abc") == 3  # a swapped pair is not changed again


@pytest.mark.parametrize(
    ("column", "known"),
    [
        *(("Fixed", "fixed"), ("fixd", "fixed"), ("fixed_image", "fixed"), ("moving-labels", "moving_labels")),
        *(("mvoing", "moving"), ("movingg_labels", "moving_labels"), ("moving_seg", "moving_labels")),
        *(("fixedlabels", "fixed_labels"), ("labels", "fixed_labels"), ("moving_landmarks", "moving_points")),
        *(("nmae", "name"), ("inti", "init"), ("moving_lables", "moving_labels"), ("fixed_brainmask", "fixed_mask")),
    ],
)
def test_misspelt_columns_are_recognised(column: str, known: str) -> None:
    assert meant(column, ALL_COLUMNS) == known


@pytest.mark.parametrize(
    "column",
    [
        *("participant_id", "age", "sex", "site", "group", "session", "handedness", "scanner", "field_strength", "qc"),
        *("diagnosis", "weight", "notes", "date", "moving_age", "fixed_session", "tesla", "subject", "species"),
    ],
)
def test_other_columns_are_not_taken_for_misspelt_ones(column: str) -> None:
    assert meant(column, ALL_COLUMNS) is None


def written(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    text = io.StringIO()
    table = csv.DictWriter(text, [*rows[0]], delimiter=delimiter, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path.write_text(text.getvalue())
    return path


ROWS = [
    {
        "participant_id": "sub-01",
        "age": "31",
        "fixed": "a b.nii",
        "moving": "b,c.nii",
        "sex": "F",
        "also": "x.nii;y.nii",
    },
    {"participant_id": "sub-02", "age": "n/a", "fixed": "c.nii", "moving": "d.nii", "sex": "", "also": ""},
]


@pytest.mark.parametrize("kind", ["list.csv", "participants.tsv", "tabs.csv", "list.json"])
def test_columns_that_are_not_used_are_named(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / kind
    if kind == "list.json":
        given: list[dict[str, Any]] = [{**row, "age": number} for number, row in enumerate(ROWS)]
        path.write_text(json.dumps(given))
    else:
        written(path, ROWS, "," if kind == "list.csv" else "\t")
    with caplog.at_level(logging.WARNING, "ofg_deploy"):
        found = read_rows(path, COLUMNS, NEEDED)
    assert found == [
        {"fixed": "a b.nii", "moving": "b,c.nii", "also": "x.nii;y.nii"},
        {"fixed": "c.nii", "moving": "d.nii"},
    ]
    [record] = caplog.records
    assert record.getMessage() == f"{path}: columns that are not used: participant_id, age, sex"


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_misspelt_column_is_refused(tmp_path: Path, delimiter: str) -> None:
    rows = [{"fixed": "a.nii", "moving": "b.nii", "age": "3", "moving_lables": "c.nii"}]
    with pytest.raises(InputError, match=r"'moving_lables'.*'moving_labels'"):
        read_rows(written(tmp_path / "list.csv", rows, delimiter), COLUMNS, NEEDED)


def test_a_list_of_one_verb_is_read_by_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"fixed": "a.nii", "moving": "b.nii", "transform": "t.nii", "split": "training", "init": "none"}]
    assert read_rows(written(tmp_path / "list.csv", rows), ("fixed", "moving"), NEEDED) == [
        {"fixed": "a.nii", "moving": "b.nii"}
    ]
    assert "transform, split, init" in caplog.text


def test_the_command_line_warns_once(tmp_path: Path, run_cli: RunCli) -> None:
    path = written(tmp_path / "participants.tsv", ROWS[1:], "\t")
    for _ in range(2):
        code, _, err = run_cli(["register", "--pairs", path, "-m", "none", "-o", tmp_path / "out", "--quiet"])
        assert code == 6  # there are no such images
        warnings = [line for line in err.splitlines() if "not used" in line]
        assert warnings == [f"ofg: warning: {path}: columns that are not used: participant_id, age, sex"]
