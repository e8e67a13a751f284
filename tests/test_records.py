"""Records that do not fit: which entry is named, with what it holds and what was expected."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from report_pairs import write_pair

from ofg_deploy.errors import InputError
from ofg_deploy.records import fitted
from ofg_deploy.sidecar import Fill, Input, Named, Resampling, Sidecar, Start, find


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: int = 0


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int, int]
    name: str = "x"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    table: dict[str, float | None]
    many: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.table.get("bad"):
            raise ValueError("table.bad must be 0")


GOOD = {"inner": {"size": [2, 3, 4]}, "table": {"one": 1, "two": None}}


def told(content: Any, kind: type[Any], exactly: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        fitted(content, kind, "f.json is damaged", "do this", exactly)
    text = str(caught.value)
    assert text.startswith("f.json is damaged: ")
    assert text.endswith(": do this")
    assert "\n" not in text
    return text.removeprefix("f.json is damaged: ").removesuffix(": do this")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"inner": 5}, "inner is 5, expected an object"),
        ({"inner": {}}, "inner.size is missing"),
        ({"inner": {"size": [2, "3", 4]}}, 'inner.size[1] is "3", expected a whole number'),
        ({"inner": {"size": [2, 3.0, 4]}}, "inner.size[1] is 3.0, expected a whole number"),
        ({"inner": {"size": [2, True, 4]}}, "inner.size[1] is true, expected a whole number"),
        ({"inner": {"size": [2, 3]}}, "inner.size is [2, 3], expected a list of length 3"),
        ({"inner": {"size": [1, 2, 3], "name": None}}, "inner.name is null, expected a text"),
        ({"table": {"one": 1, "a.b": "2", "c": 3}}, 'table.a.b is "2", expected a number or null'),
        ({"table": {"one": 10**400}}, f"table.one is {'1' + '0' * 39}..., out of range"),
        ({"table": {"bad": 1}}, "table.bad must be 0"),
        ({"many": [GOOD["inner"], {"size": "x" * 99}]}, f'many[1].size is "{"x" * 39}..., expected a list'),
    ],
)
def test_the_entry_is_named_with_its_value_and_what_was_expected(changed: dict[str, Any], expected: str) -> None:
    fitted(GOOD, Outer, "f.json is damaged")
    assert told({**GOOD, **changed}, Outer) == expected


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        ([1], Outer, "it is [1], expected an object"),
        (None, dict[str, int], "it is null, expected an object"),
        ({"1": 2, "x": 3}, dict[int, int], "it has a key that is not a whole number"),
        ({"a": 1, "b": 2}, Strict, "b is not known"),
        ({"p": {"a": 1}, "q": {"b": 2}}, dict[str, Strict], "q.b is not known"),
    ],
)
def test_other_types(content: Any, kind: type[Any], expected: str) -> None:
    assert told(content, kind) == expected


def test_exactly_means_every_entry_and_no_other_at_any_depth() -> None:
    whole = {"inner": {"size": [2, 3, 4], "name": "n"}, "table": {}, "many": [{"size": [1, 1, 1], "name": "m"}]}
    found = fitted(whole, Outer, "", exactly=True)
    assert found == Outer(Inner((2, 3, 4), "n"), {}, (Inner((1, 1, 1), "m"),))
    assert told(GOOD, Outer, exactly=True) == "many is missing"
    assert told({**whole, "inner": {"size": [2, 3, 4]}}, Outer, exactly=True) == "inner.name is missing"
    assert told({**whole, "many": [{**whole["inner"], "z": 1}]}, Outer, exactly=True) == "many[0].z is not known"
    assert told({**whole, "table": 1}, Outer, exactly=True) == "table is 1, expected an object"


def test_a_sidecar_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Numbers of numpy too; what a registration does not have is left out."""
    start = [[0.5, 0, 0, 3], [0, -2, 0, 4], [0, 0, 1.25, -5], [0, 0, 0, 1]]
    made = Sidecar(
        inputs={role: Input(f"{role}.nii", "0" * 64, [3, 4, 5]) for role in ("fixed", "moving")},
        outputs={"transform": "a_Warp.nii.gz"},
        transform={"unit": "mm"},
        start=Start(tuple(map(tuple, start)), asked="affine", kept="moments"),
        metrics={"ncc_after": np.float64(0.75), "dice_after": None, "dice_per_label": {"4": np.float64(0.5)}},
        seconds={"read": 0.5},
        fill={"moving": Fill(-1000.0, "given")},
        interpolation={"also": Resampling("linear", None)},
    )
    path = tmp_path / "a.json"
    path.write_text(made.to_json())
    read = Sidecar.read(path)
    assert read == made
    np.testing.assert_array_equal(read.moving_from_fixed, start)
    assert read.per_label("dice") == {"4": 0.5}
    assert read.per_label("hd95_mm") == {}
    plain = json.loads(path.read_text())
    assert plain["start"] == {"moving_from_fixed": start, "asked": "affine", "kept": "moments"}
    assert plain["interpolation"] == {"also": {"method": "linear", "found": None}}
    assert not {"points", "inverse", "refinement", "landmarks"} & plain.keys()


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("inputs", "moving"), None, "inputs.moving is null, expected an object"),
        (("inputs", "moving", "sha256"), 3, "inputs.moving.sha256 is 3, expected a text"),
        (("inputs",), {}, "inputs.fixed is missing"),
        (("outputs",), {"warped": "w.nii"}, "outputs.transform is missing"),
        (("outputs", "warped"), 5, "outputs.warped is 5, expected a text"),
        (("start", "moving_from_fixed"), np.zeros((4, 4)).tolist(), "start.moving_from_fixed is not"),
        (("start", "moving_from_fixed"), [[1, 2]], "start.moving_from_fixed is [[1, 2]], expected a list of length 4"),
        (("start", "moving_from_fixed"), (np.eye(4) * 1e9).tolist(), "start.moving_from_fixed is not"),
        (("seconds", "read"), "1", 'seconds.read is "1", expected a number'),
        (("metrics", "sdlogj"), float("nan"), "metrics.sdlogj is nan, no finite number"),
        (("metrics", "sdlogj"), True, "metrics.sdlogj is True, no finite number"),
        (("metrics", "dice_per_label"), [1], "metrics.dice_per_label is [1], expected a table of labels"),
        (("metrics", "dice_per_label", "1"), 1e31, "metrics.dice_per_label.1 is 1e+31, no finite number"),
        (("warnings",), "x", 'warnings is "x", expected a list'),
        (("runtime",), {"name": "x"}, "runtime.provider is missing"),
        (
            ("written",),
            {"warped": {"bytes": 1.5, "sha256": ""}},
            "written.warped.bytes is 1.5, expected a whole number",
        ),
    ],
)
def test_a_damaged_sidecar_says_where(tmp_path: Path, place: tuple[str, ...], value: Any, expected: str) -> None:
    path = write_pair(tmp_path, "a_to_b")
    Sidecar.read(path)
    record = json.loads(path.read_text())
    at = record
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        Sidecar.read(path)
    assert str(caught.value).startswith(f"{path} is a damaged sidecar: {expected}")


def test_which_json_files_of_a_folder_are_sidecars(tmp_path: Path) -> None:
    mine = write_pair(tmp_path, "a_to_b")
    named = write_pair(tmp_path / "pair", "a_to_b")
    write_pair(tmp_path / ".partial-x", "a_to_b")
    (tmp_path / "batch.json").write_text('{"tool": "ofg_deploy", "kind": "batch"}')
    (tmp_path / "theirs.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"tool": "ofg_de')
    assert find(tmp_path, broken=False) == [mine, named]
    assert find(tmp_path, broken=True) == [mine, tmp_path / "half.json", named]
    assert Named.read(tmp_path / "batch.json") is Named.read(tmp_path / "gone.json") is None
    assert Named.read(mine).outputs["transform"] == "a_to_b_Warp.nii.gz"
